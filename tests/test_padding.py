"""Padding modes against `numpy.pad`, and their adjoint; widths beyond the image's own size included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, PAD_MODES, identical, values

import npconv as nc

MODES = tuple(PAD_MODES)[1:]
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5))
PAIRS = st.tuples(*[st.tuples(st.integers(0, 7), st.integers(0, 7))] * 2)

Pairs = tuple[tuple[int, int], tuple[int, int]]


def one(dtype: str) -> np.ndarray:
    """A 1x1 kernel of one: what it gives is the padded image."""
    return np.ones((1, 1, 1, 1), dtype)


@pytest.mark.parametrize("mode", MODES)
@given(sizes=SIZES, pairs=PAIRS)
def test_padding_equals_numpy_pad_for_any_width(backend: str, mode: str, sizes: tuple[int, int], pairs: Pairs) -> None:
    x = values((2, 1, *sizes), "int64")
    padded = nc.conv(x, one("int64"), padding=pairs, padding_mode=mode, backend=backend)
    identical(padded, np.pad(x, ((0, 0), (0, 0), *pairs), PAD_MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
@given(sizes=SIZES, pairs=PAIRS, dtype=st.sampled_from(("float64", "complex128", "int64")))
def test_its_gradient_is_its_adjoint(backend: str, mode: str, sizes: tuple[int, int], pairs: Pairs, dtype: str) -> None:
    x = values((2, 1, *sizes), dtype)
    how = {"padding": pairs, "padding_mode": mode, "backend": backend}
    padded = nc.conv(x, one(dtype), **how)
    dy = values(padded.shape, dtype, 1)
    assert np.vdot(dy, padded) == np.vdot(nc.conv_input_grad(dy, one(dtype), x.shape, **how), x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wide_border_of_every_dtype(backend: str, mode: str, dtype: str) -> None:
    """A kernel that picks one element shows what stands in the border, seven times as wide as the image."""
    x = values((1, 1, 3), dtype)
    delta = np.zeros((1, 1, 22), dtype)
    delta[0, 0, 0] = 1
    y = nc.conv(x, delta, padding=21, padding_mode=mode, backend=backend)
    identical(y[0, 0], np.pad(x[0, 0], 21, PAD_MODES[mode])[: y.shape[2]])


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_or_no_channels_can_be_padded(backend: str, mode: str) -> None:
    assert nc.conv(np.zeros((0, 2, 4)), np.zeros((3, 2, 3)), padding=1, padding_mode=mode, backend=backend).shape == (
        0,
        3,
        4,
    )
    y = nc.conv(np.zeros((2, 0, 4)), np.zeros((3, 0, 3)), padding=1, padding_mode=mode, backend=backend)
    identical(y, np.zeros((2, 3, 4)))


@pytest.mark.parametrize("mode", MODES)
def test_there_must_be_something_to_repeat(mode: str) -> None:
    with pytest.raises(ValueError, match="padding_mode"):
        nc.conv(np.zeros((1, 1, 0)), np.zeros((1, 1, 1)), padding=1, padding_mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_without_padding_the_mode_does_not_matter(backend: str, mode: str) -> None:
    x, w = values((1, 1, 6), "float32"), values((1, 1, 3), "float32")
    identical(nc.conv(x, w, padding_mode=mode, backend=backend), nc.conv(x, w, backend=backend))
