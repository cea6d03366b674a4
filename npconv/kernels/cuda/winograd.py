"""Launch plans of Winograd convolution: its own transforms, and a matrix product a point on the implicit one's tiles.

A block of rows of tiles goes through its three launches before the next one, so that what is transformed stays small.
Not yet verified on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from npconv.arrays import Array
from npconv.geometry import ConvSpec
from npconv.kernels.cuda import implicit_gemm
from npconv.kernels.cuda.depthwise import Workspace
from npconv.kernels.cuda.launch import (
    ACTIVATIONS,
    ELEMENTS,
    THREADS,
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
    structure,
    window_structure,
)

WORKSPACE = 64 * 2**20
"""Bytes of transformed tiles and sums that are held at once, unless a single row of tiles needs more. Not measured."""

PACK = 4
"""Columns of the products are padded to a multiple of these, so that they are read 16 bytes at once."""


class Transforms(Protocol):
    """The matrices of an axis: A^T (m x n), G (n x r) and B^T (n x n)."""

    at: Any
    g: Any
    bt: Any


_IDENTITY = np.ones((1, 1))


@dataclass(frozen=True, eq=False)
class Points:
    """Weights at their points, and as they came, which is what tiles without finite results are summed from.

    `turned` ones came as those of the convolution whose input gradient they are for.
    """

    values: Array
    weights: Array
    turned: bool = False


@dataclass(frozen=True)
class Block:
    """Some rows of tiles, numbered through all images."""

    first: int
    rows: int


def weights(spec: ConvSpec, fs: Sequence[Transforms], points: Points) -> Launch:
    """Fill the values of `points`, ``(points, C_out, C / groups)``."""
    w, values = points.weights, points.values
    element = element_name(w)
    checked(element, w=w, points=values)
    outputs, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    pairs = spec.out_channels * channels
    index = index_type(values.size + THREADS, w.size)
    arguments = (w, values, *(offset(index, n) for n in (outputs, channels, pairs)))
    kernel = _kernel("winograd_weights", element, index, fs, turned=points.turned)
    return Launch(kernel, ceil_div(pairs, THREADS), THREADS, arguments)


def forward(
    spec: ConvSpec, fs: Sequence[Transforms], x: Array, points: Points, bias: Array | None, activation: str | None,
    y: Array, empty: Workspace,
) -> Iterator[Launch]:  # fmt: skip
    """``y = activation(x * w + bias)`` from the weights at their points, for a result that has elements."""
    element = element_name(x)
    checked(element, x=x, points=points.values, w=points.weights, bias=bias, y=y)
    rows, cols = _counts(spec, fs)
    count = math.prod(len(f.bt) for f in fs)
    blocks = list(_blocks(spec, rows * spec.batch, cols * count * x.dtype.itemsize))
    widest = _pitch(max(block.rows for block in blocks) * cols) * count
    data, sums = (empty((widest * channels,), x.dtype) for channels in (spec.in_channels, spec.out_channels))
    for block in blocks:
        pitch = _pitch(block.rows * cols)
        tiles = (rows, cols, block.first, block.rows * cols, pitch)
        some_data, some_sums = (
            part[: count * channels * pitch] for part, channels in ((data, spec.in_channels), (sums, spec.out_channels))
        )
        yield _data(spec, fs, element, x, some_data, tiles)
        yield implicit_gemm.forward(_products(spec, count, pitch), some_data, points.values, None, None, some_sums)
        yield _results(spec, fs, element, some_sums, x, points, bias, activation, y, tiles)


def _products(spec: ConvSpec, count: int, pitch: int) -> ConvSpec:
    """The matrix products of all points and groups, as the 1x1 convolution that they are."""
    columns = (1, count * spec.in_channels, pitch)
    rows = (count * spec.out_channels, spec.in_channels // spec.groups, 1)
    return ConvSpec.of(columns, rows, groups=count * spec.groups)


def _data(
    spec: ConvSpec, fs: Sequence[Transforms], element: str, x: Array, data: Array, tiles: tuple[int, ...]
) -> Launch:
    window, threads = planar(spec.window), spec.in_channels * tiles[-1]
    index = index_type(data.size + THREADS, x.size, span(window), spec.batch * tiles[0] + tiles[-1])
    arguments = (
        x, data, window_structure(index, window), structure(index, *tiles), offset(index, spec.in_channels),
    )  # fmt: skip
    kernel = _kernel("winograd_data", element, index, fs)
    return Launch(kernel, ceil_div(threads, THREADS), THREADS, arguments)


def _results(
    spec: ConvSpec, fs: Sequence[Transforms], element: str, sums: Array, x: Array, points: Points, bias: Array | None,
    activation: str | None, y: Array, tiles: tuple[int, ...],
) -> Launch:  # fmt: skip
    window, threads = planar(spec.window), spec.out_channels * tiles[-2]
    extents = x.size, points.weights.size, span(window), spec.batch * tiles[0] + tiles[-1]
    index = index_type(sums.size + THREADS, y.size, *extents)
    groups = (spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups)
    arguments = (
        sums, bias, y, x, points.weights, window_structure(index, window), structure(index, *tiles),
        *(offset(index, count) for count in groups), np.int32(ACTIVATIONS[activation]),
    )  # fmt: skip
    kernel = _kernel("winograd_results", element, index, fs, points.turned, _store(fs, y, window.out[-1]))
    return Launch(kernel, ceil_div(threads, THREADS), THREADS, arguments)


def _kernel(
    name: str, element: str, index: str, fs: Sequence[Transforms], turned: bool = False, store: int = 1
) -> Kernel:
    """A variant of ``winograd.cu``; a signal is an image of one row, along which nothing is transformed."""
    defines: list[tuple[str, str | int]] = [
        ("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("AXES", 2), ("THREADS", THREADS),
        ("TURNED", int(turned)), ("STORE", store),
    ]  # fmt: skip
    matrices = [(f.at, f.g, f.bt) for f in fs]
    for axis, (at, g, bt) in zip("HW", [(_IDENTITY,) * 3] * (2 - len(fs)) + matrices, strict=True):
        defines += [(f"M_{axis}", len(at)), (f"R_{axis}", g.shape[1])]
        defines += [(f"AT_{axis}", _values(at)), (f"G_{axis}", _values(g)), (f"BT_{axis}", _values(bt))]
    return Kernel("winograd.cu", name, tuple(defines))


def _values(matrix: Any) -> str:
    """A matrix as C++ initialises an array; no spaces, which a command line would cut at."""
    return "{" + ",".join("{" + ",".join(repr(float(value)) for value in row) + "}" for row in matrix) + "}"


def _counts(spec: ConvSpec, fs: Sequence[Transforms]) -> tuple[int, int]:
    """Tiles of one image along both axes."""
    counts = [ceil_div(n, len(f.at)) for n, f in zip(spec.window.out, fs, strict=True)]
    return (1, counts[0]) if len(counts) == 1 else (counts[0], counts[1])


def _blocks(spec: ConvSpec, total: int, nbytes: int) -> Iterator[Block]:
    """All rows of tiles, of which one takes `nbytes` a channel, in parts that fit the workspace."""
    most = max(1, WORKSPACE // (nbytes * (spec.in_channels + spec.out_channels)))
    for first in range(0, total, most):
        yield Block(first, min(most, total - first))


def _pitch(columns: int) -> int:
    return ceil_div(columns, PACK) * PACK


def _store(fs: Sequence[Transforms], y: Array, row: int) -> int:
    """Results of a row of a tile that are written at once: up to 16 bytes where all tiles line up."""
    size, outputs = y.dtype.itemsize, len(fs[-1].at)
    widths = (width for width in (4, 2) if width * size <= 16)
    return next((n for n in widths if outputs % n == 0 and row % n == 0 and address(y) % (n * size) == 0), 1)
