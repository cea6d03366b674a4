"""A matrix product whose weights were laid out beforehand: 1x1 convolution from many channels.

The register tile is that of `microkernel.py` lying down: its vectors run along output channels, its rows are positions.
So a slice of a panel of weights stays in L1 while all positions of a block pass by it, every weight comes from beyond
the caches in one stream, and 7x7 or 14x14 positions fill tiles of five or six rows where they would leave vectors half
empty. The sums are turned in registers before they are stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import (
    ADDRESS,
    Vectors,
    address_of,
    copiers,
    counted_loop,
    number,
    number_of,
    on_addresses,
)

UNROLL = 4
"""Products a loop pass does."""

SLICE = 512
"""Products that are summed before the sums wait in memory: a slice of a panel is 32 KiB with vectors of 32 bytes."""

POSITIONS = 200
"""Positions of a block at most: packed, those of 512 channels are 400 KiB."""


def lying_product(itemsize: int, tile: Tile) -> Any:
    """``product(depth, image, weights, y, pitch, positions, outputs, bias, bounds, bent, sums, first, last)``.

    Sums over `depth` of an image packed as (depth, tile.rows) times weights packed as (depth, tile.columns). All but
    the `first` slice begin with the sums at address `sums`, all but the `last` leave theirs there. The last adds the
    bias, clamps to the two `bounds`, applies hardswish where `bent` is not 0, and stores: output channels `pitch`
    elements apart, of which `outputs` exist, positions side by side. Where at least ``tile.lanes`` of the `positions`
    are left, whole vectors are stored, over what the tiles of the next positions write after it.
    """
    lanes, rows, wide = tile.lanes, tile.rows, tile.vectors
    places = [(row, v) for row in range(rows) for v in range(wide)]

    def product(
        vectors: Vectors, depth: Any, image: Any, weights: Any, y: Any, pitch: Any, positions: Any, outputs: Any,
        bias: Any, bounds: Any, bent: Any, sums: Any, first: Any, last: Any,
    ) -> None:  # fmt: skip
        builder, kept = vectors.builder, vectors.pointer(sums)

        def steps(count: int) -> Any:
            def body(_: Any, carried: list[Any]) -> list[Any]:
                left, right, *totals = carried
                for k in range(count):
                    held = [vectors.load(right, (k * wide + v) * lanes) for v in range(wide)]
                    cells = [builder.gep(left, [number(k * rows + row)]) for row in range(rows)]
                    factors = [vectors.broadcast(builder.load(cell)) for cell in cells]
                    totals = [
                        vectors.multiply_add(factors[row], held[v], total)
                        for (row, v), total in zip(places, totals, strict=True)
                    ]
                ends = builder.gep(left, [number(count * rows)]), builder.gep(right, [number(count * wide * lanes)])
                return [*ends, *totals]

            return body

        carried = [vectors.pointer(image), vectors.pointer(weights), *[vectors.zeros] * len(places)]
        carried = counted_loop(builder, builder.sdiv(depth, number(UNROLL)), carried, steps(UNROLL))
        totals = counted_loop(builder, builder.srem(depth, number(UNROLL)), carried, steps(1))[2:]
        waiting = iter(range(len(places)))
        later = builder.sub(number(1), first)
        totals = vectors.where(later, totals, lambda t: builder.fadd(t, vectors.load(kept, next(waiting) * lanes)))
        with builder.if_else(builder.icmp_signed("!=", last, number(0))) as (finish, wait):
            with wait:
                for n, value in enumerate(totals):
                    vectors.store(value, kept, n * lanes)
            with finish:
                limits, shift = vectors.pointer(bounds), vectors.pointer(bias)
                low, high = (vectors.broadcast(builder.load(builder.gep(limits, [number(n)]))) for n in range(2))
                there = [vectors.first_lanes(builder.sub(outputs, number(v * lanes))) for v in range(wide)]
                shifts = [vectors.load_masked(shift, there[v], v * lanes) for v in range(wide)]
                done = [
                    vectors.clamp(builder.fadd(t, shifts[v]), low, high)
                    for (_, v), t in zip(places, totals, strict=True)
                ]
                store(vectors, vectors.where(bent, done, vectors.hardswish), y, pitch, positions, outputs)

    def store(vectors: Vectors, values: list[Any], y: Any, pitch: Any, positions: Any, outputs: Any) -> None:
        """Turn the sums, and store a vector for each output channel: those too many first, at the last one's place."""
        builder, result, end = vectors.builder, vectors.pointer(y), vectors.builder.sub(outputs, number(1))
        lines = []
        for o in map(number, range(wide * lanes)):
            used = builder.select(builder.icmp_signed("<", o, end), o, end)
            lines.append(builder.gep(result, [builder.mul(used, pitch)]))
        turned: list[Any] = []
        for v in range(wide):
            block = [values[row * wide + v] if row < rows else vectors.zeros for row in range(lanes)]
            turned += transpose(vectors, block, lanes)
        stored = list(zip(lines, turned, strict=True))[::-1]
        with builder.if_else(builder.icmp_signed(">=", positions, number(lanes))) as (over, cut):
            with over:
                for line, value in stored:
                    vectors.store(value, line)
            with cut:
                few = builder.icmp_signed("<", positions, number(rows))
                mask = vectors.first_lanes(builder.select(few, positions, number(rows)))
                for line, value in stored:
                    vectors.store_masked(value, line, mask)

    return on_addresses(product, itemsize, lanes)


def _copy_few(vectors: Vectors, target: Any, source: Any, count: Any) -> None:
    vectors.store(vectors.load_masked(vectors.pointer(source), vectors.first_lanes(count)), vectors.pointer(target))


def weight_panels(w: Any, groups: int, tile: Tile) -> Any:
    """Weights ``(groups * outputs, channels)`` as ``(groups, panels, channels, tile.columns)``, filled with zeros."""
    outputs, channels = w.shape[0] // groups, w.shape[1]
    panels = -(-outputs // tile.columns)
    padded = np.zeros((groups, panels * tile.columns, channels), w.dtype)
    padded[:, :outputs] = w.reshape(groups, outputs, channels)
    return np.ascontiguousarray(padded.reshape(groups, panels, tile.columns, channels).swapaxes(2, 3))


def block_tiles(positions: int, tile: Tile) -> int:
    """How many tiles a block of positions has."""
    blocks = -(-positions // POSITIONS)
    return -(-positions // (blocks * tile.rows))


def tasks_of(images: int, outputs: int, positions: int, tile: Tile) -> int:
    """Number of tasks; a task is a panel of weights and a block of an image's positions."""
    blocks = -(-positions // (block_tiles(positions, tile) * tile.rows))
    return images * blocks * -(-outputs // tile.columns)


@functools.lru_cache(maxsize=4)
def conv_pointwise(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for a tile with at most as many rows as a vector has lanes."""
    size, rows, columns, lanes, kind = dtype.itemsize, tile.rows, tile.columns, tile.lanes, dtype.type
    product, (copy, *_) = lying_product(size, tile), copiers(size, lanes)
    copy_few, most_depth = on_addresses(_copy_few, size, lanes), SLICE

    @entry(types.int64, types.int64, *[ADDRESS] * 5, *[types.int64] * 6)
    def conv_pointwise_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, bounds: Any, bent: int, groups: int, outputs: int,
        channels: int, total: int, most: int,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for images of `total` positions, in blocks of `most` tiles."""
        x, w, bias, y, bounds = number_of(x), number_of(w), number_of(bias), number_of(y), number_of(bounds)
        panels, blocks = (outputs + columns - 1) // columns, (total + most * rows - 1) // (most * rows)
        slices = max(1, (channels + most_depth - 1) // most_depth)
        depth = (channels + slices - 1) // slices
        # Each row of a tile is stored as a whole vector, over the next one. Tiles a multiple of 4 KiB apart would
        # compete for the same lines of L1.
        pitch = channels * rows + lanes + 8
        packed, sums = np.empty(most * pitch, kind), np.empty(most * rows * columns, kind)
        task = start
        while task < stop:
            first_panel, rest = task % panels, task // panels
            last_panel = min(panels, first_panel + stop - task)
            task += last_panel - first_panel
            block, image = rest % blocks, rest // blocks
            begin = block * most * rows
            count = min(most * rows, total - begin)
            tiles, whole = (count + rows - 1) // rows, 0 if count < lanes else (count - lanes) // rows + 1
            for k in range(channels):
                here = x + ((image * channels + k) * total + begin) * size
                there = address_of(packed) + k * rows * size
                for t in range(whole):
                    copy(there + t * pitch * size, here + t * rows * size)
                for t in range(whole, tiles):
                    copy_few(there + t * pitch * size, here + t * rows * size, count - t * rows)
            for panel in range(first_panel, last_panel):
                o, group = panel * columns, image % groups
                weights = w + (group * panels + panel) * channels * columns * size
                for part in range(slices):
                    above = part * depth
                    for t in range(tiles):
                        product(
                            min(depth, channels - above), address_of(packed) + (t * pitch + above * rows) * size,
                            weights + above * columns * size,
                            y + ((image * outputs + o) * total + begin + t * rows) * size, total, count - t * rows,
                            min(columns, outputs - o), bias + (group * outputs + o) * size, bounds, bent,
                            address_of(sums) + t * rows * columns * size, int(part == 0), int(part == slices - 1),
                        )  # fmt: skip

    return conv_pointwise_loop
