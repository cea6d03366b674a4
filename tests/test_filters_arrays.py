"""Other people's arrays: what comes in goes out, in the same memory where it can; labels stay on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import npconv as nc
from npconv import filters
from npconv.arrays import Operands

X = np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)


def maker(name: str) -> Any:
    """What makes an array of a library from NumPy's."""
    if name == "torch":
        return pytest.importorskip("torch").from_numpy
    return pytest.importorskip({"jax": "jax.numpy", "array_api_strict": "array_api_strict"}[name]).asarray


@pytest.mark.parametrize("name", ["torch", "jax", "array_api_strict"])
def test_what_comes_in_goes_out(name: str) -> None:
    make = maker(name)
    x, w = make(X.copy()), make(W.copy())
    y = nc.correlate(x, w, nan_policy="omit")
    assert type(y) is type(x)
    np.testing.assert_array_equal(np.from_dlpack(y), nc.correlate(X, W))
    y, pullback = filters.convolve_vjp(x, W)
    gradients = pullback(y)
    assert [type(value) for value in (y, *gradients)] == [type(x)] * 3
    y = nc.conv2d(make(X[None, None].copy()), make(W[None, None].copy()), padding=1)
    assert type(y) is type(x)
    np.testing.assert_array_equal(np.from_dlpack(y), nc.conv2d(X[None, None], W[None, None], padding=1))


def test_memory_is_shared_where_it_can_be() -> None:
    torch = pytest.importorskip("torch")
    x, w, out = torch.from_numpy(X.copy()), torch.from_numpy(W.copy()), torch.zeros(6, 7)
    assert np.shares_memory(Operands(None, x=x).load("x"), x.numpy())
    assert nc.correlate(x, w, out=out) is out
    np.testing.assert_array_equal(out.numpy(), nc.correlate(X, W))
    # A transposed tensor is read where it is, with its strides.
    np.testing.assert_array_equal(nc.correlate(x.T, w).numpy(), nc.correlate(X.T, W))


def labelled() -> Any:
    xarray = pytest.importorskip("xarray")
    coordinates = {"x": np.arange(7) * 0.5, "lat": ("y", np.arange(6)), "height": 3.0}
    return xarray.DataArray(X, coordinates, ("y", "x"), "temperature", {"units": "K"})


@pytest.mark.parametrize(
    ("how", "rows", "columns"),
    [
        ({}, slice(None), slice(None)),
        ({"stride": (2, 3)}, slice(0, 6, 2), slice(0, 7, 3)),
        ({"mode": "valid"}, slice(1, 5), slice(1, 7)),
        ({"mode": "valid", "stride": 2}, slice(1, 5, 2), slice(1, 7, 2)),
    ],
)
def test_labels_stay_on(how: dict[str, Any], rows: slice, columns: slice) -> None:
    x = labelled()
    for function in (nc.correlate, nc.convolve):
        y = function(x, W, **how)
        np.testing.assert_array_equal(y.data, function(X, W, **how))
        expected = x.isel(y=rows, x=columns)
        assert (y.dims, y.name, y.attrs) == (x.dims, x.name, x.attrs)
        assert list(y.coords) == list(expected.coords)
        for name, value in expected.coords.items():
            np.testing.assert_array_equal(y.coords[name], value)


def test_labels_of_a_full_result_are_those_that_exist() -> None:
    x = labelled()
    y = nc.convolve(x, W[0], axes=1, mode="full", boundary="constant")
    assert y.shape == (6, 8)
    assert set(y.coords) == {"lat", "height"}


def test_labels_of_gradients_masks_and_results() -> None:
    x = labelled()
    mask = x > 1
    y, pullback = filters.correlate_vjp(x, W, mask=mask, nan_policy="omit")
    dx, dw = pullback(y)
    assert dx.coords.equals(x.coords)
    assert isinstance(dw, np.ndarray)
    _, plain = filters.correlate_vjp(X, W, mask=mask.data, nan_policy="omit")
    np.testing.assert_array_equal(dx.data, plain(y.data)[0])
    with pytest.raises(ValueError, match="dimensions of x"):
        nc.correlate(x, W, mask=mask.rename(x="z"), nan_policy="omit")
    out = x.copy(data=np.zeros_like(X))
    nc.correlate(x, W, out=out)
    np.testing.assert_array_equal(out.data, nc.correlate(X, W))
