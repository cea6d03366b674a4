"""Filters by compiled Fourier transforms of tiles: which tiles, how long they take, and when not to use them.

A signal's tiles are blocks of it, each transformed as a matrix; those of images and volumes have as many axes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from npconv.arrays import Array, Backend
from npconv.filters import compiled
from npconv.filters.frame import Frame
from npconv.geometry import Size

FEW_TAPS = 64
"""Products of a result up to which no transform is faster."""

MOST_TILE = 2**21
"""Elements of a tile; kernels that need more go another way."""

MILD = 1e-10, 1e10
"""Norms of a kernel between which spectra neither overflow nor lose digits to underflow."""

# Nanoseconds that an element of a tile takes on one core of an AMD EPYC (Zen 3) in float32: besides all passes, for a
# pass, for an axis beyond the second, for a radix of 3, and where a tile is larger than L2.
_ELEMENT, _PASS, _AXIS, _ODD, _LARGE = 0.5, 0.11, 1.8, 0.5, 0.6
_L2, _CALL = 2**20, 12e-6

# The same for an element of a signal's block; where blocks are larger than L2, and much larger; and for a pair of them.
_SAMPLE, _SAMPLE_PASS, _SAMPLE_LARGE, _SAMPLE_HUGE, _PAIR = 0.7, 0.08, 0.3, 4.0, 500e-9

# Nanoseconds that an element takes whose axis is moved to the end, and back.
_MOVED = 4.0


@functools.lru_cache(maxsize=256)
def fits(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> bool:
    """Whether a filter runs on tiles: of one axis, or of several one behind the other, the array's last among them."""
    frame = axis_last(frame)
    if not compiled.fits(backend, frame, dtype):
        return False
    _, axes, spread = compiled.arranged(frame)
    able = is_signal(axes) or all(axis.kernel > 1 for axis in axes)
    return spread == 1 and able and tile_for(backend, frame, dtype) is not None


def axis_last(frame: Frame) -> Frame:
    """The frame of a filter of one axis with that axis moved to the end; any other as it is."""
    if len(frame.axes) > 1:
        return frame
    shape, (axis,) = list(frame.x_shape), frame.axes
    shape.append(shape.pop(axis))
    return replace(frame, x_shape=tuple(shape), axes=(len(shape) - 1,))


def is_signal(axes: list[compiled.Axis]) -> bool:
    """Whether a kernel reaches along the last axis alone."""
    return axes[-1].kernel > 1 and all(axis.kernel == 1 for axis in axes[:-1])


@functools.lru_cache(maxsize=256)
def tile_for(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> tuple[Size, float] | None:
    """The tile that is expected to take the least time, and the seconds on one core; for signals rows and columns."""
    batch, axes, _ = compiled.arranged(axis_last(frame))
    lanes = compiled.compiled_filters(backend).lanes(dtype)
    if is_signal(axes):
        best = _block_for(batch * math.prod(axis.out for axis in axes[:-1]), axes[-1], dtype, lanes)
        if best is None or axis_last(frame) == frame:
            return best
        return best[0], best[1] + math.prod(frame.x_shape) * _MOVED * dtype.itemsize / 4 * 1e-9
    choices = []
    for axis in axes:
        possible = [n for n in _LENGTHS if n >= axis.kernel and n % min(lanes, 8) == 0]
        enough = next((i for i, n in enumerate(possible) if n >= axis.out + axis.kernel - 1), len(possible) - 1)
        choices.append(possible[: enough + 1])
    found = [
        (_seconds(batch, axes, tile, dtype), tile)
        for tile in itertools.product(*choices)
        if tile[-1] % lanes == 0 == math.prod(tile[:-1]) % lanes and math.prod(tile) <= MOST_TILE
    ]
    if not found:
        return None
    seconds, tile = min(found)
    return tile, seconds


def _block_for(batch: int, axis: compiled.Axis, dtype: np.dtype[Any], lanes: int) -> tuple[Size, float] | None:
    """`tile_for` of signals: blocks as rows and columns of about the same length."""
    most = 4 * (axis.out + axis.kernel) + lanes * lanes
    sides = [n for n in _SIDES if n % lanes == 0]
    found = [
        (_block_seconds(batch, axis, block, dtype), block)
        for block in itertools.product(sides, sides)
        if axis.kernel <= math.prod(block) <= min(most, MOST_TILE) and block[0] <= 4 * block[1] <= 16 * block[0]
    ]
    if not found:
        return None
    seconds, block = min(found)
    return block, seconds


def seconds(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> float:
    """About how long a filter that `fits` takes on one core."""
    found = tile_for(backend, frame, dtype)
    assert found is not None
    return found[1]


def is_faster(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> bool:
    """Whether tiles are expected to take less time than the sums."""
    if math.prod(frame.kernel) <= FEW_TAPS:
        return False
    found = tile_for(backend, frame, dtype)
    return found is not None and found[1] < compiled.seconds(backend, frame, dtype)


@compiled.remembered
def filter_for(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> Callable[..., Array | None]:
    """A filter of tiles made ready, ``y = filter(x, w, outside, out)``, which may write into `out`.

    None comes out where transforms would spread what is not finite, or lose digits.
    """
    last = axis_last(frame)
    (low, high), shape, axis = MILD, last.y_shape, None if last == frame else frame.axes[0]
    as_stored, run = compiled.stored_order(frame, dtype), _runner(backend, frame, dtype)

    def filtered(x: Array, w: Array, outside: Any, out: Array | None = None) -> Array | None:
        weights = as_stored(w)
        if not low < math.sqrt(np.vdot(weights, weights)) < high:
            return None
        y = np.empty(shape, dtype) if out is None or axis is not None else out
        if axis is None:
            return y if run(x, weights, outside, y) else None
        x = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        return np.ascontiguousarray(np.moveaxis(y, -1, axis)) if run(x, weights, outside, y) else None

    return filtered


def _runner(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> Any:
    batch, axes, _ = compiled.arranged(axis_last(frame))
    found = tile_for(backend, frame, dtype)
    assert found is not None
    kernels, (tile, seconds) = compiled.compiled_filters(backend), found
    sources = [compiled.origins(backend, axis, frame.boundary) for axis in axes]
    *leading, line = axes
    if is_signal(axes):
        batch *= math.prod(axis.out for axis in leading)
        return kernels.signals(dtype, batch, line.size, line.out, tile, sources[-1], line.low, int(seconds * 1e10))
    size, out = tuple(axis.size for axis in axes), tuple(axis.out for axis in axes)
    return kernels.transformed(dtype, batch, size, out, tile, sources, line.low, int(seconds * 1e10))


def _seconds(batch: int, axes: list[compiled.Axis], tile: Size, dtype: np.dtype[Any]) -> float:
    tiles = math.prod(-(-axis.out // (n - axis.kernel + 1)) for axis, n in zip(axes, tile, strict=True))
    wide, count = dtype.itemsize / 4, math.prod(tile)
    each = _ELEMENT + _PASS * sum(2 * _passes(n) for n in tile) + _AXIS * (len(tile) - 2)
    each += _ODD * any(n % 3 == 0 for n in tile) + _LARGE * (8 * wide * count > _L2)
    # The kernel's transform is half of a pair's.
    return _CALL + (2 * batch * -(-tiles // 2) + 1) * count * each * wide * 1e-9


def _block_seconds(batch: int, axis: compiled.Axis, block: Size, dtype: np.dtype[Any]) -> float:
    count, wide = math.prod(block), dtype.itemsize / 4
    pairs = batch * -(-axis.out // (2 * (count - axis.kernel + 1)))
    each = _SAMPLE + _SAMPLE_PASS * 2 * sum(map(_passes, block))
    each += _SAMPLE_LARGE * (24 * wide * count > _L2) + _SAMPLE_HUGE * (24 * wide * count > 3 * _L2)
    return _CALL + pairs * _PAIR + (2 * pairs + 1) * count * each * wide * 1e-9


def _passes(n: int) -> int:
    """Passes over a line of so many elements, of radix 2, 3 and 4."""
    threes = 0
    while n % 3 == 0:
        threes, n = threes + 1, n // 3
    return threes + -(-(n.bit_length() - 1) // 2)


_LENGTHS = sorted(2**a * 3**b for a, b in itertools.product(range(3, 11), range(2)) if 2**a * 3**b <= 1024)
_SIDES = sorted(2**a * 3**b for a, b in itertools.product(range(2, 12), range(2)) if 2**a * 3**b <= 2048)
