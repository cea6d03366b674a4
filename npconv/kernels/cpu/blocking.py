"""Sizes of tiles and blocks, as data: what fits the registers and caches of this processor."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba.core import registry

from npconv.geometry import Window
from npconv.leading import leading_planes

LINE = 64
"""Bytes of a line of the caches."""

# Bytes of the packed image that one pass over the weights works on: half of a small L1 cache, so that the rows of the
# weights and the lines of the result fit beside it.
PANEL_BYTES = 16 * 1024
# Panels that share one pass over the weights; together they stay in L2.
PANELS = 8
# Depth of a slice, in panels that fit L1. A panel's vectors come from L2 at the rate of the products as well as from
# L1, and each slice reads and writes the result.
SLICE_PANELS = 2
# Positions of a block: enough to share the staging of rows that blocks have in common, few enough that a block of the
# result stays in L2 while the depth is worked through.
MOST_POSITIONS, FEWEST_POSITIONS, RESULT_BYTES = 512, 64, 256 * 1024


# Vector steps that the sums of lanes at the end of a dot product are worth.
SUMMING = 12

# Output channels up to which the image is read where it was staged, without panels: each of its elements serves too few
# products to be packed for them. Tiles for that have at most `LOW_ROWS` rows; more channels make several passes, for
# which all staged planes of a block have to stay in L2.
NARROW_ROWS, LOW_ROWS, STAGED_BYTES = 16, 4, 512 * 1024
# Elements of a staged block of all channels, where it is not packed: half of a small L1 cache.
STAGED_ELEMENTS, FEWEST_LOW_POSITIONS = 4096, 256


@dataclass(frozen=True)
class Tile:
    """A block of the result that is held in registers: `rows` output channels by `vectors` of `lanes` positions."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Number of positions."""
        return self.vectors * self.lanes

    @property
    def text(self) -> str:
        """For a person."""
        return f"{self.rows} channels x {self.columns} positions, {self.rows * self.vectors} registers of {self.lanes}"

    @property
    def lying(self) -> str:
        """For a person, where rows are positions."""
        return f"{self.rows} positions x {self.columns} channels"


class Processor(NamedTuple):
    """What the size of a tile depends on, and the tiles (rows, vectors) that leave no register idle.

    `low` tiles serve few output channels: more positions, up to so many registers of sums.
    """

    register_bytes: int
    tiles: tuple[tuple[int, int], ...]
    sums: int


# A tile needs a register for every sum, for the shorter side of the tile, and one for what streams. The first of the
# tiles is the one to use when in doubt.
PROCESSORS = {
    "avx512f": Processor(64, ((12, 2), (8, 3), (10, 2)), 24),
    "avx": Processor(32, ((6, 2), (4, 3), (5, 2)), 12),
    "neon": Processor(16, ((8, 3), (6, 4)), 24),
    "": Processor(16, ((6, 2), (4, 3), (5, 2)), 12),
}


@functools.lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """What Numba compiles for: this processor's instructions, or those that its variables name instead."""
    triple, _, text = registry.cpu_target.target_context.codegen().magic_tuple()
    found = {feature[1:] for feature in text.split(",") if feature.startswith("+")}
    return frozenset(found | {"neon"} if triple.startswith(("aarch64", "arm64")) else found)


@functools.lru_cache(maxsize=1)
def processor() -> Processor:
    """The entry of `PROCESSORS` for what Numba compiles for."""
    return next(entry for feature, entry in PROCESSORS.items() if not feature or feature in features())


@functools.lru_cache(maxsize=256)
def tile_for(dtype: np.dtype[Any], rows: int, columns: int, depth: int = 0) -> Tile:
    """The tile for float32 or float64 that wastes least on a result of `rows` channels by `columns` positions.

    With the `depth` of its sums, the few positions behind whole panels may be columns of dot products.
    """
    lanes = processor().register_bytes // dtype.itemsize

    def taken(tile: Tile) -> float:
        steps = evenly(depth, slice_for(tile, dtype.itemsize))
        panels, passes = panels_and_dots(columns, tile.columns, lanes, steps)
        dots = passes * (1 / lanes + SUMMING / steps) if passes else 0
        return -(-rows // tile.rows) * tile.rows * (panels + dots) * tile.columns

    return min((Tile(r, v, lanes) for r, v in processor().tiles), key=taken)


def panels_and_dots(count: int, columns: int, lanes: int, steps: int) -> tuple[int, int]:
    """How many panels of `columns` positions there are, and passes of dot products over the few behind whole ones.

    There are such passes, each over as many positions as a panel has vectors, where they are less work than a panel.
    """
    vectors, rest = columns // lanes, count % columns
    passes = (rest + vectors - 1) // vectors
    if passes * (steps + SUMMING * lanes) >= steps * lanes:
        return (count + columns - 1) // columns, 0
    return count // columns, passes


@functools.lru_cache(maxsize=256)
def low_tile_for(dtype: np.dtype[Any], rows: int, columns: int) -> Tile:
    """The tile for few output channels: as many positions as registers allow, or half of that where it wastes less."""
    lanes, sums = processor().register_bytes // dtype.itemsize, processor().sums
    rows = min(rows, LOW_ROWS)
    tiles = [
        Tile(rows, vectors, lanes) for vectors in {sums // rows, (sums - 2) // rows, max(1, sums * 2 // 3 // rows)}
    ]
    return min(tiles, key=lambda t: (-(-columns // t.columns) * t.columns, -t.columns))


def depth_for(tile: Tile, itemsize: int) -> int:
    """How many rows of a tile's panel fit `PANEL_BYTES`."""
    return PANEL_BYTES // (tile.columns * itemsize)


def slice_for(tile: Tile, itemsize: int) -> int:
    """How many products a tile sums at most before it writes them to the result."""
    return SLICE_PANELS * depth_for(tile, itemsize)


# --------------------------------------------------------------------------------------------------------------------
# Blocks: the image in parts, and where a tap finds its element in a staged part
# --------------------------------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """The tables that the drivers of tiles work from; all of them int64 arrays.

    A convolution is seen as one over the last two axes (rows and columns): the taps of the axes before them count as
    channels, the output positions along them as more images. `shape` holds, in this order: image planes, height, width,
    leading outputs, leading taps, output height and width, height and width of a block, strides, low paddings, height
    and width of a staged phase, and the number of elements of a staged plane. `leads` is the plane that a leading
    output reads for a leading tap, or -1 in the padding. `phases` are the remainders (row, column) modulo the strides
    that taps fall on, `taps` each tap's offset in a staged plane.
    """

    shape: Any
    leads: Any
    phases: Any
    taps: Any
    number: int
    """Number of blocks."""
    line: int
    """Staged elements from a block's first position to its last."""

    @property
    def text(self) -> str:
        """For a person."""
        return f"{self.number} of {self.shape[7]}x{self.shape[8]} positions"


@functools.lru_cache(maxsize=1024)
def blocks_for(window: Window, most_positions: int, phased: bool = True, columns: int = 1) -> Blocks:
    """Divide a window's outputs into blocks of whole rows, or of parts of one row, of at most so many positions.

    Parts of a row are of a multiple of `columns`, for which they may be a little longer.

    What is not `phased` is staged as it lies: one phase, whose stride is 1, and planes an odd number of cache lines
    apart, so that one place in all of them is on as many sets of a cache as there are.
    """
    plane, leading = last_axes(window, 2), first_axes(window, 2)
    (height, width), (out_h, out_w) = plane.size, plane.out
    (stride_h, stride_w), (low_h, low_w) = plane.stride if phased else (1, 1), (low for low, _ in plane.padding)
    block_w = min(out_w, -(-evenly(out_w, most_positions) // columns) * columns)
    block_h = evenly(out_h, max(1, most_positions // max(block_w, 1))) if block_w == out_w else 1
    tap_h, tap_w = (np.arange(k) * d for k, d in zip(plane.kernel, plane.dilation, strict=True))
    staged_h, staged_w = (
        ((block - 1) * apart + reach) // stride + 1
        for block, apart, reach, stride in zip(
            (block_h, block_w), plane.stride, plane.reach, (stride_h, stride_w), strict=True
        )
    )
    phases_h, phases_w = (list(dict.fromkeys((t % s).tolist())) for t, s in ((tap_h, stride_h), (tap_w, stride_w)))
    phases = list(itertools.product(phases_h, phases_w))
    places = [
        (phases.index((y % stride_h, x % stride_w)), y // stride_h, x // stride_w)
        for y, x in itertools.product(tap_h.tolist(), tap_w.tolist())
    ]
    taps = [(phase * staged_h + y) * staged_w + x for phase, y, x in places]
    leads = leading_planes(leading)
    elements = len(phases) * staged_h * staged_w
    if not phased:
        elements = (-(-elements // 16) | 1) * 16
    shape = [
        math.prod(leading.size), height, width, *leads.shape, out_h, out_w, block_h, block_w, stride_h, stride_w,
        low_h, low_w, staged_h, staged_w, elements,
    ]  # fmt: skip
    count = leads.shape[0] * -(-out_h // max(block_h, 1)) * -(-out_w // max(block_w, 1))
    tables = (np.array(shape, np.int64), leads, np.array(phases, np.int64), np.array(taps, np.int64))
    for table in tables:
        table.flags.writeable = False
    return Blocks(*tables, count, (block_h - 1) * staged_w + block_w)


def positions_for(outputs: int, itemsize: int) -> int:
    """Positions of a block whose result, of so many channels, stays in L2; what is written once counts as one."""
    return max(FEWEST_POSITIONS, min(MOST_POSITIONS, RESULT_BYTES // (max(outputs, 1) * itemsize)))


def low_positions_for(planes: int) -> int:
    """Positions of a block whose staged planes fit L1, or at least some."""
    return max(FEWEST_LOW_POSITIONS, STAGED_ELEMENTS // max(planes, 1))


def is_narrow(outputs: int, planes: int, blocks: Blocks, itemsize: int) -> bool:
    """Whether the image is better read where it was staged, in these blocks, than packed for so few channels."""
    staged = planes * int(blocks.shape[15]) * itemsize
    return outputs <= LOW_ROWS or (outputs <= NARROW_ROWS and staged <= STAGED_BYTES)


def evenly(total: int, most: int) -> int:
    """The largest part when `total` is divided into as few equal parts as `most` allows."""
    return -(-total // max(1, -(-total // most)))


def last_axes(window: Window, count: int) -> Window:
    """The last axes of a window as a window of its own; missing ones have size and kernel 1."""
    missing = max(0, count - window.ndim)
    axes = window.axes(slice(max(0, window.ndim - count), None))
    one = (1,) * missing
    return Window(
        one + axes.size, one + axes.kernel, one + axes.stride, ((0, 0),) * missing + axes.padding, one + axes.dilation
    )


def first_axes(window: Window, but: int) -> Window:
    """What `last_axes` leaves."""
    return window.axes(slice(0, max(0, window.ndim - but)))
