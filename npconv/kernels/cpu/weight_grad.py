"""Weight gradients: sums over positions in blocks, with no matrix of patches.

A task owns some rows and columns of the gradient and works through the whole reduction for them: image by image, block
of positions by block, always in this order. So the bits do not depend on the number of threads, and the sums are
blocked, which keeps their rounding low. For a block the planes of the image under it are staged (see `staging`), or
read where they lie where there is one tap without stride and padding; then a kernel of `correlation` sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.config import get_num_threads
from npconv.geometry import Window
from npconv.kernels.cpu import one_tap, threads
from npconv.kernels.cpu.blocking import LINE, Tile, blocks_for, depth_for, evenly, low_positions_for, processor
from npconv.kernels.cpu.compile import compiled, entry
from npconv.kernels.cpu.correlation import dots, taps_product, totals, turner
from npconv.kernels.cpu.staging import row_movers, stager
from npconv.kernels.cpu.vectors import ADDRESS, GRID, TABLE, address_of, number_of, prefetch
from npconv.kernels.cpu.workspace import on_lines

# A task's part of the gradient, in taps of all its channels and in output channels: its sums, the packed gradient and
# the staged planes of a block stay in L2 together, and both packings serve enough products not to count.
MOST_TAPS, MOST_OUTPUTS = 384, 128
# Staged elements of a task's planes, for the same reason.
MOST_STAGED = 32 * 1024
# Taps of a part of the dots: with the output channels of a group, so many vectors of sums stay in L1 or L2.
MOST_DOT_TAPS = 144
# Positions from which on the image is packed with short vectors too: 49 lose up to a tenth, 196 win as much.
FEWEST_POSITIONS = 96
# Taps that are divided among threads, however high the tile is: the gradient is packed for each of the parts.
DIVIDED_TAPS = 48
# Taps that the dots do at once, by the rows that they do: few variants, so that little has to be compiled.
DOT_TAPS = {1: (1, 3, 5, 9, 13, 25), 2: (1, 3, 6, 12), 3: (1, 4, 8), 4: (1, 3, 6)}


class Parts(NamedTuple):
    """How the gradient of a group is divided into tasks."""

    planes: int
    """Planes (channel and leading tap) of a part."""
    outputs: int
    """Output channels of a part."""


def run(window: Window, groups: int, x: Any, dy: Any, dw: Any) -> None:
    """Write the gradient ``(outputs, depth)`` from an image and a result's gradient, float and in C order.

    `x` and `dy` are ``(batch, channels, ...)``.
    """
    runner(window, groups, x.shape[0], dw.shape, x.dtype, None)(x, dy, dw)


def runner(
    window: Window, groups: int, batch: int, shape: tuple[int, int], dtype: np.dtype[Any], limit: int | None
) -> Callable[[Any, Any, Any], None]:
    """``run(x, dy, dw)`` for gradients ``(outputs, depth)`` of that shape, on at most `limit` threads.

    Nothing of the arrays is looked at but their addresses: they must be in C order and of the dtype.
    """
    work, limit = batch * math.prod(shape) * window.positions, get_num_threads() if limit is None else limit
    if work == 0:
        return _write_zeros
    staging = needs_staging(window)
    if not staging:
        window = Window((window.positions,), (1,), (1,), ((0, 0),), (1,))
    outputs, taps = shape[0] // groups, math.prod(window.kernel[-2:])
    planes = shape[1] // taps
    rest: tuple[Any, ...] = (*shape, batch, groups)
    if is_narrow(outputs, dtype.itemsize):
        part = dot_part(planes, taps)
        blocks, (rows, step) = blocks_for(window, low_positions_for(part)), dot_shape(outputs, part * taps)
        loop = weight_grad_dots(dtype, processor().register_bytes // dtype.itemsize, rows, step)
        tasks, rest = groups * -(-planes // part), (*rest, part, staging, blocks[:4])
    elif one_tap.suits(window, planes, outputs, dtype.itemsize):
        return one_tap.runner(window, groups, batch, shape, dtype, staging, limit)
    else:
        exchanged = not staging and packs_image(planes, outputs, window.positions, dtype.itemsize)
        if exchanged:
            planes, outputs = outputs, planes
        tile = tile_for(dtype, planes * taps, outputs)
        blocks = blocks_for(window, depth_for(tile, dtype.itemsize))
        plane = int(blocks.shape[15]) if staging else 0
        parts = tile_parts(planes, taps, outputs, plane, tile, -(-limit // groups))
        loop = weight_grad_tiled(dtype, tile)
        tasks = groups * -(-planes // parts.planes) * -(-outputs // parts.outputs)
        rest = (groups * outputs, planes * taps, batch, groups, *parts, staging, exchanged, blocks[:4])
        call = threads.prepared(loop, tasks, work, limit, stoppable=True)
        return lambda x, dy, dw: call(dy, x, dw, *rest) if exchanged else call(x, dy, dw, *rest)
    call = threads.prepared(loop, tasks, work, limit, stoppable=True)
    return lambda x, dy, dw: call(x, dy, dw, *rest)


def _write_zeros(_x: Any, _dy: Any, dw: Any) -> None:
    """The gradient of nothing."""
    dw[...] = 0


def is_narrow(outputs: int, itemsize: int) -> bool:
    """Whether a group has so few output channels that a vector of them would be partly empty."""
    return outputs <= processor().register_bytes // itemsize


def packs_image(planes: int, outputs: int, positions: int, itemsize: int) -> bool:
    """Whether the image is packed and the result's gradient broadcast, where both simply lie as a matrix.

    The fewer of the channels are packed, unless they would leave a vector of them partly empty. Sums that need not be
    turned back are worth it for few positions too, but only where vectors are long: to turn as many sums takes less of
    the shorter ones.
    """
    vector = processor().register_bytes
    return vector // itemsize < planes < outputs and (positions >= FEWEST_POSITIONS or vector > 32)


@functools.lru_cache(maxsize=256)
def tile_for(dtype: np.dtype[Any], taps: int, outputs: int) -> Tile:
    """Of the tiles of taps by output channels that use all registers the one that wastes least."""
    lanes = processor().register_bytes // dtype.itemsize
    tiles = [Tile(rows, vectors, lanes) for rows, vectors in processor().tiles if rows * vectors == processor().sums]
    return min(tiles, key=lambda t: -(-taps // t.rows) * t.rows * -(-outputs // t.columns) * t.columns)


@functools.lru_cache(maxsize=256)
def dot_shape(outputs: int, taps: int) -> tuple[int, int]:
    """Rows and taps of the dots for a group of so many output channels and taps.

    A pass takes a load for each row and tap and a multiplication for each pair; fewer than 8 wait for each other.
    """
    rows = -(-outputs // -(-outputs // 4))
    most = processor().sums + (rows == 1)
    shapes = [n for n in DOT_TAPS[rows] if n * rows <= most]
    return rows, min(shapes, key=lambda n: -(-taps // n) * max(n + rows, n * rows, 8))


def tile_parts(planes: int, taps: int, outputs: int, plane: int, tile: Tile, tasks: int) -> Parts:
    """Divide a group's planes of `plane` staged elements and its output channels, into so many tasks if possible."""
    fitting = min(MOST_TAPS // taps, MOST_STAGED // max(1, plane))
    panels = -(-outputs // tile.columns)
    per_plane, per_panel = evenly(planes, max(1, fitting)), evenly(panels, max(1, MOST_OUTPUTS // tile.columns))
    while -(-planes // per_plane) * -(-panels // per_panel) < tasks:
        if per_plane > 1 and per_plane * taps >= min(8 * tile.rows, DIVIDED_TAPS):
            per_plane = -(-per_plane // 2)
        elif per_panel > 1:
            per_panel = -(-per_panel // 2)
        else:
            break
    return Parts(per_plane, per_panel * tile.columns)


def dot_part(planes: int, taps: int) -> int:
    """Planes of a part of a group for `weight_grad_dots`."""
    return evenly(planes, max(1, MOST_DOT_TAPS // taps))


def needs_staging(window: Window) -> bool:
    """Whether a window's taps do not simply lie where the image does."""
    return window.taps > 1 or window.has_padding or set(window.stride) != {1}


@functools.lru_cache(maxsize=2)
def tabulator() -> Callable[..., None]:
    """The function that tabulates where taps lie."""

    @compiled
    def tabulate(offsets: Any, count: int, staging: bool, plane: int, taps: Any) -> None:
        """Offsets of `count` taps of planes `plane` elements apart; the table's rest repeats the last one."""
        for k in range(offsets.size):
            number = min(k, count - 1)
            offsets[k] = number // taps.size * plane + taps[number % taps.size] if staging else number * plane

    return tabulate


@functools.lru_cache(maxsize=16)
def weight_grad_tiled(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64 and many output channels in a group."""
    size, lanes, rows, columns, kind = dtype.itemsize, tile.lanes, tile.rows, tile.columns, dtype.type
    product, turn, stage_planes, tabulate = (
        taps_product(size, tile),
        turner(size, lanes),
        stager(size, lanes),
        tabulator(),
    )
    _, copy_row, _ = row_movers(size, lanes)
    tuple_of: Any = types.Tuple

    @compiled
    def pack(source: Any, distance: int, used: int, count: int, packed: Any, pitch: int) -> None:
        """Turn `used` rows of `count` elements, `distance` apart, into panels of columns `pitch` apart."""
        for first in range(0, used, lanes):
            target = packed + (first // columns * pitch + first % columns) * size
            for j in range(0, count, lanes):
                turn(
                    target + j * columns * size, columns,
                    source + (first * distance + j) * size, distance, used - first, count - j,
                )  # fmt: skip

    @compiled
    def unpack(sums: Any, pitch: int, used: int, count: int, target: Any, distance: int) -> None:
        """The way back: `used` rows of `count` elements from panels."""
        for first in range(0, used, lanes):
            source = sums + (first // columns * pitch + first % columns) * size
            for k in range(0, count, lanes):
                turn(
                    target + (first * distance + k) * size, distance,
                    source + k * columns * size, columns, count - k, used - first,
                )  # fmt: skip

    @compiled
    def fetch(source: Any, offsets: Any, first: int, last: int, count: int) -> None:
        """Ask for `count` bytes at each of some of the places where taps lie."""
        for k in range(first, last):
            for line in range(0, count, LINE):
                prefetch(source + offsets[k] * size + line)

    @compiled
    def lay_out(sums: Any, pitch: int, used: int, count: int, target: Any, distance: int) -> None:
        """`count` rows of `used` elements, `distance` apart, from panels: what `unpack` writes, not turned."""
        for k in range(count):
            for first in range(0, used, columns):
                source = sums + (first // columns * pitch + k * columns) * size
                copy_row(target + (k * distance + first) * size, source, min(columns, used - first))

    @entry(
        types.int64, types.int64, *[ADDRESS] * 3, *[types.int64] * 6, types.boolean, types.boolean,
        tuple_of((TABLE, GRID, GRID, TABLE)), TABLE,
    )  # fmt: skip
    def weight_grad_tiled_loop(
        start: int, stop: int, x: Any, dy: Any, dw: Any, all_outputs: int, total: int, batch: int, groups: int,
        part_planes: int, part_outputs: int, staging: bool, exchanged: bool, blocks: Any, stopped: Any,
    ) -> None:  # fmt: skip
        """``dw``, ``(all_outputs, total)``, for the addresses of an image, a gradient and a result.

        A task is (group, part of planes, part of outputs). If `exchanged`, the image and the gradient have changed
        places, with all their numbers, and ``dw`` of a group is written ``(total, outputs)``.
        """
        x, dy, dw = number_of(x), number_of(dy), number_of(dw)
        shape, leads, _, taps = blocks
        out_h, out_w, block_h, block_w = shape[5], shape[6], shape[7], shape[8]
        pitch, plane = shape[14], shape[15] if staging else shape[2]
        outputs = all_outputs // groups
        planes, positions = total // taps.size, leads.shape[0] * out_h * out_w
        parts_k, parts_o = (planes + part_planes - 1) // part_planes, (outputs + part_outputs - 1) // part_outputs
        most_depth = (part_planes * taps.size + rows - 1) // rows * rows
        packed_pitch, sums_pitch = block_h * block_w * columns, most_depth * columns
        most_panels = (part_outputs + columns - 1) // columns
        staged = np.empty(part_planes * plane if staging else 0, kind)
        packed, sums = on_lines(most_panels * packed_pitch, kind), on_lines(most_panels * sums_pitch, kind)
        packed[:] = 0
        offsets = np.empty(most_depth, np.int64)
        for task in range(start, stop):
            part_o, rest = task % parts_o, task // parts_o
            part_k, group = rest % parts_k, rest // parts_k
            first_plane, last_plane = part_k * part_planes, min(planes, (part_k + 1) * part_planes)
            depth, used = (last_plane - first_plane) * taps.size, min(part_outputs, outputs - part_o * part_outputs)
            channel = group * outputs + part_o * part_outputs
            tabulate(offsets, depth, staging, plane, taps)
            accumulate = 0
            for n in range(batch):
                image = (n * groups + group) * (planes // leads.shape[1])
                gradient = dy + (n * groups * outputs + channel) * positions * size
                for lead in range(leads.shape[0]):
                    for top in range(0, out_h, block_h):
                        for left in range(0, out_w, block_w):
                            if stopped[0] != 0:
                                return
                            height, width = min(block_h, out_h - top), min(block_w, out_w - left)
                            place = (lead * out_h + top) * out_w + left
                            pack(
                                gradient + place * size, positions, used, height * width, address_of(packed),
                                packed_pitch,
                            )  # fmt: skip
                            source = x + ((image + first_plane) * plane + left) * size
                            if staging:
                                source = address_of(staged)
                                stage_planes(x, image, lead, first_plane, last_plane, top, left, source, blocks, True)
                            panels = (used + columns - 1) // columns
                            for k in range(0, depth, rows):
                                for panel in range(panels):
                                    if not staging and k + rows < depth:
                                        fetch(
                                            source, offsets, k + rows + rows * panel // panels,
                                            k + rows + rows * (panel + 1) // panels, height * width * size,
                                        )  # fmt: skip
                                    product(
                                        height, width, source, pitch, address_of(offsets) + k * 8,
                                        address_of(packed) + panel * packed_pitch * size,
                                        address_of(sums) + (panel * sums_pitch + k * columns) * size, accumulate,
                                    )  # fmt: skip
                            accumulate = 1
            if exchanged:
                row = group * total + first_plane * taps.size
                target = dw + (row * outputs + part_o * part_outputs) * size
                lay_out(address_of(sums), sums_pitch, used, depth, target, outputs)
            else:
                target = dw + (channel * total + first_plane * taps.size) * size
                unpack(address_of(sums), sums_pitch, used, depth, target, total)

    return weight_grad_tiled_loop


@functools.lru_cache(maxsize=64)
def weight_grad_dots(dtype: np.dtype[Any], lanes: int, rows: int, step: int) -> Callable[..., None]:
    """The driver for float32 or float64 and few output channels in a group: `rows` of them and `step` taps at once."""
    size, kind = dtype.itemsize, dtype.type
    dot, total_of = dots(size, lanes, rows, step), totals(size, lanes)
    stage_planes, tabulate = stager(size, lanes), tabulator()
    tuple_of: Any = types.Tuple

    @entry(
        types.int64, types.int64, *[ADDRESS] * 3, *[types.int64] * 5, types.boolean,
        tuple_of((TABLE, GRID, GRID, TABLE)), TABLE,
    )  # fmt: skip
    def weight_grad_dots_loop(
        start: int, stop: int, x: Any, dy: Any, dw: Any, all_outputs: int, total: int, batch: int, groups: int,
        part_planes: int, staging: bool, blocks: Any, stopped: Any,
    ) -> None:  # fmt: skip
        """``dw``, ``(all_outputs, total)``, for the addresses of an image, a gradient and a result.

        A task is (group, part of planes).
        """
        x, dy, dw = number_of(x), number_of(dy), number_of(dw)
        shape, leads, _, taps = blocks
        out_h, out_w, block_h, block_w = shape[5], shape[6], shape[7], shape[8]
        pitch, plane = shape[14], shape[15] if staging else shape[2]
        outputs = all_outputs // groups
        planes, positions = total // taps.size, leads.shape[0] * out_h * out_w
        parts = (planes + part_planes - 1) // part_planes
        most_depth = (part_planes * taps.size + step - 1) // step * step
        staged = np.empty(part_planes * plane if staging else 0, kind)
        sums = on_lines((outputs + rows - 1) // rows * rows * most_depth * lanes, kind)
        offsets, places = np.empty(most_depth, np.int64), np.empty((outputs + rows - 1) // rows * rows, np.int64)
        for o in range(places.size):
            places[o] = min(o, outputs - 1) * positions
        for task in range(start, stop):
            part, group = task % parts, task // parts
            first_plane, last_plane = part * part_planes, min(planes, (part + 1) * part_planes)
            depth = (last_plane - first_plane) * taps.size
            tabulate(offsets, depth, staging, plane, taps)
            sums[:] = 0
            for n in range(batch):
                image = (n * groups + group) * (planes // leads.shape[1])
                gradient = dy + (n * groups + group) * outputs * positions * size
                for lead in range(leads.shape[0]):
                    for top in range(0, out_h, block_h):
                        for left in range(0, out_w, block_w):
                            if stopped[0] != 0:
                                return
                            height, width = min(block_h, out_h - top), min(block_w, out_w - left)
                            place = (lead * out_h + top) * out_w + left
                            source = x + ((image + first_plane) * plane + left) * size
                            if staging:
                                source = address_of(staged)
                                stage_planes(x, image, lead, first_plane, last_plane, top, left, source, blocks, True)
                            for o in range(0, outputs, rows):
                                for k in range(0, depth, step):
                                    dot(
                                        height, width, gradient + place * size, out_w, address_of(places) + o * 8,
                                        source, pitch, address_of(offsets) + k * 8,
                                        address_of(sums) + (o * most_depth + k * rows) * lanes * size,
                                    )  # fmt: skip
            for o in range(outputs):
                target = dw + ((group * outputs + o) * total + first_plane * taps.size) * size
                for k in range(depth):
                    vector = o // rows * rows * most_depth + k // step * step * rows + o % rows * step + k % step
                    total_of(target + k * size, address_of(sums) + vector * lanes * size)

    return weight_grad_dots_loop
