"""Depthwise convolution: one input channel to an output, a few rows of the result at a time in registers.

There is no product of matrices here, so the register tile has nothing to reuse. What can be reused is the image: a
vector of the staged plane serves every tap and every row of the result under which it lies. The instructions for one
kernel size, stride and dilation are written out, so that each vector is loaded once for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.loops import HARDSWISH, hardswish
from npconv.kernels.cpu.staging import stager
from npconv.kernels.cpu.tiled import arguments
from npconv.kernels.cpu.vectors import Vectors, address_of, elements, number, number_of, on_addresses

Taps = tuple[tuple[int, int, int], ...]
"""For every tap its phase, and its row and column in that phase of the staged plane."""

FEW_TAPS, FEW_ROWS, MANY_ROWS = 16, 4, 6
"""Rows of the result that are summed at once: the more taps, the more rows share each vector and each weight."""

MOST_TAPS = 64
"""Kernels with more taps are too much code to be written out."""


def rows_for(taps: Taps) -> int:
    """Rows of a strip."""
    return FEW_ROWS if len(taps) <= FEW_TAPS else MANY_ROWS


def strip_sums(itemsize: int, lanes: int, taps: Taps) -> Any:
    """``strip(staged, phase, pitch, w, bias, y, width, used_rows, used_columns, limits)`` for compiled code.

    Sums `rows_for` rows of one vector of the result: ``y[i, j] := clamp(bias + sum over taps of w * staged)``.

    Contract: `staged`, `w`, `bias`, `y` and `limits`, of two numbers, are addresses. The staged plane has phases
    `phase` elements apart and rows `pitch` elements apart, of which each tap's row, as many rows below as are summed,
    and whole vectors are read. Only `used_rows` rows and `used_columns` columns of `y`, whose rows are `width` elements
    apart, are written.
    """
    rows = rows_for(taps)

    def strip(
        vectors: Vectors, staged: Any, phase: Any, pitch: Any, w: Any, bias: Any, y: Any, width: Any, used_rows: Any,
        used_columns: Any, limits: Any,
    ) -> None:  # fmt: skip
        builder = vectors.builder
        source, weights, result, bounds = map(vectors.pointer, (staged, w, y, limits))
        sums = [vectors.broadcast(builder.load(vectors.pointer(bias)))] * rows
        # A column of taps at a time: its vectors of the image stay in registers, and each weight is loaded once.
        for part, column in dict.fromkeys((part, column) for part, _, column in taps):
            image: dict[int, Any] = {}
            for tap, row in [(tap, row) for tap, (p, row, c) in enumerate(taps) if (p, c) == (part, column)]:
                factor = vectors.broadcast(builder.load(builder.gep(weights, [number(tap)])))
                for i in range(rows):
                    if row + i not in image:
                        start = builder.add(builder.mul(phase, number(part)), builder.mul(pitch, number(row + i)))
                        image[row + i] = vectors.load(source, builder.add(start, number(column)))
                    sums[i] = vectors.multiply_add(factor, image[row + i], sums[i])
        low, high = (vectors.broadcast(builder.load(builder.gep(bounds, [number(i)]))) for i in range(2))
        sums = [vectors.clamp(value, low, high) for value in sums]
        last = builder.sub(used_rows, number(1))
        inside = vectors.first_lanes(used_columns)
        with builder.if_else(builder.icmp_signed(">=", used_columns, number(lanes))) as (whole, some):
            for branch, mask in ((whole, None), (some, inside)):
                with branch:
                    # From the last row to the first: rows too many go to the last used one, before its own value.
                    for i in reversed(range(rows)):
                        row = builder.select(builder.icmp_signed("<", number(i), last), number(i), last)
                        place = builder.mul(row, width)
                        if mask is None:
                            vectors.store(sums[i], result, place)
                        else:
                            vectors.store_masked(sums[i], result, mask, place)

    return on_addresses(strip, itemsize, lanes)


@functools.lru_cache(maxsize=64)
def conv_depthwise(dtype: np.dtype[Any], lanes: int, taps: Taps) -> Callable[..., None]:
    """The driver for float32 or float64 and the taps of one kernel size, stride and dilation."""
    size, rows, kind = dtype.itemsize, rows_for(taps), dtype.type
    strip, stage_planes = strip_sums(size, lanes, taps), stager(size, lanes)

    @entry(*arguments(dtype))
    def conv_depthwise_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, low: Any, high: Any, activation: int, groups: int,
        outputs: int, total: int, blocks: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for the addresses of an image, weights ``(groups * outputs, total)``, a bias
        and a result.

        A task is (n, channel, row block, column block).
        """
        x, w, bias, y = number_of(x), number_of(w), number_of(bias), number_of(y)
        shape, _, phases, _ = blocks
        out_h, out_w, block_h, block_w, pitch, plane = shape[5], shape[6], shape[7], shape[8], shape[14], shape[15]
        rows_of_blocks, columns_of_blocks = (out_h + block_h - 1) // block_h, (out_w + block_w - 1) // block_w
        # Strips read whole vectors of all their rows, beyond the last position too.
        staged = np.zeros(plane + rows * pitch + lanes, kind)
        limits = np.empty(2, kind)
        limits[0], limits[1] = low, high
        place_before = (-1, -1)
        for task in range(start, stop):
            left, rest = task % columns_of_blocks * block_w, task // columns_of_blocks
            top, rest = rest % rows_of_blocks * block_h, rest // rows_of_blocks
            group, n = rest % groups, rest // groups
            height, width = min(block_h, out_h - top), min(block_w, out_w - left)
            stage_planes(
                x, n * groups + group, 0, 0, 1, top, left, address_of(staged), blocks, place_before != (top, left)
            )
            place_before = (top, left)
            for o in range(group * outputs, (group + 1) * outputs):
                place = (n * groups * outputs + o) * out_h * out_w + top * out_w + left
                for i in range(0, height, rows):
                    for j in range(0, width, lanes):
                        strip(
                            address_of(staged) + (i * pitch + j) * size, plane // phases.shape[0], pitch,
                            w + o * total * size, bias + o * size,
                            y + (place + i * out_w + j) * size, out_w, min(rows, height - i), width - j,
                            address_of(limits),
                        )  # fmt: skip
                if activation == HARDSWISH:
                    for i in range(height):
                        hardswish(elements(y + (place + i * out_w) * size, width, kind))

    return conv_depthwise_loop
