"""Convolution with few products an output: tiles that read the staged image and write results where they belong.

With few products an output, whatever is done once for each output takes as long as the products themselves: packing
what lies under it, copying it, writing a part of a tile through masks. So nothing is packed. A register tile is some
output channels by some vectors of positions, each vector at a place of its own in the staged block, so that vectors of
several rows fill a tile; and what does not fill a vector, or a tile of channels, is computed twice: the last vector of
a row ends with the row, and the last tile of channels with the last channel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.geometry import ConvSpec, Window
from npconv.kernels.cpu import few_positions
from npconv.kernels.cpu.blocking import (
    FEWEST_LOW_POSITIONS,
    LOW_ROWS,
    NARROW_ROWS,
    STAGED_BYTES,
    Blocks,
    Tile,
    blocks_for,
    processor,
)
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.depthwise import is_written_out
from npconv.kernels.cpu.loops import HARDSWISH
from npconv.kernels.cpu.staging import stager
from npconv.kernels.cpu.tiled import arguments
from npconv.kernels.cpu.vectors import INT64, Vectors, address_of, counted_loop, number, number_of, on_addresses

UNROLL = 3
"""Products a loop pass does: most kernels have a multiple of three."""

FILLED = ((4, 0.8), (12, 0.88), (32, 0.96))
"""Planes that are staged, phases counted one by one, and which part of a row's vectors has to be full: so that staged
planes are read faster than they are packed, and what is computed twice costs less than packing does."""

FILLED_NARROW = 0.7
"""The same for few output channels, whatever the planes: the other way is `narrow`, whose rows are not full either."""

ALWAYS = 12
"""Planes up to which tiles lying down are no faster, with their weights laid out beforehand."""

STAGED_ELEMENTS = 16384
"""Elements of a staged block, about: half of a small L2 cache at most, and where nothing is strided of a small L1."""


def layout(window: Window, outputs: int, planes: int, dtype: np.dtype[Any]) -> tuple[Tile, Blocks] | None:
    """The tile and the blocks for a group of so many channels and planes of the image; None where it does not suit."""
    lanes, phases = processor().register_bytes // dtype.itemsize, len(blocks_for(window, 1).phases)
    positions = max(FEWEST_LOW_POSITIONS, STAGED_ELEMENTS // (max(planes, 1) * max(4, phases)))
    blocks = blocks_for(window, positions)
    width, last = int(blocks.shape[8]), (window.out[-1] - 1) % int(blocks.shape[8]) + 1
    filled = width / (-(-width // lanes) * lanes)
    least = FILLED_NARROW if outputs <= NARROW_ROWS else next((f for n, f in FILLED if planes * phases <= n), 2)
    staged = planes * int(blocks.shape[15]) * dtype.itemsize
    if outputs <= LOW_ROWS or last < lanes or filled < least or staged > STAGED_BYTES:
        return None
    rows, vectors = min(processor().tiles, key=lambda tile: (-(-outputs // tile[0]) * tile[0], -tile[1]))
    return (Tile(rows, vectors, lanes), blocks) if rows <= outputs else None


def suits(spec: ConvSpec, dtype: np.dtype[Any], reused: bool = False) -> bool:
    """Whether a forward convolution is fastest this way; with `reused`, also where weights could be laid out before."""
    window, outputs = spec.window, spec.out_channels // spec.groups
    planes = spec.in_channels // spec.groups * window.taps // math.prod(window.kernel[-2:])
    if spec.macs == 0 or is_plain(window) or few_positions.suits_forward(window, spec.batch, spec.macs):
        return False
    if spec.in_channels == spec.groups and is_written_out(window.taps, spec.macs // spec.batch):
        return False
    found = layout(window, outputs, planes, dtype)
    return found is not None and not (reused and planes * len(found[1].phases) > ALWAYS)


def is_plain(window: Window) -> bool:
    """Whether the image needs no stage: a matrix product."""
    return window.taps == 1 and not window.has_padding and set(window.stride) == {1}


def spread_product(itemsize: int, tile: Tile) -> Any:
    """``product(depth, w, pitch_w, image, offsets, sources, y, targets, pitch_y, bias, limits, clamped, bent)``.

    For compiled code: ``tile.rows`` sums, each of weights times an image, for each lane of ``tile.vectors`` vectors,
    from the bias on. Row r's weights are the `depth` elements from ``w + r * pitch_w`` on. Vector v finds what belongs
    to product k at ``image + sources[v] + offsets[k]``, and sum r of it goes to ``y + targets[v] + r * pitch_y``: all
    in elements behind addresses, by tables of int64, at the addresses `sources`, `targets` and `offsets`. Sums are
    clamped to the two numbers at `limits` where `clamped` is not 0, and hardswish follows where `bent` is not 0.

    Contract: every row and every vector is read and written whole; places may overlap, and the result is not read.
    """
    lanes, rows, wide = tile.lanes, tile.rows, tile.vectors
    places = [(row, v) for row in range(rows) for v in range(wide)]

    def product(
        vectors: Vectors, depth: Any, w: Any, pitch_w: Any, image: Any, offsets: Any, sources: Any, y: Any,
        targets: Any, pitch_y: Any, bias: Any, limits: Any, clamped: Any, bent: Any,
    ) -> None:  # fmt: skip
        builder, shift, bounds = vectors.builder, vectors.pointer(bias), vectors.pointer(limits)
        table = _integers(builder, offsets)
        columns, results = (_places(vectors, start, listed, wide) for start, listed in ((image, sources), (y, targets)))
        lines = [builder.gep(vectors.pointer(w), [builder.mul(number(row), pitch_w)]) for row in range(rows)]

        def step(sums: list[Any], k: Any) -> list[Any]:
            """Product k: the vectors are held in registers, weights stream."""
            place = builder.load(builder.gep(table, [k]))
            held = [vectors.load(column, place) for column in columns]
            return vectors.add_products(sums, [builder.gep(line, [k]) for line in lines], held)

        def steps(count: int) -> Any:
            def body(_: Any, carried: list[Any]) -> list[Any]:
                k, *sums = carried
                for _ in range(count):
                    sums, k = step(sums, k), builder.add(k, number(1))
                return [k, *sums]

            return body

        shifts = [vectors.broadcast(builder.load(builder.gep(shift, [number(row)]))) for row in range(rows)]
        carried = [number(0), *[shifts[row] for row, _ in places]]
        carried = counted_loop(builder, builder.sdiv(depth, number(UNROLL)), carried, steps(UNROLL))
        sums = counted_loop(builder, builder.srem(depth, number(UNROLL)), carried, steps(1))[1:]
        low, high = (vectors.broadcast(builder.load(builder.gep(bounds, [number(n)]))) for n in range(2))
        sums = vectors.where(clamped, sums, lambda value: vectors.clamp(value, low, high))
        sums = vectors.where(bent, sums, vectors.hardswish)
        for (row, v), value in zip(places, sums, strict=True):
            vectors.store(value, builder.gep(results[v], [builder.mul(number(row), pitch_y)]))

    return on_addresses(product, itemsize, lanes)


def _integers(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT64.as_pointer())


def _places(vectors: Vectors, start: Any, listed: Any, count: int) -> list[Any]:
    """Pointers to the first `count` listed elements behind an address."""
    builder, table = vectors.builder, _integers(vectors.builder, listed)
    return [builder.gep(vectors.pointer(start), [builder.load(builder.gep(table, [number(n)]))]) for n in range(count)]


@functools.lru_cache(maxsize=64)
def conv_shallow(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64 and a tile."""
    size, rows, wide, lanes, kind = dtype.itemsize, tile.rows, tile.vectors, tile.lanes, dtype.type
    product, stage_planes = spread_product(size, tile), stager(size, lanes)

    @entry(*arguments(dtype))
    def conv_shallow_loop(
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
        staged, offsets, limits = np.zeros(planes * plane, kind), np.empty(total, np.int64), np.empty(2, kind)
        limits[0], limits[1] = low, high
        clamped = low > -np.inf or high < np.inf
        for k in range(total):
            offsets[k] = k // taps.size * plane + taps[k % taps.size]
        # Where the vectors of a block lie in the stage and in the result; behind the last one it is repeated.
        most = block_h * ((block_w + lanes - 1) // lanes) + wide
        sources, targets = np.empty(most, np.int64), np.empty(most, np.int64)
        place_before, size_before = (-1, -1), (-1, -1)
        for task in range(start, stop):
            left, rest = task % columns_of_blocks * block_w, task // columns_of_blocks
            top, rest = rest % rows_of_blocks * block_h, rest // rows_of_blocks
            lead, rest = rest % leads.shape[0], rest // leads.shape[0]
            group, n = rest % groups, rest // groups
            height, width = min(block_h, out_h - top), min(block_w, out_w - left)
            image = (n * groups + group) * (planes // leads.shape[1])
            stage_planes(x, image, lead, 0, planes, top, left, address_of(staged), blocks, place_before != (top, left))
            place_before = (top, left)
            in_row = (width + lanes - 1) // lanes
            count = height * in_row
            if size_before != (height, width):
                size_before = (height, width)
                for v in range(count + wide):
                    i = min(v, count - 1) // in_row
                    column = min((min(v, count - 1) - i * in_row) * lanes, width - lanes)
                    sources[v], targets[v] = i * pitch + column, i * out_w + column
            for tile_number in range((outputs + rows - 1) // rows):
                channel = group * outputs + min(tile_number * rows, outputs - rows)
                result = (n * groups * outputs + channel) * positions + (lead * out_h + top) * out_w + left
                for vector in range(0, count, wide):
                    product(
                        total, w + channel * total * size, total, address_of(staged), address_of(offsets),
                        address_of(sources) + vector * 8, y + result * size, address_of(targets) + vector * 8,
                        positions, bias + channel * size, address_of(limits), clamped, activation == HARDSWISH,
                    )  # fmt: skip

    return conv_shallow_loop
