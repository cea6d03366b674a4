"""Winograd convolution: tiles of outputs through the transforms of `cook_toom`, and a matrix product per point.

Of a tile of m outputs per axis, the n = m + r - 1 inputs under it become n transformed values; the weights become as
many, once; the sum over channels is a matrix product at each of the n points; and n sums become m outputs. The
gradients are the same steps in another order (`winograd_steps`; on the CPU compiled loops).

It rounds in another way than a sum of products: docs/accuracy.md has the bound, `error_bound` computes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.algorithms.base import Work, is_narrow, is_tame, largest, result_shape, turned
from npconv.algorithms.cook_toom import Tile, error_factor, overflow_growth
from npconv.algorithms.direct import Direct
from npconv.algorithms.planar import Planar, planar
from npconv.algorithms.rates import rates_of
from npconv.algorithms.tile_times import PANEL, winograd_seconds
from npconv.algorithms.winograd_grad_times import weight_grad_elements, weight_grad_seconds
from npconv.algorithms.winograd_steps import (
    HELD,
    block_shape,
    correlated,
    turned_weights,
    weight_correlated,
    weight_points,
)
from npconv.algorithms.winograd_tiles import (
    matrices,
    obstacle,
    operations,
    points_and_tiles,
    points_per_axis,
    price,
    row_elements,
    tile_counts,
    tile_sizes,
    transforms_on_the_way,
)
from npconv.arrays import Array, Backend, require
from npconv.epilogue import activate, finish
from npconv.geometry import ConvSpec
from npconv.machine import predicted_seconds
from npconv.runners import Runner

WORTH_COMPILING = 2**19
"""Products of an image from which on the compiled form is used."""

LAYING_OUT = 1.5e-9
"""Seconds to lay out one element of a phase anew."""


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
        points = math.prod(points_per_axis(tile))
        # Transformed tiles are gathered, transformed, multiplied and joined; each step writes and reads them.
        tiled = (spec.in_channels + spec.out_channels) * spec.batch * points * math.prod(tile_counts(spec, tile))
        images, rows = block_shape(spec, tile, itemsize)
        weights = 2 * (points + spec.window.taps) * spec.parameters // spec.window.taps
        held = HELD * images * rows * row_elements(spec, tile) + weights + extra
        if op == "weight_grad":
            held = max(held, weight_grad_elements(spec, *points_and_tiles(spec, tile)) + extra)
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
        kernel, extra, form = self.kernel(spec, op, backend, dtype), laid_out(spec), planar(spec)
        spec = form.spec
        tile = tile_sizes(spec, op, reused)
        if kernel == "winograd_tiles" and op == "weight_grad":
            return weight_grad_seconds(spec, *points_and_tiles(spec, tile), dtype.itemsize) + extra * LAYING_OUT
        if kernel == "winograd_tiles":
            points, tiles = math.prod(points_per_axis(tile)), spec.batch * math.prod(tile_counts(spec, tile))
            passed = not reused and transforms_on_the_way(spec, tile)
            # A panel of tiles leaves out what is zeros for all of them.
            filled = float((form.planes >= 0).mean()) if tiles >= PANEL * len(form.planes) else 1.0
            seconds = winograd_seconds(rates_of(backend), spec, points, tiles, dtype.itemsize, reused, passed, filled)
            return seconds + extra * LAYING_OUT
        # Rates are those of float32: vectors hold half as many of the other.
        effort = price(spec, tile, op, reused) * dtype.itemsize / 4
        return predicted_seconds(backend.name, kernel, effort, self.cost(spec, op, dtype.itemsize).bytes)

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        compiled = is_compiled(spec, op, backend)
        spec = planar(turned(spec) if op == "input_grad" else spec).spec
        tile = tile_sizes(spec, op, reused)
        outputs, points = _by(m for m, _ in tile), _by(points_per_axis(tile))
        images, rows = block_shape(spec, tile, dtype.itemsize)
        counts = _by(tile_counts(spec, tile))
        blocks = ("blocks", f"{images} of {spec.batch} images, {rows} rows of {counts} tiles")
        return (("tile", f"{outputs} outputs from {points} points"),) + (
            (("tiles", counts),) if compiled else (blocks,)
        )

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Packed:
        inner = planar(spec).spec
        tile, magnitude = tile_sizes(inner, "forward", reused), _magnitude(spec, backend, w)
        if not _is_tame(inner, tile, "forward", w, magnitude):
            return Packed(w, tile, None, magnitude)
        taps = w.reshape(inner.w_shape)
        if backend.kernels is not None and is_compiled(spec, "forward", backend):
            stacked, ahead = planar(spec).planes.shape[1], reused or not transforms_on_the_way(inner, tile)
            points = backend.kernels.winograd_weights(inner, matrices(tile), taps, stacked=stacked, ahead=ahead)
            return Packed(w, tile, points, magnitude)
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

    def prepare_gradient(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], limit: int
    ) -> Runner | None:
        return None

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        back = turned(spec)
        form = planar(back)
        tile, magnitudes = tile_sizes(form.spec, "forward"), [_magnitude(back, backend, value) for value in (w, dy)]
        if not _is_tame(form.spec, tile, "forward", dy, *magnitudes):
            return Direct().input_grad(spec, backend, dy, w)
        fs, kernels = matrices(tile), backend.kernels
        if kernels is None or not is_compiled(back, "forward", backend):
            points = weight_points(backend, form.spec, fs, turned_weights(backend, spec, w).reshape(form.spec.w_shape))
            dx = correlated(backend, form.spec, tile, fs, form.divide(backend, dy), points)
            return form.joined(backend, dx, result_shape(back))
        # Weights are read where they lie, unless several planes of an image are channels of one sum and must be copied.
        in_place = form.planes.shape[1] == 1 or _reads_planes(kernels)
        w = w if in_place else turned_weights(backend, spec, w).reshape(form.spec.w_shape)
        stacked, ahead = form.planes.shape[1], not transforms_on_the_way(form.spec, tile)
        points = kernels.winograd_weights(form.spec, fs, w, turned=in_place, stacked=stacked, ahead=ahead)
        dx = backend.xp.empty(result_shape(back), dy.dtype)
        _compiled(form, backend, dy.dtype, tile, None)(dy, points, None, dx)
        return dx

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        form = planar(spec)
        tile = tile_sizes(form.spec, "weight_grad")
        if not _is_tame(form.spec, tile, "weight_grad", x, largest(backend, x), largest(backend, dy)):
            return Direct().weight_grad(spec, backend, x, dy)
        if is_compiled(spec, "weight_grad", backend):
            kernels: Any = backend.kernels
            x, dy, dw = form.split(backend, x), form.split_result(backend, dy), backend.xp.empty(spec.w_shape, x.dtype)
            kernels.winograd_weight_grad(form.spec, matrices(tile), form.planes, x, dy, dw)
            return dw
        x, dy = form.divide(backend, x), form.divide_result(backend, dy)
        return weight_correlated(backend, form.spec, tile, matrices(tile), x, dy).reshape(spec.w_shape)


def laid_out(spec: ConvSpec) -> int:
    """Elements of the image and of the result that are laid out anew by `planar`, where phases are."""
    form = planar(spec)
    if not form.is_divided:
        return 0
    image, result = form.spec.window.size, form.spec.window.out
    read = spec.in_channels * form.held * math.prod(image)
    return form.images * math.prod(form.steps) * (read + spec.out_channels * form.written * math.prod(result))


def is_compiled(spec: ConvSpec, op: str, backend: Backend) -> bool:
    """Whether the backend's own loops run, if it has any: not for little work.

    Every pair of tiles is machine code of its own, which takes seconds to make. On a GPU it runs in any case, because
    the other forms wait for the device.
    """
    worth = spec.macs >= WORTH_COMPILING * spec.batch or guards_itself(backend)
    return hasattr(backend.kernels, "winograd_weight_grad" if op == "weight_grad" else "winograd_runner") and worth


def guards_itself(backend: Backend) -> bool:
    """Whether compiled loops look themselves after tiles that must not be transformed."""
    return bool(getattr(backend.kernels, "WINOGRAD_GUARDS_ITSELF", False))


def _magnitude(spec: ConvSpec, backend: Backend, value: Array) -> float:
    """The largest magnitude of an operand of a convolution, or 0 where nobody has to know it."""
    if guards_itself(backend) and is_compiled(spec, "forward", backend):
        return 0.0
    return largest(backend, value)


def _reads_planes(kernels: Any) -> bool:
    """Whether planes of an image that follow each other as channels of one sum are read where they lie."""
    return hasattr(kernels, "divide_phases")


@functools.lru_cache(maxsize=1024)
def _runner(spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner:
    """The compiled loops, or the direct form where an operand may not be transformed."""
    kernels: Any = backend.kernels
    clamp = activation if activation != "hardswish" else None
    form = planar(spec)

    def run(x: Array, packed: Packed, bias: Array | None, y: Array, limit: int | None = None) -> None:
        tile = packed.tile
        magnitudes = packed.largest, _magnitude(spec, backend, x)
        if packed.points is None or not _is_tame(form.spec, tile, "forward", x, *magnitudes):
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
    run_planes: Callable[..., None] = kernels.winograd_runner(form.spec, dtype, matrices(tile), clamp, form.planes)
    reads_planes = _reads_planes(kernels)
    if form.planes.shape == (1, 1) or (reads_planes and not form.is_divided):
        return run_planes
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


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


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
