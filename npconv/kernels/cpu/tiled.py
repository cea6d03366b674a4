"""Convolution as a matrix product that is never written down: the implicit GEMM around the register tile.

A task computes the output channels of one tile, of one image and group, for one block of positions; consecutive ones of
the same block are done together. For a slice of the depth (channels times taps) it stages the planes of the image under
the block, packs what lies under the positions into panels, and runs the tiles of all output channels over them; the few
positions that fill no panel are columns of dot products. So no matrix of patches exists, whatever the kernel, stride,
dilation, padding and number of dimensions. Where nothing must be staged (one tap, stride 1, no padding) the panels are
packed from the caller's array, and a matrix product is that case. Weights are read where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.kernels.cpu.blocking import LINE, PANELS, Tile, panels_and_dots, slice_for
from npconv.kernels.cpu.compile import entry, inner
from npconv.kernels.cpu.loops import HARDSWISH, hardswish
from npconv.kernels.cpu.microkernel import fetching_product, packing_product, tile_product
from npconv.kernels.cpu.staging import stager
from npconv.kernels.cpu.vectors import ADDRESS, GRID, TABLE, address_of, copiers, elements, number_of
from npconv.kernels.cpu.workspace import on_lines

divided = inner(panels_and_dots)


def arguments(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """The types that a driver's arguments begin with: from `start` to `blocks`."""
    scalar = types.float32 if dtype.itemsize == 4 else types.float64
    tuple_of: Any = types.Tuple
    tables = tuple_of((TABLE, GRID, GRID, TABLE))
    return (
        types.int64, types.int64, *[ADDRESS] * 4, scalar, scalar, *[types.int64] * 4, tables,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def conv_tiled(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64 and a tile."""
    size, lanes, vectors, rows, columns = dtype.itemsize, tile.lanes, tile.vectors, tile.rows, tile.columns
    most_depth, panels, kind = slice_for(tile, size), PANELS, dtype.type
    # A little more than the panel: at a distance of 16 KiB all panels would compete for the same lines of L1.
    panel_pitch, lines = (most_depth + 4) * columns, columns * size // LINE
    product, dots = fetching_product(size, tile), tile_product(size, tile, dots=True)
    first_product, stage_planes = packing_product(size, tile), stager(size, lanes)
    (copy, clear, _, join), (move, *_) = copiers(size, lanes), copiers(size, 1)

    @inner
    def pack_panels(
        source: Any, offsets: Any, steps: int, position: int, count: int, width: int, pitch: int, packed: Any
    ) -> None:
        """Pack what lies under positions `position` to `count` of a block `width` wide whose rows are `pitch` apart.

        There are `panels` of them at most. Columns beyond `count` are zeros: the tiles multiply by them, and numbers
        that are nearly zero, as anything in memory may look, take a hundred times as long.
        """
        begin, most = 0, min(panels * columns, (count - position + columns - 1) // columns * columns)
        while begin < most:
            first = position + begin
            row, column = first // width, first % width
            start, gap = source + (row * pitch + column) * size, (pitch - width) * size
            # What lies in one row is packed by the first tile that reads it.
            if begin % columns == 0 and width - column >= columns and count - first >= columns:
                begin += columns
                continue
            target = packed + (begin // columns * panel_pitch + begin % columns) * size
            run, total = min(lanes, width - column), min(lanes, count - first)
            if total < lanes:
                for k in range(steps):
                    clear(target + k * columns * size)
            if run == lanes and total > 0:
                for k in range(steps):
                    copy(target + k * columns * size, start + offsets[k] * size)
            elif width + run >= total:
                # The vector spans two rows at most.
                for k in range(steps):
                    here = start + offsets[k] * size
                    join(target + k * columns * size, here, run, here + gap, total)
            else:
                for lane in range(total):
                    here = source + ((first + lane) // width * pitch + (first + lane) % width) * size
                    for k in range(steps):
                        move(target + (k * columns + lane) * size, here + offsets[k] * size)
            begin += lanes

    @inner
    def pack_columns(
        source: Any, offsets: Any, steps: int, position: int, count: int, width: int, pitch: int, packed: Any
    ) -> None:
        """Pack each of the positions `position` to `count` as a column of its own, `most_depth` elements apart."""
        for place in range(position, count):
            here = source + (place // width * pitch + place % width) * size
            target = packed + (place - position) * most_depth * size
            for k in range(steps):
                move(target + k * size, here + offsets[k] * size)

    @entry(*arguments(dtype), types.boolean)
    def conv_tiled_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, low: Any, high: Any, activation: int, groups: int,
        outputs: int, total: int, blocks: Any, staging: bool,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for the addresses of an image, weights of ``groups * outputs`` rows of
        `total`, a bias and a result.

        A task is (n, group, leading output, row block, column block, tile of output channels).
        """
        x, w, bias, y = number_of(x), number_of(w), number_of(bias), number_of(y)
        shape, leads, _, taps = blocks
        width_in, out_h, out_w, block_h, block_w = shape[2], shape[5], shape[6], shape[7], shape[8]
        pitch, plane = shape[14] if staging else out_w, shape[15]
        channels, positions = total // (taps.size * leads.shape[1]), leads.shape[0] * out_h * out_w
        # Equal slices, of whole channels where they fit.
        step, slices = taps.size if taps.size <= most_depth else 1, max(1, (total + most_depth - 1) // most_depth)
        depth = min((max(total, 1) + slices * step - 1) // (slices * step), most_depth // step) * step
        most_planes = min(channels * leads.shape[1], (depth + 2 * taps.size - 2) // taps.size)
        rows_of_blocks, columns_of_blocks = (out_h + block_h - 1) // block_h, (out_w + block_w - 1) // block_w
        tiles = (outputs + rows - 1) // rows
        staged = np.empty(most_planes * plane if staging else 0, kind)
        packed = on_lines((panels + 1) * panel_pitch, kind)
        offsets = np.empty(depth, np.int64)
        place_before = (-1, -1)
        task = start
        while task < stop:
            first_tile, rest = task % tiles, task // tiles
            last_tile = min(tiles, first_tile + stop - task)
            task += last_tile - first_tile
            left, rest = rest % columns_of_blocks * block_w, rest // columns_of_blocks
            top, rest = rest % rows_of_blocks * block_h, rest // rows_of_blocks
            lead, rest = rest % leads.shape[0], rest // leads.shape[0]
            group, n = rest % groups, rest // groups
            # Blocks at the same place have the same padding, which is then there already.
            moved, place_before = place_before != (top, left), (top, left)
            width = min(block_w, out_w - left)
            count = min(block_h, out_h - top) * width
            image, result = (n * groups + group) * channels, (n * groups + group) * outputs
            target = y + (result * positions + (lead * out_h + top) * out_w + left) * size
            weights = w + group * outputs * total * size
            shifts = bias + group * outputs * size
            for above in range(0, max(total, 1), depth):  # once without channels too: the bias is written
                steps = min(depth, total - above)
                last = above + steps == total
                floor, ceiling = low if last else -np.inf, high if last else np.inf
                if staging:
                    first_plane = above // taps.size
                    last_plane = (above + steps + taps.size - 1) // taps.size
                    source = address_of(staged)
                    stage_planes(x, image, lead, first_plane, last_plane, top, left, source, blocks, moved)
                    for k in range(steps):
                        number, tap = (above + k) // taps.size, (above + k) % taps.size
                        offsets[k] = (number - first_plane) * plane + taps[tap]
                else:
                    source = x + ((image + above) * width_in + left) * size
                    for k in range(steps):
                        offsets[k] = k * width_in
                whole, passes = divided(count, columns, lanes, steps)
                behind, few = whole * columns, address_of(packed) + panels * panel_pitch * size
                if passes > 0:
                    pack_columns(source, offsets, steps, behind, count, width, pitch, few)
                # Equal groups of panels: each reads the weights anew.
                most = max(1, (whole + panels - 1) // panels)
                most = max(1, (whole + most - 1) // most)
                for begin in range(0, max(whole, 1), most):
                    in_group = min(most, whole - begin)
                    dotted = passes if begin + most >= whole else 0
                    pack_panels(
                        source, offsets, steps, begin * columns, min(count, behind, (begin + most) * columns), width,
                        pitch, address_of(packed)
                    )  # fmt: skip
                    for block in range(first_tile, last_tile):
                        row = block * rows
                        used, start_w = min(rows, outputs - row), weights + (row * total + above) * size
                        start_y, shift = target + row * positions * size, shifts + row * size
                        for panel in range(in_group):
                            position = (begin + panel) * columns
                            line, column = position // width, position % width
                            if block == first_tile and width - column >= columns and count - position >= columns:
                                first_product(
                                    steps, start_w, total, source + (line * pitch + column) * size, address_of(offsets),
                                    start_y + position * size, positions, used, columns, shift, above > 0, floor,
                                    ceiling, address_of(packed) + panel * panel_pitch * size,
                                )  # fmt: skip
                                continue
                            # Each panel has one of the next rows fetched, as weights that come from beyond L2 need;
                            # but first the lines of the image that the next group of panels will be packed from.
                            passed = block - first_tile - 1
                            if not staging and passed < lines:
                                ahead = source + (position + most * columns + passed * (LINE // size)) * size
                                apart = width_in
                            else:
                                ahead, apart = start_w + (rows + panel) * total * size, 1
                            product(
                                steps, start_w, total, address_of(packed) + panel * panel_pitch * size, ahead,
                                start_y + position * size, positions, used, count - position,
                                shift, above > 0, floor, ceiling, apart,
                            )  # fmt: skip
                        for n in range(dotted):
                            column = n * vectors
                            dots(
                                steps, start_w, total, few + column * most_depth * size, most_depth,
                                start_y + (behind + column) * size, positions, used, count - behind - column,
                                shift, above > 0, floor, ceiling,
                            )  # fmt: skip
            if activation == HARDSWISH:
                for o in range(first_tile * rows, min(outputs, last_tile * rows)):
                    begin = (result + o) * positions + (lead * out_h + top) * out_w + left
                    hardswish(elements(y + begin * size, count, kind))

    return conv_tiled_loop
