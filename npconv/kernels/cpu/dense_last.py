"""Convolution of channels-last images whose weights were laid out beforehand: nothing of the image is moved.

The channels of a position lie side by side, so what a tap reads there is a run of memory, and the register tile lying
down (`lying.py`) broadcasts it from where it is. A table says where each position of a block finds each of its runs:
in the image, in a run of zeros where the padding is, or in a copy of what stands across the image's edge. So strides,
dilations and paddings of all axes are in that table, and the tile knows nothing of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.geometry import ConvSpec
from npconv.kernels.cpu.blocking import Tile, evenly, first_axes, last_axes, processor
from npconv.kernels.cpu.compile import entry, inner
from npconv.kernels.cpu.launch import Launch
from npconv.kernels.cpu.lying import FETCHERS, Panels, runs_product
from npconv.kernels.cpu.operands import as_table
from npconv.kernels.cpu.panels import layer_out
from npconv.kernels.cpu.vectors import ADDRESS, GRID, TABLE, address_of, elements, number_of
from npconv.kernels.cpu.workspace import on_lines
from npconv.leading import leading_planes

SLICE = 512
"""Products that are summed before the sums wait in memory: a slice of a panel is 32 KiB with vectors of 32 bytes."""

MOST_POSITIONS, FEWEST_POSITIONS = 384, 48
"""Positions of a block. Fewer than these would not be worth the weights that pass by for them."""

IMAGE_BYTES, SUMS_BYTES, CELLS_BYTES = 192 * 1024, 128 * 1024, 64 * 1024
"""What a block reads of the image, its waiting sums and its table: together they stay in L2."""

FEW_CHANNELS = 16
"""Channels below which the taps of a row are one run where they lie side by side: short runs do not pay for looking
them up."""

SECOND, NARROW = 1.03, 1.35
"""How much longer a product takes on another tile than the first one, and on one of a single vector."""

NARROW_ROWS = 8
"""Positions of a tile of a single vector: more addresses than these would not stay in registers."""

WASTE = 2
"""Which part of the output channels, one in so many, the last panel may have too much."""


class Layout(NamedTuple):
    """How a convolution is divided."""

    tile: Tile
    block: int
    """Positions of a block."""
    joined: int
    """Taps that make a run."""
    runs: int
    depth: int
    """Elements of a run."""
    slices: Any
    """For each slice of the depth: its first run, how many, the first element of them, how many, products before."""


def suits(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a channels-last convolution is read as it lies."""
    if dtype.kind != "f" or spec.macs == 0 or spec.in_channels == spec.groups > 1:
        return False
    outputs, tile = spec.out_channels // spec.groups, layout(spec, dtype).tile
    return -outputs % tile.columns <= outputs // WASTE


@functools.lru_cache(maxsize=1024)
def layout(spec: ConvSpec, dtype: np.dtype[Any]) -> Layout:
    """How a convolution that `suits` is divided."""
    size, window, positions = dtype.itemsize, spec.window, spec.batch * spec.window.positions
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    dense = spec.groups == 1 and channels < FEW_CHANNELS and window.dilation[-1] == 1
    joined = window.kernel[-1] if dense else 1
    runs, depth = window.taps // joined, joined * channels
    chunk = evenly(depth, SLICE)
    at_once = evenly(runs, max(1, SLICE // chunk))
    slices = [
        (run, min(at_once, runs - run), above, min(chunk, depth - above), 0)
        for run in range(0, runs, at_once)
        for above in range(0, depth, chunk)
    ]
    table = np.array(slices, np.int64)
    table[1:, 4] = np.cumsum(table[:-1, 1] * table[:-1, 3])
    most = min(MOST_POSITIONS, IMAGE_BYTES // (channels * size), CELLS_BYTES // (runs * 8))
    if len(slices) > 1:
        most = min(most, SUMS_BYTES // (outputs * size))
    tile = tile_for(dtype, positions, outputs)
    block = -(-evenly(positions, max(FEWEST_POSITIONS, most)) // tile.rows) * tile.rows
    return Layout(tile, block, joined, runs, depth, as_table(table))


def tile_for(dtype: np.dtype[Any], positions: int, outputs: int) -> Tile:
    """The tile that takes least time for what it computes, and for what it computes in vain."""
    lanes = processor().register_bytes // dtype.itemsize
    rows, vectors = processor().tiles[0]
    shapes = dict.fromkeys((*processor().tiles, (rows - 1, vectors)), SECOND)
    shapes |= {(NARROW_ROWS, 1): NARROW, (rows, vectors): 1.0}
    times = {Tile(*shape, lanes): time for shape, time in shapes.items()}

    def products(tile: Tile) -> int:
        return -(-positions // tile.rows) * tile.rows * -(-outputs // tile.columns) * tile.columns

    return min(times, key=lambda tile: products(tile) * times[tile])


def details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How it is done, as pairs of words for a person."""
    tile, block, _, runs, depth, slices = layout(spec, dtype)
    number = -(-spec.batch * spec.window.positions // block)
    return (
        ("driver", "matrix product over the image as it lies, weights in panels"), ("tile", tile.lying),
        ("blocks", f"{number} of {block} positions, {runs} runs of {depth} in {len(slices)} slices"),
    )  # fmt: skip


def pack_weights(spec: ConvSpec, w: Any) -> Panels:
    """Weights ``(groups * outputs, channels, *kernel)`` as the driver reads them: ``(groups, outputs * depth)``.

    A group is a slice of the depth after the other, each of panels ``(runs, elements, tile.columns)``.
    """
    return _layer(spec, w.dtype)(w)


@functools.lru_cache(maxsize=1024)
def _layer(spec: ConvSpec, dtype: np.dtype[Any]) -> Callable[..., Panels]:
    """What lays weights out as the driver reads them; see `layer_out`."""
    tile, _, _, runs, depth, slices = layout(spec, dtype)
    order = np.empty((runs, depth), np.int64)
    for run, count, above, chunk, before in slices:
        order[run : run + count, above : above + chunk] = before + np.arange(count * chunk).reshape(count, chunk)
    channels_first = order.reshape(spec.window.taps, -1).T.reshape(-1)
    return layer_out(spec, dtype, tile, [count * chunk for _, count, _, chunk, _ in slices], channels_first)


def runner(spec: ConvSpec, dtype: np.dtype[Any], bounds: tuple[float, float], bent: bool) -> Callable[..., None]:
    """The forward convolution with `Panels`, clamped to `bounds` and then bent by hardswish or not.

    The runner takes an image, the weights, a bias or None, a result and the number of threads. Nothing but the arrays'
    addresses is looked at: they must be in C order and of the dtype.
    """
    tile, block, joined, runs, _, slices = layout(spec, dtype)
    window, plane, leads = spec.window, last_axes(spec.window, 2), leading_planes(first_axes(spec.window, 2))
    positions, outputs = spec.batch * window.positions, spec.out_channels // spec.groups
    is_flat = window.taps == 1 and not window.has_padding and set(window.stride) == {1}
    shape = [
        is_flat, math.prod(first_axes(window, 2).size), *plane.size, *plane.out, *plane.stride,
        *(low for low, _ in plane.padding), *plane.dilation, *plane.kernel, joined,
    ]  # fmt: skip
    tables = as_table(shape), as_table(leads), slices
    tasks = -(-positions // block) * spec.groups * -(-outputs // tile.columns)
    channels = spec.in_channels // spec.groups
    rest = (np.array(bounds, dtype), int(bent), spec.groups, outputs, channels, positions, block, runs, *tables)
    return Launch.of(conv_dense_last(dtype, tile), tasks, spec, dtype, rest)


@functools.lru_cache(maxsize=8)
def conv_dense_last(dtype: np.dtype[Any], tile: Tile) -> Callable[..., None]:
    """The driver for float32 or float64 and a tile."""
    size, rows, columns, kind = dtype.itemsize, tile.rows, tile.columns, dtype.type
    product, find = runs_product(size, tile), finder(dtype, rows)

    @entry(types.int64, types.int64, *[ADDRESS] * 5, *[types.int64] * 7, TABLE, GRID, GRID)
    def conv_dense_last_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, bounds: Any, bent: int, groups: int, outputs: int,
        channels: int, positions: int, block: int, runs: int, shape: Any, leads: Any, slices: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for addresses of an image, weights in panels, a bias, a result, two bounds.

        A task is (block of positions of all images, group, panel of output channels).
        """
        x, w, bias, y, bounds = number_of(x), number_of(w), number_of(bias), number_of(y), number_of(bounds)
        depth, panels, most_tiles = shape[14] * channels, (outputs + columns - 1) // columns, (block + rows - 1) // rows
        cells = np.empty(most_tiles * runs * rows, np.int64)
        # A run of zeros, and copies of the runs across an edge where a run has several taps.
        beyond = np.empty((1 if shape[14] == 1 else 1 + runs * most_tiles * rows) * depth, kind)
        beyond[:depth] = 0
        sums = on_lines((panels * most_tiles if len(slices) > 1 else 1) * rows * columns, kind)
        task = start
        while task < stop:
            first_panel, rest = task % panels, task // panels
            last_panel = min(panels, first_panel + stop - task)
            task += last_panel - first_panel
            group, begin = rest % groups, rest // groups * block
            count = min(block, positions - begin)
            tiles = (count + rows - 1) // rows
            if shape[0]:
                for p in range(tiles * rows):
                    cells[p] = x + ((begin + min(p, count - 1)) * groups + group) * channels * size
            else:
                find(
                    address_of(cells), x + group * channels * size, groups * channels, begin, count, runs, depth,
                    address_of(beyond), shape, leads,
                )  # fmt: skip
            weights_of_group = w + group * runs * depth * panels * columns * size
            result = y + (begin * groups + group) * outputs * size
            for s in range(len(slices)):
                run, some, above, chunk, before = slices[s]
                products = some * chunk
                for panel in range(first_panel, last_panel):
                    o = panel * columns
                    weights = weights_of_group + (before * panels + panel * products) * columns * size
                    for t in range(tiles):
                        waiting = panel * most_tiles + t if len(slices) > 1 else 0
                        product(
                            chunk, some, address_of(cells) + (t * runs + run) * rows * 8, above * size, weights,
                            weights + (products + min(t, FETCHERS) * (products // FETCHERS)) * columns * size,
                            result + (t * rows * groups * outputs + o) * size, groups * outputs,
                            min(rows, count - t * rows), min(columns, outputs - o), bias + (group * outputs + o) * size,
                            bounds, bent, address_of(sums) + waiting * rows * columns * size,
                            int(s == 0), int(s == len(slices) - 1),
                        )  # fmt: skip

    return conv_dense_last_loop


def finder(dtype: np.dtype[Any], rows: int) -> Any:
    """A function for compiled code that tabulates where positions find their runs."""
    size, kind = dtype.itemsize, dtype.type

    @inner
    def copy_part(target: int, source: int, pixel: int, joined: int, left: int, width: int) -> None:
        """Copy a run of taps `pixel` elements each, of which those outside of columns 0 to `width` are zeros."""
        for b in range(joined):
            to = elements(target + b * pixel * size, pixel, kind)
            if 0 <= left + b < width:
                to[:] = elements(source + b * pixel * size, pixel, kind)
            else:
                to[:] = 0

    @inner
    def find(
        cells: int, x: int, pixel: int, begin: int, count: int, runs: int, depth: int, beyond: int, shape: Any,
        leads: Any,
    ) -> None:  # fmt: skip
        """Put the address of run n of position ``t * rows + r`` behind `begin` into cell ``(t * runs + n) * rows + r``.

        Positions `pixel` elements apart begin at address `x`. Behind address `beyond` is a run of zeros, and room for
        copies. Rows of the last tile that have no position find what its last one does.
        """
        planes, height, width, out_h, out_w = shape[1], shape[2], shape[3], shape[4], shape[5]
        stride_h, stride_w, low_h, low_w = shape[6], shape[7], shape[8], shape[9]
        apart_h, apart_w = shape[10], shape[11]
        kernel_h, kernel_w, joined = shape[12], shape[13], shape[14]
        table = elements(cells, (count + rows - 1) // rows * runs * rows, np.int64)
        spare, step, first = beyond + depth * size, stride_w * pixel * size, 0
        # Columns of the result whose windows, those of a whole tile beside them, lie inside of a row.
        leftmost = (low_w + stride_w - 1) // stride_w
        rightmost = (width + low_w - (kernel_w - 1) * apart_w - 1) // stride_w - rows + 1
        # Divisions take longer than a tile's cells do, so places are counted.
        lead, inside = begin // (out_h * out_w), begin % (out_h * out_w)
        i, j = inside // out_w, inside % out_w
        image, of_lead = lead // leads.shape[0] * planes, lead % leads.shape[0]
        while first < count:
            together = first + rows <= count and j + rows <= out_w and leftmost <= j <= rightmost
            for r in range(1 if together else min(rows, count - first)):
                cell = first * runs + r
                top, left = i * stride_h - low_h, j * stride_w - low_w
                for lead_tap in range(leads.shape[1]):
                    plane = leads[of_lead, lead_tap]
                    for a in range(kernel_h):
                        row = top + a * apart_h
                        line = x + (((image + plane) * height + row) * width + left) * pixel * size
                        is_beyond = plane < 0 or row < 0 or row >= height
                        for b in range(0, kernel_w, joined):
                            column = left + b * apart_w
                            here = line + b * apart_w * pixel * size
                            if together:
                                for other in range(rows):
                                    table[cell + other] = beyond if is_beyond else here + other * step
                            elif is_beyond or column <= -joined or column >= width:
                                table[cell] = beyond
                            elif column < 0 or column + joined > width:
                                table[cell] = spare
                                copy_part(spare, line, pixel, joined, left, width)
                                spare += depth * size
                            else:
                                table[cell] = here
                            cell += rows
                j += rows if together else 1
                if j == out_w:
                    i, j = i + 1, 0
                if i == out_h:
                    of_lead, i = of_lead + 1, 0
                if of_lead == leads.shape[0]:
                    image, of_lead = image + planes, 0
            first += rows
        # Rows of the last tile without a position.
        tile = (count - 1) // rows * rows
        for cell in range(tile * runs, (tile + rows) * runs, rows):
            for r in range(count - tile, rows):
                table[cell + r] = table[cell + r - 1]

    return find
