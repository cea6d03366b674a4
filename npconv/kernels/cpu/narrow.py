"""Convolution with few output channels a group, depthwise above all: tiles that read the staged image where it lies.

With few products an element, packing panels would cost more than it saves. Instead the tile's columns run over the rows
of the staged block as if they were one line, the few elements between two rows included; what is computed there is
thrown away when the rows are copied to the result. Every tap is then one vector load at a fixed offset.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.loops import HARDSWISH, hardswish
from npconv.kernels.cpu.microkernel import tile_product
from npconv.kernels.cpu.staging import row_movers, stager
from npconv.kernels.cpu.tiled import arguments
from npconv.kernels.cpu.vectors import address_of, elements, number_of

# Planes of the image that are read side by side, and tiles that their sums are kept for: planes may lie a power of two
# apart, where more of them would compete for the same lines of the caches, and no prefetching could follow them.
PLANES, TILES = 8, 16


@functools.lru_cache(maxsize=64)
def matmul_narrow(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for one tap without stride and padding: the image lies as it is wanted, and is read where it lies."""
    size, rows, columns, kind = dtype.itemsize, tile.rows, tile.columns, dtype.type
    product = tile_product(size, tile, listed=True)
    _, copy_row, _ = row_movers(size, tile.lanes)

    @entry(*arguments(dtype))
    def matmul_narrow_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, low: Any, high: Any, activation: int, groups: int,
        outputs: int, total: int, blocks: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + w @ x))`` for the addresses of an image, weights of ``groups * outputs`` rows of
        `total`, a bias and a result, of at least ``tile.columns`` positions.

        A task is (n, group, tile of positions); consecutive ones of an image are done together.
        """
        x, w, bias, y = number_of(x), number_of(w), number_of(bias), number_of(y)
        positions = blocks[0][2]
        tiles, whole = (positions + columns - 1) // columns, positions // columns
        offsets, result = np.empty(total, np.int64), np.empty(rows * columns, kind)
        for k in range(total):
            offsets[k] = k * positions
        task = start
        while task < stop:
            image, first_tile = task // tiles, task % tiles
            last_tile = min(tiles, first_tile + min(TILES, stop - task))
            task += last_tile - first_tile
            source, target = x + image * total * positions * size, y + image * outputs * positions * size
            for first in range(0, outputs, rows):
                channel, used = image % groups * outputs + first, min(rows, outputs - first)
                factors, shift = w + channel * total * size, bias + channel * size
                for above in range(0, max(total, 1), PLANES):  # once without channels too: the bias is written
                    steps = min(PLANES, total - above)
                    last = above + steps == total
                    for number in range(first_tile, min(last_tile, whole)):
                        product(
                            steps, factors + above * size, total,
                            source + (above * positions + number * columns) * size, address_of(offsets),
                            target + (first * positions + number * columns) * size, positions, used, columns, shift,
                            above > 0, low if last else -np.inf, high if last else np.inf,
                        )  # fmt: skip
                if last_tile > whole:
                    # A tile reads whole vectors: this one ends with the last position, and what is new is copied.
                    rest = positions - whole * columns
                    product(
                        total, factors, total, source + (positions - columns) * size, address_of(offsets),
                        address_of(result), columns, used, columns, shift, False, low, high,
                    )  # fmt: skip
                    for row in range(used):
                        copy_row(
                            target + ((first + row) * positions + whole * columns) * size,
                            address_of(result) + ((row + 1) * columns - rest) * size, rest,
                        )  # fmt: skip
            if activation == HARDSWISH:
                begin, end = first_tile * columns, min(last_tile * columns, positions)
                for o in range(outputs):
                    hardswish(elements(target + (o * positions + begin) * size, end - begin, kind))

    return matmul_narrow_loop


@functools.lru_cache(maxsize=64)
def conv_narrow(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64 and a tile of few rows."""
    size, rows, columns, kind = dtype.itemsize, tile.rows, tile.columns, dtype.type
    product, stage_planes = tile_product(size, tile, listed=True), stager(size, tile.lanes)
    _, copy_row, _ = row_movers(size, tile.lanes)

    @entry(*arguments(dtype))
    def conv_narrow_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, low: Any, high: Any, activation: int, groups: int,
        outputs: int, total: int, blocks: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for the addresses of an image, weights of ``groups * outputs`` rows of
        `total`, a bias and a result.

        A task is (n, group, leading output, row block, column block).
        """
        x, w, bias, y = number_of(x), number_of(w), number_of(bias), number_of(y)
        shape, leads, _, taps = blocks
        out_h, out_w, block_h, block_w, pitch, plane = shape[5], shape[6], shape[7], shape[8], shape[14], shape[15]
        planes, positions = total // taps.size, leads.shape[0] * out_h * out_w
        rows_of_blocks, columns_of_blocks = (out_h + block_h - 1) // block_h, (out_w + block_w - 1) // block_w
        # Tiles read whole vectors, up to one tile behind the last position.
        staged = np.zeros(planes * plane + columns, kind)
        line = (block_h * pitch + columns - 1) // columns * columns
        result = np.empty(rows * line, kind)
        offsets = np.empty(total, np.int64)
        for k in range(total):
            offsets[k] = k // taps.size * plane + taps[k % taps.size]
        place_before = (-1, -1)
        for task in range(start, stop):
            left, rest = task % columns_of_blocks * block_w, task // columns_of_blocks
            top, rest = rest % rows_of_blocks * block_h, rest // rows_of_blocks
            lead, rest = rest % leads.shape[0], rest // leads.shape[0]
            group, n = rest % groups, rest // groups
            height, width = min(block_h, out_h - top), min(block_w, out_w - left)
            image = (n * groups + group) * (planes // leads.shape[1])
            stage_planes(x, image, lead, 0, planes, top, left, address_of(staged), blocks, place_before != (top, left))
            place_before = (top, left)
            for first in range(0, outputs, rows):
                used = min(rows, outputs - first)
                channel = group * outputs + first
                for position in range(0, (height - 1) * pitch + width, columns):
                    product(
                        total, w + channel * total * size, total,
                        address_of(staged) + position * size, address_of(offsets),
                        address_of(result) + position * size, line,
                        used, columns, bias + channel * size, False, low, high,
                    )  # fmt: skip
                for row in range(used):
                    place = ((n * groups * outputs + channel + row) * positions) + (lead * out_h + top) * out_w + left
                    for i in range(height):
                        source = address_of(result) + (row * line + i * pitch) * size
                        copy_row(y + place * size, source, width)
                        if activation == HARDSWISH:
                            hardswish(elements(y + place * size, width, kind))
                        place += out_w

    return conv_narrow_loop
