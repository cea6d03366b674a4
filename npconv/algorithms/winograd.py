"""Winograd convolution: tiles of outputs through the transforms of `cook_toom`, and a matrix product per point.

Of a tile of m outputs per axis, the n = m + r - 1 inputs under it become n transformed values; the weights become as
many, once; the sum over channels is a matrix product at each of the n points; and n sums become m outputs. The
gradients are the same steps in another order, so the steps are functions: `cut`, `transformed`, a product, `joined`.

It rounds in another way than a sum of products: docs/accuracy.md has the bound, `error_bound` computes it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.algorithms.base import Runner, Work, is_narrow, is_tame, is_turnable, largest, result_shape, turned
from npconv.algorithms.cook_toom import (
    SIZES,
    Matrix,
    Tile,
    Transforms,
    accurate_enough,
    error_factor,
    overflow_growth,
    transforms,
)
from npconv.algorithms.direct import Direct
from npconv.algorithms.planar import Planar, planar
from npconv.algorithms.tile_times import winograd_seconds
from npconv.arrays import Array, Backend, flatten, require
from npconv.epilogue import activate, finish
from npconv.geometry import ConvSpec, Size
from npconv.machine import predicted_seconds

WORKSPACE = 16 * 2**20
"""Bytes of transformed tiles that are held at once, unless a single row of tiles needs more."""

WORTH_COMPILING = 2**19
"""Products of an image from which on the compiled form is used."""

LAYING_OUT = 1.5e-9
"""Seconds to lay out one element of a phase anew."""

_HELD = 3
"""Copies of a block's transformed tiles that exist at once: gathered, half way, and transformed."""

ROWS, PANEL = 6, 16
"""Output channels and tiles that are multiplied at once, whether there are so many or not: most CPUs' register tile."""

CALL_COST, TRANSFORM_COST, STREAM_COST, WEIGHT_COST, PACK_COST = 3500, 3.5, 5, 1.6, 18
"""What takes as long as so many operations of the products, in the compiled form: a register tile, however deep; an
operation of a transform; one transformed weight read for the products; an operation of the transform of the weights,
and one transformed weight written. Fitted to 61 pairs of layers and tiles, see docs/kernels.md."""


@dataclass(frozen=True)
class Packed:
    """Weights for `Winograd.forward`: transformed, and as they came for images that need the direct form.

    `points` are as `weight_points` or the compiled loops lay them out, or None where the weights themselves need the
    direct form; `largest` is the largest magnitude of a weight.
    """

    weights: Array
    tile: Tile
    points: Array | None
    largest: float


class Winograd:
    """See `npconv.algorithms.base.Algorithm`.

    Where an operand holds NaN, infinity, or a number so large that a sum might overflow, the direct form computes the
    call: a tile would spread them to outputs that they do not belong to.
    """

    name = "winograd"

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        if dtype is not None and dtype not in (np.float32, np.float64):
            return f"its transforms round, and their error is bounded for float32 and float64, not for {dtype}"
        return obstacle(spec, op)

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        if obstacle(spec, op) is not None:
            return Work(spec.flops, spec.bytes(itemsize), 0)
        if op == "input_grad":
            return self.cost(turned(spec), "forward", itemsize)
        nbytes, extra, spec = spec.bytes(itemsize), laid_out(spec), planar(spec).spec
        tile = tile_sizes(spec, op)
        operations_ = operations(spec, tile, op)
        points = math.prod(_points(tile))
        # Transformed tiles are gathered, transformed, multiplied and joined; each step writes and reads them.
        tiled = (spec.in_channels + spec.out_channels) * spec.batch * points * math.prod(tile_counts(spec, tile))
        images, rows = block_shape(spec, tile, itemsize)
        weights = 2 * (points + spec.window.taps) * spec.parameters // spec.window.taps
        held = _HELD * images * rows * _row_elements(spec, tile) + weights + extra
        return Work(sum(operations_), nbytes + itemsize * (4 * tiled + 2 * extra), itemsize * held)

    def kernel(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> str:
        # On a GPU the transforms are compiled too; how fast they and the products are is held to be one rate.
        if backend.name == "numba" and is_compiled(spec, op, backend):
            return "winograd_tiles"
        maps = spec.parameters // spec.window.taps
        return "narrow_matmul" if backend.kernels is None and is_narrow(maps, spec) else "winograd_matmul"

    def seconds(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool) -> float:
        if op == "input_grad":
            spec, op = turned(spec), "forward"
        kernel, extra, spec = self.kernel(spec, op, backend, dtype), laid_out(spec), planar(spec).spec
        tile = tile_sizes(spec, op, reused)
        if kernel == "winograd_tiles":
            points, tiles = math.prod(_points(tile)), spec.batch * math.prod(tile_counts(spec, tile))
            return winograd_seconds(spec, points, tiles, dtype.itemsize, reused) + extra * LAYING_OUT
        # Rates are those of float32: vectors hold half as many of the other.
        effort = price(spec, tile, op, reused) * dtype.itemsize / 4
        return predicted_seconds(backend.name, kernel, effort, self.cost(spec, op, dtype.itemsize).bytes)

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        compiled = is_compiled(spec, "forward", backend) and op != "weight_grad"
        spec = planar(turned(spec) if op == "input_grad" else spec).spec
        tile = tile_sizes(spec, op, reused)
        outputs, points = _by(m for m, _ in tile), _by(_points(tile))
        images, rows = block_shape(spec, tile, dtype.itemsize)
        counts = _by(tile_counts(spec, tile))
        blocks = ("blocks", f"{images} of {spec.batch} images, {rows} rows of {counts} tiles")
        return (("tile", f"{outputs} outputs from {points} points"),) + (
            (("tiles", counts),) if compiled else (blocks,)
        )

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Packed:
        inner = planar(spec).spec
        tile, magnitude = tile_sizes(inner, "forward", reused), largest(backend, w)
        if not _is_tame(inner, tile, "forward", w, magnitude):
            return Packed(w, tile, None, magnitude)
        taps = w.reshape(inner.w_shape)
        if backend.kernels is not None and is_compiled(spec, "forward", backend):
            return Packed(w, tile, backend.kernels.winograd_weights(inner, matrices(tile), taps), magnitude)
        return Packed(w, tile, weight_points(backend, inner, matrices(tile), taps), magnitude)

    def forward(
        self, spec: ConvSpec, backend: Backend, x: Array, packed: Packed, bias: Array | None, activation: str | None
    ) -> Array:
        run = self.prepare(spec, backend, x.dtype, activation)
        if run is not None:
            y = backend.xp.empty(result_shape(spec), x.dtype)
            run(x, packed, bias, y)
            return y
        form, tile = planar(spec), packed.tile
        if packed.points is None or not _is_tame(form.spec, tile, "forward", x, packed.largest, largest(backend, x)):
            return Direct().forward(spec, backend, x, packed.weights, bias, activation)
        y = correlated(backend, form.spec, tile, matrices(tile), form.divide(backend, x), packed.points)
        return finish(backend, form.joined(backend, y, result_shape(spec)), bias, activation)

    def prepare(self, spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner | None:
        return _runner(spec, backend, dtype, activation) if is_compiled(spec, "forward", backend) else None

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        back = turned(spec)
        form = planar(back)
        tile, magnitudes = tile_sizes(form.spec, "forward"), (largest(backend, w), largest(backend, dy))
        if not _is_tame(form.spec, tile, "forward", dy, *magnitudes):
            return Direct().input_grad(spec, backend, dy, w)
        fs, kernels = matrices(tile), backend.kernels
        if kernels is None or not is_compiled(back, "forward", backend):
            points = weight_points(backend, form.spec, fs, turned_weights(backend, spec, w).reshape(form.spec.w_shape))
            dx = correlated(backend, form.spec, tile, fs, form.divide(backend, dy), points)
            return form.joined(backend, dx, result_shape(back))
        # Weights are read where they lie, unless several planes of an image are channels of one sum.
        in_place = form.spec.in_channels == back.in_channels
        w = w if in_place else turned_weights(backend, spec, w).reshape(form.spec.w_shape)
        points = kernels.winograd_weights(form.spec, fs, w, turned=in_place)
        dx = backend.xp.empty(result_shape(back), dy.dtype)
        _compiled(form, backend, dy.dtype, tile, None)(dy, points, None, dx)
        return dx

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        form = planar(spec)
        tile = tile_sizes(form.spec, "weight_grad")
        if not _is_tame(form.spec, tile, "weight_grad", x, largest(backend, x), largest(backend, dy)):
            return Direct().weight_grad(spec, backend, x, dy)
        x, dy = form.divide(backend, x), form.divide_result(backend, dy)
        return weight_correlated(backend, form.spec, tile, matrices(tile), x, dy).reshape(spec.w_shape)


# --------------------------------------------------------------------------------------------------------------------
# What can run, in which tiles, at what cost: pure numbers
# --------------------------------------------------------------------------------------------------------------------


def obstacle(spec: ConvSpec, op: str) -> str | None:
    """None, or why no dtype can run this spec."""
    window = spec.window
    last = window.axes(slice(max(0, window.ndim - 2), None))
    if set(last.stride) != {1}:
        return f"Winograd tiles need stride 1 along the last two axes, here {window.stride}"
    if not 1 < max(last.kernel) <= max(SIZES):
        return f"Winograd tiles need kernels of 2 to {max(SIZES)} along one of the last two axes, here {window.kernel}"
    if not accurate_enough(tuple((SIZES[k][0], k) for k in last.kernel)):
        return f"Winograd tiles would round too much for a kernel of {window.kernel}"
    if any(d > max(1, n) for d, k, n in zip(last.dilation, last.kernel, last.out, strict=True) if k > 1):
        return f"a dilation larger than the result leaves Winograd tiles empty, here {window.dilation}"
    if op == "input_grad" and not is_turnable(spec):
        return f"its input gradient needs stride 1 and padding within the kernel, here {window.padding}"
    return None


def laid_out(spec: ConvSpec) -> int:
    """Elements of the image and of the result that are laid out anew by `planar`, where phases are."""
    form = planar(spec)
    if not form.is_divided:
        return 0
    image, result = form.spec.window.size, form.spec.window.out
    read = spec.in_channels * form.held * math.prod(image)
    return form.images * math.prod(form.steps) * (read + spec.out_channels * form.written * math.prod(result))


def is_compiled(spec: ConvSpec, op: str, backend: Backend) -> bool:
    """Whether the backend's own loops run: not for weight gradients, and not for little work.

    Every pair of tiles is machine code of its own, which takes seconds to make.
    """
    worth = spec.macs >= WORTH_COMPILING * spec.batch
    return hasattr(backend.kernels, "winograd_runner") and op != "weight_grad" and worth


@functools.lru_cache(maxsize=1024)
def _runner(spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner:
    """The compiled loops, or the direct form where an operand may not be transformed."""
    kernels: Any = backend.kernels
    clamp = activation if activation != "hardswish" else None
    form = planar(spec)

    def run(x: Array, packed: Packed, bias: Array | None, y: Array, limit: int | None = None) -> None:
        tile = packed.tile
        if packed.points is None or not _is_tame(form.spec, tile, "forward", x, packed.largest, largest(backend, x)):
            kernels.runner(spec, dtype, activation)(x, packed.weights, bias, y, limit)
            return
        _compiled(form, backend, dtype, tile, clamp)(x, packed.points, bias, y, limit)
        if activation != clamp:
            activate(backend, y, activation)

    return run


@functools.lru_cache(maxsize=1024)
def _compiled(
    form: Planar, backend: Backend, dtype: np.dtype[Any], tile: Tile, clamp: str | None
) -> Callable[..., None]:
    """The compiled loops for a convolution and what it amounts to."""
    kernels: Any = backend.kernels
    run_planes = kernels.winograd_runner(form.spec, dtype, matrices(tile), clamp, form.planes)
    reads_planes = hasattr(kernels, "divide_phases")
    if form.planes.shape == (1, 1) or (reads_planes and not form.is_divided):
        return run_planes  # type: ignore[no-any-return]
    shape = form.images, form.spec.out_channels, len(form.planes), *form.spec.window.out

    def run(x: Array, points: Array, bias: Array | None, y: Array, limit: int | None = None) -> None:
        if reads_planes:
            parts = backend.scratch(shape, dtype)
            run_planes(form.split(backend, x), points, bias, parts, limit)
            form.join(backend, parts, y)
            return
        images = backend.scratch(result_shape(form.spec), dtype)
        run_planes(form.divide(backend, x), points, bias, images, limit)
        y[...] = form.joined(backend, images, y.shape)

    return run


@functools.lru_cache(maxsize=1024)
def tile_sizes(spec: ConvSpec, op: str, reused: bool = False) -> Tile:
    """The accurate tile of least cost, ``(m, r)`` per axis, for a spec that `obstacle` lets pass.

    The cost counts whole tiles, so what hangs over the edges is paid for, and the transform of the weights unless they
    are `reused`. An input gradient's tiles are those of the forward convolution that `turned` gives.
    """
    axes = [[(m, r) for m in SIZES[r]] for r in spec.window.kernel]
    return min(filter(accurate_enough, itertools.product(*axes)), key=lambda tile: price(spec, tile, op, reused))


def price(spec: ConvSpec, tile: Tile, op: str, reused: bool) -> float:
    """Time of a call, in operations of the products that would take as long."""
    _, transforming, weights = operations(spec, tile, op)
    tiles, points = spec.batch * math.prod(tile_counts(spec, tile)), math.prod(_points(tile))
    outputs, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    columns, depth = (channels, tiles) if op == "weight_grad" else (tiles, channels)
    products = points * spec.groups * -(-outputs // ROWS) * -(-columns // PANEL)
    stream = points * spec.groups * outputs * channels
    packing = 0 if reused else WEIGHT_COST * weights + PACK_COST * stream
    return (
        products * (2 * ROWS * PANEL * depth + CALL_COST)
        + TRANSFORM_COST * transforming
        + STREAM_COST * stream
        + packing
    )


def operations(spec: ConvSpec, tile: Tile, op: str) -> tuple[int, int, int]:
    """Floating-point operations of the products, of the transforms of images, and of those of weights."""
    counts, points, fs = tile_counts(spec, tile), _points(tile), matrices(tile)
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


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


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


def _points(tile: Tile) -> Size:
    return tuple(m + r - 1 for m, r in tile)


def _row_elements(spec: ConvSpec, tile: Tile) -> int:
    """Transformed elements of one image under and over one row of tiles."""
    return (spec.in_channels + spec.out_channels) * math.prod(_points(tile)) * math.prod(tile_counts(spec, tile)[1:])


# --------------------------------------------------------------------------------------------------------------------
# Rounding and overflow
# --------------------------------------------------------------------------------------------------------------------


def _terms(spec: ConvSpec, tile: Tile, op: str) -> int:
    """How many products are summed at a point: channels, or for the weight gradient tiles."""
    if op == "weight_grad":
        return spec.batch * math.prod(tile_counts(spec, tile))
    return spec.in_channels // spec.groups


def _is_tame(spec: ConvSpec, tile: Tile, op: str, value: Array, *magnitudes: float) -> bool:
    """Whether operands of `value`'s dtype and these magnitudes may be transformed: what guards the transforms.

    To ask for a magnitude costs a pass over the operand.
    """
    return is_tame(value.real.dtype, overflow_growth(tile, _terms(spec, tile, op)), *magnitudes)


def error_bound(spec: ConvSpec, op: str, a: Array, b: Array, dtype: np.dtype[Any], reused: bool = False) -> Array:
    """How far each element computed in `dtype` may be from the exact one; proven in docs/accuracy.md.

    Parameters
    ----------
    spec : ConvSpec
        One that `Winograd` supports.
    op : str
    a, b : numpy.ndarray
        As for `npconv.planning.Plan.run`: ``(x, w)``, ``(dy, w)`` or ``(x, dy)``; channels first, with a batch.
    dtype : numpy.dtype
        float32 or float64.
    reused : bool
        For weights that were packed to be used many times, whose tiles may be larger.

    Returns
    -------
    numpy.ndarray
        In float64, of the result's shape, without a bias, which adds ``error_factor * abs(bias)``.
    """
    backend = require("numpy")
    if op == "input_grad":
        return error_bound(turned(spec), "forward", a, turned_weights(backend, spec, b), dtype)
    form, shape = planar(spec), spec.w_shape if op == "weight_grad" else result_shape(spec)
    spec = form.spec
    tile, info = tile_sizes(spec, op, reused), np.finfo(dtype)
    fs = tuple(f.absolute() for f in matrices(tile))
    # Below this, what underflows counts too.
    a, b = (np.abs(value).astype(np.float64) + float(info.tiny / info.eps) for value in (a, b))
    if op == "weight_grad":
        a, b = form.divide(backend, a), form.divide_result(backend, b)
        passed = weight_correlated(backend, spec, tile, fs, a, b).reshape(shape)
        last = [f.g.T for f in fs]
    else:
        points = weight_points(backend, spec, fs, b.reshape(spec.w_shape))
        passed = correlated(backend, spec, tile, fs, form.divide(backend, a), points)
        passed = form.joined(backend, passed, shape)
        last = [f.at for f in fs]
    lost = error_factor(tile, _terms(spec, tile, op), dtype, op)
    underflow = _terms(spec, tile, op) * math.prod(float(m.sum(1).max()) for m in last) * float(info.tiny)
    return lost * passed + underflow


# --------------------------------------------------------------------------------------------------------------------
# The operations, as steps on `xp`
# --------------------------------------------------------------------------------------------------------------------


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
        shape = (*_points(tile), spec.out_channels, len(part), *_block_counts(spec, tile, block))
        outputs = untiled(joined(backend, [f.at for f in fs], sums.reshape(shape)))
        part[...] = outputs[:, :, *(slice(n) for n in part.shape[2:])]
    return y


def weight_correlated(
    backend: Backend, spec: ConvSpec, tile: Tile, fs: Sequence[Transforms], x: Array, dy: Array
) -> Array:
    """The weight gradient: products summed over all tiles before they are transformed back."""
    shape = (*_points(tile), spec.out_channels, spec.in_channels // spec.groups)
    sums = backend.xp.zeros(
        (math.prod(_points(tile)) * spec.groups, spec.out_channels // spec.groups, shape[-1]), x.dtype
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
    fitting = max(1, WORKSPACE // max(1, _HELD * itemsize * _row_elements(spec, tile)))
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
