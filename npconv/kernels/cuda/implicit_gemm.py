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

STAGES = 3
"""Slices that are in shared memory at once: one is multiplied while the others arrive."""

FORMATS = {None: 0, "float16": 1, "bfloat16": 2, "tf32": 3, "3xtf32": 4}
"""What is multiplied on tensor cores, with the codes of ``implicit_gemm.cu``; None: nothing is."""

FIRST_WITH_TENSOR_CORES = 80
"""The first architecture whose tensor cores take all of these formats: older ones multiply on ordinary arithmetic."""

AT_ONCE = 128
"""Blocks that a GPU is held to work on at once; the last of a few take as long as that many."""


@dataclass(frozen=True)
class Tile:
    """What a block computes, `m` x `n` in slices of `k`, and what `lanes` threads compute of it, `rows` x `cols`.

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
    lanes: int = 1
    stages: int = STAGES

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.rows * (self.n // self.cols) * self.lanes


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
"""Tiles on ordinary arithmetic by the bytes of a sum."""

TENSOR_TILES = {
    2: (
        Tile(128, 128, 16, 64, 32, 1.0, lanes=32),
        Tile(64, 128, 32, 32, 32, 0.8, lanes=32, stages=2),
        Tile(64, 64, 32, 32, 32, 0.6, lanes=32),
        Tile(32, 64, 32, 32, 16, 0.45, lanes=32),
        Tile(16, 64, 32, 16, 32, 0.35, lanes=32),
    ),
    4: (
        Tile(128, 128, 16, 64, 32, 1.0, lanes=32, stages=2),
        Tile(64, 128, 16, 32, 32, 0.8, lanes=32, stages=2),
        Tile(64, 64, 16, 32, 32, 0.6, lanes=32),
        Tile(32, 64, 16, 32, 16, 0.45, lanes=32),
        Tile(16, 64, 16, 16, 32, 0.35, lanes=32),
    ),
}
"""Tiles on tensor cores by the bytes of an element; a warp's 32 threads share what it computes."""


def forward(
    spec: ConvSpec, x: Array, w: Array, bias: Array | None, activation: str | None, y: Array,
    element: str | None = None, products: str | None = None, last: bool = False,
) -> Launch:  # fmt: skip
    """``y = activation(x * w + bias)``, for a result that has elements; `products` is one of `FORMATS`.

    With `last`, `x` and `y` are channels-last, and weights ``(C_out, taps, C / groups)``.
    """
    element = element_name(x, element)
    checked(element, x=x, w=w, bias=bias, y=y)
    return _launch(spec, "forward", element, products, w, x, bias, y, ACTIVATIONS[activation], last=last)


def input_grad(
    spec: ConvSpec, dy: Array, w: Array, dx: Array, element: str | None = None, products: str | None = None,
    last: bool = False,
) -> Launch:  # fmt: skip
    """The gradient in the image, which has elements.

    With `last`, `dy` and `dx` are channels-last, and weights ``(groups, C / groups, taps, C_out / groups)``.
    """
    element = element_name(dy, element)
    checked(element, dy=dy, w=w, dx=dx)
    return _launch(spec, "input_grad", element, products, w, dy, None, dx, last=last)


def weight_grad(
    spec: ConvSpec, x: Array, dy: Array, dw: Array, empty: Workspace, element: str | None = None,
    products: str | None = None,
) -> tuple[Launch, ...]:  # fmt: skip
    """The gradient in the weights, of which there are some: products over shares of the results, then their sum."""
    element = element_name(x, element)
    checked(element, x=x, dy=dy, dw=dw)
    rows, cols, depth = extents(spec, "weight_grad")
    tile = tile_for(element, rows, cols, spec.groups, products)
    blocks = ceil_div(rows, tile.m) * ceil_div(cols, tile.n) * spec.groups
    shares = max(1, min(ENOUGH_BLOCKS // blocks, depth // (LEAST_SLICES * tile.k), MOST_SHARES))
    per_share = max(1, ceil_div(ceil_div(depth, shares), tile.k)) * tile.k
    shares = max(1, ceil_div(depth, per_share))
    if shares == 1:
        return (_launch(spec, "weight_grad", element, products, dy, x, None, dw),)
    parts = empty((shares, dw.size), sum_dtype(element))
    first = _launch(spec, "weight_grad", element, products, dy, x, None, parts, shares=shares, per_share=per_share)
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


def format_of(element: str, architecture: int, precision: str = "float32") -> str | None:
    """What a GPU multiplies on tensor cores where float32 may be as in `precision`; None where it does not use them."""
    if architecture < FIRST_WITH_TENSOR_CORES:
        return None
    if is_widened(element):
        return element
    return precision if element == "float32" and precision != "float32" else None


def tile_for(element: str, rows: int, cols: int, count: int, products: str | None = None) -> Tile:
    """The tile that is held to be fastest for `count` matrix products of this size."""

    def seconds(tile: Tile) -> float:
        blocks = ceil_div(rows, tile.m) * ceil_div(cols, tile.n) * count
        return ceil_div(blocks, AT_ONCE) * tile.m * tile.n / tile.rate

    return min(TENSOR_TILES[itemsize(element)] if products else TILES[sum_dtype(element).itemsize], key=seconds)


def is_widened(element: str) -> bool:
    """Whether elements are summed in another type than their own."""
    return element in ("float16", "bfloat16")


def itemsize(element: str) -> int:
    """Bytes of an element."""
    return 2 if is_widened(element) else np.dtype(element).itemsize


@dataclass(frozen=True)
class Widths:
    """How many neighbours are copied or written at once: in A along k, in B along n, in the result along n."""

    load_a: int
    load_b: int
    store: int


def widths(
    spec: ConvSpec, op: str, element: str, products: str | None, a: Array, b: Array, result: Array, last: bool = False
) -> Widths:
    """16 bytes of operands, and of the result what a thread holds side by side; or one."""
    window, channels = spec.window, spec.in_channels // spec.groups
    pack = 16 // (itemsize(element) if products else sum_dtype(element).itemsize)
    if last:
        inner = channels if op == "forward" else spec.out_channels // spec.groups
        whole = products is not None and inner % pack == 0
        load_a, load_b = (pack if whole and address(value) % 16 == 0 else 1 for value in (a, b))
        return Widths(load_a, load_b, 1)
    stored = 2 if products else pack
    is_copied = products is not None or not is_widened(element)
    along_n = op != "weight_grad" and window.taps == 1 and set(window.stride) == {1} and not window.has_padding
    along_n = along_n and is_copied and window.positions % pack == 0
    # A row of A, and how many of its elements belong together.
    row_of_a = {"forward": channels * window.taps, "weight_grad": window.positions}.get(op, 1)
    along_k = products is not None and row_of_a % pack == 0
    # How many neighbours in n are neighbours in the result; those of an input gradient with a stride are not.
    phases = math.prod(window.stride) > 1
    run = {
        "forward": window.positions,
        "input_grad": 1 if phases else math.prod(window.size),
        "weight_grad": channels * window.taps,
    }[op]
    return Widths(
        pack if along_k and address(a) % 16 == 0 else 1,
        pack if along_n and address(b) % 16 == 0 else 1,
        stored if run % stored == 0 and address(result) % 16 == 0 else 1,
    )


def shared_bytes(
    tile: Tile, op: str, element: str, products: str | None, index: str, axes: int, last: bool = False
) -> int:
    """Bytes of ``Storage`` in ``implicit_gemm.cu``."""
    place = ceil_div((2 + axes) * (4 if index == "int" else 8), 16) * 16
    tables = (2 * tile.k + tile.n) * place
    if products is None:
        size = sum_dtype(element).itemsize
        pad = 16 // size
        return tile.stages * tile.k * (tile.m + tile.n + 2 * pad) * size + tables
    size = itemsize(element)
    pitch = tile.k + 16 // size
    slice_b = tile.n * pitch if op == "weight_grad" or last else tile.k * (tile.n + 8)
    return tile.stages * (tile.m * pitch + slice_b) * size + tables


def _launch(
    spec: ConvSpec, op: str, element: str, products: str | None, a: Array, b: Array, bias: Array | None, result: Array,
    activation: int = 0, shares: int = 1, per_share: int | None = None, last: bool = False,
) -> Launch:  # fmt: skip
    window, groups = planar(spec.window), spec.groups
    rows, cols, depth = extents(spec, op)
    phases = math.prod(window.stride) if op == "input_grad" else 1
    tile = tile_for(element, rows, cols, groups * phases, products)
    tiles_m, tiles_n = ceil_div(rows, tile.m), ceil_div(cols, tile.n)
    blocks = tiles_m * tiles_n * groups * phases * shares
    per_share = per_share or ceil_div(max(depth, 1), tile.k) * tile.k
    index = index_type(
        a.size, b.size, result.size, spec.batch * max(spec.in_channels, spec.out_channels) * span(window), blocks,
        rows + tile.m, cols + tile.n, depth + per_share,
    )  # fmt: skip
    width = widths(spec, op, element, products, a, b, result, last)
    defines: tuple[tuple[str, str | int], ...] = (
        ("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("AXES", window.ndim), ("OPERATION", OPERATIONS[op]),
        ("TILE_M", tile.m), ("TILE_N", tile.n), ("TILE_K", tile.k), ("ROWS", tile.rows), ("COLS", tile.cols),
        ("STAGES", tile.stages), ("RESIDENT", tile.resident),
        ("ASYNC", int(products is not None or not is_widened(element))),
        ("MMA", FORMATS[products]), ("SPLITS", int(shares > 1)), ("LOAD_A", width.load_a), ("LOAD", width.load_b),
        ("STORE", width.store), ("LAST", int(last)),
    )  # fmt: skip
    shape = structure(index, spec.batch, groups, spec.in_channels // groups, spec.out_channels // groups)
    counts = (offset(index, value) for value in (phases, tiles_m, tiles_n, per_share))
    arguments = (
        a, b, bias, result, window_structure(index, window), steps_structure(index, window), shape, *counts,
        np.int32(activation),
    )  # fmt: skip
    kernel = Kernel("implicit_gemm.cu", "implicit_gemm", defines)
    shared = shared_bytes(tile, op, element, products, index, window.ndim, last)
    return Launch(kernel, blocks, tile.threads, arguments, shared)
