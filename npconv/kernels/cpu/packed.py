"""Convolution whose weights were laid out beforehand: the register tile lying down, over a staged image.

Nothing of the image is packed: its planes are staged with their padding, some channels at a time, and every position of
a tile broadcasts its elements from there, each tap at a fixed offset, whatever the stride. The weights lie in panels of
as many output channels as a tile has columns, in the order in which they are read. From one slice of the channels to
the next the sums of all tiles of a block wait in L2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import few_positions
from npconv.kernels.cpu.blocking import Blocks, Tile, blocks_for, evenly, last_axes
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.launch import Launch
from npconv.kernels.cpu.lying import FETCHERS, Panels, lying_product, tile_for_positions
from npconv.kernels.cpu.panels import layer_out, slices_of
from npconv.kernels.cpu.staging import plane_copier
from npconv.kernels.cpu.vectors import ADDRESS, GRID, TABLE, address_of, number_of
from npconv.kernels.cpu.workspace import on_lines

SLICE = 128
"""Products, about, that are summed before the sums wait in memory: a slice of a panel is a quarter of a small L1 cache,
the lines of the image that its taps touch may have the rest."""

SUMS_BYTES, STAGED_BYTES = 256 * 1024, 128 * 1024
"""Of a block: its sums and what is staged at once stay in L2 together."""

MOST_POSITIONS, FEWEST_POSITIONS = 512, 48
"""Positions of a block. Fewer than these would not be worth the weights that pass by for them."""

WASTE = 3
"""Which part of the output channels, one in so many, the last panel may have too much."""

TURNED = 1.5
"""Products an output has to have for each output channel: sums are turned once for each of these, positions that stand
in vectors are packed once for each of those. Where rows are short, packing takes so long that turning always pays."""


class Layout(NamedTuple):
    """How a convolution is divided."""

    tile: Tile
    blocks: Blocks
    taps: int
    """Taps of a plane of the image: a channel and a tap of the axes before the last two."""
    total: int
    """Planes of a group."""
    planes: int
    """Planes of a slice."""


def suits(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a convolution is faster with its weights in panels, where its image must be staged for its taps."""
    tile, window, outputs = tile_for_positions(dtype, 1), spec.window, spec.out_channels // spec.groups
    depth = spec.in_channels // spec.groups * window.taps
    if dtype.kind != "f" or math.prod(window.kernel[-2:]) == 1 or spec.in_channels == spec.groups:
        return False
    if spec.macs == 0:
        return False
    if -outputs % tile.columns > outputs // WASTE or (depth < TURNED * outputs and window.out[-1] >= 2 * tile.lanes):
        return False
    return not few_positions.suits_forward(window, spec.batch, spec.macs)


def layout(spec: ConvSpec, dtype: np.dtype[Any]) -> Layout:
    """How a convolution that `suits` is divided."""
    size, window = dtype.itemsize, last_axes(spec.window, 2)
    outputs, total = spec.out_channels // spec.groups, spec.in_channels // spec.groups * spec.window.taps // window.taps
    most_planes = min(total, max(1, SLICE // window.taps))
    staged = most_planes * math.prod(window.stride) * size
    most = min(MOST_POSITIONS, SUMS_BYTES // (outputs * size), STAGED_BYTES // staged)
    blocks = blocks_for(spec.window, max(FEWEST_POSITIONS, most), False)
    # Where the kernel reaches far, a block takes more than its positions say.
    planes = evenly(total, max(1, min(most_planes, 2 * STAGED_BYTES // (int(blocks.shape[15]) * size))))
    return Layout(tile_for_positions(dtype, _positions(blocks)), blocks, window.taps, total, planes)


def _positions(blocks: Blocks) -> int:
    """Positions of a whole block."""
    return int(blocks.shape[7] * blocks.shape[8])


def details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How it is done, as pairs of words for a person."""
    tile, blocks, taps, total, planes = layout(spec, dtype)
    slices = f"depth {total * taps} in slices of {planes * taps}"
    return (
        ("driver", "implicit GEMM, weights in panels"), ("tile", tile.lying), ("blocks", f"{blocks.text}, {slices}"),
    )  # fmt: skip


def weight_layer(spec: ConvSpec, dtype: np.dtype[Any]) -> Callable[..., Panels]:
    """What lays weights out as the driver reads them; see `layer_out`."""
    tile, _, taps, total, planes = layout(spec, dtype)
    return layer_out(spec, dtype, tile, slices_of(total * taps, planes * taps))


def panel_runner(spec: ConvSpec, dtype: np.dtype[Any], bounds: tuple[float, float], bent: bool) -> Callable[..., None]:
    """The forward convolution with `Panels`, clamped to `bounds` and then bent by hardswish or not.

    The runner takes an image, the weights, a bias or None, a result and the number of threads. Nothing but the arrays'
    addresses is looked at: they must be in C order and of the dtype.
    """
    tile, blocks, taps, total, planes = layout(spec, dtype)
    positions = _positions(blocks)
    pitch, plane, strides = int(blocks.shape[14]), int(blocks.shape[15]), last_axes(spec.window, 2).stride
    k, places = np.arange(planes * taps), np.arange(-(-positions // tile.rows) * tile.rows)
    row, column = np.divmod(np.minimum(places, positions - 1), int(blocks.shape[8]))
    tables = k // taps * plane + blocks.taps[k % taps], row * strides[0] * pitch + column * strides[1]
    for table in tables:
        table.flags.writeable = False
    outputs, limits = spec.out_channels // spec.groups, np.array(bounds, dtype)
    tasks, kernel = spec.batch * spec.groups * blocks.number * -(-outputs // tile.columns), conv_packed(dtype, tile)
    rest = (limits, int(bent), spec.groups, outputs, total, planes, *strides, blocks[:4], *tables)
    return Launch.of(kernel, tasks, spec, dtype, rest)


@functools.lru_cache(maxsize=4)
def conv_packed(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64 and a tile."""
    size, lanes, rows, columns, kind = dtype.itemsize, tile.lanes, tile.rows, tile.columns, dtype.type
    product, copy_planes = lying_product(size, tile, listed=True), plane_copier(size, lanes)
    tuple_of: Any = types.Tuple
    tables = tuple_of((TABLE, GRID, GRID, TABLE)), TABLE, TABLE

    @entry(types.int64, types.int64, *[ADDRESS] * 5, *[types.int64] * 7, *tables)
    def conv_packed_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, bounds: Any, bent: int, groups: int, outputs: int,
        total: int, planes: int, stride_h: int, stride_w: int, blocks: Any, offsets: Any, spots: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for addresses of an image, weights in panels, a bias, a result, two bounds.

        A task is (n, group, leading output, row block, column block, panel of output channels).
        """
        x, w, bias, y, bounds = number_of(x), number_of(w), number_of(bias), number_of(y), number_of(bounds)
        shape, leads, _, taps = blocks
        out_h, out_w, block_h, block_w, plane = shape[5], shape[6], shape[7], shape[8], shape[15]
        channels, positions = total // leads.shape[1], leads.shape[0] * out_h * out_w
        rows_of_blocks, columns_of_blocks = (out_h + block_h - 1) // block_h, (out_w + block_w - 1) // block_w
        panels, most_tiles = (outputs + columns - 1) // columns, spots.size // rows
        staged = np.empty(planes * plane + lanes, kind)
        sums = on_lines((panels * most_tiles if total > planes else 1) * rows * columns, kind)
        place_before = (-1, -1)
        task = start
        while task < stop:
            first_panel, rest = task % panels, task // panels
            last_panel = min(panels, first_panel + stop - task)
            task += last_panel - first_panel
            left, rest = rest % columns_of_blocks * block_w, rest // columns_of_blocks
            top, rest = rest % rows_of_blocks * block_h, rest // rows_of_blocks
            lead, rest = rest % leads.shape[0], rest // leads.shape[0]
            group, n = rest % groups, rest // groups
            if place_before != (top, left):
                # Blocks at the same place have the same padding, which is then there already.
                place_before = (top, left)
                staged[:] = 0
            count = min(block_h, out_h - top) * min(block_w, out_w - left)
            tiles = (count + rows - 1) // rows
            image, result = (n * groups + group) * channels, (n * groups + group) * outputs
            target = y + (result * positions + (lead * out_h + top) * out_w + left) * size
            for above in range(0, total, planes):
                below = min(total, above + planes)
                copy_planes(x, image, lead, above, below, top * stride_h, left * stride_w, address_of(staged), blocks)
                depth = (below - above) * taps.size
                for panel in range(first_panel, last_panel):
                    o = panel * columns
                    weights = w + ((group * total + above) * taps.size * panels + panel * depth) * columns * size
                    after = weights + depth * columns * size
                    for t in range(tiles):
                        # The last tile ends with the last position, so that it is whole too.
                        begin = max(0, min(t * rows, count - rows))
                        waiting = panel * most_tiles + t if total > planes else 0
                        product(
                            depth, address_of(staged), address_of(spots) + begin * 8, address_of(offsets), weights,
                            after + min(t, FETCHERS) * (depth // FETCHERS) * columns * size,
                            target + (o * positions + begin) * size, positions, count - begin,
                            min(columns, outputs - o), bias + (group * outputs + o) * size, bounds, bent,
                            address_of(sums) + waiting * rows * columns * size, int(above == 0), int(below == total),
                        )  # fmt: skip

    return conv_packed_loop
