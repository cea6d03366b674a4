"""Weights laid out in panels, for tiles lying down (`lying.py`): once for many calls, or anew in each call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.correlation import turner
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.vectors import ADDRESS, number_of


def layer_out(spec: ConvSpec, dtype: np.dtype[Any], tile: Tile, depth: int) -> Callable[..., Panels]:
    """``lay_out(w, empty=np.zeros, limit=None)``, prepared for many calls: weights in slices of so many products.

    A group is a slice of the depth after the other, each of panels ``(depth of the slice, tile.columns)``. Channels
    that fill up the last panel are what ``empty(shape, dtype)`` holds. `limit` is the number of threads.
    """
    outputs, total = spec.out_channels // spec.groups, math.prod(spec.w_shape[1:])
    number = -(-outputs // tile.columns)
    shape, tasks, loop = (spec.groups, number * tile.columns * total), spec.groups * number, panel_turner(dtype, tile)

    def lay_out(w: Any, empty: Any = np.zeros, limit: int | None = None) -> Panels:
        """Weights in C order, and of the dtype."""
        values = empty(shape, dtype)
        threads.run(loop, tasks, values.size, w, values, outputs, total, depth, limit=limit)
        return Panels(values, tile)

    return lay_out


@functools.lru_cache(maxsize=4)
def panel_turner(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The loop of `layer_out`."""
    size, lanes, columns = dtype.itemsize, tile.lanes, tile.columns
    turn = turner(size, lanes)

    @entry(types.int64, types.int64, ADDRESS, ADDRESS, *[types.int64] * 3)
    def panel_turner_loop(start: int, stop: int, w: Any, turned: Any, outputs: int, total: int, depth: int) -> None:
        """Addresses of weights and panels; a task is (group, panel)."""
        w, turned = number_of(w), number_of(turned)
        panels = (outputs + columns - 1) // columns
        for task in range(start, stop):
            group, panel = task // panels, task % panels
            used = min(columns, outputs - panel * columns)
            source = w + (group * outputs + panel * columns) * total * size
            for above in range(0, total, depth):
                steps = min(depth, total - above)
                target = turned + ((group * total + above) * panels + panel * steps) * columns * size
                for o in range(0, used, lanes):
                    for k in range(0, steps, lanes):
                        turn(
                            target + (k * columns + o) * size, columns, source + (o * total + above + k) * size, total,
                            used - o, steps - k,
                        )  # fmt: skip

    return panel_turner_loop
