"""Weight gradients of kernels with one tap: dot products of the rows of two matrices, with nothing packed.

The rows are channels: of the result's gradient and of the image, where it lies or, with a stride or padding, staged.
Both are contiguous along the positions that are summed, so the register tile turned by a right angle (`microkernel`,
"dots") reads vectors of both, and only at the end of a block of positions are the lanes of its sums added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.geometry import Window
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import Tile, blocks_for, evenly, processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.microkernel import tile_product
from npconv.kernels.cpu.staging import stager
from npconv.kernels.cpu.vectors import ADDRESS, GRID, TABLE, address_of, number_of

# Positions of a block, and planes of the image (channel and leading tap) that a task multiplies with every row of the
# gradient: together they take 96 KiB of float32 and stay in L2, while a few rows of the gradient stay in L1.
MOST_POSITIONS, MOST_PLANES = 1024, 24

# Vectors of positions from which on adding the lanes of the sums, some 60 cycles a tile, does not count; and channels
# up to which a packed row would not serve enough others.
FEWEST_VECTORS, FEW_CHANNELS = 96, 48


def suits(window: Window, planes: int, outputs: int, itemsize: int) -> bool:
    """Whether the gradient of a group of so many planes and output channels is faster this way than packed."""
    vectors = min(window.positions, MOST_POSITIONS) * itemsize // processor().register_bytes
    return set(window.kernel[-2:]) == {1} and vectors >= FEWEST_VECTORS and min(planes, outputs) <= FEW_CHANNELS


def runner(
    window: Window, groups: int, batch: int, shape: tuple[int, int], dtype: np.dtype[Any], staging: bool, limit: int
) -> Callable[[Any, Any, Any], None]:
    """``run(x, dy, dw)`` for the gradient ``(outputs, planes of a group)`` of that shape; see `weight_grad.runner`.

    Without `staging` the window is a line of positions, which lie in the image as in the result.
    """
    outputs, planes, tile = shape[0] // groups, shape[1], tile_for(dtype)
    blocks, part = blocks_for(window, MOST_POSITIONS), evenly(planes, MOST_PLANES)
    parts = groups * -(-planes // part)
    shares = min(-(-limit // parts), -(-outputs // tile.rows))
    part_outputs = -(-outputs // (tile.rows * shares)) * tile.rows
    rest = (batch, groups, outputs, planes, part_outputs, part, staging, blocks[:4])
    call = threads.prepared(
        weight_grad_one_tap(dtype, tile), parts * -(-outputs // part_outputs),
        batch * shape[0] * planes * window.positions, limit, stoppable=True,
    )  # fmt: skip
    return lambda x, dy, dw: call(x, dy, dw, *rest)


def tile_for(dtype: np.dtype[Any]) -> Tile:
    """The tile that loads least for its products."""
    rows, vectors = min(processor().tiles, key=sum)
    return Tile(rows, vectors, processor().register_bytes // dtype.itemsize)


@functools.lru_cache(maxsize=4)
def weight_grad_one_tap(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64."""
    size, rows, columns, kind = dtype.itemsize, tile.rows, tile.vectors, dtype.type
    product, stage_planes = tile_product(size, tile, dots=True), stager(size, tile.lanes)
    tuple_of: Any = types.Tuple

    @entry(
        types.int64, types.int64, *[ADDRESS] * 3, *[types.int64] * 6, types.boolean,
        tuple_of((TABLE, GRID, GRID, TABLE)), TABLE,
    )  # fmt: skip
    def weight_grad_one_tap_loop(
        start: int, stop: int, x: Any, dy: Any, dw: Any, batch: int, groups: int, outputs: int, planes: int,
        part_outputs: int, part_planes: int, staging: bool, blocks: Any, stopped: Any,
    ) -> None:  # fmt: skip
        """``dw``, ``(groups * outputs, planes)``, for the addresses of an image, a gradient and a result.

        A task is (group, part of planes, part of outputs).
        """
        x, dy, dw = number_of(x), number_of(dy), number_of(dw)
        shape, leads, _, _ = blocks
        out_h, out_w, block_h, block_w = shape[5], shape[6], shape[7], shape[8]
        plane, positions = shape[15] if staging else shape[2], leads.shape[0] * out_h * out_w
        parts_k, parts_o = (planes + part_planes - 1) // part_planes, (outputs + part_outputs - 1) // part_outputs
        staged, zeros = np.empty(part_planes * plane if staging else 0, kind), np.zeros(rows, kind)
        for task in range(start, stop):
            part_o, rest = task % parts_o, task // parts_o
            part_k, group = rest % parts_k, rest // parts_k
            first, last = part_k * part_planes, min(planes, (part_k + 1) * part_planes)
            first_output, last_output = part_o * part_outputs, min(outputs, (part_o + 1) * part_outputs)
            accumulate = False
            for n in range(batch):
                image = (n * groups + group) * (planes // leads.shape[1])
                gradient = dy + (n * groups + group) * outputs * positions * size
                for lead in range(leads.shape[0]):
                    for top in range(0, out_h, block_h):
                        for left in range(0, out_w, block_w):
                            if stopped[0] != 0:
                                return
                            # A block has one row, or whole rows: either way they are one line, staged or not.
                            count = min(block_h, out_h - top) * min(block_w, out_w - left)
                            place = gradient + ((lead * out_h + top) * out_w + left) * size
                            source = x + ((image + first) * plane + left) * size
                            if staging:
                                source = address_of(staged)
                                stage_planes(x, image, lead, first, last, top, left, source, blocks, True)
                            for o in range(first_output, last_output, rows):
                                for k in range(first, last, columns):
                                    product(
                                        count, place + o * positions * size, positions,
                                        source + (k - first) * plane * size, plane,
                                        dw + ((group * outputs + o) * planes + k) * size, planes, last_output - o,
                                        last - k, address_of(zeros), accumulate, -np.inf, np.inf,
                                    )  # fmt: skip
                            accumulate = True

    return weight_grad_one_tap_loop
