"""Winograd's CUDA kernels, executed on the CPU."""

from __future__ import annotations

import cuda_on_cpu
import numpy as np
import pytest
from fake_cupy import device, download, poisoned, upload, waiting  # noqa: F401 - a fixture
from strategies import Problem
from test_cuda_kernels import problem

import npconv as nc
from npconv import reference
from npconv.algorithms import base
from npconv.algorithms import winograd as algorithm
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.kernels.cuda import loader, winograd

SHAPES = {
    "F(2,3)": (problem(3, 5, 1, (9, 12), (3, 3), padding=1), ((2, 3), (2, 3))),
    "F(4,3), groups": (problem(4, 6, 2, (9, 10), (3, 3), padding=1), ((4, 3), (4, 3))),
    "F(6,3), ragged": (problem(2, 3, 1, (11, 7), (3, 3), 1, ((0, 2), (1, 0))), ((6, 3), (6, 3))),
    "one axis of the kernel": (problem(2, 3, 1, (5, 9), (1, 5), padding=0), ((1, 1), (4, 5))),
    "a signal": (problem(3, 4, 1, (21,), (3,), padding=1), ((4, 3),)),
}


def bound(spec: ConvSpec, tile, x: np.ndarray, w: np.ndarray, dtype: str) -> np.ndarray:
    """The proven bound of `npconv.algorithms.winograd.error_bound`, for a tile of our choice."""
    fs, backend = tuple(f.absolute() for f in algorithm.matrices(tile)), require("numpy")
    points = algorithm.weight_points(backend, spec, fs, np.abs(w).astype(float))
    passed = algorithm.correlated(backend, spec, tile, fs, np.abs(x).astype(float), points)
    return algorithm.error_factor(tile, spec.in_channels // spec.groups, np.dtype(dtype)) * (passed + 10)


def forward(spec, fs, x, w, bias, activation, dtype: str, turned: bool = False) -> np.ndarray:
    count = int(np.prod([len(f.bt) for f in fs]))
    values = poisoned((count, spec.out_channels, spec.in_channels // spec.groups), dtype)
    points = winograd.Points(values, upload(w), turned)
    loader.run(winograd.weights(spec, fs, points))
    y = poisoned((spec.batch, spec.out_channels, *spec.window.out), dtype)
    bias = None if bias is None else upload(bias)
    loader.run(*winograd.forward(spec, fs, upload(x), points, bias, activation, y, poisoned))
    return download(y)


def spec_of(given: Problem) -> ConvSpec:
    return ConvSpec.of(given.x_shape, given.w_shape, given.stride, given.pairs, given.dilation, given.groups)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in SHAPES), ("F(4,3), groups", "float64")])
def test_forward_and_input_gradient(name: str, dtype: str, monkeypatch) -> None:
    given, tile = SHAPES[name]
    # A few rows of tiles a block, so that blocks begin and end within an image.
    monkeypatch.setattr(winograd, "WORKSPACE", 3 * 2**13)
    spec, fs = spec_of(given), algorithm.matrices(tile)
    steps = {"stride": given.stride, "padding": given.pairs, "dilation": given.dilation, "groups": given.groups}
    rng = np.random.default_rng(0)
    x, w, bias = (
        rng.standard_normal(s).astype(dtype) for s in (spec.x_shape, spec.w_shape, (spec.out_channels,))
    )  # fmt: skip
    right = reference.conv(*(a.astype(float) for a in (x, w, bias)), **steps)
    for order in ("random", "descending"):
        with cuda_on_cpu.schedule(order, 1):
            y = forward(spec, fs, x, w, bias, "relu", dtype)
        assert (abs(y - np.maximum(right, 0)) <= bound(spec, tile, x, w, dtype)).all()
    if base.is_turnable(spec):
        back, dy = base.turned(spec), rng.standard_normal(spec.y_shape).astype(dtype)
        dx = forward(back, fs, dy, w, None, None, dtype, turned=True)
        right = reference.conv_input_grad(dy.astype(float), w.astype(float), spec.window.size, **steps)
        turned = algorithm.turned_weights(require("numpy"), spec, w)
        assert (abs(dx - right) <= bound(back, tile, dy, turned, dtype)).all()


@pytest.mark.usefixtures("device")
def test_the_public_functions_run_them(monkeypatch) -> None:
    launched = []
    run = loader.run
    monkeypatch.setattr(nc.kernels.cuda, "run", lambda *plans: (launched.extend(plans), run(*plans)))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 8, 8), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
    y = download(nc.conv2d(upload(x), upload(w), padding=1, algorithm="winograd", activation="hardswish"))
    np.testing.assert_allclose(y, nc.conv2d(x, w, padding=1, algorithm="direct", activation="hardswish"), atol=1e-4)
    dx = download(nc.conv_input_grad(upload(y), upload(w), x.shape, padding=1, algorithm="winograd"))
    np.testing.assert_allclose(
        dx, nc.conv_input_grad(np.array(y), w, x.shape, padding=1, algorithm="direct"), atol=1e-4
    )
    deep, taps = rng.standard_normal((1, 2, 3, 9, 8), np.float32), rng.standard_normal((3, 2, 2, 3, 3), np.float32)
    how = {"padding": (1, 2, 2), "dilation": (1, 2, 2)}
    y = download(nc.conv(upload(deep), upload(taps), **how, algorithm="winograd"))
    np.testing.assert_allclose(y, nc.conv(deep, taps, **how, algorithm="direct"), atol=1e-4)
    names = [plan.kernel.name for plan in launched]
    assert names == 3 * ["winograd_weights", "winograd_data", "implicit_gemm", "winograd_results"]


@pytest.mark.usefixtures("device")
def test_nan_infinity_and_huge_numbers_stay_where_they_are() -> None:
    given = problem(3, 4, 1, (13, 9), (3, 3), padding=1)
    steps = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    rng = np.random.default_rng(0)
    x, w, dy = (
        rng.integers(-3, 4, shape).astype(np.float32) for shape in (given.x_shape, given.w_shape, given.y_shape)
    )
    x[0, 1, 2, 3], x[0, 2, 12, 8], dy[0, 0, 0, 0] = np.nan, np.inf, -np.inf
    how = {"padding": 1, "algorithm": "winograd"}
    y, pullback = nc.conv_vjp(upload(x), upload(w), **how)
    with np.errstate(invalid="ignore"):
        right = reference.conv(x, w, **steps), reference.conv_input_grad(dy, w, (13, 9), **steps)
    for actual, expected in zip((y, pullback(upload(dy))[0]), right, strict=True):
        assert not np.isfinite(expected).all()
        np.testing.assert_allclose(download(actual), expected, rtol=1e-6, atol=1e-3)
    # No result of this is larger than the largest float32, but numbers within the transforms are.
    x, w = np.zeros_like(x), np.ones_like(w)
    x[1, 0, 3, 3] = 2.0**127
    y = download(nc.conv(upload(x), upload(w), **how))
    expected = nc.conv(x, w, padding=1, algorithm="direct")
    assert np.isfinite(y).all()
    assert (abs(y - expected) <= 1e-4 * x.max() * w.max()).all()


@pytest.mark.usefixtures("device")
def test_nothing_waits_for_the_device(monkeypatch) -> None:
    # What kernels compute is of no interest here, and to compile all of them would take long.
    launched = []
    monkeypatch.setattr(nc.kernels.cuda, "run", lambda *plans: launched.extend(plans))
    rng = np.random.default_rng(0)
    x, w, b = (upload(rng.standard_normal(shape, np.float32)) for shape in ((2, 4, 8, 8), (4, 4, 3, 3), (4,)))
    deep = upload(rng.standard_normal((4, 1, 3, 3), np.float32))
    how = {"padding": 1}
    with waiting() as waits:
        for algorithm_ in ("direct", "winograd", "im2col"):
            for activation in (None, "relu", "hardswish"):
                y = nc.conv2d(x, w, b, **how, activation=activation, algorithm=algorithm_)
            nc.conv_input_grad(y, w, x.shape, **how, algorithm=algorithm_)
        for activation in ("relu6", "hardswish"):
            y, pullback = nc.conv_vjp(x, w, b, **how, activation=activation)
            pullback(y)
        y, pullback = nc.conv_vjp(x, deep, b, **how, groups=4)
        pullback(y)
        nc.conv_transpose2d(x, w, b, stride=2, activation="relu")
        _, pullback = nc.max_pool_vjp(x, 2)
        pullback(x[..., :4, :4])
        nc.fold(nc.unfold(x, 3), (8, 8), 3)
        y, _, _, pullback = nc.batch_norm_vjp(x, b, b, activation="relu")
        pullback(y)
    assert not waits
    assert len(launched) > 30
