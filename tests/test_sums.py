"""Sums with an activation: what NumPy gives, in place too, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npconv as nc

RNG = np.random.default_rng(0)
ACTIVATIONS: dict[str | None, Any] = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def normal(size: int, dtype: str = "float32") -> Any:
    return (4 * RNG.standard_normal(size)).astype(dtype)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_what_numpy_gives(backend: str, activation: str | None) -> None:
    for dtype in ("float32", "float64"):
        for size in (0, 1, 31, 2**14, 2**15 + 5):
            x, other = normal(size, dtype), normal(size, dtype)
            expected = ACTIVATIONS[activation](x + other)
            wide = np.full(size + 2, 7, dtype)
            y = nc.add(x, other, activation, backend=backend, out=wide[1:-1])
            assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
            assert wide[0] == wide[-1] == 7
            assert_array_equal(nc.add(x, other, activation, backend=backend), y)
            kept = x.copy()
            assert nc.add(x, other, activation, backend=backend, out=x) is x
            assert_array_equal(x, y)
            assert_array_equal(nc.add(kept, other, activation, backend=backend, out=other), y)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_other_dtypes_orders_and_numbers(backend: str) -> None:
    a = np.array([[100, -3], [7, 0]], np.int8)
    assert_array_equal(nc.add(a, a, "relu", backend=backend), [[0, 0], [14, 0]])  # wraps as NumPy's
    x = normal(12).reshape(3, 4)
    found = nc.add(x.T, x.T.astype("float64"), backend=backend)
    assert found.dtype == "float64"
    assert_array_equal(found, 2 * x.T)
    assert nc.add(a.astype("float16"), a.astype("float16"), backend=backend).dtype == "float16"
    assert_array_equal(nc.add(1j * x, x, backend=backend), 1j * x + x)
    special = np.array([np.nan, np.inf, -np.inf, -0.0], "float32")
    assert_array_equal(nc.add(special, special, "relu", backend=backend), [np.nan, np.inf, 0, 0])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_bad_input(backend: str) -> None:
    x = normal(8)
    memory = normal(9)
    read_only = normal(8)
    read_only.flags.writeable = False
    for arguments, kind, message in (
        ((x, x[:4]), ValueError, r"other must have shape \(8,\), that of x; got \(4,\)"),
        ((x, x, "tanh"), ValueError, "activation"),
        ((1j * x, x, "relu"), TypeError, "activation 'relu' is not defined for complex"),
        ((x, [1.0]), TypeError, "other must be an array"),
    ):
        with pytest.raises(kind, match=message):
            nc.add(*arguments, backend=backend)
    for out, message in ((memory[1:], "out must not share memory with x"), (read_only, "out must be writeable")):
        with pytest.raises(ValueError, match=message):
            nc.add(memory[:8], x, backend=backend, out=out)
    with pytest.raises(ValueError, match="out must be writeable"):
        nc.add(read_only, x, backend=backend, out=read_only)
