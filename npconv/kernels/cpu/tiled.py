"""Convolution as a matrix product that is never written down: the implicit GEMM around the register tile.

A task takes some window positions of one image and group. For a slice of the depth (channels times taps) it packs what
lies under those positions into panels that fit L1, and runs the tiles of all output channels over them. So no matrix
of patches exists, whatever the kernel, stride, dilation, padding and number of dimensions; a matrix product is the case
of one tap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.kernels.cpu.blocking import PANELS, depth_for, tile_for
from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.loops import activate, at
from npconv.kernels.cpu.microkernel import tile_product


@compiled
def locate(first: int, corners: Any, offsets: Any, positions: int, geometry: Any) -> None:
    """Offsets, within a channel, of the input under positions `first` on: ``(taps, columns)``, -1 where there is none.

    `corners` is room for the first input element under each position, ``(axes, columns)``.
    """
    size, kernel, stride, dilation, low, out = geometry
    axes = geometry.shape[1]
    for column in range(offsets.shape[1]):
        position = first + column
        for axis in range(axes - 1, -1, -1):
            corners[axis, column] = position % out[axis] * stride[axis] - low[axis]
            position //= out[axis]
    for tap in range(offsets.shape[0]):
        offsets[tap, :] = 0
        part, scale = tap, 1
        for axis in range(axes - 1, -1, -1):
            reach = part % kernel[axis] * dilation[axis]
            part //= kernel[axis]
            for column in range(offsets.shape[1]):
                here = corners[axis, column] + reach
                outside = here < 0 or here >= size[axis] or offsets[tap, column] < 0
                offsets[tap, column] = -1 if outside else offsets[tap, column] + here * scale
            scale *= size[axis]
        for column in range(max(0, positions - first), offsets.shape[1]):
            offsets[tap, column] = -1


@compiled
def adjacent(offsets: Any) -> bool:
    """Whether these positions lie side by side in the image, as those of one row at stride 1 do away from the edges."""
    for column in range(offsets.shape[0]):
        if offsets[column] != offsets[0] + column or offsets[0] < 0:
            return False
    return True


@functools.lru_cache(maxsize=2)
def conv_tiled(dtype: np.dtype[Any]) -> tuple[Callable[..., None], int, int]:
    """The driver for float32 or float64, the rows of its packed weights, and the positions of a task."""
    tile, depth, panels = tile_for(dtype), depth_for(dtype), PANELS
    product, rows, columns = tile_product(dtype.itemsize, tile), tile.rows, tile.columns

    @compiled
    def conv_tiled_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, shares: int, activation: int, geometry: Any
    ) -> None:
        """``y = act(bias + x * w)``, with weights packed ``(groups, blocks, depth, rows)``.

        A task is (positions, n, group, share): one of `shares` parts of the group's output channels.
        """
        groups, blocks, total = w.shape[0], w.shape[1], w.shape[2]
        outputs, positions = y.shape[1] // groups, y.shape[2]
        taps = 1
        for axis in range(geometry.shape[1]):
            taps *= geometry[1, axis]
        channels = total // taps
        packed = np.empty(panels * depth * columns, x.dtype)
        offsets = np.empty((taps, panels * columns), np.int64)
        corners = np.empty((geometry.shape[1], panels * columns), np.int64)
        runs = np.empty((taps, panels), np.bool_)
        located = -1
        for task in range(start, stop):
            share, group = task % shares, task // shares % groups
            n, part = task // (shares * groups) % x.shape[0], task // (shares * groups * x.shape[0])
            first_block, last_block = blocks * share // shares, blocks * (share + 1) // shares
            first = part * panels * columns
            count = min(panels * columns, positions - first)
            if part != located:
                located = part
                locate(first, corners, offsets, positions, geometry)
                for tap in range(taps):
                    for panel in range(panels):
                        runs[tap, panel] = adjacent(offsets[tap, panel * columns : (panel + 1) * columns])
            for above in range(0, max(total, 1), depth):  # once without channels too: zeros are written
                steps = min(depth, total - above)
                for panel in range((count + columns - 1) // columns):
                    # No slices here: each would count references, which takes longer than copying a row of the panel.
                    channel, tap = group * channels + above // taps, above % taps
                    base, left = panel * depth * columns, panel * columns
                    for _ in range(steps):
                        if runs[tap, panel]:
                            begin = offsets[tap, left]
                            for j in range(columns):
                                packed[at(base + j)] = x[n, channel, at(begin + j)]
                        else:
                            for j in range(columns):
                                source = offsets[tap, at(left + j)]
                                packed[at(base + j)] = x[n, channel, at(source)] if source >= 0 else 0
                        base += columns
                        tap += 1
                        if tap == taps:
                            channel, tap = channel + 1, 0
                for block in range(first_block, last_block):
                    used = min(rows, outputs - block * rows)
                    row = n * y.shape[1] + group * outputs + block * rows
                    for panel in range((count + columns - 1) // columns):
                        product(
                            steps, w, ((group * blocks + block) * total + above) * rows,
                            packed, panel * depth * columns,
                            y, row * positions + first + panel * columns, positions,
                            used, count - panel * columns, above > 0,
                        )  # fmt: skip
            for o in range(first_block * rows, min(last_block * rows, outputs)):
                result = y[n, group * outputs + o, first : first + count]
                for j in range(count):
                    result[j] += bias[group * outputs + o]
                activate(result, activation)

    return conv_tiled_loop, rows, panels * columns
