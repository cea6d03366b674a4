"""What SciPy, NumPy and astropy print in their own documentation, by the names that npconv has for it."""

from __future__ import annotations

import numpy as np
import pytest

import npconv as nc
from npconv import filters

SIGNAL = np.array([2, 8, 0, 4, 1, 9, 9, 0])
IMAGE = np.array([[1, 2, 0, 0], [5, 3, 0, 4], [0, 0, 0, 7], [9, 3, 0, 0]])
CORNER = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("cval", "expected"),
    [
        (0.0, [[11, 10, 7, 4], [10, 3, 11, 11], [15, 12, 14, 7], [12, 3, 7, 0]]),
        (1.0, [[13, 11, 8, 7], [11, 3, 11, 14], [16, 12, 14, 10], [15, 6, 10, 5]]),
    ],
)
def test_ndimage_convolve_with_a_constant(cval: float, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(nc.convolve(IMAGE, CORNER, boundary="constant", cval=cval), expected)


@pytest.mark.parametrize(
    ("x", "taps", "boundary", "expected"),
    [
        ([[2, 0, 0], [1, 0, 0], [0, 0, 0]], 3, "reflect", [[5, 0, 0], [3, 0, 0], [1, 0, 0]]),
        ([[2, 0, 1], [1, 0, 0], [0, 0, 0]], 5, "nearest", [[7, 0, 3], [5, 0, 2], [3, 0, 1]]),
    ],
)
def test_ndimage_convolve_beyond_the_edge(x: list, taps: int, boundary: str, expected: list) -> None:
    column = np.zeros((taps, 3), int)
    column[:, 1] = 1
    np.testing.assert_array_equal(nc.convolve(np.array(x), column, boundary=boundary), expected)


def test_ndimage_even_kernels() -> None:
    w = np.array([1, 3])
    np.testing.assert_array_equal(nc.correlate(SIGNAL, w), [8, 26, 8, 12, 7, 28, 36, 9])
    # ndimage's own centre of an even kernel that is turned round lies one element further.
    np.testing.assert_array_equal(nc.convolve(SIGNAL, w, origin=1), [14, 24, 4, 13, 12, 36, 27, 0])


def test_ndimage_uniform_filter_of_integers_cuts_off_fractions() -> None:
    means = nc.correlate(SIGNAL.astype(float), filters.box(3, ndim=1))
    np.testing.assert_array_equal(np.floor(means + 1e-9), [4, 3, 4, 1, 4, 6, 6, 3])


def test_ndimage_gaussian_filter() -> None:
    x = np.arange(1.0, 6.0)
    for sigma, expected in (
        (1, [1.42704095, 2.06782203, 3.0, 3.93217797, 4.57295905]),
        (4, [2.91948343, 2.95023502, 3.0, 3.04976498, 3.08051657]),
    ):
        np.testing.assert_allclose(nc.correlate(x, filters.gaussian(sigma, ndim=1)), expected, atol=1e-8)
    image = np.arange(50, step=2).reshape(5, 5)
    # Of integers SciPy cuts off the fractions after each axis.
    smooth = image.astype(float)
    for axis in (0, 1):
        smooth = np.floor(nc.correlate(smooth, filters.gaussian(1.0, ndim=1), axes=axis))
    rows = [[4, 6, 8, 9, 11], [10, 12, 14, 15, 17], [20, 22, 24, 25, 27], [29, 31, 33, 34, 36], [35, 37, 39, 40, 42]]
    np.testing.assert_array_equal(smooth, rows)


def test_numpy_convolve_and_correlate() -> None:
    x, w = np.array([1, 2, 3]), np.array([0, 1, 0.5])
    for mode, convolved, correlated in (
        ("full", [0, 1, 2.5, 4, 1.5], [0.5, 2, 3.5, 3, 0]),
        ("same", [1, 2.5, 4], [2, 3.5, 3]),
        ("valid", [2.5], [3.5]),
    ):
        np.testing.assert_array_equal(nc.convolve(x, w, mode=mode, boundary="constant"), convolved)
        np.testing.assert_array_equal(nc.correlate(x, w, mode=mode, boundary="constant"), correlated)
    x, w = np.array([1 + 1j, 2, 3 - 1j]), np.array([0, 1, 0.5j])
    expected = [0.5 - 0.5j, 1 + 0j, 1.5 - 1.5j, 3 - 1j, 0 + 0j]
    np.testing.assert_array_equal(nc.correlate(x, w, mode="full", boundary="constant"), expected)


@pytest.mark.parametrize("method", ["direct", "auto", "fft"])
def test_astropy(method: str) -> None:
    how = {"boundary": "constant", "method": method, "nan_policy": "omit"}
    x = np.array([1.0, 4, 5, 6, 5, 7, 8])
    expected = [1.4, 3.6, 5.0, 5.6, 5.6, 6.8, 6.2]
    np.testing.assert_allclose(nc.convolve(x, np.array([0.2, 0.6, 0.2]), **how), expected, rtol=1e-14)
    box = filters.box(3, ndim=1)
    for x, expected in (([1, 0, 3], [1 / 3, 4 / 3, 1]), ([1, np.nan, 3], [0.5, 2, 1.5])):
        np.testing.assert_allclose(nc.convolve(np.array(x, float), box, **how), expected, rtol=1e-14)
    # Nothing present under a weight other than 0: astropy's `min_wt` makes that NaN too.
    got = nc.convolve(np.array([1, np.nan, 3]), np.array([0.0, 1, 0]), **how)
    np.testing.assert_allclose(got, [1, np.nan, 3], rtol=1e-14)
