"""Winograd's CUDA kernels, executed on the CPU."""

from __future__ import annotations

import cuda_on_cpu
import numpy as np
import pytest
from fake_cupy import device, download, poisoned, upload  # noqa: F401 - a fixture
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
    points = poisoned((count, spec.out_channels, spec.in_channels // spec.groups), dtype)
    loader.run(winograd.weights(spec, fs, upload(w), points, turned))
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
    monkeypatch.setattr(algorithm, "WORTH_COMPILING", 0)
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
