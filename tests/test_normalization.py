"""Batch normalisation on every backend: the definition, its gradients, the activations after it, odd inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import npconv as nc
from npconv import nn

ONES = np.ones(3)

# The last two: planes that are gone through one by one; more images than are added in float32, in blocks of channels.
SHAPES = [(4, 3), (2, 3, 7), (3, 5, 4, 6), (2, 2, 3, 1, 4), (1, 1, 9), (2, 3, 11, 13), (35, 9, 2, 2)]


def definition(x: Any, weight: Any, bias: Any, eps: float, activation: str | None) -> Any:
    """As the paper has it, a channel at a time, in extended precision."""
    y = np.empty(x.shape, np.longdouble)
    for c in range(x.shape[1]):
        part = x[:, c].astype(np.longdouble)
        y[:, c] = (part - part.mean()) / np.sqrt(part.var() + eps) * weight[c] + bias[c]
    return np.clip(y, 0, {"relu": np.inf, "relu6": 6}[activation]) if activation else y


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_the_definitions(
    backend: str, shape: tuple[int, ...], activation: str | None
) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 2, shape), rng.standard_normal(shape)
    weight, bias, eps = rng.normal(3, 1, shape[1]), rng.normal(2, 1, shape[1]), 1e-5
    y, mean, var, pullback = nc.batch_norm_vjp(x, weight, bias, eps, activation=activation, backend=backend)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(y, definition(x, weight, bias, eps, activation).astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mean, x.mean(axis=axes), rtol=1e-13)
    np.testing.assert_allclose(var, x.var(axis=axes), rtol=1e-13)
    if activation == "relu6" and x.size > 50:
        assert (y == 0).any()
        assert (y == 6).any()
    dx, dweight, dbias = pullback(dy)
    # Central differences: the step is small beside the distance of any result to a corner, or that result is left out.
    step = 1e-5
    for array, grad in ((x, dx), (weight, dweight), (bias, dbias)):
        for place in list(np.ndindex(array.shape))[:12]:
            values = []
            for sign in (1, -1):
                moved = array.copy()
                moved[place] += sign * step
                arguments = [moved if part is array else part for part in (x, weight, bias)]
                values.append(float((definition(*arguments, eps, activation) * dy).sum()))
            np.testing.assert_allclose(grad[place], (values[0] - values[1]) / (2 * step), rtol=2e-5, atol=2e-5)


def test_backends_agree_in_float32_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(1000, 1, (8, 3, 17, 5)).astype(np.float32)
    results = [nc.batch_norm_vjp(x, backend=name)[0] for name in ("numpy", "numba")]
    wide = nc.batch_norm_vjp(x.astype(float))[0]
    for y in results:
        assert y.dtype == np.float32
        # The mean is rounded once, by half a unit of 1000, 3e-5; the rest is small beside it.
        np.testing.assert_allclose(y, wide, atol=1e-4)


def test_dtypes_and_empty_batches(backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float16)
    y, mean, _, pullback = nc.batch_norm_vjp(x, backend=backend)
    assert (y.dtype, mean.dtype) == (np.float16, np.float32)
    assert pullback(y)[0].dtype == np.float16
    assert pullback(y)[1:] == (None, None)
    ones = np.ones(3, np.float32)
    y, mean, var, pullback = nc.batch_norm_vjp(x[:0], ones, ones, backend=backend)
    assert (y.shape, y.dtype) == ((0, 3, 5), np.float32)
    assert (mean == 0).all()
    assert (var == 1).all()
    dx, dweight, dbias = pullback(y)
    assert dx.shape == (0, 3, 5)
    assert (dweight == 0).all()
    assert (dbias == 0).all()


def test_a_nan_stays_in_its_channel_and_passes_no_gradient_through_a_clamp(backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 4))
    x[0, 0, 0] = np.nan
    y, _, _, pullback = nc.batch_norm_vjp(x, np.ones(2), np.zeros(2), activation="relu", backend=backend)
    assert np.isnan(y[:, 0]).all()
    assert np.isfinite(y[:, 1]).all()
    dx, _, dbias = pullback(np.ones_like(x))
    assert np.isfinite(dx[:, 1]).all()
    assert dbias[0] == 0


@pytest.mark.parametrize("size", [6, 25])
def test_the_gradient_passes_exactly_where_the_result_is_between_the_bounds(backend: str, size: int) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(5, 3, (7, 6, size, size)).astype("f4"), rng.integers(1, 9, (7, 6, size, size)).astype("f4")
    weight, bias = rng.normal(3, 1, 6).astype("f4"), np.array([2, 0, 1, 0, 3, 0], "f4")
    weight[-1] = 0
    y, _, _, pullback = nc.batch_norm_vjp(x, weight, bias, activation="relu6", backend=backend)
    # Whole numbers, whose sums are exact.
    assert (pullback(dy)[2] == np.where((y > 0) & (y < 6), dy, 0).sum(axis=(0, 2, 3))).all()


@pytest.mark.parametrize("size", [6, 12])
def test_bits_do_not_depend_on_the_number_of_threads(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = pytest.importorskip("npconv.kernels.cpu.threads")
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    x, dy = np.random.default_rng(0).standard_normal((2, 5, 29, size, size), "f4")
    weight, found = np.ones(29, "f4"), []
    try:
        for count in (1, 2, 3):
            nc.set_num_threads(count)
            y, mean, var, pullback = nc.batch_norm_vjp(x, weight, weight, activation="relu", backend="numba")
            found.append((y, mean, var, *pullback(dy)))
    finally:
        nc.set_num_threads(None)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.ReLU6])
def test_a_rectifier_after_a_normalisation_is_the_same_in_one_pass(
    backend: str, rectifier: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 4, (3, 2, 5, 4)), rng.standard_normal((3, 2, 5, 4))
    together = nn.Sequential(nn.BatchNorm2d(2, dtype="float64"), rectifier(), nn.Sequential())
    for parameter in together.parameters():
        parameter.value = np.array([3.0, -2.0])
    norm = nn.BatchNorm2d(2, dtype="float64")
    norm.load_state_dict({name.removeprefix("0."): value for name, value in together.state_dict().items()})
    apart = rectifier()
    with nc.use_backend(backend):
        np.testing.assert_allclose(together(x), apart(norm(x)), rtol=1e-13)
        np.testing.assert_allclose(together.backward(dy), norm.backward(apart.backward(dy)), rtol=1e-11, atol=1e-13)
        for mine, other in zip(together.parameters(), norm.parameters(), strict=True):
            np.testing.assert_allclose(mine.grad, other.grad, rtol=1e-12)
        assert (together[0].running_var.value == norm.running_var.value).all()
        with pytest.raises(RuntimeError, match="each forward pass serves one backward pass"):
            together.backward(dy)
        np.testing.assert_allclose(together.eval()(x), apart(norm.eval()(x)), rtol=1e-13)
        # A rectifier in evaluation mode, or one of a person's own, is run as it is.
        together.train()
        together[1].eval()
        monkeypatch.setattr(rectifier, "forward", lambda _, x: x + 100)
        assert together(x).min() > 50


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: nc.batch_norm_vjp(x, ONES), ValueError, "weight and bias must be given both or not at all"),
        (lambda x: nc.batch_norm_vjp(x[0, 0]), ValueError, r"x must have at least 2 dimensions, .* shape \(4,\)"),
        (lambda x: nc.batch_norm_vjp(x, ONES[1:], ONES[1:]), ValueError, r"weight must have shape \(3,\)"),
        (lambda x: nc.batch_norm_vjp(x.astype(int)), TypeError, "must be of a floating dtype, got int64"),
        (lambda x: nc.batch_norm_vjp(x, activation="tanh"), ValueError, "activation"),
        (lambda x: nc.batch_norm_vjp(x, eps=-1.0), ValueError, "eps must be finite and zero or more, got -1.0"),
        (lambda x: nc.batch_norm_vjp(x)[3](x[:1]), ValueError, r"dy must have shape \(2, 3, 4\)"),
    ],
)
def test_what_is_wrong_is_named(call: Callable[..., object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(np.ones((2, 3, 4)))
