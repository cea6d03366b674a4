"""FFT convolution: blocks of the image times the kernels' spectra, so that the work hardly grows with the kernel.

Everything is one problem, a correlation without padding at stride 1 of a *source* with a *kernel*:

- Strides are phases. Every s-th sample is a channel of its own, so that a convolution of C channels at stride s becomes
  one of ``C * s`` channels at stride 1, in which nothing is computed that is not kept.
- The input gradient correlates the gradient with the turned kernels, and its phases are interleaved again.
- The weight gradient correlates blocks of both; their spectra are summed and transformed back once.

Blocks overlap by what the kernel reaches (overlap-save: of each circular correlation the part without wrap-around is
kept), so results are written once and memory is bounded by the block. An axis on which the kernel reaches nowhere is
not transformed; its samples are more of a batch.

Transforms are `xp.fft`, scaled "ortho": besides keeping magnitudes in the middle of the range, this is what NumPy 2.4
is fast at. Its complex64 transforms without a factor took 5 to 10 times as long (64x64: 28 ns an element against 3).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.fft  # NumPy would load it at the first transform, where too little memory for that is an ImportError

from npconv.algorithms.base import Runner, Work, image_shape, is_tame, largest, result_shape
from npconv.algorithms.direct import Direct
from npconv.arrays import Array, Backend
from npconv.epilogue import finish
from npconv.geometry import ConvSpec, Size
from npconv.machine import GPU_SPEEDUP, LAUNCH

STEP = 8 * 2**20
"""Bytes of blocks and spectra that are in work at once, unless one block of one group needs more."""

BLOCK = 64 * 2**20
"""Bytes that one block of one group may take where a smaller one is possible."""

IN_FLIGHT = 64 * 2**20
"""Bytes that the steps of several threads may take together, unless one step needs more."""

# Products of spectra with fewer multiplications a frequency are sums of images; with more, a matrix product pays for
# the transposes before and after it (4 x 4 channels: 8 against 6 GFLOP/s; 8 x 8: 6 against 26).
FEWEST_FOR_MATMUL = 32

# Whether NumPy's transforms take the memory for their result.
_OUT = int(np.__version__.partition(".")[0]) >= 2

# What one core of an AMD EPYC (Zen 3) takes with NumPy 2.4, in seconds: a floating-point operation of a transform, of a
# product of images, of a matrix product in float32; a one-dimensional transform, a matrix product, a block and a step
# besides; a byte that is moved, and one that is transposed.
_TRANSFORM, _MULTIPLY, _MATMUL = 1 / 12e9, 1 / 10e9, 1 / 45e9
_LINE, _MATRIX, _RUN, _STEP = 80e-9, 500e-9, 8e-6, 50e-6
_BYTE, _TRANSPOSED_BYTE = 0.1e-9, 0.4e-9


@dataclass(frozen=True)
class Blocks:
    """How one operation is cut up. `inner` and `outer` are the channels of a group, phases included, that are summed
    over and that are produced; `out` and `reach` count samples of a phase.

    Attributes
    ----------
    length : tuple of int
        Samples of a block per axis, the size of its transform.
    kept : tuple of int
        Samples of the result that a block gives per axis.
    count : tuple of int
        Number of blocks per axis.
    images, groups_at_once : int
        How many (block, image) pairs and how many groups are in work together.
    """

    batch: int
    groups: int
    inner: int
    outer: int
    out: Size
    reach: Size
    length: Size
    images: int = 1
    groups_at_once: int = 1

    @property
    def kept(self) -> Size:
        return tuple(n - r for n, r in zip(self.length, self.reach, strict=True))

    @property
    def count(self) -> Size:
        return tuple(-(-n // k) for n, k in zip(self.out, self.kept, strict=True))

    @property
    def pairs(self) -> int:
        """Blocks of all images."""
        return self.batch * math.prod(self.count)

    @property
    def steps(self) -> int:
        return -(-self.pairs // self.images) * -(-self.groups // self.groups_at_once)

    @property
    def axes(self) -> Size:
        """The axes that are transformed."""
        return tuple(i for i, r in enumerate(self.reach) if r)

    @property
    def transform(self) -> int:
        """Samples of one transform."""
        return math.prod(self.length[i] for i in self.axes)

    @property
    def rows(self) -> int:
        """Transforms of one channel of one block."""
        return math.prod(n for n, r in zip(self.length, self.reach, strict=True) if not r)

    @property
    def frequencies(self) -> int:
        """Frequencies of one real transform."""
        last = self.length[self.axes[-1]]
        return self.transform // last * (last // 2 + 1)

    @property
    def by_matmul(self) -> bool:
        return self.inner * self.outer >= FEWEST_FOR_MATMUL

    @property
    def transforms(self) -> int:
        """Number of transforms, of blocks and of kernels."""
        channels = self.groups * (self.inner + self.outer) * self.pairs * self.rows
        return channels + self.groups * self.inner * self.outer

    @property
    def lines(self) -> int:
        """One-dimensional transforms in one."""
        *others, last = (self.length[i] for i in self.axes)
        return self.transform // last + sum(self.frequencies // n for n in others)

    @property
    def transform_flops(self) -> int:
        """2.5 n log2(n) for each real transform, as is usual."""
        return int(2.5 * self.transform * math.log2(self.transform) * self.transforms)

    @property
    def product_flops(self) -> int:
        return 8 * self.groups * self.inner * self.outer * self.frequencies * self.rows * self.pairs

    def spectra(self, itemsize: int) -> int:
        """Bytes of the kernels' spectra."""
        return 2 * itemsize * self.groups * self.inner * self.outer * self.frequencies

    def pair(self, itemsize: int) -> int:
        """Bytes in work for one block of one group: the spectra of both sides, and two copies of the larger."""
        channels = self.inner + self.outer + 2 * max(self.inner, self.outer)
        return 2 * itemsize * channels * self.frequencies * self.rows

    def step(self, itemsize: int) -> int:
        """Bytes in work for one step."""
        return self.pair(itemsize) * self.images * self.groups_at_once

    def at_a_time(self, itemsize: int) -> int:
        """Most steps that may run side by side."""
        return max(1, min(self.steps, IN_FLIGHT // self.step(itemsize)))

    def seconds(self, itemsize: int) -> float:
        """About how long it takes on one core."""
        wide = itemsize / 4  # which halves vectors
        samples = 2 * itemsize * self.groups * (self.inner + self.outer) * self.frequencies * self.rows * self.pairs
        seconds = self.lines * self.transforms * _LINE + self.transform_flops * _TRANSFORM * math.sqrt(wide)
        seconds += 2 * samples * _BYTE + self.steps * _STEP + math.prod(self.count) * _RUN
        if not self.by_matmul:
            return seconds + self.product_flops * _MULTIPLY * wide
        passes = -(-self.pairs // self.images)
        seconds += self.product_flops * _MATMUL * wide + passes * self.groups * self.frequencies * _MATRIX
        return seconds + (samples + self.spectra(itemsize)) * _TRANSPOSED_BYTE + passes * self.spectra(itemsize) * _BYTE


class Fft:
    """See `npconv.algorithms.base.Algorithm`."""

    name = "fft"

    def __init__(self) -> None:
        # Where there is nothing to transform, or what the transforms would spoil.
        self.otherwise = Direct()

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        if dtype is not None and dtype.kind not in "fc":
            return f"an FFT rounds, and sums of {dtype} are exact"
        if not any(_reach(spec)):
            kernel, stride = spec.window.kernel, spec.window.stride
            return f"windows that do not overlap have nothing to transform, here kernel {kernel} at stride {stride}"
        return None

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        if is_trivial(spec):
            return self.otherwise.cost(spec, op, itemsize)
        blocks = blocks_for(spec, op, itemsize)
        work = blocks.step(itemsize) * (1 if op == "weight_grad" else blocks.at_a_time(itemsize))
        # Kernels are laid out, and transformed, a few at a time; weight gradients of a step are summed up.
        kernels = blocks.spectra(itemsize) * (2 if op == "weight_grad" else 1) + _kernel_chunk(blocks, itemsize)[1]
        return Work(blocks.transform_flops + blocks.product_flops, spec.bytes(itemsize), kernels + work)

    def kernel(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> str:
        return "fft"

    def seconds(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool) -> float:
        if is_trivial(spec):
            return self.otherwise.seconds(spec, op, backend, dtype, reused)
        seconds = blocks_for(spec, op, dtype.itemsize).seconds(dtype.itemsize)
        return seconds / GPU_SPEEDUP.get(backend.name, 1) + LAUNCH[backend.name]

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        if is_trivial(spec):
            return self.otherwise.details(spec, op, backend, dtype, reused)
        blocks = blocks_for(spec, op, dtype.itemsize)
        length, kept = ("x".join(map(str, sizes)) for sizes in (blocks.length, blocks.kept))
        return (("blocks", f"{blocks.pairs} transforms of {length}, {kept} of each kept, {blocks.images} at once"),)

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Packed:
        if is_trivial(spec):
            return Packed(w, None, 0.0)
        return Packed(w, kernel_spectra(spec, backend, w, "forward"), largest(backend, w))

    def forward(
        self, spec: ConvSpec, backend: Backend, x: Array, packed: Packed, bias: Array | None, activation: str | None
    ) -> Array:
        if packed.spectra is None or not _is_tame(spec, backend, "forward", x, packed.largest):
            return self.otherwise.forward(spec, backend, x, packed.w, bias, activation)
        y = backend.xp.empty(result_shape(spec), x.dtype)
        low = tuple(lo for lo, _ in spec.window.padding)
        correlate(
            backend, blocks_for(spec, "forward", x.dtype.itemsize), packed.spectra,
            Samples(x, low, spec.window.stride), Samples(y, (0,) * spec.ndim, (1,) * spec.ndim),
        )  # fmt: skip
        return finish(backend, y, bias, activation)

    def prepare(self, spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner | None:
        return None

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        if is_trivial(spec) or not _is_tame(spec, backend, "input_grad", dy, largest(backend, w)):
            return self.otherwise.input_grad(spec, backend, dy, w)
        dx = backend.xp.zeros(image_shape(spec), dy.dtype)
        first, _ = _reached(spec)
        low = tuple(lo - p * s for (lo, _), p, s in zip(spec.window.padding, first, spec.window.stride, strict=True))
        before = tuple(r - p for r, p in zip(_reach(spec), first, strict=True))
        correlate(
            backend, blocks_for(spec, "input_grad", dy.dtype.itemsize), kernel_spectra(spec, backend, w, "input_grad"),
            Samples(dy, before, (1,) * spec.ndim), Samples(dx, low, spec.window.stride),
        )  # fmt: skip
        return dx

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        if is_trivial(spec) or not _is_tame(spec, backend, "weight_grad", x, largest(backend, dy)):
            return self.otherwise.weight_grad(spec, backend, x, dy)
        blocks = blocks_for(spec, "weight_grad", x.dtype.itemsize)
        low = tuple(lo for lo, _ in spec.window.padding)
        image = Samples(x, low, spec.window.stride)
        return kernels_of(spec, backend, blocks, summed_products(backend, blocks, image, dy), x.dtype)


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights as `Fft.forward` takes them: themselves, their spectra, and their largest magnitude."""

    w: Array
    spectra: Array | None
    largest: float


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
    extent = tuple((r + 1) * s for r, s in zip(_reach(spec), stride, strict=True))
    if extent == window.kernel and set(stride) == {1}:
        return w
    spread = backend.xp.zeros((*w.shape[:3], *extent), w.dtype)
    spread[..., *(slice(0, r + 1, d) for r, d in zip(window.reach, window.dilation, strict=True))] = w
    return phased(spread, stride)


def _kernel_chunk(blocks: Blocks, itemsize: int) -> tuple[int, int]:
    """How many kernels (pairs of channels) are transformed together, and the bytes that this takes."""
    # Spread and phased, spectra, and what a transform over several axes copies.
    one = 2 * itemsize * 4 * blocks.frequencies
    most = blocks.groups * blocks.inner * blocks.outer
    # Whole rows of pairs: at least those of one channel of the result.
    row = max(blocks.inner, blocks.outer)
    chunk = min(most, max(row, STEP // one))
    return chunk, chunk * one


def _kernel_chunks(spec: ConvSpec, blocks: Blocks, op: str, itemsize: int) -> Iterator[tuple[slice, slice, Any]]:
    """Groups and output channels of the weights in parts, and where their spectra lie."""
    chunk, _ = _kernel_chunk(blocks, itemsize)
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


# --------------------------------------------------------------------------------------------------------------------
# Geometry
# --------------------------------------------------------------------------------------------------------------------


def error_bound(spec: ConvSpec, op: str, a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
    """How far each element computed in `dtype` may be from the exact one; derived in docs/accuracy.md.

    Parameters
    ----------
    spec : ConvSpec
        One that `Fft` supports.
    op : str
    a, b : numpy.ndarray
        As for `npconv.planning.Plan.run`: ``(x, w)``, ``(dy, w)`` or ``(x, dy)``; channels first, with a batch.
    dtype : numpy.dtype
        Of real or complex floating-point numbers.

    Returns
    -------
    numpy.ndarray
        In float64, of the result's shape, without a bias.
    """
    blocks = blocks_for(spec, op, np.dtype(dtype).itemsize)
    terms = blocks.pairs * blocks.rows if op == "weight_grad" else blocks.inner
    lost = (12 * math.log2(blocks.transform) + terms + 4) * float(np.finfo(dtype).eps)
    space = tuple(range(2, a.ndim))
    first, last = np.abs(a).astype(np.float64), np.abs(b).astype(np.float64)
    kernels = (spec.groups, spec.out_channels // spec.groups, -1)
    if op == "weight_grad":
        norms = np.sqrt((first**2).sum(space)).reshape(len(a), spec.groups, -1)
        sums = last.sum(space).reshape(len(a), *kernels[:2])
        bound = np.einsum("ngm,ngc->gmc", sums, norms).reshape(spec.w_shape[:2])
        shape = spec.w_shape
    else:
        norms = np.sqrt((first**2).sum(space)).reshape(len(a), spec.groups, -1)
        sums = last.sum(space).reshape(kernels)
        forward = op == "forward"
        bound = np.einsum("gmc,ngc->ngm" if forward else "gmc,ngm->ngc", sums, norms).reshape(len(a), -1)
        shape = result_shape(spec) if forward else image_shape(spec)
    return np.broadcast_to(lost * bound.reshape(*bound.shape, *(1,) * spec.ndim), shape)


def is_trivial(spec: ConvSpec) -> bool:
    """Whether there is nothing to sum, to write or to transform."""
    return not (spec.batch and spec.in_channels and spec.out_channels and all(spec.window.size) and any(_reach(spec)))


def _is_tame(spec: ConvSpec, backend: Backend, op: str, source: Array, factor: float) -> bool:
    """Whether the transforms keep what the definition says: NaN and infinity would spread over their whole block."""
    blocks = blocks_for(spec, op, source.dtype.itemsize)
    terms = blocks.inner if op != "weight_grad" else blocks.pairs * blocks.rows
    return is_tame(source.dtype, 4.0 * terms * blocks.transform**2, largest(backend, source), factor)


def _reach(spec: ConvSpec) -> Size:
    """Distance from a kernel's first to its last tap, in samples of a phase."""
    return tuple(r // s for r, s in zip(spec.window.reach, spec.window.stride, strict=True))


def _reached(spec: ConvSpec) -> tuple[Size, Size]:
    """First sample of the input's phases, padding included, that a gradient is wanted of, and how many there are."""
    window = spec.window
    first = tuple(lo // s for (lo, _), s in zip(window.padding, window.stride, strict=True))
    last = tuple(
        min((lo + n - 1) // s, out - 1 + r)
        for (lo, _), n, s, out, r in zip(
            window.padding, window.size, window.stride, window.out, _reach(spec), strict=True
        )
    )
    return first, tuple(max(0, b - a + 1) for a, b in zip(first, last, strict=True))


def blocks_for(spec: ConvSpec, op: str, itemsize: int) -> Blocks:
    """The blocks that an operation is cut into."""
    return _blocks_for(spec, op, itemsize, STEP, BLOCK)


@functools.lru_cache(maxsize=1024)
def _blocks_for(spec: ConvSpec, op: str, itemsize: int, step: int, most: int) -> Blocks:
    phases = math.prod(spec.window.stride)
    inner, outer = spec.in_channels // spec.groups * phases, spec.out_channels // spec.groups
    out, reach = spec.window.out, _reach(spec)
    if op == "input_grad":
        inner, outer, out = outer, inner, _reached(spec)[1]
    best: Blocks | None = None
    for length in _lengths(out, reach):
        blocks = Blocks(spec.batch, spec.groups, inner, outer, out, reach, length)
        blocks = _together(_with_fewer_rows(blocks, itemsize, most), itemsize, step)
        if best is not None and blocks.pair(itemsize) > most:
            break
        if best is None or blocks.seconds(itemsize) < best.seconds(itemsize):
            best = blocks
    assert best is not None
    return best


def _lengths(out: Size, reach: Size) -> Iterator[Size]:
    """Sizes of blocks from a little more than the kernel's up to the whole image's."""
    whole = tuple(fast_length(n + r) if r else max(n, 1) for n, r in zip(out, reach, strict=True))
    factor, last = 1.25, None
    while last != whole:
        length = tuple(
            min(w, _even(n, r, math.ceil(factor * (r + 1)))) if r else w
            for n, r, w in zip(out, reach, whole, strict=True)
        )
        if length != last:
            yield length
        factor, last = factor * 1.5, length


def _even(out: int, reach: int, length: int) -> int:
    """A fast length of about `length` whose blocks come out even."""
    kept = max(1, length - reach)
    count = max(1, round(out / kept))
    return fast_length(-(-out // count) + reach)


def _with_fewer_rows(blocks: Blocks, itemsize: int, most: int) -> Blocks:
    """Axes that are not transformed are cut until a block is small enough."""
    length = list(blocks.length)
    while blocks.pair(itemsize) > most and blocks.rows > 1:
        widest = max((i for i, r in enumerate(blocks.reach) if not r), key=lambda i: length[i])
        length[widest] = -(-length[widest] // 2)
        blocks = Blocks(
            blocks.batch, blocks.groups, blocks.inner, blocks.outer, blocks.out, blocks.reach, tuple(length)
        )
    return blocks


def _together(blocks: Blocks, itemsize: int, step: int) -> Blocks:
    """As many groups, then as many images as make a step of the wanted size."""
    room = step // blocks.pair(itemsize)
    groups = max(1, min(blocks.groups, room))
    images = max(1, min(blocks.pairs, room // groups))
    return Blocks(
        blocks.batch, blocks.groups, blocks.inner, blocks.outer, blocks.out, blocks.reach, blocks.length,
        images, groups,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def fast_length(n: int) -> int:
    """The smallest product of 2, 3, 5 and 7 that is at least `n`."""
    best = 1 << max(n - 1, 0).bit_length()
    sevens = 1
    while sevens < best:
        fives = sevens
        while fives < best:
            threes = fives
            while threes < best:
                best = min(best, threes << max(0, (-(-n // threes) - 1).bit_length()))
                threes *= 3
            fives *= 5
        sevens *= 7
    return best
