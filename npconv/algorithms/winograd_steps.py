"""The operations of Winograd convolution as steps on `xp`: cut, transform, multiply at every point, join.

The gradients are the same steps as the forward convolution in another order, so each step is a function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from npconv.algorithms.base import result_shape
from npconv.algorithms.cook_toom import Matrix, Tile, Transforms
from npconv.algorithms.winograd_tiles import points_per_axis, row_elements, tile_counts
from npconv.arrays import Array, Backend, flatten
from npconv.geometry import ConvSpec, Size

WORKSPACE = 16 * 2**20
"""Bytes of transformed tiles that are held at once, unless a single row of tiles needs more."""

HELD = 3
"""Copies of a block's transformed tiles that exist at once: gathered, half way, and transformed."""


@dataclass(frozen=True)
class Block:
    """Some images of the batch, and some rows of tiles along the first axis: what is transformed at once."""

    images: slice
    first: int
    rows: int


def correlated(
    backend: Backend, spec: ConvSpec, tile: Tile, fs: Sequence[Transforms], x: Array, points: Array
) -> Array:
    """The forward convolution with transformed weights."""
    y = backend.xp.empty(result_shape(spec), x.dtype)
    for block in blocks(spec, tile, x.dtype.itemsize):
        data = data_points(backend, spec, tile, fs, x, block)
        sums = backend.matmul(points, data[None])[0]
        low = block.first * tile[0][0]
        part = y[block.images, :, low : low + block.rows * tile[0][0]]
        shape = (*points_per_axis(tile), spec.out_channels, len(part), *_block_counts(spec, tile, block))
        outputs = untiled(joined(backend, [f.at for f in fs], sums.reshape(shape)))
        part[...] = outputs[:, :, *(slice(n) for n in part.shape[2:])]
    return y


def weight_correlated(
    backend: Backend, spec: ConvSpec, tile: Tile, fs: Sequence[Transforms], x: Array, dy: Array
) -> Array:
    """The weight gradient: products summed over all tiles before they are transformed back."""
    shape = (*points_per_axis(tile), spec.out_channels, spec.in_channels // spec.groups)
    sums = backend.xp.zeros(
        (math.prod(points_per_axis(tile)) * spec.groups, spec.out_channels // spec.groups, shape[-1]), x.dtype
    )
    for block in blocks(spec, tile, x.dtype.itemsize):
        data = data_points(backend, spec, tile, fs, x, block)
        results = result_points(backend, spec, tile, fs, dy, block)
        sums += backend.matmul(results, data.swapaxes(1, 2)[None])[0]
    dw = joined(backend, [f.g.T for f in fs], sums.reshape(shape))
    return backend.xp.ascontiguousarray(backend.xp.moveaxis(dw, (-2, -1), (0, 1)))


def weight_points(backend: Backend, spec: ConvSpec, fs: Sequence[Transforms], w: Array) -> Array:
    """``(points * groups, C_out / groups, C / groups)``."""
    ndim = len(fs)
    taps = backend.xp.ascontiguousarray(backend.xp.moveaxis(w, (0, 1), (ndim, ndim + 1)))
    out = joined(backend, [f.g for f in fs], taps)
    return out.reshape(math.prod(out.shape[:ndim]) * spec.groups, spec.out_channels // spec.groups, w.shape[1])


def data_points(
    backend: Backend, spec: ConvSpec, tile: Tile, fs: Sequence[Transforms], x: Array, block: Block
) -> Array:
    """The inputs under a block of tiles, transformed: ``(points * groups, C / groups, images * tiles)``."""
    counts, steps = _block_counts(spec, tile, block), [m for m, _ in tile]
    starts = [-low for low, _ in spec.window.padding]
    starts[0] += block.first * steps[0]
    extents = [t * m + r - 1 for t, (m, r) in zip(counts, tile, strict=True)]
    value = transformed(backend, [f.bt for f in fs], cut(backend, x[block.images], starts, extents), counts, steps)
    return _as_operand(spec, value, len(tile))


def result_points(
    backend: Backend, spec: ConvSpec, tile: Tile, fs: Sequence[Transforms], dy: Array, block: Block
) -> Array:
    """The gradients of a block of tiles, transformed: ``(points * groups, C_out / groups, images * tiles)``."""
    counts, steps = _block_counts(spec, tile, block), [m for m, _ in tile]
    starts = [block.first * steps[0], *[0] * (len(tile) - 1)]
    extents = [t * m for t, m in zip(counts, steps, strict=True)]
    value = transformed(backend, [f.at.T for f in fs], cut(backend, dy[block.images], starts, extents), counts, steps)
    return _as_operand(spec, value, len(tile))


def _as_operand(spec: ConvSpec, value: Array, ndim: int) -> Array:
    """``(*points, channels, images, *tiles)`` for the products: points with groups, channels, images with tiles."""
    points, channels, columns = value.shape[:ndim], value.shape[ndim], value.shape[ndim + 1 :]
    return value.reshape(math.prod(points) * spec.groups, channels // spec.groups, math.prod(columns))


def cut(backend: Backend, x: Array, starts: Sequence[int], extents: Sequence[int]) -> Array:
    """A part of ``(N, C, *spatial)`` as ``(C, N, *extents)``, with zeros where it reaches beyond the image."""
    part = backend.xp.zeros((x.shape[1], x.shape[0], *extents), x.dtype)
    axes = list(zip(starts, extents, x.shape[2:], strict=True))
    inside = [slice(max(0, -start), max(0, min(extent, n - start))) for start, extent, n in axes]
    seen = [slice(max(0, start), max(0, min(n, start + extent))) for start, extent, n in axes]
    part[:, :, *inside] = x[:, :, *seen].swapaxes(0, 1)
    return part


def transformed(
    backend: Backend, chain: Sequence[Matrix], value: Array, counts: Sequence[int], steps: Sequence[int]
) -> Array:
    """Windows along the last axes, `counts` of them at these steps, each times its matrix: ``(*points, ..., *counts)``.

    Per axis the windows' elements are gathered as rows, so that the transform of all of them is one matrix product. The
    last axis comes first: its gathering, the slower one, then sees the data before it grows.
    """
    xp, ndim = backend.xp, len(chain)
    for axis in reversed(range(ndim)):
        matrix, count, step = chain[axis], counts[axis], steps[axis]
        before = value.ndim - ndim + axis
        if matrix.size == 1:
            value = value[None]
            continue
        parts = xp.empty((matrix.shape[1], *value.shape[:before], count, *value.shape[before + 1 :]), value.dtype)
        for j in range(matrix.shape[1]):
            parts[j] = value[(slice(None),) * before + (slice(j, j + (count - 1) * step + 1, step),)]
        product = xp.matmul(xp.asarray(matrix, value.real.dtype), flatten(parts, 1))
        value = product.reshape(len(matrix), *parts.shape[1:])
    return value


def joined(backend: Backend, chain: Sequence[Matrix], value: Array) -> Array:
    """Every one of the first axes times its matrix."""
    for axis, matrix in enumerate(chain):
        if matrix.size > 1:
            rows = value.reshape(math.prod(value.shape[:axis]), value.shape[axis], math.prod(value.shape[axis + 1 :]))
            product = backend.xp.matmul(backend.xp.asarray(matrix, value.real.dtype), rows)
            value = product.reshape(*value.shape[:axis], len(matrix), *value.shape[axis + 1 :])
    return value


def untiled(value: Array) -> Array:
    """``(*m, C, N, *tiles)`` as ``(N, C, *(tiles * m))``."""
    ndim = value.ndim // 2 - 1
    spatial = [(ndim + 2 + axis, axis) for axis in range(ndim)]
    sizes = [value.shape[t] * value.shape[m] for t, m in spatial]
    return value.transpose(ndim + 1, ndim, *itertools.chain(*spatial)).reshape(
        *value.shape[ndim + 1 : ndim - 1 : -1], *sizes
    )


def turned_weights(backend: Backend, spec: ConvSpec, w: Array) -> Array:
    """Weights of `turned`: input and output channels exchanged within each group, and taps in reverse order."""
    ndim = spec.ndim
    turned_ = w.reshape(spec.groups, spec.out_channels // spec.groups, *w.shape[1:]).swapaxes(1, 2)
    turned_ = turned_[..., *(slice(None, None, -1),) * ndim]
    return backend.xp.ascontiguousarray(turned_).reshape(
        spec.in_channels, spec.out_channels // spec.groups, *spec.window.kernel
    )


def block_shape(spec: ConvSpec, tile: Tile, itemsize: int) -> tuple[int, int]:
    """Images and rows of tiles that fit the workspace together; at least one of each."""
    rows = tile_counts(spec, tile)[0]
    fitting = max(1, WORKSPACE // max(1, HELD * itemsize * row_elements(spec, tile)))
    return max(1, min(spec.batch, fitting // max(1, rows))), max(1, min(rows, fitting))


def blocks(spec: ConvSpec, tile: Tile, itemsize: int) -> Iterator[Block]:
    """All images and rows of tiles, in parts that fit the workspace."""
    images, rows = block_shape(spec, tile, itemsize)
    total = tile_counts(spec, tile)[0]
    for start in range(0, spec.batch, images):
        for first in range(0, total, rows):
            yield Block(slice(start, start + images), first, min(rows, total - first))


def _block_counts(spec: ConvSpec, tile: Tile, block: Block) -> Size:
    return (block.rows, *tile_counts(spec, tile)[1:])
