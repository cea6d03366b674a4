"""Filters of one channel as they are called: what the tables say, once for each geometry, and how tasks are spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.geometry import Size
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import LINE, processor
from npconv.kernels.cpu.fourier import conv_fourier, tables_for
from npconv.kernels.cpu.integers import to_floats as to_floats
from npconv.kernels.cpu.integers import to_integers as to_integers
from npconv.kernels.cpu.operands import as_table
from npconv.kernels.cpu.signals import between, blocks_for, conv_signal
from npconv.kernels.cpu.stencil import (
    DIRECT,
    LEFT,
    RIGHT,
    Passes,
    Tables,
    conv_separable,
    conv_stencil,
)
from npconv.kernels.cpu.strips import stencil_strip, strip_for

BLOCK_ROWS = 32
"""Rows of a task, about: enough to share the copy of its edges."""

BLOCK_COLUMNS = 2**15
"""Columns of a task, about, so that a long signal is many tasks."""

PLANES_BYTES = 256 * 1024
"""What a task reads of several planes, about, so that it stays in L2 for the next place."""

COPIED_BYTES = 128 * 1024
"""Copies of rows of several planes, and as many of the result, stay in L2."""

MOST_SLOTTED = 2**18
"""Entries of a table of planes up to which it is looked at which of them are shared."""

BETWEEN_BYTES = 128 * 1024
"""What lies between two passes stays in L2."""


class Pace(NamedTuple):
    """What depends on the processor of the time that strips take: seconds, and cycles.

    `tap_of_row` is for one tap of a strip of one row, `unrolled` what products of unrolled strips take over what they
    do at best.
    """

    cycle: float
    tap_of_row: float
    unrolled: float


# One core of an AMD EPYC (Zen 3), and of an Intel Emerald Rapids with vectors of 64 bytes, of which all but one in 16
# places lie across two cache lines: a strip of one row needs each element once and waits for them.
PACE, PACE_OF_LINES = Pace(1 / 3.7e9, 7.3, 1.25), Pace(1 / 2.65e9, 9.2, 1.05)

# Cycles for a strip and for a row of the kernel over it, besides the products; for a row of the copy at an edge; and
# for 3x3 taps of a strip.
_STRIP, _ROW, _EDGE, _THREES = 90, 16, 75, 40

# Seconds that a product of two passes takes, about; and what a second of a filter on strips counts as, in
# multiply-adds of `threads`: below 0.3 ms no thread is woken, which may take that long.
_PRODUCT, _WORK = 8e-11, threads.WORTH_A_THREAD / 150e-6

Runner = Callable[[Any, Any, Any, Any], None]
"""``run(x, w, outside, y)``: arrays in C order and of the dtype, and the constant beyond the edge."""


def fits_stencil(dtype: np.dtype[Any]) -> bool:
    """Whether filters in a dtype run in strips."""
    return dtype.kind == "f"


def stencil(
    dtype: np.dtype[Any], batch: int, planes: int, size: Size, out: Size, kernel: Size, spread: int,
    leads: Any, rows: Any, columns: Any, low: int,
) -> Runner:  # fmt: skip
    """A filter made ready: images of so many planes of a `size`, filtered to planes of size `out`.

    Parameters
    ----------
    kernel : (rows, columns)
        Of one leading tap.
    spread : int
        Distance of the kernel's columns.
    leads, rows, columns : array of int
        As in `stencil.Tables`: the plane for each leading place of the result and leading tap, and what each row and
        each column of the padded plane is; -1 for the constant.
    low : int
        Columns of the padded plane before the first of the image.
    """
    strip, unrolled = stencil_strip(dtype, kernel, leads.shape[1], out[1])
    reach, wide = (kernel[1] - 1) * spread, strip.columns
    firsts = [max(0, min(first, out[1] - wide)) for first in range(0, out[1], wide)]
    # Short rows that several places share are copied whole, with their edges: all strips are then side by side.
    fitting = COPIED_BYTES // ((leads.shape[1] + 1) * out[1] * dtype.itemsize)
    copied = kernel == (3, 3) and leads.shape[1] > 1 and fitting >= 2 * strip.rows
    places = [LEFT if copied else _place(first, wide, reach, low, size[1], out[1]) for first in firsts]
    left = max((c + wide + reach for c, p in zip(firsts, places, strict=True) if p == LEFT), default=0)
    right = min((c for c, p in zip(firsts, places, strict=True) if p == RIGHT), default=len(columns))
    # A strip wider than the result reads what nobody uses.
    columns = np.append(columns, np.repeat(columns[-1:], max(0, left - len(columns))))
    edges = [_run(columns[:left]), _run(columns[right : out[1] + reach])]
    most = fitting if copied else _block_rows(dtype, size[1], kernel, leads.shape[1])
    block_h = _evenly(out[0], most, strip.rows)
    block_s = max(2, BLOCK_COLUMNS // wide)
    while len(firsts) > block_s and len(firsts) % block_s == 1:  # the last one may overlap the one before: one task
        block_s += 1
    slots = _slots(leads)
    shape = (planes, *size, *out, *kernel, spread, block_h, block_s, right, low, int(slots.max()) + 1)
    tables = Tables(*map(as_table, (shape, leads, slots, rows, columns, _side_by_side(firsts, places, wide), edges)))
    tasks = batch * len(leads) * -(-out[0] // block_h) * -(-len(firsts) // block_s)
    work = int(stencil_seconds(dtype, batch * len(leads), leads.shape[1], out, kernel) * _WORK)
    loop, longest = conv_stencil(dtype, strip, unrolled), max(size[1], edges[0][0], edges[1][0])
    constant, call = _has_constant(leads, rows, columns), threads.prepared(loop, tasks, work)

    def run(x: Any, w: Any, outside: Any, y: Any) -> None:
        call(x, w, np.full(longest, outside, dtype) if constant else x, y, outside, tables)

    return run


def stencil_seconds(dtype: np.dtype[Any], planes: int, leads: int, out: Size, kernel: Size) -> float:
    """About how long `stencil` takes on one core for so many planes of the result with so many leading taps."""
    strip, unrolled = stencil_strip(dtype, kernel, leads, out[1])
    strips = planes * -(-out[0] // strip.rows) * -(-out[1] // strip.columns)
    tasks = planes * -(-out[0] // _evenly(out[0], max(BLOCK_ROWS, kernel[0]), strip.rows))
    # Planes side by side share what is copied next to the edges.
    edges = tasks * (out[0] * planes // tasks + kernel[0] - 1) * (2 if kernel[1] > 1 else 0)
    pace = PACE_OF_LINES if processor().register_bytes == LINE else PACE
    if kernel == (3, 3) and not unrolled:
        return (strips * leads * _THREES + edges * _EDGE) * pace.cycle
    at_best = strip.rows * strip.vectors / 2
    if unrolled:
        products = kernel[1] * pace.unrolled * kernel[0] * at_best
        return (strips * (leads * (products + _ROW) + _STRIP) + edges * _EDGE) * pace.cycle
    tap = pace.tap_of_row if strip.rows == 1 else at_best
    return (strips * (leads * kernel[0] * (kernel[1] * tap + _ROW) + _STRIP) + edges * _EDGE) * pace.cycle


def separable(
    dtype: np.dtype[Any],
    planes: int,
    size: Size,
    out: Size,
    kernel: Size,
    spread: int,
    rows: Any,
    columns: Any,
    low: int,
) -> Callable[[Any, Any, Any, Any, Any], None]:
    """A filter of two passes made ready: ``run(x, w_down, w_across, outside, y)``; for the rest see `stencil`.

    ValueError where the planes are too narrow; see `fits_separable`.
    """
    down, across = strip_for(dtype, kernel[0]), strip_for(dtype, 1)
    if not fits_separable(dtype, size[1], kernel[0]):
        raise ValueError(f"the first of two passes writes {down.columns} columns at once, got planes of {size[1]}")
    pitch = (len(columns) + across.columns) * dtype.itemsize
    block_h = _evenly(out[0], max(down.rows, BETWEEN_BYTES // pitch), down.rows)
    shape = (*size, *out, *kernel, spread, block_h)
    tables = Passes(*map(as_table, (shape, rows, columns, (len(columns), low, size[1]))))
    tasks = planes * -(-out[0] // block_h)
    work = int(planes * out[0] * out[1] * (kernel[0] + kernel[1]) * _PRODUCT * _WORK)
    constant, call = _has_constant(rows), threads.prepared(conv_separable(dtype, down, across), tasks, work)

    def run(x: Any, w_down: Any, w_across: Any, outside: Any, y: Any) -> None:
        call(x, w_down, w_across, np.full(size[1], outside, dtype) if constant else x, y, outside, tables)

    return run


def lanes(dtype: np.dtype[Any]) -> int:
    """Elements of a vector."""
    return processor().register_bytes // dtype.itemsize


def transformed(
    dtype: np.dtype[Any], batch: int, size: Size, out: Size, tile: Size, sources: list[Any], low: int, work: int
) -> Callable[[Any, Any, Any, Any], bool]:
    """A filter on transformed tiles made ready: ``run(x, w, outside, y)`` says whether all of the result is finite.

    `sources` name for every axis the element of the image that each of the padded image is, -1 for the constant.
    ValueError for a tile whose rows, or the elements of one, are no multiple of `lanes`.
    """
    elements = math.prod(tile)
    _check_lanes(dtype, (elements // tile[-1], tile[-1]))
    loop = conv_fourier(dtype, lanes(dtype))
    tables, factors = tables_for(size, out, tile, sources, low, dtype)
    taps = len(sources[0]) - out[0] + 1  # on the first axis
    making, _ = tables_for(tile, tile, tile, [np.arange(n) for n in tile], 0, dtype, taps)
    pairs = batch * -(-math.prod(int(row[4]) for row in tables.axes) // 2)

    def run(x: Any, w: Any, outside: Any, y: Any) -> bool:
        kernel, spectrum, bad = np.zeros(tile, dtype), np.empty(2 * elements, dtype), np.zeros(1, dtype)
        kernel[tuple(slice(n) for n in w.shape)] = w / dtype.type(elements)
        loop(0, 1, kernel, kernel, spectrum, factors, bad, kernel, 0.0, making)
        beyond = np.full(size[-1], outside, dtype)
        threads.run(loop, pairs, work, x, beyond, spectrum, factors, bad, y, outside, tables)
        return bool(bad[0] == 0)

    return run


def signals(
    dtype: np.dtype[Any], batch: int, samples: int, out: int, block: Size, sources: Any, low: int, work: int
) -> Callable[[Any, Any, Any, Any], bool]:
    """A filter of signals on transformed blocks made ready, ``block[0] * block[1]`` samples each; see `transformed`.

    ValueError for a block whose rows or columns are no multiple of `lanes`.
    """
    _check_lanes(dtype, block)
    width, count = lanes(dtype), math.prod(block)
    loop = conv_signal(dtype, width)
    tables, factors = blocks_for(samples, out, block, sources, low, dtype)
    making, _ = blocks_for(count, count, block, np.arange(count), 0, dtype, making=1)
    pairs = batch * -(-int(tables.shape[5]) // 2)

    def run(x: Any, w: Any, outside: Any, y: Any) -> bool:
        kernel, spectrum, bad = np.zeros(count, dtype), np.empty(2 * count, dtype), np.zeros(1, dtype)
        kernel[: w.size] = w.ravel() / dtype.type(count)
        middle = between(*block, dtype, width)
        loop(0, 1, kernel, spectrum, factors, middle, bad, kernel, 0.0, making)
        threads.run(loop, pairs, work, x, spectrum, factors, middle, bad, y, outside, tables)
        return bool(bad[0] == 0)

    return run


def _check_lanes(dtype: np.dtype[Any], sides: Size) -> None:
    """Lines are transformed a vector of them at a time, along both sides: a part of one would reach beyond the end."""
    if any(n % lanes(dtype) for n in sides):
        raise ValueError(f"what is transformed has a multiple of {lanes(dtype)} rows and columns, got {sides}")


def fits_separable(dtype: np.dtype[Any], width: int, kernel_rows: int) -> bool:
    """Whether planes are wide enough for the first of two passes."""
    return fits_stencil(dtype) and width >= strip_for(dtype, kernel_rows).columns


def _block_rows(dtype: np.dtype[Any], width: int, kernel: Size, taps: int) -> int:
    """Rows of a task, about: those of all planes that a result needs stay in L2."""
    return max(BLOCK_ROWS, kernel[0], PLANES_BYTES // ((taps + 1) * width * dtype.itemsize) if taps > 1 else 0)


def _slots(leads: Any) -> Any:
    """A slot for each leading place and tap: the same for a plane wherever it is wanted, and two for two planes.

    Places side by side share all planes but one, which follow each other but where a boundary turns or wraps.
    """
    taps = leads.shape[1]
    if taps > 1 and leads.size <= MOST_SLOTTED:
        for count in range(taps, 2 * taps):
            slots = np.where(leads < 0, count, leads % count)
            if (_distinct(leads) == _distinct(slots)).all():
                return slots
    return np.broadcast_to(np.arange(taps), leads.shape)


def _distinct(table: Any) -> Any:
    """How many different numbers a row holds, less one."""
    return (np.diff(np.sort(table, axis=1)) != 0).sum(1)


def _place(first: int, wide: int, reach: int, low: int, width: int, out: int) -> int:
    """Where the strip from a column on is read."""
    if first < low or out < wide:
        return LEFT
    return RIGHT if first + wide + reach > low + width else DIRECT


def _side_by_side(firsts: list[int], places: list[int], wide: int) -> Any:
    """First columns and places of strips, and how many from each one on are neighbours in the same place."""
    counts = [1] * len(firsts)
    for n in range(len(firsts) - 2, -1, -1):
        if places[n] == places[n + 1] and firsts[n] + wide == firsts[n + 1]:
            counts[n] += counts[n + 1]
    return np.transpose([firsts, places, counts])


def _run(columns: Any) -> tuple[int, int, int]:
    """How many columns there are, and the longest run of neighbours: its first, and its length."""
    if not len(columns):
        return 0, 0, 0
    breaks = np.flatnonzero((np.diff(columns) != 1) | (columns[:-1] < 0)) + 1
    bounds = np.concatenate([[0], breaks, [len(columns)]])
    lengths = np.where(columns[bounds[:-1]] >= 0, np.diff(bounds), 0)
    best = int(lengths.argmax())
    return len(columns), int(bounds[best]), int(lengths[best])


def _evenly(total: int, most: int, multiple: int) -> int:
    """The rows of a block, in multiples, when `total` is divided into as few equal blocks as `most` allows."""
    parts = -(-total // most)
    return -(-total // parts // multiple) * multiple


def _has_constant(*tables: Any) -> bool:
    return any(bool((table < 0).any()) for table in tables)
