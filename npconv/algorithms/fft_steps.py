"""The steps of an FFT convolution on arrays: blocks out of the image, transforms, products of spectra, and back.

Transforms are `xp.fft`, scaled "ortho": besides keeping magnitudes in the middle of the range, this is what NumPy 2.4
is fast at. Its complex64 transforms without a factor took 5 to 10 times as long (64x64: 28 ns an element against 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.fft  # NumPy would load it at the first transform, where too little memory for that is an ImportError

from npconv.algorithms.fft_blocks import Blocks, blocks_for, kernel_chunk, phase_reach
from npconv.arrays import Array, Backend
from npconv.geometry import ConvSpec, Size

# Whether NumPy's transforms take the memory for their result.
_OUT = int(np.__version__.partition(".")[0]) >= 2


@dataclass(frozen=True, eq=False)
class Samples:
    """``(N, C, *size)`` seen as phases: sample p of phase r on an axis is element ``p * stride + r - low``."""

    value: Array
    low: Size
    stride: Size


# --------------------------------------------------------------------------------------------------------------------
# The three sums
# --------------------------------------------------------------------------------------------------------------------


def correlate(backend: Backend, blocks: Blocks, spectra: Array, source: Samples, result: Samples) -> None:
    """Fill `result` with the correlation of `source` with the kernels whose spectra are given."""
    real = source.value.dtype.kind == "f"
    steps = list(_steps(blocks))

    def run(first: int, stop: int, stopped: Any) -> None:
        for groups, runs in itertools.chain.from_iterable(shares[first:stop]):
            if stopped[0]:
                return
            x = cut(backend, source, blocks, groups, runs, blocks.length)
            y = product(backend, blocks, spectra[groups], transformed(backend, blocks, x))
            del x
            put(result, blocks, groups, runs, inverse(backend, blocks, y, real))

    # Steps do not depend on the number of threads, and write to different places; only so many may run side by side.
    count = blocks.at_a_time(source.value.dtype.itemsize)
    shares = [steps[len(steps) * i // count : len(steps) * (i + 1) // count] for i in range(count)]
    if backend.kernels is None or backend.name == "cupy":
        run(0, count, (0,))
    else:
        backend.kernels.threads.run(run, count, blocks.transform_flops + blocks.product_flops, stoppable=True)


def summed_products(backend: Backend, blocks: Blocks, image: Samples, dy: Array) -> Array:
    """The spectra of the weight gradient: image times gradient, summed over batch and blocks."""
    real = dy.dtype.kind == "f"
    grad = Samples(dy, (0,) * len(blocks.out), (1,) * len(blocks.out))
    total = backend.xp.zeros(_spectra_shape(blocks, real), np.result_type(dy.dtype, np.complex64))
    for groups, runs in _steps(blocks):
        x = _factors(
            backend, blocks, transformed(backend, blocks, cut(backend, image, blocks, groups, runs, blocks.length))
        )
        g = cut(backend, grad, blocks, groups, runs, blocks.kept)
        g = _factors(backend, blocks, reversed_transform(backend, blocks, g))
        outer_product(backend, blocks, g, x, total[groups])
    return total


def product(backend: Backend, blocks: Blocks, w: Array, x: Array) -> Array:
    """Spectra of the results, ``(n, G, outer, *f)``, from those of the sources, ``(n, G, inner, *f)``, which may go."""
    if blocks.by_matmul:
        y = backend.xp.matmul(w, _factors(backend, blocks, x))
        return _frequencies_last(backend.xp, blocks, y, x.shape)
    if blocks.inner == blocks.outer == 1:
        x *= w[None, :, :, 0]
        return x
    y = x[:, :, :1] * w[None, :, :, 0]
    for k in range(1, blocks.inner):
        y += x[:, :, k : k + 1] * w[None, :, :, k]
    return y


def outer_product(backend: Backend, blocks: Blocks, g: Array, x: Array, total: Array) -> None:
    """Add the products of the spectra of a step, as `_factors` gives them, to their sum."""
    if blocks.by_matmul:
        total += backend.xp.matmul(g, x.swapaxes(-1, -2))
        return
    untouched = tuple(2 + i for i, r in enumerate(blocks.reach) if not r)
    for n, k in itertools.product(range(len(x)), range(blocks.inner)):
        part = g[n] * x[n, :, k : k + 1]
        total[:, :, k] += part.sum(untouched, keepdims=True) if untouched else part


def _factors(backend: Backend, blocks: Blocks, x: Array) -> Array:
    """Spectra as they are multiplied: ``(n, G, channels, *f)``, or as matrices, ``(G, frequencies, channels, n)``.

    Rows that are no frequencies go to n.
    """
    if not blocks.by_matmul:
        return x
    moved = backend.xp.ascontiguousarray(x.transpose(_matrix_order(blocks)))
    return moved.reshape(x.shape[1], -1, x.shape[2], x.shape[0] * blocks.rows)


def _frequencies_last(xp: Any, blocks: Blocks, y: Array, like: Size) -> Array:
    """The inverse of `_factors`; `like` is the shape of what went in, but for the channels."""
    order = _matrix_order(blocks)
    sizes = (like[0], like[1], y.shape[2], *like[3:])
    y = y.reshape(tuple(sizes[axis] for axis in order))
    return xp.ascontiguousarray(y.transpose(tuple(order.index(axis) for axis in range(len(order)))))


def _matrix_order(blocks: Blocks) -> tuple[int, ...]:
    untouched = (i for i, r in enumerate(blocks.reach) if not r)
    return (1, *(3 + i for i in blocks.axes), 2, 0, *(3 + i for i in untouched))


# --------------------------------------------------------------------------------------------------------------------
# Transforms
# --------------------------------------------------------------------------------------------------------------------


def transformed(backend: Backend, blocks: Blocks, x: Array) -> Array:
    """Spectra of blocks, with zeros up to the length of the transform."""
    sizes, axes = _sizes_and_axes(blocks, x.ndim)
    if (
        x.dtype.kind == "f"
        and _in_place(backend, x)
        and all(x.shape[axis] == n for axis, n in zip(axes, sizes, strict=True))
    ):
        shape = (*x.shape[: axes[-1]], sizes[-1] // 2 + 1, *x.shape[axes[-1] + 1 :])
        spectrum = backend.scratch(shape, np.result_type(x.dtype, np.complex64))
        np.fft.rfft(x, sizes[-1], axes[-1], "ortho", out=spectrum)
        for axis in reversed(axes[:-1]):
            np.fft.fft(spectrum, None, axis, "ortho", out=spectrum)
        return spectrum
    transform = backend.xp.fft.rfftn if x.dtype.kind == "f" else backend.xp.fft.fftn
    return _in(transform(x, sizes, axes, "ortho"), x.dtype)


def reversed_transform(backend: Backend, blocks: Blocks, x: Array) -> Array:
    """Spectra of blocks turned around the origin: what correlates with them."""
    if x.dtype.kind == "f":
        value = transformed(backend, blocks, x)
        return backend.xp.conj(value, out=value)
    sizes, axes = _sizes_and_axes(blocks, x.ndim)
    return _in(backend.xp.fft.ifftn(x, sizes, axes, "ortho"), x.dtype)


def inverse(backend: Backend, blocks: Blocks, y: Array, real: bool) -> Array:
    """Blocks from their spectra, which may be overwritten."""
    sizes, axes = _sizes_and_axes(blocks, y.ndim)
    if real and _in_place(backend, y):
        for axis in axes[:-1]:
            np.fft.ifft(y, None, axis, "ortho", out=y)
        shape = (*y.shape[: axes[-1]], sizes[-1], *y.shape[axes[-1] + 1 :])
        block = backend.scratch(shape, y.real.dtype)
        return np.fft.irfft(y, sizes[-1], axes[-1], "ortho", out=block)
    transform = backend.xp.fft.irfftn if real else backend.xp.fft.ifftn
    return transform(y, sizes, axes, "ortho")


def _in_place(backend: Backend, value: Array) -> bool:
    """Whether transforms write where they are told to, which NumPy 2 can: pages new to a process are dear."""
    return backend.name == "numba" and _OUT and bool(value.flags.writeable)


def _sizes_and_axes(blocks: Blocks, ndim: int) -> tuple[Size, Size]:
    first = ndim - len(blocks.length)
    return tuple(blocks.length[i] for i in blocks.axes), tuple(first + i for i in blocks.axes)


def _in(spectrum: Array, dtype: np.dtype[Any]) -> Array:
    """NumPy 1 transforms in double precision whatever comes in."""
    return spectrum.astype(np.result_type(dtype, np.complex64), copy=False)


def kernel_spectra(spec: ConvSpec, backend: Backend, w: Array, op: str) -> Array:
    """Spectra of the kernels, ``(G, frequencies, outer, inner)`` for matrix products or ``(G, outer, inner, *f)``."""
    blocks = blocks_for(spec, op, w.dtype.itemsize)
    total = backend.xp.empty(_spectra_shape(blocks, w.dtype.kind == "f"), np.result_type(w.dtype, np.complex64))
    kernels = w.reshape(spec.groups, -1, *w.shape[1:])
    for groups, rows, own in _kernel_chunks(spec, blocks, op, w.dtype.itemsize):
        part = _phased_kernels(spec, backend, kernels[groups, rows])
        if op == "input_grad":
            part = part[..., *(slice(None, None, -1),) * spec.ndim].swapaxes(1, 2)
        spectrum = reversed_transform(backend, blocks, part)
        # Three "ortho" transforms leave one root too few.
        spectrum *= math.sqrt(blocks.transform)
        total[own] = _as_matrices(spectrum) if blocks.by_matmul else spectrum
    return total


def kernels_of(spec: ConvSpec, backend: Backend, blocks: Blocks, total: Array, dtype: np.dtype[Any]) -> Array:
    """The weight gradient from its spectra."""
    xp = backend.xp
    dw = xp.empty((spec.groups, spec.out_channels // spec.groups, *spec.w_shape[1:]), dtype)
    real = dtype.kind == "f"
    shape = _frequency_shape(blocks, real)
    for groups, rows, own in _kernel_chunks(spec, blocks, "weight_grad", dtype.itemsize):
        part = total[own]
        if blocks.by_matmul:
            part = xp.ascontiguousarray(xp.moveaxis(part, 1, -1))
            part = part.reshape(*part.shape[:3], *shape)
        part = inverse(backend, blocks, part, real)[..., *(slice(r + 1) for r in blocks.reach)]
        part = interleaved(part, spec.window.stride)
        taps = (slice(0, r + 1, d) for r, d in zip(spec.window.reach, spec.window.dilation, strict=True))
        dw[groups, rows] = part[..., *taps]
    dw *= math.sqrt(blocks.transform)
    return dw.reshape(spec.w_shape)


def _as_matrices(spectrum: Array) -> Array:
    return spectrum.reshape(*spectrum.shape[:3], -1).transpose(0, 3, 1, 2)


def _phased_kernels(spec: ConvSpec, backend: Backend, w: Array) -> Array:
    """``(G, M, C, *kernel)`` with zeros between the taps, as phases: ``(G, M, C * phases, *(reach + 1))``."""
    stride, window = spec.window.stride, spec.window
    extent = tuple((r + 1) * s for r, s in zip(phase_reach(spec), stride, strict=True))
    if extent == window.kernel and set(stride) == {1}:
        return w
    spread = backend.xp.zeros((*w.shape[:3], *extent), w.dtype)
    spread[..., *(slice(0, r + 1, d) for r, d in zip(window.reach, window.dilation, strict=True))] = w
    return phased(spread, stride)


def _kernel_chunks(spec: ConvSpec, blocks: Blocks, op: str, itemsize: int) -> Iterator[tuple[slice, slice, Any]]:
    """Groups and output channels of the weights in parts, and where their spectra lie."""
    chunk, _ = kernel_chunk(blocks, itemsize)
    outputs = spec.out_channels // spec.groups
    each = blocks.inner * blocks.outer // outputs
    rows_at_once = max(1, min(outputs, chunk // each))
    groups_at_once = max(1, chunk // (each * outputs))
    for g in range(0, spec.groups, groups_at_once):
        for m in range(0, outputs, rows_at_once):
            groups, rows = slice(g, g + groups_at_once), slice(m, m + rows_at_once)
            where: tuple[slice, ...] = (slice(None), rows) if op == "input_grad" else (rows,)
            yield groups, rows, (groups, slice(None), *where) if blocks.by_matmul else (groups, *where)


def _frequency_shape(blocks: Blocks, real: bool) -> Size:
    sizes = [n if r else 1 for n, r in zip(blocks.length, blocks.reach, strict=True)]
    if real:
        sizes[blocks.axes[-1]] = sizes[blocks.axes[-1]] // 2 + 1
    return tuple(sizes)


def _spectra_shape(blocks: Blocks, real: bool) -> Size:
    shape = _frequency_shape(blocks, real)
    if blocks.by_matmul:
        return (blocks.groups, math.prod(shape), blocks.outer, blocks.inner)
    return (blocks.groups, blocks.outer, blocks.inner, *shape)


# --------------------------------------------------------------------------------------------------------------------
# Blocks in and out
# --------------------------------------------------------------------------------------------------------------------

Run = tuple[Size, slice, slice]
"""A block's number per axis, the images that it is taken of, and their places in the step."""


def _steps(blocks: Blocks) -> Iterator[tuple[slice, list[Run]]]:
    """Groups and runs of images that are in work together. The numbers run over images first, then over blocks."""
    for g in range(0, blocks.groups, blocks.groups_at_once):
        for start in range(0, blocks.pairs, blocks.images):
            stop = min(start + blocks.images, blocks.pairs)
            yield slice(g, min(g + blocks.groups_at_once, blocks.groups)), list(_runs(blocks, start, stop))


def _runs(blocks: Blocks, start: int, stop: int) -> Iterator[Run]:
    at = start
    while at < stop:
        block, image = divmod(at, blocks.batch)
        end = min(stop, (block + 1) * blocks.batch)
        place = []
        for n in reversed(blocks.count):
            block, i = divmod(block, n)
            place.append(i)
        yield tuple(reversed(place)), slice(image, image + end - at), slice(at - start, end - start)
        at = end


def cut(backend: Backend, source: Samples, blocks: Blocks, groups: slice, runs: list[Run], length: Size) -> Array:
    """Blocks of a step as ``(n, G, channels, *length)``, zero beyond the source."""
    value, stride = source.value, source.stride
    per_group = value.shape[1] // blocks.groups
    own = slice(groups.start * per_group, groups.stop * per_group)
    extent = tuple(n * s for n, s in zip(length, stride, strict=True))
    block = backend.scratch((runs[-1][2].stop, own.stop - own.start, *extent), value.dtype)
    for place, images, where in runs:
        inside, there = _overlap(source, blocks, place, extent)
        if any(part != slice(0, n) for part, n in zip(inside, extent, strict=True)):
            block[where] = 0
        block[where, :, *inside] = value[images, own, *there]
    return phased(block.reshape(block.shape[0], -1, per_group, *extent), stride)


def put(result: Samples, blocks: Blocks, groups: slice, runs: list[Run], block: Array) -> None:
    """Write what a step has computed, ``(n, G, channels, *length)``, to its place."""
    block = interleaved(block[..., *(slice(n) for n in blocks.kept)], result.stride)
    block = block.reshape(block.shape[0], -1, *block.shape[3:])
    own = slice(groups.start * block.shape[1] // (groups.stop - groups.start), None)
    own = slice(own.start, own.start + block.shape[1])
    for place, images, where in runs:
        inside, there = _overlap(result, blocks, place, block.shape[2:])
        result.value[images, own, *there] = block[where, :, *inside]


def _overlap(
    samples: Samples, blocks: Blocks, place: Size, extent: Size
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Which part of a block lies in the array, and which part of the array that is."""
    inside, there = [], []
    for i, k, s, lo, n, size in zip(
        place, blocks.kept, samples.stride, samples.low, extent, samples.value.shape[2:], strict=True
    ):
        start = i * k * s - lo
        first, stop = max(start, 0), max(min(start + n, size), max(start, 0))
        inside.append(slice(first - start, stop - start))
        there.append(slice(first, stop))
    return tuple(inside), tuple(there)


def phased(value: Array, stride: Size) -> Array:
    """``(a, b, c, *(n * s))`` as ``(a, b, c * phases, *n)``."""
    if set(stride) == {1}:
        return value
    ndim, lead = len(stride), value.shape[:3]
    sizes = tuple(n // s for n, s in zip(value.shape[3:], stride, strict=True))
    split = value.reshape(*lead, *itertools.chain(*zip(sizes, stride, strict=True)))
    order = (0, 1, 2, *(4 + 2 * i for i in range(ndim)), *(3 + 2 * i for i in range(ndim)))
    return split.transpose(order).reshape(*lead[:2], lead[2] * math.prod(stride), *sizes)


def interleaved(value: Array, stride: Size) -> Array:
    """The inverse of `phased`."""
    if set(stride) == {1}:
        return value
    ndim, sizes = len(stride), value.shape[3:]
    channels = value.shape[2] // math.prod(stride)
    split = value.reshape(*value.shape[:2], channels, *stride, *sizes)
    order = (0, 1, 2, *itertools.chain(*((3 + ndim + i, 3 + i) for i in range(ndim))))
    whole = tuple(n * s for n, s in zip(sizes, stride, strict=True))
    return split.transpose(order).reshape(*value.shape[:2], channels, *whole)
