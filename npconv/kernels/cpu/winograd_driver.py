"""Winograd's loops as the algorithm calls them: weights laid out, tables made and tasks counted once for many calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.config import get_num_threads
from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads, winograd, workspace
from npconv.kernels.cpu.blocking import SUMMING, Tile, evenly, processor
from npconv.kernels.cpu.microkernel import CHUNK
from npconv.kernels.cpu.operands import BOUNDS, nothing, read_only
from npconv.kernels.cpu.winograd import Factors

# Winograd tiles that a task transforms at once, about: what they hold for all channels should stay in L2.
WINOGRAD_TILES = 48

# Weights that are transformed on the way: for so many register tiles of outputs, with so many bytes for each of them.
# More of them where the transformed image is so large that it is slow to read for every part of the weights, as far as
# their sums stay in a cache.
WEIGHT_ROWS, MORE_ROWS, ROW_BYTES, LARGE_BYTES, SUMS_BYTES = 2, 8, 128 * 1024, 6 * 2**20, 512 * 1024


# How much less work another tile than the first must be.
WORTH_IT = 1.05


class WinogradWeights(NamedTuple):
    """Weights for `winograd_runner`: transformed, with the distance of points; or, where that is 0, as they came."""

    values: Any
    points_apart: int
    layout: Any


def winograd_weights(
    spec: ConvSpec, transforms: tuple[Any, ...], w: Any, turned: bool = False, stacked: int = 1, ahead: bool = True
) -> WinogradWeights:
    """Weights for what `winograd_runner` makes, transformed `ahead` or by it on the way.

    `turned` weights are those of the convolution whose input gradient `spec` is: outputs and inputs change places, and
    the order of the taps is the opposite one. They are read where they lie, as all are: ``(C_out, C / groups, stacked,
    *kernel)``, with so many planes of an image that follow each other as channels of `spec`.
    """
    layout, values = _weights_layout(spec, turned, stacked), read_only(w.reshape(-1))
    if not ahead:
        return WinogradWeights(values, 0, layout)
    groups, depth = spec.groups, spec.in_channels // spec.groups
    outputs = spec.out_channels // groups
    loop, rows, points = _winograd_weights(w.dtype, transforms, outputs)
    u = workspace.empty(winograd.weights_shape(groups, outputs, depth, points, rows), w.dtype)
    threads.run(loop, groups * -(-outputs // rows), depth * spec.out_channels * points * 4, values, u, layout)
    return WinogradWeights(read_only(u.reshape(-1)), u.shape[1], layout)


@functools.lru_cache(maxsize=1024)
def _weights_layout(spec: ConvSpec, turned: bool, stacked: int) -> Any:
    """The `layout` of `winograd.weights_transform`."""
    outputs, depth, taps = spec.out_channels // spec.groups, spec.in_channels // spec.groups, spec.window.taps
    row, channel = (stacked * taps, outputs * stacked * taps) if turned else (depth * taps, stacked * taps)
    first, tap = ((stacked - 1) * taps, -taps) if turned else (0, taps)
    layout = outputs, depth, depth // stacked, outputs * depth * taps, row, channel, tap, first, turned
    return read_only(np.array(layout, np.int64))


@functools.lru_cache(maxsize=64)
def _winograd_weights(
    dtype: np.dtype[Any], transforms: tuple[Any, ...], outputs: int
) -> tuple[Callable[..., None], int, int]:
    """The loop that transforms weights, the rows of a tile, and the number of points."""
    rows, (down, across) = winograd_tile(dtype, outputs).rows, _factors(transforms)
    return winograd.winograd_weights(dtype, rows, down, across), rows, len(down.g) * len(across.g)


def winograd_runner(
    spec: ConvSpec, dtype: np.dtype[Any], transforms: tuple[Any, ...], clamp: str | None, planes: Any
) -> Callable[..., None]:
    """The forward convolution over one or two axes by these transforms, with an activation of `BOUNDS`.

    Images and results are ``(N, C, planes, *size)``: `planes` says which plane lies under every plane of the result,
    for each of what follow each other as channels of `spec`; -1 is a plane of zeros. The runner takes an image, weights
    from `winograd_weights`, a bias or None, a result, and the number of threads, by default what
    `npconv.get_num_threads` says.
    """
    if spec.batch * spec.out_channels * spec.window.positions == 0:
        return nothing
    groups, channels, outputs = spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups
    (down, across), tile = _factors(transforms), winograd_tile(dtype, outputs)
    window = spec.window
    # A signal is an image of one row.
    missing = 2 - window.ndim
    size, out = ((1,) * missing + part for part in (window.size, window.out))
    low = (0,) * missing + tuple(low for low, _ in window.padding)
    total = spec.batch * -(-out[0] // len(down.at)) * -(-out[1] // len(across.at))
    most_shares = -(-outputs // tile.rows)
    images, channels = spec.batch // len(planes), channels // planes.shape[1]
    shape = read_only(np.array([images, channels, *size, *low, *out], np.int64))
    loop = winograd.conv_winograd(dtype, tile, down, across)
    none, bounds = read_only(np.zeros(spec.out_channels, dtype)), np.array(BOUNDS[clamp], dtype)

    spans, depth = _spans(planes, channels), channels * planes.shape[1]
    points = len(down.bt) * len(across.bt)
    at_points = points * total * dtype.itemsize
    rows = SUMS_BYTES // (at_points * tile.rows) if at_points * depth > LARGE_BYTES else WEIGHT_ROWS
    some_rows = min(most_shares, max(WEIGHT_ROWS, min(MORE_ROWS, rows)))
    some_depth = ROW_BYTES // (points * tile.rows * dtype.itemsize)
    some_depth = -(-evenly(depth, max(CHUNK, some_depth)) // CHUNK) * CHUNK

    tail = _tail(total, min(depth, some_depth), tile)
    panels = -(-(total - tail) // tile.columns)

    def run(x: Any, u: WinogradWeights, bias: Any, y: Any, limit: int | None = None) -> None:
        limit = get_num_threads() if limit is None else limit
        blocks = max(1, round(panels * tile.columns / WINOGRAD_TILES))
        if u.points_apart == 0:
            # One block, so that weights are transformed once, unless threads share better what is more: tiles.
            blocks = min(limit, panels) if total > outputs else 1
        most_tiles = -(-panels // blocks) * tile.columns
        tasks = groups * -(-(total - tail) // most_tiles)
        shares = max(1, min(most_shares, -(-limit // tasks)))
        threads.run(
            loop, tasks * shares, spec.macs, read_only(x.reshape(-1)), u.values, u.points_apart, u.layout,
            none if bias is None else read_only(bias), y.reshape(-1), bounds, groups, shares, most_tiles,
            tail, some_rows, some_depth, shape, planes, spans, limit=limit,
        )  # fmt: skip

    return run


def _tail(total: int, depth: int, tile: Tile) -> int:
    """Tiles that fill no panel and are less work as columns of dot products, each `depth` long, behind whole panels."""
    tail, lanes = total % tile.columns, min(tile.lanes, CHUNK)
    passes = -(-tail // tile.vectors)
    return tail if tail < total and passes * (depth + SUMMING * lanes) < depth * lanes else 0


def _spans(planes: Any, channels: int) -> Any:
    """The part of the depth, in whole chunks, that is not planes of zeros: see `winograd.conv_winograd`."""
    spans = np.empty((len(planes), 2), np.int64)
    for span, under in zip(spans, planes >= 0, strict=True):
        taps = np.flatnonzero(under)
        if len(taps) and channels:
            span[:] = taps[0] * channels // CHUNK * CHUNK, -(-(taps[-1] + 1) * channels // CHUNK) * CHUNK
        else:
            span[:] = -(-planes.shape[1] * channels // CHUNK) * CHUNK, 0
    return read_only(spans)


def winograd_tile(dtype: np.dtype[Any], outputs: int, columns: int = 0) -> Tile:
    """The register tile of Winograd's products: the first one, unless another wastes much less on so many outputs.

    And on so many columns, where those are not tiles of an image, of which there are about as many as fill panels.
    """
    lanes = processor().register_bytes // dtype.itemsize
    first, *_ = tiles = [Tile(rows, vectors, lanes) for rows, vectors in processor().tiles]

    def work(tile: Tile) -> float:
        wide = -(-columns // tile.columns) * tile.columns if columns else 1
        return -(-outputs // tile.rows) * tile.rows * wide * (1 if tile is first else WORTH_IT)

    return min(tiles, key=work)


@functools.lru_cache(maxsize=64)
def _factors(transforms: tuple[Any, ...]) -> tuple[Factors, Factors]:
    """The matrices of rows and columns from objects with `at`, `g` and `bt`; a signal is an image of one row."""
    factors = [Factors(*(tuple(map(tuple, matrix.tolist())) for matrix in (f.at, f.g, f.bt))) for f in transforms]
    one = ((1.0,),)
    down = Factors(one, one, one) if len(factors) == 1 else factors[0]
    return down, factors[-1]
