"""Which Winograd tiles there are for a convolution of images, and what each costs: pure numbers, no arrays."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

from npconv.algorithms.base import is_turnable
from npconv.algorithms.cook_toom import SIZES, Matrix, Tile, Transforms, accurate_enough, transforms
from npconv.algorithms.tile_times import PANEL, panels
from npconv.algorithms.winograd_grad_times import weight_grad_seconds
from npconv.geometry import ConvSpec, Size

ROWS = 6
"""Output channels that are multiplied at once, whether there are so many or not: most CPUs' register tile."""

CALL_COST, TRANSFORM_COST, STREAM_COST, WEIGHT_COST, PACK_COST = 3500, 3.5, 5, 1.6, 18
"""What takes as long as so many operations of the products, in the compiled form: a register tile, however deep; an
operation of a transform; one transformed weight read for the products; an operation of the transform of the weights,
and one transformed weight written. Fitted to 61 pairs of layers and tiles, see docs/measurements-log.md."""


FEW_TILES = 224
"""Tiles up to which the compiled form transforms the weights on the way.

They are written and read in a cache then, and cost nothing but the operations of their transform."""


def obstacle(spec: ConvSpec, op: str) -> str | None:
    """None, or why no dtype can run this spec."""
    window = spec.window
    last = window.axes(slice(max(0, window.ndim - 2), None))
    if set(last.stride) != {1}:
        return f"Winograd tiles need stride 1 along the last two axes, here {window.stride}"
    if not 1 < max(last.kernel) <= max(SIZES):
        return f"Winograd tiles need kernels of 2 to {max(SIZES)} along one of the last two axes, here {window.kernel}"
    if not accurate_enough(tuple((SIZES[k][0], k) for k in last.kernel), op):
        return f"Winograd tiles would round too much for a kernel of {window.kernel}"
    if any(d > max(1, n) for d, k, n in zip(last.dilation, last.kernel, last.out, strict=True) if k > 1):
        return f"a dilation larger than the result leaves Winograd tiles empty, here {window.dilation}"
    if op == "input_grad" and not is_turnable(spec):
        return f"its input gradient needs stride 1 and padding within the kernel, here {window.padding}"
    return None


@functools.lru_cache(maxsize=1024)
def tile_sizes(spec: ConvSpec, op: str, reused: bool = False) -> Tile:
    """The accurate tile of least cost, ``(m, r)`` per axis, for a spec that `obstacle` lets pass.

    The cost counts whole tiles, so what hangs over the edges is paid for, and the transform of the weights unless they
    are `reused`. An input gradient's tiles are those of the forward convolution that `turned` gives.
    """
    axes = [[(m, r) for m in SIZES[r]] for r in spec.window.kernel]

    def cost(tile: Tile) -> float:
        if op == "weight_grad":
            return weight_grad_seconds(spec, *points_and_tiles(spec, tile), 4)
        return price(spec, tile, op, reused)

    return min((tile for tile in itertools.product(*axes) if accurate_enough(tile, op)), key=cost)


def price(spec: ConvSpec, tile: Tile, op: str, reused: bool) -> float:
    """Time of a call, in operations of the products that would take as long."""
    _, transforming, weights = operations(spec, tile, op)
    tiles, points = spec.batch * math.prod(tile_counts(spec, tile)), math.prod(points_per_axis(tile))
    outputs, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    depth, wide = (tiles, -(-channels // PANEL)) if op == "weight_grad" else (channels, panels(tiles, channels))
    products = points * spec.groups * -(-outputs // ROWS) * wide
    stream = points * spec.groups * outputs * channels
    packing = 0.0
    if not reused:
        ahead = op == "weight_grad" or not transforms_on_the_way(spec, tile)
        packing = WEIGHT_COST * weights + PACK_COST * stream * ahead
    return (
        products * (2 * ROWS * PANEL * depth + CALL_COST)
        + TRANSFORM_COST * transforming
        + STREAM_COST * stream
        + packing
    )


def transforms_on_the_way(spec: ConvSpec, tile: Tile) -> bool:
    """Whether the compiled form transforms weights that are used once on the way, not before.

    With many channels and few tiles, transformed weights are larger than caches, and most of what is moved.
    """
    return spec.batch * math.prod(tile_counts(spec, tile)) <= FEW_TILES


def operations(spec: ConvSpec, tile: Tile, op: str) -> tuple[int, int, int]:
    """Floating-point operations of the products, of the transforms of images, and of those of weights."""
    counts, points, fs = tile_counts(spec, tile), points_per_axis(tile), matrices(tile)
    tiles = spec.batch * math.prod(counts)
    products = 2 * math.prod(points) * tiles * spec.parameters // spec.window.taps
    one = (1,) * len(tile)
    extents = [t * m + r - 1 for t, (m, r) in zip(counts, tile, strict=True)]
    data = spec.batch * spec.in_channels * _chain([f.bt for f in fs], counts, extents)
    maps = spec.parameters // spec.window.taps
    if op == "weight_grad":
        covered = [t * m for t, (m, _) in zip(counts, tile, strict=True)]
        results = spec.batch * spec.out_channels * _chain([f.at.T for f in fs], counts, covered)
        return products, data + results, maps * _chain([f.g.T for f in fs], one, points)
    weights = maps * _chain([f.g for f in fs], one, spec.window.kernel)
    tiled = [t * n for t, n in zip(counts, points, strict=True)]
    return products, data + spec.batch * spec.out_channels * _chain([f.at for f in fs], counts, tiled), weights


def _chain(chain: Sequence[Matrix], counts: Size, sizes: Sequence[int]) -> int:
    """Operations of one matrix after the other along axes of these sizes, each applied to so many tiles."""
    sizes, total = list(sizes), 0
    for axis, (matrix, count) in enumerate(zip(chain, counts, strict=True)):
        sizes[axis] = 1
        total += 2 * int((matrix != 0).sum()) * count * math.prod(sizes) * (matrix.size > 1)
        sizes[axis] = count * len(matrix)
    return total


def tile_counts(spec: ConvSpec, tile: Tile) -> Size:
    """Number of tiles per axis; the last may hang over the edge."""
    return tuple(-(-n // m) for n, (m, _) in zip(spec.window.out, tile, strict=True))


def matrices(tile: Tile) -> tuple[Transforms, ...]:
    """The transforms of every axis."""
    return tuple(transforms(m, r) for m, r in tile)


def points_per_axis(tile: Tile) -> Size:
    """Inputs under a tile, and so products, along each axis."""
    return tuple(m + r - 1 for m, r in tile)


def points_and_tiles(spec: ConvSpec, tile: Tile) -> tuple[int, int]:
    """Points of a tile, and tiles of the whole batch."""
    return math.prod(points_per_axis(tile)), spec.batch * math.prod(tile_counts(spec, tile))


def row_elements(spec: ConvSpec, tile: Tile) -> int:
    """Transformed elements of one image under and over one row of tiles."""
    return (
        (spec.in_channels + spec.out_channels)
        * math.prod(points_per_axis(tile))
        * math.prod(tile_counts(spec, tile)[1:])
    )
