"""FFT convolution: blocks of the image times the kernels' spectra, so that the work hardly grows with the kernel.

Everything is one problem, a correlation without padding at stride 1 of a *source* with a *kernel*:

- Strides are phases. Every s-th sample is a channel of its own, so that a convolution of C channels at stride s becomes
  one of ``C * s`` channels at stride 1, in which nothing is computed that is not kept.
- The input gradient correlates the gradient with the turned kernels, and its phases are interleaved again.
- The weight gradient correlates blocks of both; their spectra are summed and transformed back once.

Blocks overlap by what the kernel reaches (overlap-save: of each circular correlation the part without wrap-around is
kept), so results are written once and memory is bounded by the block. An axis on which the kernel reaches nowhere is
not transformed; its samples are more of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.algorithms.base import Work, image_shape, is_tame, largest, result_shape
from npconv.algorithms.direct import Direct
from npconv.algorithms.fft_blocks import blocks_for, is_trivial, kernel_chunk, phase_reach, phases_reached
from npconv.algorithms.fft_steps import Samples, correlate, kernel_spectra, kernels_of, summed_products
from npconv.arrays import Array, Backend
from npconv.epilogue import finish
from npconv.geometry import ConvSpec
from npconv.machine import GPU_SPEEDUP, LAUNCH
from npconv.runners import Runner


class Fft:
    """See `npconv.algorithms.base.Algorithm`."""

    name = "fft"

    def __init__(self) -> None:
        # Where there is nothing to transform, or what the transforms would spoil.
        self.otherwise = Direct()

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        if dtype is not None and dtype.kind not in "fc":
            return f"an FFT rounds, and sums of {dtype} are exact"
        if not any(phase_reach(spec)):
            kernel, stride = spec.window.kernel, spec.window.stride
            return f"windows that do not overlap have nothing to transform, here kernel {kernel} at stride {stride}"
        return None

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        if is_trivial(spec):
            return self.otherwise.cost(spec, op, itemsize)
        blocks = blocks_for(spec, op, itemsize)
        work = blocks.step(itemsize) * (1 if op == "weight_grad" else blocks.at_a_time(itemsize))
        # Kernels are laid out, and transformed, a few at a time; weight gradients of a step are summed up.
        kernels = blocks.spectra(itemsize) * (2 if op == "weight_grad" else 1) + kernel_chunk(blocks, itemsize)[1]
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

    def prepare_gradient(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], limit: int
    ) -> Runner | None:
        return None

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        if is_trivial(spec) or not _is_tame(spec, backend, "input_grad", dy, largest(backend, w)):
            return self.otherwise.input_grad(spec, backend, dy, w)
        dx = backend.xp.zeros(image_shape(spec), dy.dtype)
        first, _ = phases_reached(spec)
        low = tuple(lo - p * s for (lo, _), p, s in zip(spec.window.padding, first, spec.window.stride, strict=True))
        before = tuple(r - p for r, p in zip(phase_reach(spec), first, strict=True))
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


def _is_tame(spec: ConvSpec, backend: Backend, op: str, source: Array, factor: float) -> bool:
    """Whether the transforms keep what the definition says: NaN and infinity would spread over their whole block."""
    blocks = blocks_for(spec, op, source.dtype.itemsize)
    terms = blocks.inner if op != "weight_grad" else blocks.pairs * blocks.rows
    return is_tame(source.dtype, 4.0 * terms * blocks.transform**2, largest(backend, source), factor)
