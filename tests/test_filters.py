"""Filters: SciPy's results for its modes and boundaries, missing values by their definition, and methods that agree."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from fake_cupy import cupy, ndarray, upload  # noqa: F401 - a fixture
from hypothesis import given
from hypothesis import strategies as st

import npconv as nc
from npconv import filters

ndimage = pytest.importorskip("scipy.ndimage")
signal = pytest.importorskip("scipy.signal")

BOUNDARIES = tuple(filters.BOUNDARIES)
METHODS = ("auto", "direct", "fft")
SHAPES = {1: (9,), 2: (6, 7), 3: (4, 5, 3)}
KERNELS = {1: [(3,), (4,), (1,), (9,)], 2: [(3, 3), (2, 5), (4, 4), (1, 3)], 3: [(3, 3, 3), (2, 1, 3), (4, 3, 2)]}
CASES = [(ndim, kernel) for ndim, kernels in KERNELS.items() for kernel in kernels]

EPS = np.finfo(float).eps


def whole(shape: tuple[int, ...], seed: int = 0, dtype: str = "float64") -> np.ndarray:
    """Small whole numbers, whose sums of products are exact."""
    rng = np.random.default_rng(seed)
    value = rng.integers(-9, 10, shape)
    return (value + 1j * rng.integers(-9, 10, shape)).astype(dtype) if dtype.startswith("c") else value.astype(dtype)


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def close(actual: np.ndarray, expected: np.ndarray, scale: float) -> None:
    """NaN at the same places, and elsewhere no further apart than some roundings of `scale`."""
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    eps = np.finfo(actual.dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=0, atol=64 * eps * scale, equal_nan=True)


def origins(kernel: tuple[int, ...]) -> list[tuple[int, ...]]:
    return sorted({tuple(-(k // 2) for k in kernel), (0,) * len(kernel), tuple((k - 1) // 2 for k in kernel)})


# --------------------------------------------------------------------------------------------------------------------
# SciPy
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("ndim", "kernel"), CASES)
def test_correlate_equals_ndimage(boundary: str, ndim: int, kernel: tuple[int, ...], backend: str) -> None:
    x, w = whole(SHAPES[ndim]), whole(kernel, 1)
    for origin in origins(kernel):
        expected = ndimage.correlate(x, w, mode=boundary, cval=3.0, origin=origin)
        got = nc.correlate(x, w, boundary=boundary, cval=3.0, origin=origin, method="direct", backend=backend)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("ndim", "kernel"), CASES)
def test_convolve_equals_ndimage(boundary: str, ndim: int, kernel: tuple[int, ...], backend: str) -> None:
    x, w = whole(SHAPES[ndim]), whole(kernel, 1)
    for origin in origins(kernel):
        theirs = tuple(-((k - 1) // 2) if o < 0 else o for o, k in zip(origin, kernel, strict=True))
        shifted = tuple(o + (k % 2 == 0) for o, k in zip(theirs, kernel, strict=True))
        expected = ndimage.convolve(x, w, mode=boundary, cval=3.0, origin=theirs)
        got = nc.convolve(x, w, boundary=boundary, cval=3.0, origin=shifted, method="direct", backend=backend)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_kernels_that_reach_beyond_the_array_twice(boundary: str) -> None:
    for n, k in itertools.product((1, 2, 3), (5, 8, 15)):
        x, w = whole((n,)), whole((k,), 1)
        expected = ndimage.correlate(x, w, mode=boundary, cval=2.0)
        np.testing.assert_array_equal(nc.correlate(x, w, boundary=boundary, cval=2.0, method="direct"), expected)


@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64"])
@pytest.mark.parametrize("mode", filters.MODES)
@pytest.mark.parametrize(("ndim", "kernel"), CASES)
def test_modes_equal_signal(mode: str, ndim: int, kernel: tuple[int, ...], dtype: str) -> None:
    x, w = whole((10,) * ndim, dtype=dtype), whole(kernel, 1, dtype)
    for name in ("correlate", "convolve"):
        expected = getattr(signal, name)(x, w, mode=mode, method="direct")
        got = getattr(nc, name)(x, w, mode=mode, boundary="constant", method="direct")
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", filters.MODES)
@given(n=st.integers(1, 12), k=st.integers(1, 12), stride=st.integers(1, 4), boundary=st.sampled_from(BOUNDARIES))
def test_a_stride_keeps_every_so_many_th_result(mode: str, n: int, k: int, stride: int, boundary: str) -> None:
    if mode == "valid" and k > n:
        return
    x, w = whole((n, 3)), whole((k, 2), 1)
    for function in (nc.correlate, nc.convolve):
        dense = function(x, w, mode=mode, boundary=boundary, cval=1)
        got = function(x, w, mode=mode, boundary=boundary, cval=1, stride=(stride, 1))
        np.testing.assert_array_equal(got, dense[::stride])


@pytest.mark.parametrize("boundary", ["wrap", "mirror", "reflect"])
def test_a_stride_that_stops_short_repeats_the_whole_array(boundary: str) -> None:
    """What no result needs directly may still stand beyond the other edge."""
    for n, k, stride in [(7, 3, 4), (2, 2, 2), (2, 6, 3)]:
        x, w = whole((n,)) + 20, whole((k,), 1)
        y, pullback = filters.correlate_vjp(x, w, boundary=boundary)
        few, pullback_few = filters.correlate_vjp(x, w, boundary=boundary, stride=stride)
        np.testing.assert_array_equal(few, y[::stride])
        np.testing.assert_array_equal(nc.correlate(x, w, boundary=boundary, stride=stride), y[::stride])
        dy, dy_few = np.zeros_like(y), whole(few.shape, 2)
        dy[::stride] = dy_few
        for got, expected in zip(pullback_few(dy_few), pullback(dy), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("method", ["auto", "direct", "separable"])
def test_a_kernel_of_bools_counts(method: str) -> None:
    x, w = whole((8, 9), dtype="uint8"), np.ones((3, 4), bool)
    got = nc.correlate(x, w, method=method)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, nc.correlate(x, w.astype("uint8")))


def test_axes_leave_a_batch() -> None:
    x, w = whole((4, 5, 6, 3)), whole((3, 2), 1)
    for axes in itertools.permutations(range(4), 2):
        got = nc.correlate(x, w, axes=axes)
        np.testing.assert_array_equal(got, ndimage.correlate(x, w, axes=axes) if axes[0] < axes[1] else got)
        moved = np.moveaxis(x, axes, (2, 3))
        for i, j in np.ndindex(moved.shape[:2]):
            np.testing.assert_array_equal(np.moveaxis(got, axes, (2, 3))[i, j], ndimage.correlate(moved[i, j], w))
    np.testing.assert_array_equal(nc.correlate(x, whole((3,), 2), axes=-2), nc.correlate(x, whole((3,), 2), axes=(2,)))


# --------------------------------------------------------------------------------------------------------------------
# Dtypes
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "result"),
    [
        ("float32", "float64", "float32"),
        ("float16", "float64", "float16"),
        ("float32", "int64", "float32"),
        ("float64", "float32", "float64"),
        ("float32", "complex128", "complex64"),
        ("float64", "complex64", "complex128"),
        ("complex64", "float64", "complex64"),
        ("int16", "float32", "float32"),
        ("uint8", "int64", "int64"),
        ("uint8", "uint8", "uint8"),
        ("uint64", "int64", "int64"),
    ],
)
def test_the_dtype_of_a_result(x: str, w: str, result: str) -> None:
    assert nc.correlate(np.ones(4, x), np.ones(3, w)).dtype == result


@pytest.mark.parametrize("method", ["auto", "direct", "separable"])
def test_integers_are_exact(method: str) -> None:
    x = np.random.default_rng(0).integers(-(2**52), 2**52, (12, 13))
    w = np.outer([2, -3, 5, 7, 1], [9, 4, 0, -6, 3])
    expected = np.zeros(x.shape, object)
    padded = np.pad(x, 2, mode="symmetric").astype(object)
    for i, j in np.ndindex(w.shape):
        expected += padded[i : i + 12, j : j + 13] * int(w[i, j])
    assert (nc.correlate(x, w, method=method) == expected).all()
    bytes_ = (x % 256).astype(np.uint8)
    wide = nc.correlate(bytes_, w, dtype="int64", method=method)
    assert (nc.correlate(bytes_, w.astype(np.int16), method=method) == wide.astype(np.int16)).all()
    assert (nc.correlate(bytes_, w, dtype="float32", method=method) == wide.astype(np.float32)).all()


def test_unsigned_sums_beyond_63_bits() -> None:
    x = np.array([2**63, 5], np.uint64)
    got = nc.correlate(x, np.array([1], np.uint64), dtype="float64")
    np.testing.assert_array_equal(got, [2.0**63, 5])
    assert nc.correlate(x, np.array([1], np.uint64))[0] == 2**63


# --------------------------------------------------------------------------------------------------------------------
# Methods
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["propagate", "omit", "interpolate"])
@given(data=st.data())
def test_methods_agree(policy: str, data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3))
    size = data.draw(st.tuples(*[st.integers(3, 9)] * ndim))
    kernel = data.draw(st.tuples(*[st.integers(2, 5)] * ndim))
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size)
    x[rng.random(size) < data.draw(st.sampled_from((0.0, 0.02, 0.3, 0.9, 1.0)))] = np.nan
    lines = [rng.random(k) * (rng.random(k) < 0.8) + (np.arange(k) == 0) for k in kernel]
    w = lines[0]
    for line in lines[1:]:
        w = np.multiply.outer(w, line)
    how: dict[str, Any] = {
        "boundary": data.draw(st.sampled_from(BOUNDARIES)),
        "cval": data.draw(st.sampled_from((0.0, 1.0, np.nan))),
        "nan_policy": policy,
        "min_weight": 0.0 if policy == "propagate" else data.draw(st.sampled_from((0.0, 0.3, 1.0))),
    }
    for function in (nc.correlate, nc.convolve):
        expected = function(x, w, method="direct", **how)
        ratio = w.sum() / w[w > 0].min() * 10  # how much normalising, twice for "interpolate", can enlarge a rounding
        for method in ("fft", "separable", "auto"):
            close(function(x, w, method=method, **how), expected, w.sum() * ratio**2)


@pytest.mark.parametrize("method", ["direct", "separable", "fft", "auto"])
def test_nan_in_a_large_image_stays_under_the_kernel(method: str) -> None:
    x, w = random((60, 70)), filters.gaussian(2.0)
    x[20, 30] = np.nan
    nan = np.isnan(nc.correlate(x, w, method=method))
    assert nan.sum() == w.size
    assert nan[12:29, 22:39].all()


@pytest.mark.parametrize("method", ["direct", "separable", "fft", "auto"])
def test_infinities_are_those_of_the_definition(method: str) -> None:
    x = np.zeros((9, 9))
    x[4, 4] = np.inf
    with np.errstate(invalid="ignore"):
        expected = np.full((3, 3), np.inf) * filters.sobel()[::-1, ::-1]
    y = nc.correlate(x, filters.sobel(), method=method)
    np.testing.assert_array_equal(y[3:6, 3:6], expected)
    assert np.isfinite(y).sum() == 72


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_factors_multiply_to_the_kernel(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for lines in ([rng.standard_normal(n) for n in sizes], [rng.integers(-5, 6, n) * 6 + 1 for n in sizes]):
        w = lines[0]
        for line in lines[1:]:
            w = np.multiply.outer(w, line)
        found = filters.factors(w)
        assert found is not None
        product = np.ones((), w.dtype)
        for factor in found:
            product = product * factor
        if w.dtype.kind == "i":
            np.testing.assert_array_equal(product, w)
        else:
            np.testing.assert_allclose(product, w, rtol=8 * len(sizes) * EPS)
    assert filters.factors(np.full((2, 2), -(2**63))) is None
    if min(sizes) > 1 and len(sizes) > 1:
        w[(0,) * w.ndim] += 1
        assert filters.factors(w) is None


# --------------------------------------------------------------------------------------------------------------------
# Missing values
# --------------------------------------------------------------------------------------------------------------------


def omitted(
    x: np.ndarray, gaps: np.ndarray, w: np.ndarray, boundary: str, cval: float, min_weight: float
) -> np.ndarray:
    """The definition, in plain loops, for one dimension."""
    n, k = len(x), len(w)
    places = np.arange(n)
    around = {
        "reflect": np.pad(places, k, mode="symmetric"),
        "wrap": np.pad(places, k, mode="wrap"),
        "constant": np.pad(places, k, constant_values=-1),
    }[boundary]
    y = np.empty(n)
    for p in range(n):
        total = weight = share = 0.0
        for t in range(k):
            i = around[p + t - k // 2 + k]
            value = cval if i < 0 else x[i]
            if np.isnan(value) or (i >= 0 and gaps[i]):
                continue
            total += w[t] * value
            weight += w[t]
            share += abs(w[t])
        nothing = share == 0 or share < min_weight * abs(w).sum()
        y[p] = np.nan if nothing else total * w.sum() / weight
    return y


@pytest.mark.parametrize("method", [*METHODS, "separable"])
@pytest.mark.parametrize("boundary", ["reflect", "wrap", "constant"])
@pytest.mark.parametrize("min_weight", [0.0, 0.4, 0.9])
def test_omit_is_its_definition(method: str, boundary: str, min_weight: float) -> None:
    for seed, cval in itertools.product(range(6), (0.0, 2.0, np.nan)):
        rng = np.random.default_rng(seed)
        x, w = rng.standard_normal(20), rng.random(rng.integers(2, 6)) + 0.1
        x[rng.random(20) < 0.4] = np.nan
        mask = rng.random(20) < 0.2
        x[mask & ~np.isnan(x)] = 1e6
        gaps = np.isnan(x) | mask
        how: dict[str, Any] = {"boundary": boundary, "cval": cval, "method": method, "mask": mask}
        expected = omitted(x, gaps, w, boundary, cval, min_weight)
        got = nc.correlate(x, w, nan_policy="omit", min_weight=min_weight, **how)
        close(got, expected, 4 * w.sum() / w.min() * w.sum())
        filled = np.where(gaps, expected / w.sum(), x)
        again = nc.correlate(filled, w, boundary=boundary, cval=cval, method="direct")
        got = nc.correlate(x, w, nan_policy="interpolate", min_weight=min_weight, **how)
        close(got, again, 16 * (w.sum() / w.min()) * w.sum())


@pytest.mark.parametrize("policy", ["omit", "interpolate"])
@pytest.mark.parametrize("min_weight", [0.0, 0.5])
def test_weights_of_both_signs_cancel_alike_by_every_method(policy: str, min_weight: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, w = rng.standard_normal((15, 16)), np.outer([-1.0, 3.0, 1.0], np.add(rng.integers(-2, 4, 4), [0, 9, 0, 0]))
        x[rng.random(x.shape) < 0.5] = np.nan
        how: dict[str, Any] = {"nan_policy": policy, "min_weight": min_weight}
        expected = np.isnan(nc.correlate(x, w, method="direct", **how))
        for method in ("auto", "fft", "separable"):
            np.testing.assert_array_equal(np.isnan(nc.correlate(x, w, method=method, **how)), expected)


def test_omit_changes_nothing_where_nothing_is_missing() -> None:
    x, w = random((30, 40)), filters.gaussian(1.5)
    plain = nc.correlate(x, w)
    np.testing.assert_array_equal(nc.correlate(x, w, nan_policy="omit"), plain)
    x[0, 0] = np.nan
    np.testing.assert_array_equal(nc.correlate(x, w, nan_policy="omit")[20:], plain[20:])


def test_what_cannot_be_interpolated_spreads() -> None:
    x = np.array([1.0, 2.0, np.nan, np.nan, np.nan, np.nan, 3.0, 4.0])
    y = nc.correlate(x, filters.box(3, ndim=1), nan_policy="interpolate")
    np.testing.assert_array_equal(np.isnan(y), [False, False, True, True, True, True, False, False])


def test_missing_integers() -> None:
    x, mask = np.array([1, 100, 3]), np.array([False, True, False])
    y = nc.correlate(x, np.array([1, 1, 1]), mask=mask, nan_policy="omit")
    np.testing.assert_array_equal(y, [3.0, 6.0, 9.0])
    assert y.dtype == np.float64


def test_complex_values_may_be_missing() -> None:
    x = whole((9,), dtype="complex128")
    x[4] = complex(0, np.nan)
    y = nc.correlate(x, np.ones(3), nan_policy="omit")
    np.testing.assert_allclose(y[4], (x[3] + x[5]) * 1.5)
    assert np.isnan(nc.correlate(x, np.ones(3))).sum() == 3


# --------------------------------------------------------------------------------------------------------------------
# Kernels, gradients, bad input
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_ready_made_kernels_equal_ndimage(ndim: int, boundary: str) -> None:
    x = random(SHAPES[ndim])
    for sigma, truncate in ((1.0, 4.0), (0.7, 2.0), (0.0, 4.0)):
        got = nc.correlate(x, filters.gaussian(sigma, truncate, ndim=ndim), boundary=boundary)
        close(got, ndimage.gaussian_filter(x, sigma, truncate=truncate, mode=boundary), np.abs(x).max())
    for size in (2, 3, 5):
        close(
            nc.correlate(x, filters.box(size, ndim=ndim), boundary=boundary),
            ndimage.uniform_filter(x, size, mode=boundary),
            np.abs(x).max() * ndim,
        )
    scale = np.abs(x).max() * 4**ndim
    for axis in range(ndim):
        got = nc.correlate(x, filters.sobel(axis, ndim=ndim), boundary=boundary)
        close(got, ndimage.sobel(x, axis, mode=boundary), scale)
    close(nc.correlate(x, filters.laplace(ndim=ndim), boundary=boundary), ndimage.laplace(x, mode=boundary), scale)


def test_kernels_of_tiny_widths_are_one_element() -> None:
    np.testing.assert_array_equal(filters.gaussian(1e-200, 1e200, ndim=1), [0, 1, 0])
    assert np.isfinite(filters.gabor(0.2, sigma_x=1e-200, sigma_y=1.0)).all()


def test_gabor_is_a_wave_under_a_gaussian() -> None:
    for theta, offset in ((0.0, 0.0), (0.6, 0.3), (2.0, -1.0)):
        g = filters.gabor(0.2, theta, sigma_x=2.0, sigma_y=3.0, offset=offset)
        ry, rx = g.shape[0] // 2, g.shape[1] // 2
        for i, j in ((0, 0), (1, 2), (-3, 1)):
            along, across = j * np.cos(theta) + i * np.sin(theta), i * np.cos(theta) - j * np.sin(theta)
            expected = np.exp(-(along**2) / 8 - across**2 / 18) / (12 * np.pi)
            expected *= np.exp(1j * (0.4 * np.pi * along + offset))
            np.testing.assert_allclose(g[ry + i, rx + j], expected, rtol=1e-12)
    assert filters.gabor(0.2, 0.0, sigma_x=2.0, sigma_y=3.0).shape == (19, 13)


def test_gabor_equals_skimage() -> None:
    skimage = pytest.importorskip("skimage.filters")
    for arguments in ((0.25,), (0.1, 0.7), (0.3, 2.0, 1.7, None, 3.0, 2.5, 0.4)):
        np.testing.assert_allclose(filters.gabor(*arguments), skimage.gabor_kernel(*arguments), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("edge", [("fill", "constant"), ("extend", "nearest"), ("wrap", "wrap")])
def test_missing_values_equal_astropy(edge: tuple[str, str]) -> None:
    astropy = pytest.importorskip("astropy.convolution")
    x, mask = random((20, 23)), np.random.default_rng(1).random((20, 23)) < 0.1
    x[np.random.default_rng(2).random(x.shape) < 0.2] = np.nan
    for w in (filters.gaussian(1.0), np.random.default_rng(3).random((3, 5)) + 0.1):
        theirs = astropy.convolve(x, w, edge[0], nan_treatment="interpolate", normalize_kernel=False, mask=mask)
        got = nc.convolve(x, w, boundary=edge[1], nan_policy="omit", mask=mask, method="direct")
        close(got, theirs, 10 * w.sum())
        x_ = np.where(mask, np.nan, x)
        filled = astropy.interpolate_replace_nans(x_, w, boundary=edge[0])
        theirs = astropy.convolve(filled, w, edge[0], normalize_kernel=False)
        got = nc.convolve(x, w, boundary=edge[1], nan_policy="interpolate", mask=mask, method="direct")
        close(got, theirs, 10 * w.sum())


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_arrays_on_a_device_stay_there(boundary: str, method: str) -> None:
    x, w, mask = random((2, 7, 8)), filters.gaussian(0.8), np.random.default_rng(1).random((2, 7, 8)) < 0.3
    x[0, 1, 1] = np.nan
    up = [upload(value) for value in (x, w, mask)]
    for policy in ("propagate", "omit", "interpolate"):
        how: dict[str, Any] = {
            "axes": (1, 2),
            "boundary": boundary,
            "cval": 1.0,
            "method": method,
            "nan_policy": policy,
        }
        masks = ({}, {}) if policy == "propagate" else ({"mask": up[2]}, {"mask": mask})
        got = nc.correlate(up[0], up[1], **how, **masks[0])
        assert type(got) is ndarray
        # A Gaussian's weights differ by a factor of about 2000, by which normalising may enlarge a rounding.
        close(got._value, nc.correlate(x, w, **how, **masks[1]), 2000.0**2)
    y, pullback = filters.correlate_vjp(*up[:2], axes=(1, 2), boundary=boundary)
    dx, dw = pullback(y)
    assert type(y) is type(dx) is type(dw) is ndarray


def test_foreign_arrays_and_layouts() -> None:
    x, w = random((6, 7)), random((3, 3), 1)
    expected = nc.correlate(x, w)
    for same in (np.asfortranarray(x), x.astype(">f8"), np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(nc.correlate(same, w), expected)
    x.flags.writeable = False
    np.testing.assert_array_equal(nc.correlate(x, w), expected)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("mode", filters.MODES)
@given(
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    boundary=st.sampled_from(BOUNDARIES),
    seed=st.integers(0, 2**32),
)
def test_pullbacks_are_adjoints(
    mode: str, dtype: str, size: tuple[int, int], kernel: tuple[int, int], stride: int, boundary: str, seed: int
) -> None:
    x, w = whole((size[0], 2, size[1]), seed, dtype), whole(kernel, seed + 1, dtype)
    for name in ("correlate", "convolve"):
        how: dict[str, Any] = {"mode": mode, "boundary": boundary, "axes": (0, 2), "stride": stride}
        y, pullback = getattr(filters, f"{name}_vjp")(x, w, **how)
        np.testing.assert_array_equal(y, getattr(nc, name)(x, w, method="direct", **how))
        dy = whole(y.shape, seed + 2, dtype)
        dx, dw = pullback(dy)
        assert (dx.shape, dw.shape) == (x.shape, w.shape)
        assert np.vdot(y, dy) == np.vdot(x, dx)
        assert np.vdot(y, dy).real == np.vdot(w, dw).real
        # A constant beyond the edge moves the result, not the gradient in x.
        shifted, with_cval = getattr(filters, f"{name}_vjp")(x, w, cval=3.0, **how)
        cx, cw = with_cval(dy)
        np.testing.assert_array_equal(cx, dx)
        assert np.vdot(shifted, dy).real == np.vdot(w, cw).real


def test_out() -> None:
    x, w, out = whole((5, 6)), whole((3, 3), 1), np.empty((5, 6))
    assert nc.correlate(x, w, out=out) is out
    np.testing.assert_array_equal(out, nc.correlate(x, w))
    with pytest.raises(ValueError, match="out must not share memory with x"):
        nc.correlate(x, w, out=x)


def test_empty_batches_and_axes() -> None:
    assert nc.correlate(np.ones((0, 5)), np.ones(3), axes=1).shape == (0, 5)
    assert nc.correlate(np.ones((2, 0)), np.ones(3), axes=1).shape == (2, 0)
    with pytest.raises(ValueError, match="mode 'full' has no result"):
        nc.correlate(np.ones((2, 0)), np.ones(3), axes=1, mode="full")


X, W = np.ones((5, 5)), np.ones((3, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "middle"}, ValueError, "mode must be one of"),
        ({"boundary": "zeros"}, ValueError, "boundary must be one of"),
        ({"method": "fast"}, ValueError, "method must be one of"),
        ({"nan_policy": "ignore"}, ValueError, "nan_policy must be one of"),
        ({"w": np.ones(3)}, ValueError, "w must have one dimension for each filtered axis"),
        ({"w": np.ones((0, 3))}, ValueError, "w must not be empty"),
        ({"axes": (0, 0)}, ValueError, "axes must name each axis once"),
        ({"axes": (0, 2)}, ValueError, "axes must name axes of"),
        ({"axes": 1.5}, TypeError, "axes must be an integer"),
        ({"origin": 2}, ValueError, "origin must lie within"),
        ({"origin": 1, "mode": "full"}, ValueError, "origin is for mode 'same'"),
        ({"stride": 0}, ValueError, "stride must be positive"),
        ({"w": np.ones((6, 6)), "mode": "valid"}, ValueError, "mode 'valid' has no result"),
        ({"cval": "0"}, TypeError, "cval must be a number"),
        ({"x": X.astype("f4"), "cval": 1e300, "boundary": "constant"}, ValueError, "cval must fit"),
        ({"x": X.astype(int), "w": W.astype(int), "cval": 2**64, "boundary": "constant"}, ValueError, "cval must fit"),
        ({"cval": 1j, "boundary": "constant"}, TypeError, "cval must be real"),
        (
            {"x": X.astype(int), "w": W.astype(int), "cval": 0.5, "boundary": "constant"},
            ValueError,
            "cval must be an int",
        ),
        ({"mask": X > 0}, ValueError, "mask needs nan_policy"),
        ({"mask": X, "nan_policy": "omit"}, TypeError, "mask must be of dtype bool"),
        ({"mask": X[0] > 0, "nan_policy": "omit"}, ValueError, "mask must have shape"),
        ({"min_weight": 0.5}, ValueError, "min_weight is for"),
        ({"min_weight": 2, "nan_policy": "omit"}, ValueError, "min_weight must be"),
        ({"w": filters.laplace() * 1.0, "nan_policy": "omit"}, ValueError, "sum to zero"),
        ({"w": W * np.nan, "nan_policy": "omit"}, ValueError, "w must be finite"),
        ({"w": filters.laplace(), "method": "separable"}, ValueError, "rank 1"),
        ({"x": X.astype(int), "w": W.astype(int), "method": "fft"}, ValueError, "method 'fft' rounds"),
        ({"stride": 3, "method": "fft"}, ValueError, "nothing to transform"),
        ({"dtype": "int32"}, TypeError, "dtype int32 cannot hold"),
        ({"dtype": "text"}, TypeError, "dtype must be"),
        ({"x": X * np.nan, "nan_policy": "raise"}, ValueError, "x contains NaN"),
        ({"x": [1, 2]}, TypeError, "x must be an array"),
        ({"x": X > 0, "w": W > 0}, TypeError, "bool"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nc.correlate(**{"x": X, "w": W, **arguments})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: filters.gaussian(-1.0), ValueError, "sigma must be at least 0"),
        (lambda: filters.gaussian("1"), TypeError, "sigma must be a number"),
        (lambda: filters.gaussian((1.0, 2.0), ndim=3), ValueError, "sigma must have one value for each"),
        (lambda: filters.gaussian(1.0, np.nan), ValueError, "truncate must be"),
        (lambda: filters.box(0), ValueError, "size must be positive"),
        (lambda: filters.sobel(2), ValueError, "axis must name"),
        (lambda: filters.laplace(ndim=0), ValueError, "ndim must be positive"),
        (lambda: filters.gabor(0.0), ValueError, "frequency must be more than 0"),
        (lambda: filters.gaussian(1e200, 1e200), ValueError, "truncate times the standard deviation must fit"),
        (lambda: filters.gaussian(1e12, ndim=2), ValueError, "too many elements"),
        (lambda: filters.gabor(1e-320), ValueError, "n_stds times the standard deviation must fit"),
        (lambda: filters.gabor(0.2, bandwidth=1e-320), ValueError, "n_stds times the standard deviation must fit"),
        (lambda: filters.gabor(0.2, sigma_x=1e-200, sigma_y=1e-200), ValueError, "sigma_x and sigma_y must not be"),
        (lambda: filters.factors([[1, 2]]), TypeError, "w must be a NumPy array of numbers, got list"),
        (lambda: filters.factors([1]), TypeError, "w must be a NumPy array"),
        (lambda: filters.correlate_vjp(X, W)[1](np.ones(3)), ValueError, "dy must have shape"),
    ],
)
def test_bad_input_of_the_rest(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
