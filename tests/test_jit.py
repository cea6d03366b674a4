"""`npconv.jit` inside other people's compiled code gives what `npconv.conv2d` gives."""

from __future__ import annotations

import numpy as np
import pytest

import npconv as nc

numba = pytest.importorskip("numba")


@pytest.fixture(scope="module")
def inside():
    from npconv.jit import conv2d

    @numba.njit
    def twice(x, w, bias, stride, padding, dilation, groups):
        return 2 * conv2d(x, w, bias, stride, padding, dilation, groups)

    return twice


CASES = [
    ((2, 3, 7, 9), (4, 3, 3, 2), (1, 1), (0, 0), (1, 1), 1),
    ((1, 4, 8, 5), (6, 2, 2, 3), (2, 3), (1, 2), (2, 1), 2),
    ((3, 2, 1, 6), (2, 1, 5, 5), (1, 2), (4, 4), (1, 1), 2),
    ((0, 2, 6, 6), (2, 2, 3, 3), (1, 1), (0, 0), (1, 1), 1),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "padding", "dilation", "groups"), CASES)
def test_it_is_the_same_convolution(inside, x_shape, w_shape, stride, padding, dilation, groups):
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, shape).astype("f4") for shape in (x_shape, w_shape))
    bias = rng.integers(-4, 5, w_shape[0]).astype("f4")
    y = inside(x, w, bias, stride, padding, dilation, groups)
    np.testing.assert_array_equal(y, 2 * nc.conv2d(x, w, bias, stride, padding, dilation, groups), strict=True)


def test_integers_stand_for_both_axes_and_arrays_need_not_be_contiguous():
    from npconv.jit import conv2d

    @numba.njit
    def plain(x, w):
        return conv2d(x[:, :, ::2], w, stride=2, padding=1)

    rng = np.random.default_rng(0)
    x, w = rng.integers(-4, 5, (1, 2, 12, 7)).astype("f8"), rng.integers(-4, 5, (3, 2, 3, 3)).astype("f8")
    np.testing.assert_array_equal(plain(x, w), nc.conv2d(x[:, :, ::2], w, stride=2, padding=1))


CALL = {
    "x": np.zeros((1, 2, 6, 6), "f4"), "w": np.zeros((3, 2, 3, 3), "f4"), "bias": np.zeros(3, "f4"),
    "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": 2}, "channels"),
        ({"groups": 0}, "must be positive"),
        ({"padding": (-1, 0)}, "negative"),
        ({"stride": (0, 1)}, "must be positive"),
        ({"dilation": (4, 4)}, "must fit"),
        ({"bias": np.zeros(5, "f4")}, "bias"),
        ({"w": np.zeros((3, 2, 0, 3), "f4")}, "at least one element"),
    ],
)
def test_what_does_not_fit_is_an_error(inside, changes, words):
    with pytest.raises(ValueError, match=words):
        inside(*{**CALL, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": np.zeros((2, 6, 6), "f4")}, "^x must be an array of 4 dimensions, .* got an array of 3 dimensions"),
        ({"x": [1.0]}, "^x must be an array of 4 dimensions, .* got reflected list"),
        ({"w": np.zeros((3, 2, 3, 3), "f8")}, "^w must be of the dtype of x, float32, got float64"),
        ({"w": np.zeros((3, 2, 3, 3), "i4")}, "^w must be an array of 4 dimensions, of float32 or float64, .*of int32"),
        ({"bias": np.zeros((3, 1), "f4")}, "^bias must be None or an array of 1 dimension"),
        ({"stride": 1.5}, "^stride must be an integer or a pair of integers, got float64"),
        ({"padding": "same"}, "^padding must be an integer or a pair of integers, got unicode_type"),
        ({"dilation": (1, 1, 1)}, "^dilation must be an integer or a pair of integers, got"),
        ({"groups": (1, 1)}, "^groups must be an integer, got"),
    ],
)
def test_what_has_no_form_is_said_when_the_caller_is_compiled(inside, changes, words):
    with pytest.raises(TypeError, match=words):
        inside(*{**CALL, **changes}.values())
