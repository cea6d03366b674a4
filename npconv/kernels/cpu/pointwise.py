"""A matrix product whose weights were laid out beforehand: 1x1 convolution of few positions and many channels.

The register tile is that of `microkernel.py` lying down: its vectors run along output channels, its rows are positions.
So 7x7 or 14x14 positions fill tiles of five or six rows where they would leave vectors half empty, and the weights come
from beyond the caches in one stream, the next slice of a panel while the positions of a block pass by this one. The
sums are turned in registers before they are stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import Tile, processor
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

LINE = 64
"""Bytes of a line of the caches."""

UNROLL = 4
"""Products a loop pass does."""

FETCHERS = 4
"""First tiles of a slice of weights, each of which has a part of the next slice fetched."""

SLICE = 512
"""Products that are summed before the sums wait in memory: a slice of a panel is 32 KiB with vectors of 32 bytes."""

MOST_POSITIONS, MOST_PACKED = 200, 2**20
"""Positions, and elements of an image, up to which it is worth it: more positions fill vectors, and packed they no
longer stay in L2."""

FEWEST_CHANNELS, FEWEST_OUTPUTS, WASTE = 96, 64, 16
"""Channels of the image and of the result from which on turning the sums pays; and which part of the result, one in so
many, the last panel may have too much."""


def lying_product(itemsize: int, tile: Tile) -> Any:
    """``product(depth, image, weights, ahead, y, pitch, positions, outputs, bias, bounds, bent, sums, first, last)``.

    Sums over `depth` of an image packed as (depth, tile.rows) times weights packed as (depth, tile.columns). Behind
    `ahead` a part of what weights take, one in `FETCHERS`, is fetched meanwhile, whosever it is. All but
    the `first` slice begin with the sums at address `sums`, all but the `last` leave theirs there. The last adds the
    bias, clamps to the two `bounds`, applies hardswish where `bent` is not 0, and stores: output channels `pitch`
    elements apart, of which `outputs` exist, positions side by side. Where at least ``tile.lanes`` of the `positions`
    are left, whole vectors are stored, over what the tiles of the next positions write after it.
    """
    lanes, rows, wide = tile.lanes, tile.rows, tile.vectors
    places = [(row, v) for row in range(rows) for v in range(wide)]

    def product(
        vectors: Vectors, depth: Any, image: Any, weights: Any, ahead: Any, y: Any, pitch: Any, positions: Any,
        outputs: Any, bias: Any, bounds: Any, bent: Any, sums: Any, first: Any, last: Any,
    ) -> None:  # fmt: skip
        builder, kept, next_weights = vectors.builder, vectors.pointer(sums), vectors.pointer(ahead)

        def steps(count: int) -> Any:
            fetched = count * tile.columns // FETCHERS

            def body(index: Any, carried: list[Any]) -> list[Any]:
                here = builder.gep(next_weights, [builder.mul(index, number(fetched))])
                for offset in range(0, fetched, LINE // itemsize):
                    vectors.prefetch(builder.gep(here, [number(offset)]))
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


class Panels(NamedTuple):
    """Weights as the driver reads them: ``(groups, panels, channels, tile.columns)``, filled up with zeros."""

    values: Any
    tile: Tile


def panel_tile(spec: ConvSpec, dtype: np.dtype[Any]) -> Tile | None:
    """The tile that wastes least, for a 1x1 convolution that is faster with its weights in panels."""
    if dtype.kind != "f" or set(spec.window.stride) != {1}:
        return None
    lanes, (rows, vectors) = processor().register_bytes // dtype.itemsize, processor().tiles[0]
    positions, channels = spec.window.positions, spec.in_channels // spec.groups
    outputs, columns = spec.out_channels // spec.groups, vectors * lanes
    if rows > lanes or not 3 * lanes <= positions <= MOST_POSITIONS or channels * positions > MOST_PACKED:
        return None
    if channels < FEWEST_CHANNELS or outputs < FEWEST_OUTPUTS or -outputs % columns > outputs // WASTE:
        return None
    tiles = [Tile(rows, vectors, lanes), Tile(rows - 1, vectors, lanes)]
    return min(tiles, key=lambda tile: -(-positions // tile.rows) * tile.rows)


def weight_panels(spec: ConvSpec, w: Any, tile: Tile) -> Panels:
    """Weights ``(groups * outputs, channels, 1, ...)`` laid out."""
    outputs, channels = spec.out_channels // spec.groups, w.shape[1]
    panels = -(-outputs // tile.columns)
    padded = np.zeros((spec.groups, panels * tile.columns, channels), w.dtype)
    padded[:, :outputs] = w.reshape(spec.groups, outputs, channels)
    padded = padded.reshape(spec.groups, panels, tile.columns, channels)
    return Panels(np.ascontiguousarray(padded.swapaxes(2, 3)), tile)


def panel_runner(
    spec: ConvSpec, dtype: np.dtype[Any], tile: Tile, bounds: tuple[float, float], bent: bool
) -> Callable[..., None]:
    """The forward convolution with `Panels`, clamped to `bounds` and then bent by hardswish or not.

    The runner takes an image, the weights, a bias or None, a result and the number of threads. Nothing but the arrays'
    addresses is looked at: they must be in C order and of the dtype.
    """
    outputs, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    tasks, kernel = spec.batch * spec.groups * -(-outputs // tile.columns), conv_pointwise(dtype, tile)
    none, limits = np.zeros(spec.out_channels, dtype), np.array(bounds, dtype)
    rest = (limits, int(bent), spec.groups, outputs, channels, spec.window.positions)

    def run(x: Any, w: Panels, bias: Any, y: Any, limit: int | None = None) -> None:
        shift = none if bias is None else bias
        threads.run(
            kernel, tasks, spec.macs, x, w.values, shift, y, *rest, limit=limit, at_once=threads.TILE_SLICE
        )  # fmt: skip

    return run


@functools.lru_cache(maxsize=4)
def conv_pointwise(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for a tile with at most as many rows as a vector has lanes."""
    size, rows, columns, lanes, kind = dtype.itemsize, tile.rows, tile.columns, tile.lanes, dtype.type
    product, (copy, *_) = lying_product(size, tile), copiers(size, lanes)
    copy_few, most_depth = on_addresses(_copy_few, size, lanes), SLICE

    @entry(types.int64, types.int64, *[ADDRESS] * 5, *[types.int64] * 5)
    def conv_pointwise_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, bounds: Any, bent: int, groups: int, outputs: int,
        channels: int, positions: int,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))``; a task is a panel of weights and an image, or a group of one."""
        x, w, bias, y, bounds = number_of(x), number_of(w), number_of(bias), number_of(y), number_of(bounds)
        panels, tiles = (outputs + columns - 1) // columns, (positions + rows - 1) // rows
        # Tiles that are packed as whole vectors; behind the others an image may end.
        whole = 0 if positions < lanes else (positions - lanes) // rows + 1
        slices = max(1, (channels + most_depth - 1) // most_depth)
        depth = (channels + slices - 1) // slices
        # Each row of a tile is stored as a whole vector, over the next one. Tiles a multiple of 4 KiB apart would
        # compete for the same lines of L1.
        pitch = channels * rows + lanes + 8
        packed, sums = np.empty(tiles * pitch, kind), np.empty(tiles * rows * columns, kind)
        task = start
        while task < stop:
            first_panel, image = task % panels, task // panels
            last_panel = min(panels, first_panel + stop - task)
            task += last_panel - first_panel
            for k in range(channels):
                here = x + (image * channels + k) * positions * size
                there = address_of(packed) + k * rows * size
                for t in range(whole):
                    copy(there + t * pitch * size, here + t * rows * size)
                for t in range(whole, tiles):
                    copy_few(there + t * pitch * size, here + t * rows * size, positions - t * rows)
            for panel in range(first_panel, last_panel):
                o, group = panel * columns, image % groups
                weights = w + (group * panels + panel) * channels * columns * size
                for above in range(0, channels, depth):
                    after = weights + (above + depth) * columns * size
                    for t in range(tiles):
                        product(
                            min(depth, channels - above), address_of(packed) + (t * pitch + above * rows) * size,
                            weights + above * columns * size,
                            after + min(t, FETCHERS) * (depth // FETCHERS) * columns * size,
                            y + ((image * outputs + o) * positions + t * rows) * size, positions, positions - t * rows,
                            min(columns, outputs - o), bias + (group * outputs + o) * size, bounds, bent,
                            address_of(sums) + t * rows * columns * size,
                            int(above == 0), int(above + depth >= channels),
                        )  # fmt: skip

    return conv_pointwise_loop
