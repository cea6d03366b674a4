"""Weights laid out in panels of as many output channels as a tile has columns, by transposing small blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numba import types

from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import ADDRESS, INT64, TABLE, Vectors, address_of, number, number_of, on_addresses


def in_panels(w: Any, groups: int, tile: Tile, places: Any, limit: int | None = None) -> Panels:
    """Weights ``(groups * outputs, ...)`` in panels, a group after the other.

    Element k of a row of panel p goes to row ``places[0, k] + p * places[1, k]`` of ``tile.columns``: see `in_slices`.
    The last panel holds something in its columns without an output channel too. `limit` is the number of threads.
    """
    depth, outputs, dtype = w[0].size, len(w) // groups, w.dtype
    panels = -(-outputs // tile.columns)
    values = np.empty(groups * panels * tile.columns * depth, dtype)
    if depth < tile.lanes or len(w) == 0:
        padded = np.zeros((groups, panels * tile.columns, depth), dtype)
        padded[:, :outputs] = w.reshape(groups, outputs, depth)
        rows = np.arange(groups)[:, None, None] * panels * depth + np.arange(panels)[None, :, None] * places[1]
        values.reshape(-1, tile.columns)[rows + places[0]] = padded.reshape(groups, panels, -1, depth).swapaxes(2, 3)
    else:
        kernel = lay_out(dtype, tile)
        threads.run(kernel, groups * panels, 4 * values.size, w, values, outputs, depth, *places, limit=limit)
    return Panels(values, tile)


def in_slices(order: Any, counts: Iterable[int], panels: int) -> Any:
    """Where the elements of a row of weights go, for `in_panels`: a table ``(2, depth)``.

    Element k is the ``order[k]``-th to be read. The depth is read in slices of these counts of elements; in each come
    all panels, one after the other.
    """
    places = np.empty((2, len(order)), np.int64)
    before = 0
    for count in counts:
        inside = (order >= before) & (order < before + count)
        places[0, inside], places[1, inside] = order[inside] + before * (panels - 1), count
        before += count
    places.flags.writeable = False
    return places


@functools.lru_cache(maxsize=8)
def lay_out(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The loop of `in_panels` for a tile and rows of at least as many weights as a vector has lanes."""
    size, lanes, columns = dtype.itemsize, tile.lanes, tile.columns
    turn = on_addresses(_turn_into(columns), size, lanes)

    @entry(types.int64, types.int64, ADDRESS, ADDRESS, types.int64, types.int64, TABLE, TABLE)
    def lay_out_loop(
        start: int, stop: int, w: Any, values: Any, outputs: int, depth: int, firsts: Any, steps: Any
    ) -> None:
        """A task is a panel of a group."""
        w, values = number_of(w), number_of(values)
        panels = (outputs + columns - 1) // columns
        for task in range(start, stop):
            group, panel = task // panels, task % panels
            target = values + group * panels * depth * columns * size
            for first in range(0, columns, lanes):
                # Columns without an output channel hold what the last one does.
                o = min(panel * columns + first, outputs - 1)
                source = w + (group * outputs + o) * depth * size
                for k in range(0, depth, lanes):
                    # The last block ends with the last weight, so that it is whole too.
                    k = min(k, depth - lanes)
                    turn(
                        source + k * size, depth, outputs - o, address_of(firsts) + k * 8, address_of(steps) + k * 8,
                        panel, target + first * size,
                    )  # fmt: skip

    return lay_out_loop


def _turn_into(columns: int) -> Callable[..., None]:
    def turn(
        vectors: Vectors, source: Any, pitch: Any, rows: Any, firsts: Any, steps: Any, panel: Any, target: Any
    ) -> None:
        """Store the columns of a square block, whose rows are `pitch` elements apart and so many, as `in_panels`."""
        builder, lanes, result = vectors.builder, vectors.lanes, vectors.pointer(target)
        begin, last = vectors.pointer(source), builder.sub(rows, number(1))
        block = []
        for row in map(number, range(lanes)):
            used = builder.select(builder.icmp_signed("<", row, last), row, last)
            block.append(vectors.load(begin, builder.mul(used, pitch)))
        first, step = (builder.inttoptr(table, INT64.as_pointer()) for table in (firsts, steps))
        for k, value in enumerate(transpose(vectors, block, lanes)):
            before = builder.mul(panel, builder.load(builder.gep(step, [number(k)])))
            row = builder.add(before, builder.load(builder.gep(first, [number(k)])))
            vectors.store(value, result, builder.mul(row, number(columns)))

    return turn
