"""Filters on compiled strips: wide arrays, every edge, all arrangements of axes, nothing read or written outside."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
from guards import Guarded
from hypothesis import given
from hypothesis import strategies as st

import npconv as nc
from npconv import filters
from npconv.arrays import require
from npconv.filters import compiled
from npconv.filters.frame import Frame
from npconv.kernels.cpu import filters as kernels
from npconv.kernels.cpu import integers
from npconv.kernels.cpu.strips import strip_for

ndimage = pytest.importorskip("scipy.ndimage")

BOUNDARIES = ("reflect", "mirror", "nearest", "wrap", "constant")


def whole(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Small whole numbers, whose sums of products are exact."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def ready(frame: Frame, dtype: str) -> bool:
    return compiled.fits(require("numba"), frame, np.dtype(dtype))


def expected(x: np.ndarray, w: np.ndarray, boundary: str, axes: tuple[int, ...]) -> np.ndarray:
    """SciPy's filter, with a kernel of one tap on the axes that are not filtered."""
    order = np.argsort(axes)
    shape = [1] * x.ndim
    for i in order:
        shape[axes[i]] = w.shape[i]
    kernel = w.transpose(order).reshape(shape).astype(float)
    return ndimage.correlate(x.astype(float), kernel, mode=boundary, cval=2.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("shape", "kernel", "axes"),
    [
        ((37, 100), (3, 3), (0, 1)),
        ((41, 53), (7, 5), (0, 1)),
        ((5, 70), (9, 41), (0, 1)),
        ((3, 200), (33,), (1,)),
        ((200, 3), (33,), (0,)),
        ((70, 40), (6,), (0,)),
        ((20, 31, 3), (5, 4), (0, 1)),
        ((11, 31, 3), (3, 3), (0, 1)),
        ((4, 11, 53), (2, 5, 5), (0, 1, 2)),
        ((6, 9, 50), (3, 4), (2, 0)),
        ((4, 7, 9, 40), (3, 2, 3), (0, 1, 3)),
        ((9, 10, 33), (3, 2, 5), (0, 1, 2)),
        ((4, 13, 30), (3, 3, 3), (0, 1, 2)),
        ((5, 3, 9), (3, 3, 3), (0, 1, 2)),
        ((3, 5, 1100), (3, 3, 3), (0, 1, 2)),
        ((5, 4, 6, 30), (3, 1, 2, 3), (0, 1, 2, 3)),
    ],
)
def test_every_arrangement_of_axes(
    shape: tuple[int, ...], kernel: tuple[int, ...], axes: tuple[int, ...], boundary: str, dtype: str
) -> None:
    x, dense = whole(shape, dtype=dtype), whole(kernel, 1, dtype)
    # The largest element is a power of two, so that factors are exact.
    lines = [np.where(np.arange(k) == k // 2, 4, whole((k,), 2 + n, dtype)) for n, k in enumerate(kernel)]
    outer = lines[0]
    for line in lines[1:]:
        outer = np.multiply.outer(outer, line)
    how = {"boundary": boundary, "cval": 2.0, "axes": axes, "backend": "numba"}
    for w, methods in ((dense, ("direct",)), (outer, ("direct", "separable"))):
        for method in methods:
            got = nc.correlate(x, w, method=method, **how)
            np.testing.assert_array_equal(got, expected(x, w, boundary, axes), strict=False)
            assert got.dtype == x.dtype
            assert got.flags.c_contiguous


@given(
    n=st.integers(1, 200), k=st.integers(1, 90), rows=st.integers(1, 40), down=st.integers(1, 9),
    mode=st.sampled_from(filters.MODES), boundary=st.sampled_from(BOUNDARIES),
)  # fmt: skip
def test_any_size_any_mode(n: int, k: int, rows: int, down: int, mode: str, boundary: str) -> None:
    if mode == "valid" and (k > n or down > rows):
        return
    x, lines = whole((rows, n)), [np.where(np.arange(m) == 0, 4, whole((m,), m)) for m in (down, k)]
    for kernel in (np.outer(*lines), whole((down, k), 1)):
        how = {"mode": mode, "boundary": boundary, "cval": 1.0}
        want = nc.correlate(x.astype(int), kernel.astype(int), **how)
        np.testing.assert_array_equal(nc.correlate(x, kernel.astype("f4"), method="direct", **how), want)
        # Transforms round; numbers here are below 4 and 4 * 4, and the longest tiles have 16 passes each way.
        bound = 200 * np.finfo("f4").eps * np.abs(kernel).sum() * np.sqrt(x.size + kernel.size) * 3
        assert np.abs(nc.correlate(x, kernel.astype("f4"), **how) - want).max(initial=0) <= bound


@pytest.mark.parametrize("large", [1, 2**11, 2**12, 2**20, 2**26, 2**30])
@pytest.mark.parametrize("dtype", ["int32", "uint64"])
def test_sums_of_integers_are_exact_whatever_they_run_in(large: int, dtype: str) -> None:
    x, w = np.full((9, 40), large, dtype), np.array([[2**11 - 1, -1], [3, 2**11]])
    x[::2, ::3] -= 1
    padded = np.pad(x.astype(object), ((1, 0), (1, 0)), mode="symmetric")
    want = sum(int(w[i, j]) * padded[i : i + 9, j : j + 40] for i, j in np.ndindex(2, 2))
    np.testing.assert_array_equal(nc.correlate(x, w, dtype="int64"), want.astype(np.int64))
    np.testing.assert_array_equal(nc.correlate(x, w, dtype="int16"), want.astype(np.int64).astype("int16"))


def test_a_call_made_ready_for_small_integers_takes_large_ones_too() -> None:
    shape, largest = (13, 21), {"uint8": 255, "int32": 2**31 - 1, "int64": 2**63 - 1}
    for dtype, w in itertools.product(largest, (whole((3, 3)), whole((3, 1)) * whole((1, 5)))):
        for most in (1, largest[dtype]):
            x = (np.arange(273).reshape(shape) % 3 * (most // 2)).astype(dtype)
            for function in (nc.correlate, nc.convolve):
                want = function(x, w.astype(dtype), backend="numpy")
                np.testing.assert_array_equal(function(x, w.astype(dtype)), want)


@pytest.mark.parametrize("dtype", [*"bBhHiIlLqQ"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, integers.BLOCK // 2), (integers.BLOCK, 3), (5, 1, 7001)])
def test_integers_are_brought_into_floats_and_back(shape: tuple[int, ...], kind: str, dtype: str) -> None:
    guarded, rng, limits = Guarded(), np.random.default_rng(0), np.iinfo(dtype)
    most = min(limits.max, 2 ** (23 if kind == "float32" else 52))
    for low, high in ((0, most), (max(limits.min, -most), 3), (5, most // 2)):
        x, back = (guarded.array(shape, dtype=dtype) for _ in range(2))
        image = guarded.array(shape, dtype=kind)
        x[...] = rng.integers(low, high, shape)
        for end in (low, high):
            x.reshape(-1)[rng.integers(x.size)] = end
        found = kernels.to_floats(x, image)
        kernels.to_integers(image, back)
        guarded.check()
        np.testing.assert_array_equal(image, x.astype(kind))
        np.testing.assert_array_equal(back, x)
        assert found == max(abs(int(x.min())), abs(int(x.max())))
        # Narrower integers wrap, as NumPy's do.
        narrow = guarded.array(shape, dtype="int8")
        kernels.to_integers(image, narrow)
        np.testing.assert_array_equal(narrow, x.astype("int8"))


def test_the_largest_magnitude_is_found_where_floats_cannot_hold_it() -> None:
    for value in (2**63 - 1, -(2**63), 2**31, -(2**31) - 1):
        x = np.zeros(integers.BLOCK + 9, np.int64)
        x[integers.BLOCK + 3] = value
        assert kernels.to_floats(x, np.empty(x.size, np.float32)) == abs(value)
    assert kernels.to_floats(np.full(3, 2**64 - 1, np.uint64), np.empty(3, np.float32)) == 2**64 - 1


@pytest.mark.parametrize("boundary", ["reflect", "constant", "wrap"])
@pytest.mark.parametrize("kernel", [(3, 5, 3), (2, 3, 7, 4), (4, 3, 5, 5)])
def test_planes_share_what_is_copied_next_to_their_edges(kernel: tuple[int, ...], boundary: str) -> None:
    x, w = whole((5, 4, 70, 37)[-len(kernel) :]), whole(kernel, 1)
    want = ndimage.correlate(x.astype(float), w.astype(float), mode=boundary.replace("wrap", "grid-wrap"), cval=2)
    np.testing.assert_array_equal(nc.correlate(x, w.astype("f4"), boundary=boundary, cval=2, method="direct"), want)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 4), (2, 3, 3)])
def test_the_bits_of_a_sum_do_not_depend_on_its_place(kernel: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 45, 87)).astype("f4"), rng.standard_normal(kernel).astype("f4")
    how = {"axes": tuple(range(3 - len(kernel), 3)), "mode": "valid"}
    y = nc.correlate(x, w, **how)
    for cut in ((0, 1, 1), (0, 2, 5), (1, 3, 30)):
        part = tuple(slice(n, None) for n in cut)
        np.testing.assert_array_equal(nc.correlate(np.ascontiguousarray(x[part]), w, **how), y[part])


def test_long_signals_are_many_tasks() -> None:
    x, w = whole((2**17 + 5,)), whole((21,), 1)
    want = np.convolve(np.pad(x, 10, mode="symmetric").astype(float), w[::-1].astype(float), "valid")
    for threads in (1, 2):
        nc.set_num_threads(threads)
        try:
            np.testing.assert_array_equal(nc.correlate(x, w), want)
        finally:
            nc.set_num_threads(None)


def test_what_a_call_remembers_is_not_the_arrays() -> None:
    x = whole((40, 50))
    for seed, function in itertools.product(range(3), (nc.correlate, nc.convolve)):
        w = whole((3, 3), seed).astype(float)
        again = [function(x, w) for _ in range(2)]
        turned = w if function is nc.correlate else w[::-1, ::-1]
        for y in again:
            np.testing.assert_array_equal(y, ndimage.correlate(x.astype(float), turned))
        assert not np.shares_memory(*again)
    assert nc.correlate(x, whole((3, 3)), cval=1).dtype == np.float32
    with pytest.raises(TypeError):
        nc.correlate(x, whole((3, 3)), cval=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("height", "strips", "rest", "kernel", "low"),
    [(9, 2, 13, (3, 3), 1), (4, 0, 8, (2, 5), 4), (1, 3, 8, (1, 9), 0), (7, 1, 16, (5, 1), 0), (5, 1, 9, (7, 2), 1)],
)
def test_a_stencil_stays_inside_its_arrays(
    height: int, strips: int, rest: int, kernel: tuple[int, int], low: int, dtype: str
) -> None:
    """Planes so many strips and a rest wide, whatever a strip is on this processor."""
    guarded, rng = Guarded(), np.random.default_rng(0)
    kind = np.dtype(dtype)
    width = strips * strip_for(kind, kernel[0]).columns + rest
    size = height, width
    columns = np.arange(-low, width + kernel[1] - 1 - low)
    columns = np.where((columns >= 0) & (columns < width), columns, -1)
    rows = np.arange(height + kernel[0] - 1)
    rows = np.where(rows < height, rows, -1)
    run = kernels.stencil(kind, 2, 1, size, size, kernel, 1, np.zeros((1, 1), int), rows, columns, low)
    x, w = guarded.array((2, *size), rng, dtype), guarded.array(kernel, rng, dtype)
    y = guarded.array((2, *size), dtype=dtype)
    run(x, w, 0.0, y)
    guarded.check()
    pairs = ((0, 0), (0, kernel[0] - 1), (low, kernel[1] - 1 - low))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, pairs), kernel, (1, 2))
    np.testing.assert_array_equal(y, np.einsum("nhwij,ij->nhw", windows, w))
    if kernel[1] > 1 and strips:
        y[:] = np.nan
        across = kernels.separable(kind, 2, size, size, kernel, 1, rows, columns, low)
        lines = guarded.array((kernel[0],), rng, dtype), guarded.array((kernel[1],), rng, dtype)
        across(x, *lines, 0.0, y)
        guarded.check()
        np.testing.assert_array_equal(y, np.einsum("nhwij,i,j->nhw", windows, *lines))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("strips", [3, 6, 7])
def test_a_result_may_begin_anywhere_in_memory(strips: int, dtype: str) -> None:
    """Of rows of whole vectors, each element of the result is the first of a vector of memory once."""
    guarded, rng, kind = Guarded(), np.random.default_rng(0), np.dtype(dtype)
    lanes = kernels.lanes(kind)
    height, width = 9, strips * lanes
    columns, rows = np.arange(width + 2), np.arange(height + 2)
    run = kernels.stencil(kind, 1, 1, (height + 2, width + 2), (height, width), (3, 3), 1, np.zeros((1, 1), int),
                          rows, columns, 0)  # fmt: skip
    x, w = guarded.array((height + 2, width + 2), rng, dtype), guarded.array((3, 3), rng, dtype)
    want = np.einsum("hwij,ij->hw", np.lib.stride_tricks.sliding_window_view(x, (3, 3)), w)
    room = guarded.array((height * width + lanes,), dtype=dtype)
    starts = set()
    for shift in range(lanes):
        room[:] = np.nan
        y = room[shift : shift + height * width].reshape(height, width)
        run(x, w, 0.0, y)
        np.testing.assert_array_equal(y, want)
        assert np.isnan(room[:shift]).all()
        assert np.isnan(room[shift + height * width :]).all()
        starts.add(y.ctypes.data % (lanes * kind.itemsize))
    assert len(starts) == lanes
    guarded.check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 2), (7, 3)])
@pytest.mark.parametrize("height", [1, 8, 19])
def test_a_stencil_of_planes_stays_inside_its_arrays(height: int, kernel: tuple[int, int], dtype: str) -> None:
    """Two planes from three, the second of which for one tap is the constant; less than a vector wide, and more."""
    rng, kind, low, outside = np.random.default_rng(0), np.dtype(dtype), 1, 2.0
    lanes = kernels.lanes(kind)
    leads = np.array([[0, 1], [2, -1]])
    for width in (1, lanes - 1, lanes, lanes + 1, 5 * lanes + 3):
        guarded = Guarded()
        columns, rows = np.arange(-low, width + kernel[1] - 1 - low), np.arange(height + kernel[0] - 1)
        columns = np.where((columns >= 0) & (columns < width), columns, -1)
        rows = np.where(rows < height, rows, -1)
        size = height, width
        run = kernels.stencil(kind, 2, 3, size, size, kernel, 1, leads, rows, columns, low)
        x, w = guarded.array((2, 3, *size), rng, dtype), guarded.array((2, *kernel), rng, dtype)
        y = guarded.array((2, 2, *size), dtype=dtype)
        run(x, w, outside, y)
        guarded.check()
        pairs = ((0, 0), (0, 1), (0, kernel[0] - 1), (low, kernel[1] - 1 - low))
        padded = np.pad(x, pairs, constant_values=outside)
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, leads]
        np.testing.assert_array_equal(y, np.einsum("npthwij,tij->nphw", windows, w))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_smaller_than_vectors_is_refused_before_it_is_written_to(dtype: str) -> None:
    kind = np.dtype(dtype)
    wide, lanes = strip_for(kind, 3).columns, kernels.lanes(kind)
    for width in (1, wide - 1, wide):
        tables = np.arange(9), np.arange(width)
        fits = width >= wide
        with nullcontext() if fits else pytest.raises(ValueError, match=f"{wide} columns at once"):
            kernels.separable(kind, 1, (9, width), (7, width), (3, 1), 1, *tables, 0)
    for block in ((lanes // 2, lanes), (lanes, lanes // 2), (3 * lanes, lanes + 1)):
        sources = np.arange(100)
        with pytest.raises(ValueError, match=f"multiple of {lanes} rows"):
            kernels.signals(kind, 1, 100, 91, block, sources, 0, 1)
        with pytest.raises(ValueError, match=f"multiple of {lanes} rows"):
            kernels.transformed(kind, 1, (100, 100), (91, 91), block, [sources] * 2, 0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "kernel", "axes"),
    [
        ((3, 61, 90), (9, 12), (1, 2)),
        ((61, 90), (12, 9), (1, 0)),
        ((20, 33, 41), (4, 5, 7), (0, 1, 2)),
        ((7, 50), (31, 40), (0, 1)),
        ((3, 2, 700), (100,), (2,)),
        ((41,), (90,), (0,)),
        ((2, 300, 3), (100,), (1,)),
    ],
)
def test_transformed_tiles_agree_with_sums(
    shape: tuple[int, ...], kernel: tuple[int, ...], axes: tuple[int, ...], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape).astype(dtype), rng.standard_normal(kernel).astype(dtype)
    for mode, boundary in (("same", "reflect"), ("full", "constant"), ("same", "wrap")):
        how = {"axes": axes, "mode": mode, "boundary": boundary, "cval": 0.5 if boundary == "constant" else 0.0}
        want = nc.correlate(x, w, method="direct", **how)
        for threads in (1, 2):
            with nc.config.limit_threads(threads):
                got = nc.correlate(x, w, method="fft", **how)
            assert np.abs(got - want).max() <= 20 * np.finfo(dtype).eps * np.abs(want).max()
    assert not np.array_equal(got, want)  # so it was no sum


@pytest.mark.parametrize("size", [(40, 61), (16, 90)])
def test_transformed_tiles_stay_inside_their_arrays(size: tuple[int, int]) -> None:
    guarded, rng, kind = Guarded(), np.random.default_rng(0), np.dtype("float32")
    sources = [np.clip(np.arange(-2, n + 2), 0, n - 1) for n in size]
    run = kernels.transformed(kind, 2, size, size, (16, 32), sources, 2, 10**7)
    x, w = guarded.array((2, *size), rng, "float32"), guarded.array((5, 5), rng, "float32")
    y = guarded.array((2, *size), dtype="float32")
    assert run(x, w, 0.0, y)
    guarded.check()
    want = nc.correlate(x.astype(float), w.astype(float), axes=(1, 2), boundary="nearest", method="direct")
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * np.abs(want).max())
    x[1, 3, 4] = np.nan
    assert not run(x, w, 0.0, y)


@pytest.mark.parametrize("kernel", [(1, 5, 7), (3, 16, 2), (9, 1, 32), (16, 16, 32)])
def test_a_spectrum_is_that_of_all_places_of_a_kernel(kernel: tuple[int, ...]) -> None:
    """Of few places of the first axis, which alone are transformed, and of a whole tile."""
    guarded, rng, kind, size = Guarded(), np.random.default_rng(0), np.dtype("float32"), (20, 17, 50)
    low = [k // 2 for k in kernel]
    sources = [np.arange(n + k - 1) - m for n, k, m in zip(size, kernel, low, strict=True)]
    sources = [np.where((s >= 0) & (s < n), s, -1) for s, n in zip(sources, size, strict=True)]
    run = kernels.transformed(kind, 1, size, size, (16, 16, 32), sources, low[2], 10**7)
    x, w = guarded.array(size, rng, "float32"), guarded.array(kernel, rng, "float32")
    y = guarded.array(size, dtype="float32")
    assert run(x, w, 1.5, y)
    guarded.check()
    pairs = [(m, k - 1 - m) for m, k in zip(low, kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x.astype(float), pairs, constant_values=1.5), kernel)
    want = np.einsum("abcijk,ijk->abc", windows, w)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("sides", "blocks"), [((1, 1), 21), ((3, 2), 1)])
def test_transformed_signals_stay_inside_their_arrays(sides: tuple[int, int], blocks: int) -> None:
    """Blocks of so many vectors a side, so many of them a signal."""
    guarded, rng, kind = Guarded(), np.random.default_rng(0), np.dtype("float32")
    block = tuple(n * kernels.lanes(kind) for n in sides)
    taps = math.prod(block) * 3 // 4
    kept, low = math.prod(block) - taps + 1, taps // 3
    size, high = blocks * kept - kept // 2, taps - 1 - low
    sources = np.arange(-low, size + high)
    sources = np.where((sources >= 0) & (sources < size), sources, -1)
    run = kernels.signals(kind, 3, size, size, block, sources, low, 10**7)
    x, w = guarded.array((3, size), rng, "float32"), guarded.array((taps,), rng, "float32")
    y = guarded.array((3, size), dtype="float32")
    assert run(x, w, 2.0, y)
    guarded.check()
    padded = np.pad(x.astype(float), ((0, 0), (low, high)), constant_values=2.0)
    want = np.lib.stride_tricks.sliding_window_view(padded, taps, 1) @ w.astype(float)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * np.abs(want).max())
    for place in ((0, 0), (1, size // 2), (2, size - 1)):
        bad = x.copy()
        bad[place] = np.inf
        assert not run(bad, w, 0.0, y)


def test_signals_of_one_batch_do_not_disturb_each_other() -> None:
    x, w = np.random.default_rng(0).standard_normal((3, 900)).astype("f4"), whole((100,))
    loud = x * np.float32([[1], [1e9], [1]])
    np.testing.assert_array_equal(*(nc.correlate(v, w, axes=1, method="fft")[[0, 2]] for v in (x, loud)))


def test_a_narrow_kernel_of_rank_1_is_as_precise_as_a_wide_array() -> None:
    x = np.random.default_rng(0).standard_normal((40, 50))
    thirds = np.outer([3, 1, 1], [1, 1, 3]).astype(np.float32)  # exact, with factors that are not
    rounded = filters.gaussian(2.0, ndim=2).astype(np.float32)  # rounded, so an outer product to float32 alone
    for w in (thirds, rounded):
        want = ndimage.correlate(x, w.astype(float))
        np.testing.assert_allclose(nc.correlate(x, w), want, rtol=0, atol=1e-14 * np.abs(want).max() * w.size)
    np.testing.assert_allclose(nc.correlate(x, rounded, method="separable"), want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        nc.correlate(x, thirds, method="separable"), ndimage.correlate(x, thirds.astype(float)), rtol=0, atol=1e-13
    )
