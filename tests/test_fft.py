"""What the FFT convolution promises beyond the sweeps: its bound, its blocks, its memory, its choice."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from fake_cupy import cupy, ndarray  # noqa: F401 - a fixture
from hypothesis import given
from hypothesis import strategies as st
from strategies import BACKENDS, Problem, identical, problems_for

import npconv as nc
from npconv.algorithms import fft, fft_blocks
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.planning import plan_for

INEXACT = ("float32", "float64", "complex64", "complex128")
OPS = ("forward", "input_grad", "weight_grad")

GEOMETRIES = {
    "signal": ((2, 1, 5003), (1, 1, 301), {}),
    "channels of a signal": ((2, 12, 997), (8, 12, 31), {"padding": "causal", "dilation": 2}),
    "image": ((1, 1, 131, 97), (1, 1, 31, 17), {"padding": ((15, 3), (0, 16))}),
    "depthwise": ((2, 6, 61, 47), (12, 1, 9, 11), {"padding": "same", "groups": 6}),
    "channels": ((3, 10, 29, 41), (7, 10, 5, 7), {"padding": 3}),
    "groups": ((2, 12, 37, 23), (18, 6, 6, 5), {"padding": (0, 2), "groups": 2}),
    "stride": ((2, 5, 53, 38), (9, 5, 7, 8), {"padding": (5, 2), "stride": (2, 3)}),
    "stride and dilation": ((1, 4, 67, 50), (6, 2, 5, 4), {"stride": (3, 2), "dilation": (2, 3), "groups": 2}),
    "one axis": ((2, 6, 19, 83), (7, 6, 1, 21), {"padding": (1, 4)}),
    "one axis with a stride": ((2, 3, 83, 19), (3, 1, 21, 1), {"stride": (2, 2), "groups": 3}),
    "volume": ((1, 3, 23, 19, 17), (5, 3, 5, 4, 7), {"padding": "same"}),
}


def operands(name: str, op: str, dtype: str, seed: int = 0) -> tuple[ConvSpec, np.ndarray, np.ndarray]:
    x_shape, w_shape, options = GEOMETRIES[name]
    spec = ConvSpec.of(x_shape, w_shape, **options)
    shapes = {"forward": (spec.x_shape, spec.w_shape), "input_grad": (spec.y_shape, spec.w_shape)}
    return spec, *(numbers(shape, dtype, seed + i) for i, shape in enumerate(shapes.get(op, (x_shape, spec.y_shape))))


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else real).astype(dtype)


def compute(spec: ConvSpec, op: str, a: np.ndarray, b: np.ndarray, algorithm: str = "fft", backend: str = "numpy"):
    plan = plan_for(spec, op, require(backend), a.dtype, algorithm)
    return plan.run(a, plan.packed(b) if op == "forward" else b)


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few samples, images and groups at once as can be."""
    monkeypatch.setattr(fft_blocks, "STEP", 1)
    monkeypatch.setattr(fft_blocks, "BLOCK", 1)


# The bound


@pytest.mark.parametrize("small", [False, True], ids=["", "small blocks"])
@pytest.mark.parametrize("dtype", INEXACT)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_errors_stay_within_the_bound(
    name: str, op: str, dtype: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        cut_small(monkeypatch)
    spec, a, b = operands(name, op, dtype)
    assert not small or fft_blocks.blocks_for(spec, op, a.dtype.itemsize).steps > 1
    result = compute(spec, op, a, b)
    assert result.dtype == dtype
    wide = np.result_type(dtype, "float64")
    exact = compute(spec, op, a.astype(wide), b.astype(wide), "direct")
    assert (np.abs(result - exact) <= fft.error_bound(spec, op, a, b, np.dtype(dtype))).all()


def test_errors_are_far_below_the_bound_and_near_those_of_the_sum() -> None:
    """A bound is for the worst case; what happens is a few roundings of the result's own size."""
    spec, x, w = operands("image", "forward", "float32")
    exact = compute(spec, "forward", x.astype("float64"), w.astype("float64"), "direct")
    assert np.abs(compute(spec, "forward", x, w) - exact).max() <= 4 * np.finfo("float32").eps * np.abs(exact).max()


@pytest.mark.parametrize("dtype", INEXACT)
@given(data=st.data())
def test_gradients_are_adjoints(backend: str, dtype: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for("fft", layouts=("channels_first",), batched=True, empty=False))
    x, w, dy = (numbers(s, dtype, i) for i, s in enumerate((problem.x_shape, problem.w_shape, problem.y_shape)))
    how = {"algorithm": "fft", "backend": backend}
    height = np.vdot(problem.conv(x, w, **how), dy)
    sizes = [float(np.linalg.norm(value)) for value in (x, w, dy)]
    tolerance = 200 * np.finfo(dtype).eps * np.prod(sizes) * np.sqrt(w.size)
    assert abs(np.vdot(x, problem.input_grad(dy, w, **how)) - height) <= tolerance
    assert abs(np.vdot(w, problem.weight_grad(x, dy, **how)) - height) <= tolerance


# Blocks


@pytest.mark.parametrize("n", [1, 2, 11, 13, 17, 97, 1000, 1009, 2**20 + 1])
def test_fast_lengths_are_the_smallest_products_of_small_primes(n: int) -> None:
    def is_fast(m: int) -> bool:
        for prime in (2, 3, 5, 7):
            while m % prime == 0:
                m //= prime
        return m == 1

    assert fft_blocks.fast_length(n) == next(m for m in range(n, 2 * n + 1) if is_fast(m))


@pytest.mark.parametrize("op", OPS)
def test_blocks_cover_the_result(op: str) -> None:
    for name in GEOMETRIES:
        spec, a, _ = operands(name, op, "float32")
        blocks = fft_blocks.blocks_for(spec, op, a.dtype.itemsize)
        assert all(kept >= 1 for kept in blocks.kept)
        assert all(n * kept >= out for n, kept, out in zip(blocks.count, blocks.kept, blocks.out, strict=True))
        assert all(fft_blocks.fast_length(blocks.length[axis]) == blocks.length[axis] for axis in blocks.axes)


def test_images_share_no_numbers(backend: str) -> None:
    """Rounding an image's block must not depend on whose blocks are beside it."""
    x, w = numbers((3, 1, 40, 40), "float32"), numbers((1, 1, 9, 9), "float32")
    how = {"algorithm": "fft", "backend": backend}
    whole = nc.conv(x, w, **how)
    x[1] *= 1e20
    identical(nc.conv(x, w, **how)[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("op", ["forward", "input_grad"])
def test_threads_share_the_steps_and_change_no_bit(
    op: str, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    spec, a, b = operands("channels", op, "float32")
    nc.set_num_threads(1)
    alone = compute(spec, op, a, b, backend="numba")
    assert threads == []
    for n in (2, 3, 7):
        nc.set_num_threads(n)
        identical(compute(spec, op, a, b, backend="numba"), alone)
        assert max(threads) == n - 1


# Memory


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((1, 1, 2_000_000), (1, 1, 1000), {}),
        ((1, 3, 300, 300), (8, 3, 31, 31), {"padding": 15}),
        ((2, 64, 40, 40), (64, 64, 7, 7), {}),
        ((1, 256, 60, 60), (256, 1, 9, 9), {"groups": 256}),
        ((1, 16, 99, 99), (24, 16, 8, 8), {"stride": 2}),
        ((1, 8, 300, 300), (8, 8, 1, 31), {}),
        ((1, 200, 12, 12), (300, 200, 9, 9), {"padding": 4}),
    ],
    ids=["signal", "photograph", "channels", "depthwise", "stride", "one axis", "many kernels"],
)
def test_memory_stays_within_the_workspace(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], options: dict[str, object], op: str, dtype: str
) -> None:
    spec = ConvSpec.of(x_shape, w_shape, **options)
    x, w, dy = (np.ones(shape, dtype) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    a, b = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (x, dy)}[op]
    plan = plan_for(spec, op, require("numba"), np.dtype(dtype), "fft")
    tracemalloc.start()
    try:
        result = plan.run(a, plan.packed(b) if op == "forward" else b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes <= plan.workspace + 2**17, "and the little that Python itself needs"
    assert plan.workspace <= 2**28


def test_a_workspace_that_is_too_large_is_refused(backend: str) -> None:
    shapes = (1, 1, 1000, 1000), (1, 1, 31, 31)
    plan = nc.plan(*shapes, algorithm="fft", backend=backend)
    assert nc.plan(*shapes, algorithm="fft", backend=backend, max_workspace=plan.workspace) is not None
    with pytest.raises(ValueError, match=r"workspace of .* exceeds"):
        nc.plan(*shapes, algorithm="fft", backend=backend, max_workspace=plan.workspace - 1)
    frugal = nc.plan(*shapes, backend=backend, max_workspace=0)
    assert frugal.algorithm != "fft"
    assert "exceeds" in frugal.rejected["fft"]


# What transforms would spoil


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
def test_nan_infinity_and_huge_numbers_stay_where_they_are(backend: str, dtype: str, number: float) -> None:
    x, w = numbers((1, 2, 30, 30), dtype), numbers((3, 2, 5, 5), dtype)
    x[0, 1, 3, 4] = number
    how = {"padding": 2, "backend": backend}
    y = nc.conv(x, w, algorithm="fft", **how)
    identical(y, nc.conv(x, w, algorithm="direct", **how))
    assert np.isfinite(y[..., 12:, 12:]).all()
    dw = nc.conv_weight_grad(x, y[:, :, ::-1, ::-1], w.shape, algorithm="fft", **how)
    identical(dw, nc.conv_weight_grad(x, y[:, :, ::-1, ::-1], w.shape, algorithm="direct", **how))
    dx = nc.conv_input_grad(x, w[:2], (1, 2, 30, 30), algorithm="fft", **how)
    identical(dx, nc.conv_input_grad(x, w[:2], (1, 2, 30, 30), algorithm="direct", **how))
    w[0, 0, 0, 0] = number
    x = numbers(x.shape, dtype)
    plan = nc.plan(x.shape, w.shape, dtype=dtype, algorithm="fft", **how)
    identical(plan.pack(w)(x), nc.conv(x, w, algorithm="direct", **how))


# Choice


@pytest.mark.parametrize("dtype", ["int8", "uint64"])
def test_integers_are_refused(backend: str, dtype: str) -> None:
    x, w = np.ones((1, 1, 99), dtype), np.ones((1, 1, 50), dtype)
    with pytest.raises(ValueError, match="an FFT rounds, and sums of int64 are exact"):
        nc.conv(x, w, algorithm="fft", backend=backend)
    assert "rounds" in nc.plan(x.shape, w.shape, dtype=dtype, backend=backend).rejected["fft"]


def test_windows_that_do_not_overlap_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="do not overlap"):
        nc.conv(np.ones((1, 1, 8, 8)), np.ones((1, 1, 2, 2)), stride=2, algorithm="fft", backend=backend)


LARGE_KERNELS = {
    "depthwise": ((1, 64, 512, 512), (64, 1, 31, 31), {"groups": 64, "padding": 15}),
    "filter": ((1, 1, 10_000_000), (1, 1, 1000), {}),
    "photograph": ((1, 1, 2048, 2048), (1, 1, 31, 31), {}),
    "volume": ((1, 1, 128, 128, 128), (1, 1, 15, 15, 15), {}),
    "channels": ((4, 32, 128, 128), (32, 32, 21, 21), {}),
}
SMALL_KERNELS = {
    "3x3": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "one image of few pixels": ((1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    "first layer": ((1, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    "depthwise": ((1, 96, 56, 56), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
    "depthwise 7x7": ((1, 64, 112, 112), (64, 1, 7, 7), {"padding": 3, "groups": 64}),
    "one channel": ((1, 1, 1024, 1024), (1, 1, 7, 7), {}),
    "short filter": ((1, 1, 10_000), (1, 1, 3), {}),
    "tiny": ((1, 1, 5, 5), (1, 1, 3, 3), {}),
}


@pytest.mark.parametrize("name", LARGE_KERNELS)
def test_it_is_chosen_for_large_kernels(backend: str, name: str) -> None:
    x_shape, w_shape, options = LARGE_KERNELS[name]
    assert nc.plan(x_shape, w_shape, **options, backend=backend).algorithm == "fft"
    with nc.strict():
        assert nc.plan(x_shape, w_shape, **options, backend=backend).algorithm != "fft"


@pytest.mark.parametrize("name", SMALL_KERNELS)
def test_it_is_not_chosen_for_small_ones(name: str) -> None:
    x_shape, w_shape, options = SMALL_KERNELS[name]
    assert nc.plan(x_shape, w_shape, **options, backend="numba").algorithm != "fft"


def test_it_stays_on_the_device(cupy) -> None:  # noqa: F811
    for problem in (
        Problem(2, 4, 6, 2, (9, 11), (3, 4), (1, 2), (1, 1), 1, ((1, 1), (1, 1))),
        Problem(1, 10, 8, 1, (9, 11), (3, 4), (1, 1), (1, 1), 1, ((1, 1), (1, 1))),
    ):
        x, w, dy = (numbers(s, "float32", i) for i, s in enumerate((problem.x_shape, problem.w_shape, problem.y_shape)))
        y, pullback = problem.vjp(*map(cupy.asarray, (x, w)), algorithm="fft")
        expected, expected_back = problem.vjp(x, w, algorithm="fft", backend=BACKENDS[0])
        pairs = zip((y, *pullback(cupy.asarray(dy))[:2]), (expected, *expected_back(dy)[:2]), strict=True)
        for result, value in pairs:
            assert type(result) is ndarray
            identical(result._value, value)
