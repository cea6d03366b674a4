"""Filters of one channel: strips of the result (strips.py) over rows of the image that tables find.

What stands beyond the edge is a matter of tables: where each row of the padded image comes from, and each column. Rows
are read where they are; only the few columns next to the left and right edge, with what lies beyond them, are copied
together, for one block of rows at a time. No padded image exists.

`conv_stencil` sums a kernel of any number of dimensions (all axes but the last two are leading taps, whose planes a
table names); `conv_separable` sums one kernel of rows and one of columns, and what is between the two stays in L2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.compile import entry, inner
from npconv.kernels.cpu.staging import row_movers
from npconv.kernels.cpu.strips import Strip, strip_sums, sums_along
from npconv.kernels.cpu.vectors import (
    ADDRESS,
    GRID,
    TABLE,
    address_of,
    elements,
    number_of,
)

DIRECT, LEFT, RIGHT = 0, 1, 2
"""Where a strip's rows are read: in the image, or in the copy of what is next to an edge."""


WORTH_ANOTHER = 4
"""Strips side by side from which on one more pays, so that all but two write whole vectors of memory."""


@functools.lru_cache(maxsize=8)
def rows_gatherer(dtype: np.dtype[Any]) -> Callable[..., None]:
    """``gather(target, image, beyond, outside, rows, top, count, columns, first, run, width)``: rows of a plane.

    Of the rows ``rows[top]`` and so on, `count` of them, the elements from ``columns[first]`` on, ``run[0]`` of them,
    one row behind the other; `outside` where a table says -1. Of the columns ``run[2]`` from the ``run[1]``-th on are
    neighbours in the source too. `image` is the address of a plane, `beyond` that of a row of nothing but `outside`;
    an image of 0 has only such rows.
    """
    size, kind = dtype.itemsize, dtype.type
    _, copy_row, _ = row_movers(size, processor().register_bytes // size)

    @inner
    def gather(
        target: int, image: int, beyond: int, outside: Any, rows: Any, top: int, count: int, columns: Any, first: int,
        run: Any, width: int,
    ) -> None:  # fmt: skip
        total, head, length = run[0], run[1], run[2]
        begin = columns[first + head] if length > 0 else 0
        result = elements(target, count * total, kind)
        for i in range(count):
            number = rows[top + i]
            source = image + number * width * size if number >= 0 and image != 0 else beyond
            row, at = elements(source, width, kind), i * total
            for q in range(head):
                c = columns[first + q]
                result[at + q] = row[c] if c >= 0 else outside
            if length > 0:
                copy_row(target + (at + head) * size, source + begin * size, length)
            for q in range(head + length, total):
                c = columns[first + q]
                result[at + q] = row[c] if c >= 0 else outside

    return gather


class Tables(NamedTuple):
    """What `conv_stencil` works from, all of int64.

    `shape` holds planes of an image, their height and width, height and width of the result, rows and columns of the
    kernel, distance of two of its columns, rows of a task, strips of a task, first column of the right edge's copy, the
    column of the image that column 0 of the padded one is, negated, and the number of slots. `leads` is the plane for
    each leading place of the result and leading tap, `slots` where what is next to its edges is kept, two planes of a
    place in two slots. `rows` and `columns` are the row and the column that each of the padded plane is, all of them -1
    for the constant. `strips` holds the first column of each strip, where it is read, and how many from it on lie side
    by side and are read in the same place; `edges` what `rows_gatherer` needs to know of the left and the right copy.
    """

    shape: Any
    leads: Any
    slots: Any
    rows: Any
    columns: Any
    strips: Any
    edges: Any


def signature(dtype: np.dtype[Any], addresses: int, *tables: Any) -> tuple[Any, ...]:
    """Types of an entry: a range of tasks, addresses, the constant beyond the edge, and tables."""
    tuple_of: Any = types.Tuple
    scalar = types.float32 if dtype.itemsize == 4 else types.float64
    return (types.int64, types.int64, *[ADDRESS] * addresses, scalar, tuple_of(tables))


@functools.lru_cache(maxsize=16)
def conv_stencil(dtype: np.dtype[Any], strip: Strip, kernel_rows: int | None = None) -> Callable[..., None]:
    """The driver for float32 or float64 and a `stencil_strip`."""
    size, high, wide = dtype.itemsize, strip.rows, strip.columns
    sums, gather = strip_sums(size, strip, kernel_rows), rows_gatherer(dtype)
    along, kind, nines, vector = sums_along(size, strip), dtype.type, kernel_rows is None, strip.lanes * size

    @entry(*signature(dtype, 4, TABLE, GRID, GRID, TABLE, TABLE, GRID, GRID))
    def conv_stencil_loop(
        start: int, stop: int, x: Any, w: Any, beyond: Any, y: Any, outside: Any, tables: Any
    ) -> None:
        """``y = x * w`` for the addresses of images, of a kernel (leads, rows, columns), of a row as long as the
        image's and the edges' copies that holds nothing but `outside`, and of the result.

        A task is (n, block of rows, block of strips, leading place): what is next to an edge is copied once for all
        places that need it.
        """
        x, w, beyond, y = number_of(x), number_of(w), number_of(beyond), number_of(y)
        shape, leads, slots, rows, columns, strips, edges = tables
        planes, height, width, out_h, out_w = shape[0], shape[1], shape[2], shape[3], shape[4]
        kernel_h, kernel_w, spread, block_h, block_s, low = shape[5], shape[6], shape[7], shape[8], shape[9], shape[11]
        row_blocks, strip_blocks = (out_h + block_h - 1) // block_h, (strips.shape[0] + block_s - 1) // block_s
        threes = nines and kernel_h == 3 and kernel_w == 3
        places, taps = leads.shape[0], leads.shape[1]
        firsts, copied, pitch = (0, shape[10]), block_h + kernel_h - 1, block_h + kernel_h + high - 2
        bytes_of = (edges[0, 0] * size, edges[1, 0] * size)
        left_bytes = shape[12] * copied * bytes_of[0]
        copies, held = np.empty(shape[12] * copied * (edges[0, 0] + edges[1, 0]), kind), np.full(shape[12], -1)
        # Where each slot's rows are, read in either place, and where a strip's are in there.
        table, tables = np.empty((3, shape[12], pitch), np.int64), np.empty((3, taps), np.int64)
        # Strips that only write can write whole vectors of memory, if that is so in one row as in the others.
        alike = taps == 1 and out_w * size % vector == 0
        for task in range(start, stop):
            place, rest = task % places, task // places
            block, n = rest % (row_blocks * strip_blocks), rest // (row_blocks * strip_blocks)
            first_strip, top = block % strip_blocks * block_s, block // strip_blocks * block_h
            last_strip, bottom = min(strips.shape[0], first_strip + block_s), min(top + block_h, out_h)
            at_left, at_right = strips[first_strip, 1] == LEFT, strips[last_strip - 1, 1] == RIGHT
            by_vectors = threes and bottom - top >= high and out_w >= wide
            count = bottom - top + kernel_h - 1
            for tap in range(taps):
                plane, slot = leads[place, tap], slots[place, tap]
                image = x + (n * planes + plane) * height * width * size if plane >= 0 else 0
                # Which part of which plane it is; of the constant's, all but the part are alike.
                wanted = (n * planes + plane) * row_blocks * strip_blocks + block if plane >= 0 else -2 - block
                if held[slot] == wanted:
                    continue
                held[slot] = wanted
                left = address_of(copies) + slot * copied * bytes_of[0]
                right = address_of(copies) + left_bytes + slot * copied * bytes_of[1]
                if at_left:
                    gather(left, image, beyond, outside, rows, top, count, columns, 0, edges[0], width)
                if at_right:
                    gather(right, image, beyond, outside, rows, top, count, columns, firsts[1], edges[1], width)
                for i in range(count + high - 1):
                    copy = min(i, count - 1)
                    row = rows[top + copy]
                    source = image + row * width * size if row >= 0 and plane >= 0 else beyond
                    table[0, slot, i] = source - low * size
                    table[1, slot, i] = left + copy * bytes_of[0]
                    table[2, slot, i] = right + copy * bytes_of[1] - firsts[1] * size
            for next_rows in range(top, bottom, high):
                # Whole strips of vectors: the last rows are done once more.
                row_of_strip = min(next_rows, bottom - high) if by_vectors else next_rows
                for tap in range(taps):
                    for where in range(3):
                        first = (where * shape[12] + slots[place, tap]) * pitch + row_of_strip - top
                        tables[where, tap] = address_of(table) + first * 8
                target = y + ((n * places + place) * out_h + row_of_strip) * out_w * size
                if by_vectors:
                    number_of_strip = first_strip
                    while number_of_strip < last_strip:
                        column, place_of_it = strips[number_of_strip, 0], strips[number_of_strip, 1]
                        steps = min(strips[number_of_strip, 2], last_strip - number_of_strip)
                        here = target + column * size
                        late = -here % vector // size if alike and steps >= WORTH_ANOTHER else 0
                        # One strip, those from there on that write whole vectors of memory, and the last one.
                        for part in range(3 if late > 0 else 1):
                            begin = (steps - 1) * wide if part == 2 else part * late
                            count_of_part = steps if late == 0 else steps - 1 if part == 1 else 1
                            for tap in range(taps):
                                along(
                                    tables[place_of_it, tap], w + tap * 9 * size, spread, column + begin,
                                    count_of_part, here + begin * size, out_w, tap,
                                )  # fmt: skip
                        number_of_strip += steps
                    continue
                for number_of_strip in range(first_strip, last_strip):
                    column = strips[number_of_strip, 0]
                    sums(
                        address_of(tables) + strips[number_of_strip, 1] * taps * 8, taps, kernel_h, kernel_w, spread,
                        w, column, target + column * size, out_w, min(high, bottom - row_of_strip),
                        min(wide, out_w - column),
                    )  # fmt: skip

    return conv_stencil_loop


class Passes(NamedTuple):
    """What `conv_separable` works from, all of int64.

    `shape` holds height and width of a plane, of the result, taps of a column and of a row, distance of the latter, and
    rows of a task; `rows` and `columns` are as in `Tables`, `run` is what `rows_gatherer` needs to know of a whole row.
    """

    shape: Any
    rows: Any
    columns: Any
    run: Any


@functools.lru_cache(maxsize=16)
def conv_separable(dtype: np.dtype[Any], down: Strip, across: Strip) -> Callable[..., None]:
    """The driver for float32 or float64 and the strips of both passes, the second of one row."""
    size, high, kind = dtype.itemsize, down.rows, dtype.type
    sums_down, sums_across, wide, wide_across = (
        strip_sums(size, down),
        strip_sums(size, across),
        down.columns,
        across.columns,
    )

    @entry(*signature(dtype, 5, TABLE, TABLE, TABLE, TABLE))
    def conv_separable_loop(
        start: int, stop: int, x: Any, w_down: Any, w_across: Any, beyond: Any, y: Any, outside: Any, tables: Any
    ) -> None:
        """``y = x * (w_down w_across)`` for the addresses of planes, at least as wide as a strip of the first pass,
        two lines of weights, a row that holds nothing but `outside`, and the result.

        A task is (plane, block of rows).
        """
        x, w_down, w_across, beyond = number_of(x), number_of(w_down), number_of(w_across), number_of(beyond)
        y, (shape, rows, columns, run) = number_of(y), tables
        height, width, out_h, out_w, taps_h, taps_w = shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]
        spread, block_h = shape[6], shape[7]
        blocks, head, length, count = (out_h + block_h - 1) // block_h, run[1], run[2], columns.size
        # Strips of the second pass read whole vectors.
        pitch = count + wide_across
        between = np.zeros(block_h * pitch, kind)
        table, line, tables = np.empty(high + taps_h - 1, np.int64), np.empty(1, np.int64), np.empty(2, np.int64)
        tables[0], tables[1] = address_of(table), address_of(line)
        corner, weights = kind(0), elements(w_down, taps_h, kind)
        for i in range(taps_h):
            corner += weights[i] * outside
        for task in range(start, stop):
            top, n = task % blocks * block_h, task // blocks
            bottom = min(top + block_h, out_h)
            for row_of_strip in range(top, bottom, high):
                for i in range(table.size):
                    row = rows[min(row_of_strip + i, bottom + taps_h - 2)]
                    table[i] = x + (n * height + row) * width * size if row >= 0 else beyond
                target = address_of(between) + ((row_of_strip - top) * pitch + head) * size
                for step in range(0, width, wide):
                    column = min(step, width - wide)
                    sums_down(
                        address_of(tables), 1, taps_h, 1, 1, w_down, column, target + column * size, pitch,
                        min(high, bottom - row_of_strip), wide,
                    )  # fmt: skip
            for i in range(top, bottom):
                first = (i - top) * pitch
                for q in range(head):
                    c = columns[q]
                    between[first + q] = between[first + head + c] if c >= 0 else corner
                for q in range(head + length, count):
                    c = columns[q]
                    between[first + q] = between[first + head + c] if c >= 0 else corner
                line[0] = address_of(between) + first * size
                target = y + (n * out_h + i) * out_w * size
                for step in range(0, out_w, wide_across):
                    column = max(0, min(step, out_w - wide_across))
                    sums_across(
                        address_of(tables) + 8, 1, 1, taps_w, spread, w_across, column, target + column * size, out_w,
                        1, out_w - column,
                    )  # fmt: skip

    return conv_separable_loop
