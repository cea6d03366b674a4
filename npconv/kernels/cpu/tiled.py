"""Convolution as a matrix product that is never written down: the implicit GEMM around the register tile.

A task takes some window positions of one image and group. For a slice of the depth (channels times taps) it packs what lies
under those positions into panels that fit L1, and runs the tiles of all output channels over them. So no matrix of
patches exists, whatever the kernel, stride, dilation, padding and number of dimensions; a matrix product is the case of one tap.
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
def locate(first: int, offsets: Any, positions: int, geometry: Any) -> None:
    """Offsets, within a channel, of the input under positions `first` on: ``(taps, columns)``, -1 where there is none."""
    size, kernel, stride, dilation, low, out = geometry
    for tap in range(offsets.shape[0]):
        for column in range(offsets.shape[1]):
            position, part, found, scale = first + column, tap, 0, 1
            for axis in range(geometry.shape[1] - 1, -1, -1):
                here = position % out[axis] * stride[axis] + part % kernel[axis] * dilation[axis] - low[axis]
                if here < 0 or here >= size[axis]:
                    found = -1
                    break
                found += here * scale
                scale *= size[axis]
                position //= out[axis]
                part //= kernel[axis]
            offsets[tap, column] = found if first + column < positions else -1


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
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, activation: int, geometry: Any
    ) -> None:
        """``y = act(bias + x * w)``. Weights are packed ``(groups, blocks, depth, rows)``; a task is (n, group, positions)."""
        groups, blocks, total = w.shape[0], w.shape[1], w.shape[2]
        outputs, positions = y.shape[1] // groups, y.shape[2]
        taps = 1
        for axis in range(geometry.shape[1]):
            taps *= geometry[1, axis]
        channels = total // taps
        parts = (positions + panels * columns - 1) // (panels * columns)
        packed = np.empty(panels * depth * columns, x.dtype)
        offsets = np.empty((taps, panels * columns), np.int64)
        runs = np.empty((taps, panels), np.bool_)
        for task in range(start, stop):
            n, group, part = task // (parts * groups), task // parts % groups, task % parts
            first = part * panels * columns
            count = min(panels * columns, positions - first)
            locate(first, offsets, positions, geometry)
            for tap in range(taps):
                for panel in range(panels):
                    runs[tap, panel] = adjacent(offsets[tap, panel * columns : (panel + 1) * columns])
            for above in range(0, total, depth):
                steps = min(depth, total - above)
                for panel in range((count + columns - 1) // columns):
                    for step in range(steps):
                        tap = (above + step) % taps
                        image = x[n, group * channels + (above + step) // taps]
                        target = packed[(panel * depth + step) * columns : (panel * depth + step + 1) * columns]
                        seen = offsets[tap, panel * columns : (panel + 1) * columns]
                        if runs[tap, panel]:
                            begin = seen[0]
                            for j in range(columns):
                                target[at(j)] = image[at(begin + j)]
                        else:
                            for j in range(columns):
                                source = seen[at(j)]
                                target[at(j)] = image[at(source)] if source >= 0 else 0
                for block in range(blocks):
                    used = min(rows, outputs - block * rows)
                    channel = n * y.shape[1] + group * outputs + block * rows
                    for panel in range((count + columns - 1) // columns):
                        product(
                            steps, w, ((group * blocks + block) * total + above) * rows,
                            packed, panel * depth * columns,
                            y, channel * positions + first + panel * columns, positions,
                            used, count - panel * columns, above > 0,
                        )  # fmt: skip
            for o in range(group * outputs, (group + 1) * outputs):
                result = y[n, o, first : first + count]
                for j in range(count):
                    result[j] += bias[o]
                activate(result, activation)

    return conv_tiled_loop, rows, panels * columns
