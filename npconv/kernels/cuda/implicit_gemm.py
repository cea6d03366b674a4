"""Launch plans of the implicit matrix product: which tile, how many shares, how large the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from npconv.arrays import Array
from npconv.geometry import ConvSpec
from npconv.kernels.cuda.depthwise import ENOUGH_BLOCKS, Workspace, sum_shares
from npconv.kernels.cuda.launch import (
    ACTIVATIONS,
    ELEMENTS,
    Kernel,
    Launch,
    address,
    ceil_div,
    checked,
    element_name,
    index_type,
    offset,
    planar,
    span,
    steps_structure,
    structure,
    sum_dtype,
    window_structure,
)

OPERATIONS = {"forward": 0, "input_grad": 1, "weight_grad": 2}
"""Codes of ``implicit_gemm.cu``."""

MOST_SHARES = 64
"""Shares that a sum is cut into, so that adding them stays cheap."""

LEAST_SLICES = 8
"""Slices of a share: fewer would take longer to fill and to add than to multiply."""


AT_ONCE = 128
"""Blocks that a GPU is held to work on at once; the last of a few take as long as that many."""


@dataclass(frozen=True)
class Tile:
    """What a block computes, `m` x `n` in slices of `k`, and what a thread computes of it, `rows` x `cols`.

    `rate` is how fast it is held to be once the GPU is full, relative to the others; not measured. `resident` blocks
    must fit a multiprocessor's registers together.
    """

    m: int
    n: int
    k: int
    rows: int
    cols: int
    rate: float
    resident: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.rows * (self.n // self.cols)


TILES = {
    4: (
        Tile(128, 128, 8, 8, 8, 1.0, resident=2),
        Tile(64, 128, 8, 8, 8, 0.9),
        Tile(64, 64, 8, 8, 4, 0.75),
        Tile(32, 64, 8, 4, 4, 0.55),
        Tile(16, 64, 8, 4, 4, 0.45),
    ),
    8: (Tile(64, 64, 8, 4, 4, 1.0), Tile(32, 32, 8, 4, 2, 0.6), Tile(8, 32, 8, 2, 2, 0.4)),
    16: (Tile(32, 32, 8, 4, 2, 1.0), Tile(8, 32, 8, 2, 2, 0.5)),
}
"""Tiles by the bytes of a sum."""

STAGES = 3
"""Slices that are in shared memory at once: one is multiplied while the others arrive."""


def forward(
    spec: ConvSpec, x: Array, w: Array, bias: Array | None, activation: str | None, y: Array, element: str | None = None
) -> Launch:
    """``y = activation(x * w + bias)``, for a result that has elements."""
    element = element_name(x, element)
    checked(element, x=x, w=w, bias=bias, y=y)
    return _launch(spec, "forward", element, w, x, bias, y, ACTIVATIONS[activation])


def input_grad(spec: ConvSpec, dy: Array, w: Array, dx: Array, element: str | None = None) -> Launch:
    """The gradient in the image, which has elements."""
    element = element_name(dy, element)
    checked(element, dy=dy, w=w, dx=dx)
    return _launch(spec, "input_grad", element, w, dy, None, dx)


def weight_grad(
    spec: ConvSpec, x: Array, dy: Array, dw: Array, empty: Workspace, element: str | None = None
) -> tuple[Launch, ...]:
    """The gradient in the weights, of which there are some: products over shares of the results, then their sum."""
    element = element_name(x, element)
    checked(element, x=x, dy=dy, dw=dw)
    rows, cols, depth = extents(spec, "weight_grad")
    tile = tile_for(element, rows, cols, spec.groups)
    blocks = ceil_div(rows, tile.m) * ceil_div(cols, tile.n) * spec.groups
    shares = max(1, min(ENOUGH_BLOCKS // blocks, depth // (LEAST_SLICES * tile.k), MOST_SHARES))
    per_share = max(1, ceil_div(ceil_div(depth, shares), tile.k)) * tile.k
    shares = max(1, ceil_div(depth, per_share))
    if shares == 1:
        return (_launch(spec, "weight_grad", element, dy, x, None, dw),)
    parts = empty((shares, dw.size), sum_dtype(element))
    first = _launch(spec, "weight_grad", element, dy, x, None, parts, shares=shares, per_share=per_share)
    return first, sum_shares(parts, dw, element)


def extents(spec: ConvSpec, op: str) -> tuple[int, int, int]:
    """Rows, columns and depth of the matrix product of a group; of an input gradient, of its largest phase."""
    window, groups = spec.window, spec.groups
    channels, outputs = spec.in_channels // groups, spec.out_channels // groups
    if op == "forward":
        return outputs, spec.batch * window.positions, channels * window.taps
    if op == "weight_grad":
        return outputs, channels * window.taps, spec.batch * window.positions
    phase = math.prod(ceil_div(n, s) for n, s in zip(window.size, window.stride, strict=True))
    return channels, spec.batch * phase, outputs * window.taps


def tile_for(element: str, rows: int, cols: int, products: int) -> Tile:
    """The tile that is held to be fastest for `products` matrix products of this size."""

    def seconds(tile: Tile) -> float:
        blocks = ceil_div(rows, tile.m) * ceil_div(cols, tile.n) * products
        return ceil_div(blocks, AT_ONCE) * tile.m * tile.n / tile.rate

    return min(TILES[sum_dtype(element).itemsize], key=seconds)


def is_widened(element: str) -> bool:
    """Whether elements are summed in another type than their own."""
    return element in ("float16", "bfloat16")


def widths(spec: ConvSpec, op: str, element: str, b: Array, result: Array) -> tuple[int, int]:
    """How many neighbours in n are read and written at once: 16 bytes of sums, or one."""
    window, pack = spec.window, 16 // sum_dtype(element).itemsize
    is_copied = op != "weight_grad" and window.taps == 1 and set(window.stride) == {1} and not window.has_padding
    is_copied = is_copied and window.positions % pack == 0 and not is_widened(element)
    # How many neighbours in n are neighbours in the result; those of an input gradient with a stride are not.
    phases = math.prod(window.stride) > 1
    run = {
        "forward": window.positions,
        "input_grad": 1 if phases else math.prod(window.size),
        "weight_grad": spec.in_channels // spec.groups * window.taps,
    }[op]
    return (
        pack if is_copied and address(b) % 16 == 0 else 1,
        pack if run % pack == 0 and address(result) % 16 == 0 else 1,
    )


def shared_bytes(tile: Tile, element: str, index: str, axes: int) -> int:
    """Bytes of ``Storage`` in ``implicit_gemm.cu``."""
    size = sum_dtype(element).itemsize
    pad = 16 // size
    place = ceil_div((2 + axes) * (4 if index == "int" else 8), 16) * 16
    return STAGES * tile.k * (tile.m + tile.n + 2 * pad) * size + (2 * tile.k + tile.n) * place


def _launch(
    spec: ConvSpec, op: str, element: str, a: Array, b: Array, bias: Array | None, result: Array, activation: int = 0,
    shares: int = 1, per_share: int | None = None,
) -> Launch:  # fmt: skip
    window, groups = planar(spec.window), spec.groups
    rows, cols, depth = extents(spec, op)
    phases = math.prod(window.stride) if op == "input_grad" else 1
    tile = tile_for(element, rows, cols, groups * phases)
    tiles_m, tiles_n = ceil_div(rows, tile.m), ceil_div(cols, tile.n)
    blocks = tiles_m * tiles_n * groups * phases * shares
    per_share = per_share or ceil_div(max(depth, 1), tile.k) * tile.k
    index = index_type(
        a.size, b.size, result.size, spec.batch * max(spec.in_channels, spec.out_channels) * span(window), blocks,
        rows + tile.m, cols + tile.n, depth + per_share,
    )  # fmt: skip
    load, store = widths(spec, op, element, b, result)
    defines = (
        ("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("AXES", window.ndim), ("OPERATION", OPERATIONS[op]),
        ("TILE_M", tile.m), ("TILE_N", tile.n), ("TILE_K", tile.k), ("ROWS", tile.rows), ("COLS", tile.cols),
        ("STAGES", STAGES), ("RESIDENT", tile.resident), ("ASYNC", int(not is_widened(element))),
        ("SPLITS", int(shares > 1)), ("LOAD", load), ("STORE", store),
    )  # fmt: skip
    shape = structure(index, spec.batch, groups, spec.in_channels // groups, spec.out_channels // groups)
    counts = (offset(index, value) for value in (phases, tiles_m, tiles_n, per_share))
    arguments = (
        a, b, bias, result, window_structure(index, window), steps_structure(index, window), shape, *counts,
        np.int32(activation),
    )  # fmt: skip
    kernel = Kernel("implicit_gemm.cu", "implicit_gemm", defines)
    return Launch(kernel, blocks, tile.threads, arguments, shared_bytes(tile, element, index, window.ndim))
