"""Channels brought from first to last and back: batches of matrices transposed, block by block in registers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import LINE, processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import ADDRESS, Vectors, elements, number, number_of, on_addresses

SIZES = (4, 8)
"""Bytes of an element: what it means does not matter."""

SHORT = 4096
"""Elements of some short rows that are done at once."""


def turns(array: Any) -> bool:
    """Whether `turned` can do it."""
    return array.itemsize in SIZES and array.dtype.kind in "fiu" and array.flags.c_contiguous


def turned(array: Any, to_last: bool) -> Any:
    """An image ``(N, C, *spatial)`` in C order as ``(N, *spatial, C)``, or back."""
    batch, *rest = array.shape
    channels, spatial = (rest[0], rest[1:]) if to_last else (rest[-1], rest[:-1])
    shape = (batch, *spatial, channels) if to_last else (batch, channels, *spatial)
    result = np.empty(shape, array.dtype)
    positions = math.prod(spatial)
    rows, columns = (channels, positions) if to_last else (positions, channels)
    if result.size:
        # Where a row is short, it is not worth beginning for a few of them.
        high = max(LINE // array.itemsize, SHORT // columns)
        tasks = batch * -(-rows // high)
        threads.run(turn_all(array.itemsize), tasks, 2 * array.size, array, result, rows, columns, high)
    return result


@functools.lru_cache(maxsize=2)
def turn_all(size: int) -> Callable[..., None]:
    """The loop of `turned` for elements of so many bytes."""
    lanes = processor().register_bytes // size
    turn, kind = on_addresses(_turn, size, lanes), {4: np.int32, 8: np.int64}[size]

    @entry(types.int64, types.int64, ADDRESS, ADDRESS, types.int64, types.int64, types.int64)
    def turn_all_loop(start: int, stop: int, x: Any, y: Any, rows: int, columns: int, high: int) -> None:
        """``y[n, j, i] = x[n, i, j]``; a task is `high` rows of a matrix."""
        x, y = number_of(x), number_of(y)
        strips = (rows + high - 1) // high
        for task in range(start, stop):
            n, first = task // strips, task % strips * high
            source, target = x + n * rows * columns * size, y + n * rows * columns * size
            last = min(rows, first + high)
            if last - first < lanes or columns < lanes:
                strip = elements(source + first * columns * size, (last - first) * columns, kind)
                for j in range(columns):
                    line = elements(target + (j * rows + first) * size, last - first, kind)
                    for i in range(last - first):
                        line[i] = strip[i * columns + j]
                continue
            for j in range(0, columns, lanes):
                # The last block of a row, and of a strip, ends where the matrix does.
                j = min(j, columns - lanes)
                for i in range(first, last, lanes):
                    i = min(i, last - lanes)
                    turn(source + (i * columns + j) * size, columns, target + (j * rows + i) * size, rows)

    return turn_all_loop


def _turn(vectors: Vectors, source: Any, pitch: Any, target: Any, apart: Any) -> None:
    """Transpose a square block, whose rows are `pitch` elements apart, to one whose rows are so many `apart`."""
    begin, end = vectors.pointer(source), vectors.pointer(target)
    places = range(vectors.lanes)
    builder = vectors.builder
    rows = [vectors.load(begin, builder.mul(pitch, number(i))) for i in places]
    for i, value in enumerate(transpose(vectors, rows, vectors.lanes)):
        vectors.store(value, end, builder.mul(apart, number(i)))
