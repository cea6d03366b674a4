"""A matrix product whose weights were laid out beforehand: 1x1 convolution of few positions and many channels.

The register tile lies down (`lying.py`), and the image is packed for it once. The weights come from beyond the caches
in one stream, the next slice of a panel while the positions of the image pass by this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.geometry import ConvSpec
from npconv.kernels.cpu.blocking import Tile, processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.launch import Launch
from npconv.kernels.cpu.lying import FETCHERS, Panels, lying_product, tile_for_positions
from npconv.kernels.cpu.panels import layer_out
from npconv.kernels.cpu.staging import first_copier
from npconv.kernels.cpu.vectors import ADDRESS, address_of, copiers, number_of
from npconv.kernels.cpu.workspace import on_lines

SLICE = 512
"""Products that are summed before the sums wait in memory: a slice of a panel is 32 KiB with vectors of 32 bytes."""

MOST_POSITIONS, MOST_PACKED = 6400, 2**20
"""Positions for each byte of a vector, and elements of an image, up to which it is worth it: more positions fill
vectors, whose sums need not be turned (which takes the longer the more lanes there are), and packed they no longer stay
in L2."""

FEWEST_CHANNELS, FEWEST_OUTPUTS, WASTE = 96, 64, 16
"""Channels of the image and of the result from which on turning the sums pays; and which part of the result, one in so
many, the last panel may have too much."""


def suits(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a 1x1 convolution is faster with its weights in panels, and its image packed for them."""
    if dtype.kind != "f" or not spec.is_pointwise or set(spec.window.stride) != {1} or spec.batch == 0:
        return False
    tile, positions = _tile(spec, dtype), spec.window.positions
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if (
        tile.rows > tile.lanes
        or not 3 * tile.lanes <= positions <= MOST_POSITIONS // processor().register_bytes
        or channels * positions > MOST_PACKED
    ):
        return False
    return channels >= FEWEST_CHANNELS and outputs >= FEWEST_OUTPUTS and -outputs % tile.columns <= outputs // WASTE


def _tile(spec: ConvSpec, dtype: np.dtype[Any]) -> Tile:
    return tile_for_positions(dtype, spec.window.positions)


def details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How it is done, as pairs of words for a person."""
    return ("driver", "matrix product, weights in panels"), ("tile", _tile(spec, dtype).lying)


def weight_layer(spec: ConvSpec, dtype: np.dtype[Any]) -> Callable[..., Panels]:
    """What lays weights out as ``(groups, panels, channels, tile.columns)``; see `layer_out`."""
    return layer_out(spec, dtype, _tile(spec, dtype), [spec.in_channels // spec.groups])


def panel_runner(spec: ConvSpec, dtype: np.dtype[Any], bounds: tuple[float, float], bent: bool) -> Callable[..., None]:
    """The forward convolution with `Panels`, clamped to `bounds` and then bent by hardswish or not.

    The runner takes an image, the weights, a bias or None, a result and the number of threads. Nothing but the arrays'
    addresses is looked at: they must be in C order and of the dtype.
    """
    outputs, channels, tile = spec.out_channels // spec.groups, spec.in_channels // spec.groups, _tile(spec, dtype)
    tasks, kernel = spec.batch * spec.groups * -(-outputs // tile.columns), conv_pointwise(dtype, tile)
    rest = (np.array(bounds, dtype), int(bent), spec.groups, outputs, channels, spec.window.positions)
    return Launch.of(kernel, tasks, spec, dtype, rest)


@functools.lru_cache(maxsize=4)
def conv_pointwise(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for a tile with at most as many rows as a vector has lanes."""
    size, rows, columns, lanes, kind = dtype.itemsize, tile.rows, tile.columns, tile.lanes, dtype.type
    product, (copy, *_) = lying_product(size, tile), copiers(size, lanes)
    copy_first, most_depth = first_copier(size, lanes), SLICE

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
        packed, sums = np.empty(tiles * pitch, kind), on_lines(tiles * rows * columns, kind)
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
                    copy_first(there + t * pitch * size, here + t * rows * size, positions - t * rows)
            for panel in range(first_panel, last_panel):
                o, group = panel * columns, image % groups
                weights = w + (group * panels + panel) * channels * columns * size
                for above in range(0, channels, depth):
                    after = weights + (above + depth) * columns * size
                    for t in range(tiles):
                        product(
                            min(depth, channels - above), address_of(packed) + (t * pitch + above * rows) * size, 0, 0,
                            weights + above * columns * size,
                            after + min(t, FETCHERS) * (depth // FETCHERS) * columns * size,
                            y + ((image * outputs + o) * positions + t * rows) * size, positions, positions - t * rows,
                            min(columns, outputs - o), bias + (group * outputs + o) * size, bounds, bent,
                            address_of(sums) + t * rows * columns * size,
                            int(above == 0), int(above + depth >= channels),
                        )  # fmt: skip

    return conv_pointwise_loop
