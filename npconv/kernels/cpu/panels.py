"""Weights laid out in panels, for tiles lying down (`lying.py`): once for many calls, or anew in each call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.operands import as_table
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import ADDRESS, INT64, TABLE, Vectors, address_of, number, number_of, on_addresses
from npconv.kernels.cpu.workspace import aligned


def slices_of(total: int, depth: int) -> list[int]:
    """Products of slices of at most `depth` each."""
    return [min(depth, total - above) for above in range(0, total, depth)]


def layer_out(
    spec: ConvSpec, dtype: np.dtype[Any], tile: Tile, slices: Sequence[int], order: Any = None
) -> Callable[..., Panels]:
    """``lay_out(w, empty=aligned, limit=None)``, prepared for many calls: weights in slices of so many products.

    A group is a slice of the depth after the other, each of panels ``(products of the slice, tile.columns)``. Weight k
    of an output is the ``order[k]``-th to be read, by default the k-th. Columns that fill up the last panel hold what
    the last output channel does. The result is ``empty(shape, dtype)``; `limit` is the number of threads.
    """
    outputs, total = spec.out_channels // spec.groups, math.prod(spec.w_shape[1:])
    panels = -(-outputs // tile.columns)
    places = _places(np.arange(total) if order is None else order, slices, panels)
    shape, tasks = (spec.groups, panels * tile.columns * total), spec.groups * panels
    loop = panel_turner(dtype, tile) if total >= tile.lanes else None

    def lay_out(w: Any, empty: Any = aligned, limit: int | None = None) -> Panels:
        """Weights in C order, and of the dtype."""
        values = empty(shape, dtype)
        if loop is not None:
            threads.run(loop, tasks, values.size, w, values, outputs, total, *places, limit=limit)
        else:
            columns = np.minimum(np.arange(panels * tile.columns), outputs - 1)
            rows = w.reshape(spec.groups, outputs, total)[:, columns].reshape(spec.groups, panels, -1, total)
            spots = np.arange(panels)[:, None] * places[1] + places[0]
            values.reshape(spec.groups, -1, tile.columns)[:, spots] = rows.swapaxes(2, 3)
        return Panels(values, tile)

    return lay_out


def _places(order: Any, slices: Sequence[int], panels: int) -> tuple[Any, Any]:
    """Weight k of a panel p is row ``first[k] + p * step[k]`` of a group's columns: the tables `first` and `step`."""
    first, step = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    before = 0
    for count in slices:
        inside = (order >= before) & (order < before + count)
        first[inside], step[inside] = order[inside] + before * (panels - 1), count
        before += count
    return as_table(first), as_table(step)


@functools.lru_cache(maxsize=8)
def panel_turner(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The loop of `layer_out`, for at least as many weights of an output as a vector has lanes."""
    size, lanes, columns = dtype.itemsize, tile.lanes, tile.columns
    turn = on_addresses(_turn_into(columns), size, lanes)

    @entry(types.int64, types.int64, ADDRESS, ADDRESS, types.int64, types.int64, TABLE, TABLE)
    def panel_turner_loop(
        start: int, stop: int, w: Any, turned: Any, outputs: int, total: int, firsts: Any, steps: Any
    ) -> None:
        """Addresses of weights and panels; a task is (group, panel)."""
        w, turned = number_of(w), number_of(turned)
        panels = (outputs + columns - 1) // columns
        for task in range(start, stop):
            group, panel = task // panels, task % panels
            target = turned + group * panels * total * columns * size
            for column in range(0, columns, lanes):
                o = min(panel * columns + column, outputs - 1)
                source = w + (group * outputs + o) * total * size
                for k in range(0, total, lanes):
                    # The last block ends with the last weight, so that it is whole too.
                    k = min(k, total - lanes)
                    turn(
                        source + k * size, total, outputs - o, address_of(firsts) + k * 8, address_of(steps) + k * 8,
                        panel, target + column * size,
                    )  # fmt: skip

    return panel_turner_loop


def _turn_into(columns: int) -> Callable[..., None]:
    def turn(
        vectors: Vectors, source: Any, pitch: Any, rows: Any, firsts: Any, steps: Any, panel: Any, target: Any
    ) -> None:
        """Store the columns of a square block as rows of `columns`, where the tables at `firsts` and `steps` say.

        The block has so many `rows`, `pitch` elements apart; the last one stands for those that are missing.
        """
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
