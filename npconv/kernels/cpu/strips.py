"""Strips of a filter's result: a few rows by a few vectors in registers, summed over rows of the image.

A vector of the image serves all rows of the strip, so a product costs less than a load. How many taps there are is
known only when the loop runs, and a few compiled strips serve all kernels; those of 3, 5 and 7 rows have code of their
own, in which only the loop over columns is left.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from npconv.geometry import Size
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.vectors import INT64, Vectors, counted_loop, number, on_addresses

MOST_ROWS = 4
"""Rows of a strip: with more, too few vectors are left for a row, and weights are loaded as often as the image."""

MOST_VECTORS = 8
"""Vectors of a strip of one row: what hides the time that an addition takes."""

UNROLLED = (3, 5, 7)
"""Rows of kernels for which there is code of their own: they take two thirds of the time."""

TALL_ROWS, TALL_VECTORS = 8, 2
"""An unrolled strip where registers hold its sums beside a column's weights: it loads a quarter less than 4 by 4."""


class Strip(NamedTuple):
    """A part of the result that is held in registers."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.vectors * self.lanes


def strip_for(dtype: np.dtype[Any], kernel_rows: int) -> Strip:
    """The strip for kernels of so many rows: every tap but those at its ends serves all rows of the strip."""
    rows = MOST_ROWS if kernel_rows >= MOST_ROWS - 1 else kernel_rows
    vectors = min(MOST_VECTORS if rows == 1 else MOST_ROWS, max(1, processor().sums // rows))
    return Strip(rows, vectors, processor().register_bytes // dtype.itemsize)


def stencil_strip(dtype: np.dtype[Any], kernel: Size, leads: int, width: int) -> tuple[Strip, int | None]:
    """The strip for a kernel of so many planes of (rows, columns), and its rows if `strip_sums` unrolls them.

    Then a column's weights are held in registers, too, and an element of the image; `width` are the result's columns.
    3x3 has `sums_along`, whose strips are of one vector, so that as few columns as can be are next to an edge; but it
    reads and writes the result for every leading tap, which pays only where unrolled strips have few registers.
    """
    strip, sums = strip_for(dtype, kernel[0]), processor().sums + 3 - max(UNROLLED)
    tall = sums >= TALL_ROWS * TALL_VECTORS
    if kernel == (3, 3) and (leads == 1 or not tall):
        return strip._replace(vectors=1), None
    if kernel[0] not in UNROLLED:
        return strip, None
    if tall:
        return strip._replace(rows=TALL_ROWS, vectors=1 if width <= strip.lanes else TALL_VECTORS), kernel[0]
    vectors = max(1, min(strip.vectors, (processor().sums + 3 - kernel[0]) // strip.rows))
    return strip._replace(vectors=vectors), kernel[0]


def strip_sums(itemsize: int, strip: Strip, kernel_rows: int | None = None) -> Any:
    """``sums(tables, leads, kernel_h, kernel_w, spread, w, column, y, y_pitch, used_rows, used_columns)``.

    For compiled code: ``y[r, c] := sum over l, i, j of w[l, i, j] * row(l, r + i)[column + c + j * spread]``.

    Contract: `tables` is the address of `leads` addresses, each of a table of addresses of rows: those of ``row(l, n)``
    for n below ``strip.rows + kernel_h - 1``; without `kernel_rows`, `kernel_h` is at least ``strip.rows - 1``. `w` and
    `y` are addresses, of weights one behind the other and of rows `y_pitch` elements apart. All columns of a strip are
    read, and so are all rows; only the used ones are written.

    With `kernel_rows`, which must then be what `kernel_h` is, a column of the kernel after the other is summed, so that
    its weights stay in registers for all rows of the strip and no loop is left but that over columns.
    """
    rows, lanes = strip.rows, strip.lanes

    def sums(
        vectors: Vectors, tables: Any, leads: Any, kernel_h: Any, kernel_w: Any, spread: Any, w: Any, column: Any,
        y: Any, y_pitch: Any, used_rows: Any, used_columns: Any,
    ) -> None:  # fmt: skip
        builder, numbers = vectors.builder, INT64.as_pointer()
        weights, taps = vectors.pointer(w), builder.mul(kernel_h, kernel_w)

        def start_of(lead: Any, row: Any) -> Any:
            """Row `row` under the strip, from its column on."""
            table = builder.load(builder.gep(builder.inttoptr(tables, numbers), [lead]))
            address = builder.load(builder.gep(builder.inttoptr(table, numbers), [row]))
            return builder.gep(vectors.pointer(address), [column])

        def line(lead: Any, row: Any, active: range, totals: list[Any]) -> list[Any]:
            """Row `row` under the strip: what it adds to the active rows of the result."""
            start, first = start_of(lead, row), builder.mul(lead, taps)
            factors = [
                builder.gep(weights, [builder.add(first, builder.mul(builder.sub(row, number(r)), kernel_w))])
                for r in active
            ]

            def body(j: Any, held: list[Any]) -> list[Any]:
                here = builder.gep(start, [builder.mul(j, spread)])
                image = [vectors.load(here, v * lanes) for v in range(strip.vectors)]
                after = []
                for n, factor in enumerate(factors):
                    weight = vectors.broadcast(builder.load(builder.gep(factor, [j])))
                    mine = held[n * strip.vectors : (n + 1) * strip.vectors]
                    after += [vectors.multiply_add(weight, part, s) for part, s in zip(image, mine, strict=True)]
                return after

            own = slice(active.start * strip.vectors, active.stop * strip.vectors)
            totals = list(totals)
            totals[own] = counted_loop(builder, kernel_w, totals[own], body)
            return totals

        def plane(lead: Any, totals: list[Any]) -> list[Any]:
            # In the kernel's order for every row of the result, so that its bits do not depend on where it stands.
            for above in range(rows - 1):
                totals = line(lead, number(above), range(above + 1), totals)
            totals = counted_loop(
                builder, builder.sub(kernel_h, number(rows - 1)), totals,
                lambda n, held: line(lead, builder.add(n, number(rows - 1)), range(rows), held),
            )  # fmt: skip
            for below in range(rows - 1):
                totals = line(lead, builder.add(kernel_h, number(below)), range(below + 1, rows), totals)
            return totals

        def by_columns(high: int, lead: Any, totals: list[Any]) -> list[Any]:
            """`plane` for a kernel of so many rows."""
            starts, first = [start_of(lead, number(n)) for n in range(rows + high - 1)], builder.mul(lead, taps)
            weight_rows = [
                builder.gep(weights, [builder.add(first, builder.mul(number(i), kernel_w))]) for i in range(high)
            ]

            def body(j: Any, totals: list[Any]) -> list[Any]:
                totals, offset = list(totals), builder.mul(j, spread)
                factors = [vectors.broadcast(builder.load(builder.gep(row, [j]))) for row in weight_rows]
                for n, start in enumerate(starts):
                    for v in range(strip.vectors):
                        image = vectors.load(builder.gep(start, [offset]), v * lanes)
                        for r in range(max(0, n - high + 1), min(rows, n + 1)):
                            at = r * strip.vectors + v
                            totals[at] = vectors.multiply_add(factors[n - r], image, totals[at])
                return totals

            return counted_loop(builder, kernel_w, totals, body)

        over = plane if kernel_rows is None else functools.partial(by_columns, kernel_rows)
        totals = counted_loop(builder, leads, [vectors.zeros] * (rows * strip.vectors), over)
        result, last = vectors.pointer(y), builder.sub(used_rows, number(1))
        whole = builder.icmp_signed(">=", used_columns, number(strip.columns))
        with builder.if_else(whole) as (full, part):
            for branch, cut in ((full, False), (part, True)):
                with branch:
                    masks = [
                        vectors.first_lanes(builder.sub(used_columns, number(v * lanes))) if cut else None
                        for v in range(strip.vectors)
                    ]
                    # From the last row to the first: rows too many go where the last used one is, before its own value.
                    for r in reversed(range(rows)):
                        row = builder.select(builder.icmp_signed("<", number(r), last), number(r), last)
                        cell = builder.gep(result, [builder.mul(row, y_pitch)])
                        for v in range(strip.vectors):
                            value, mask = totals[r * strip.vectors + v], masks[v]
                            if mask is None:
                                vectors.store(value, cell, v * lanes)
                            else:
                                vectors.store_masked(value, cell, mask, v * lanes)

    return on_addresses(sums, itemsize, lanes)


def sums_along(itemsize: int, strip: Strip) -> Any:
    """``along(table, w, spread, column, count, y, y_pitch, adding)``: strips of one vector side by side, for 3x3 alone.

    For compiled code: as `strip_sums` with one leading tap, whose `table` it takes, and whole strips, `count` of them,
    into rows whose first element is that for `column`. Weights stay in registers. Where `adding` is not 0 the sums are
    added to the result's.
    """
    rows, lanes, (kernel_h, kernel_w) = strip.rows, strip.lanes, (3, 3)

    def along(
        vectors: Vectors, table: Any, w: Any, spread: Any, column: Any, count: Any, y: Any, y_pitch: Any, adding: Any
    ) -> None:  # fmt: skip
        builder, result = vectors.builder, vectors.pointer(y)
        addresses, weights = builder.inttoptr(table, INT64.as_pointer()), vectors.pointer(w)
        factors = [
            [vectors.broadcast(builder.load(builder.gep(weights, [number(i * kernel_w + j)]))) for j in range(kernel_w)]
            for i in range(kernel_h)
        ]
        images = [
            builder.gep(vectors.pointer(builder.load(builder.gep(addresses, [number(n)]))), [column])
            for n in range(rows + kernel_h - 1)
        ]
        cells = [builder.gep(result, [builder.mul(y_pitch, number(r))]) for r in range(rows)]
        steps = [builder.mul(spread, number(j)) for j in range(kernel_w)]

        def one(add: bool, n: Any, _: list[Any]) -> list[Any]:
            here = builder.mul(n, number(lanes))
            totals = [vectors.load(cell, here) if add else vectors.zeros for cell in cells]
            for i, image in enumerate(images):
                for j in range(kernel_w):
                    part = vectors.load(image, builder.add(here, steps[j]))
                    for r in range(max(0, i - kernel_h + 1), min(rows, i + 1)):
                        totals[r] = vectors.multiply_add(factors[i - r][j], part, totals[r])
            for cell, total in zip(cells, totals, strict=True):
                vectors.store(total, cell, here)
            return []

        with builder.if_else(builder.icmp_signed("!=", adding, number(0))) as (more, first):
            for branch, add in ((more, True), (first, False)):
                with branch:
                    counted_loop(builder, count, [], functools.partial(one, add))

    return on_addresses(along, itemsize, lanes)
