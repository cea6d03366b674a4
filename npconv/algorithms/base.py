"""What an algorithm is: a name, what it cannot do and why, what it costs, and the three operations.

Convolution is bilinear, so there are exactly three operations, and a transposed convolution is one of them:

- ``forward(x, pack(w)) -> y``, with bias and activation applied to the result;
- ``input_grad(dy, w) -> dx``, the transpose in x (without conjugation);
- ``weight_grad(x, dy) -> dw``, the transpose in w (without conjugation).

Arrays are ``(N, C, *spatial)``, contiguous and of one dtype; the padding is zeros; the spec describes all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from npconv.arrays import Array, Backend
from npconv.geometry import ConvSpec
from npconv.runners import Runner

OPERATIONS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Work:
    """What running an algorithm takes: arithmetic, memory traffic and memory beyond operands and result."""

    flops: int
    bytes: int
    workspace: int


class Algorithm(Protocol):
    """One way to compute a convolution and its two gradients."""

    name: str

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        """None, or the reason why this algorithm cannot run in `dtype` (None: in any), as a sentence."""

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        """What running it takes."""

    def kernel(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> str:
        """Name of what does the work in `dtype`."""

    def seconds(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool) -> float:
        """Predicted time of a call on one thread; `reused` leaves the time of `pack` out."""

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        """How it does it, as pairs of a word and a phrase that a plan prints: tiles, blocks, sizes of transforms."""

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Any:
        """The weights as `forward` wants them, for one call or to be `reused`. May share memory with `w`."""

    def forward(
        self, spec: ConvSpec, backend: Backend, x: Array, packed: Any, bias: Array | None, activation: str | None
    ) -> Array:
        """``y = activation(x * w + bias)``, shape ``(N, C_out, *out)``, with weights from `pack`."""

    def prepare(self, spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner | None:
        """`forward` made ready for many calls, as ``run(x, packed, bias, y)``; None where that would gain nothing.

        Nothing of the arrays is looked at but their addresses, so batch axes may be missing. It takes the number of
        threads as `limit`, by default what `npconv.get_num_threads` says.
        """

    def prepare_gradient(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], limit: int
    ) -> Runner | None:
        """`input_grad` or `weight_grad` made ready for many calls on `limit` threads, as ``run(a, b, result)``.

        None where that would gain nothing.
        """

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        """``dx``, shape ``(N, C_in, *size)``."""

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        """``dw``, shape ``(C_out, C_in / groups, *kernel)``."""


def image_shape(spec: ConvSpec) -> tuple[int, ...]:
    """Shape of the input as algorithms see it."""
    return (spec.batch, spec.in_channels, *spec.window.size)


def result_shape(spec: ConvSpec) -> tuple[int, ...]:
    """Shape of the output as algorithms see it."""
    return (spec.batch, spec.out_channels, *spec.window.out)


def grouped(spec: ConvSpec, value: Array) -> Array:
    """Channels split into groups: ``(N, C, *spatial)`` becomes ``(N, groups, C / groups, *spatial)``."""
    return value.reshape(value.shape[0], spec.groups, value.shape[1] // spec.groups, *value.shape[2:])


def grouped_weights(spec: ConvSpec, w: Array) -> Array:
    """Output channels split into groups: ``(C_out, C, *kernel)`` becomes ``(groups, C_out / groups, C, taps)``."""
    return w.reshape(spec.groups, spec.out_channels // spec.groups, w.shape[1], spec.window.taps)


def is_narrow(elements: int, spec: ConvSpec) -> bool:
    """Whether a matrix product whose weights have `elements` in all groups is too small a group to run at speed."""
    return elements // spec.groups < 64


def largest(backend: Backend, value: Array) -> float:
    """Largest magnitude of a real or imaginary part; not finite where an element is not. On a GPU it is waited for."""
    if not value.size:
        return 0.0
    if backend.kernels is not None:
        return float(backend.kernels.largest(value.view(value.real.dtype)))
    parts = value.view(value.real.dtype)
    return max(float(parts.max()), -float(parts.min()))


def is_tame(dtype: np.dtype[Any], growth: float, *magnitudes: float) -> bool:
    """Whether operands of these magnitudes may be transformed before they are multiplied.

    A transform mixes elements, so NaN and infinity would reach results that the definition keeps them from, and sums
    may overflow that the definition does not form. `growth` bounds how much larger than the product of the magnitudes,
    or than one of them, a number becomes on its way.
    """
    limit = float(np.finfo(dtype).max) / growth
    return all(m < limit for m in magnitudes) and math.prod(magnitudes) < limit


def is_turnable(spec: ConvSpec) -> bool:
    """Whether the input gradient is a convolution of the same kind: at stride 1, with padding within the kernel."""
    window = spec.window
    within = all(max(pair) <= reach for pair, reach in zip(window.padding, window.reach, strict=True))
    return within and set(window.stride) == {1}


def turned(spec: ConvSpec) -> ConvSpec:
    """The convolution that is this one's input gradient, for a spec that `is_turnable`."""
    window = spec.window
    padding = tuple((reach - lo, reach - hi) for reach, (lo, hi) in zip(window.reach, window.padding, strict=True))
    return replace(
        spec,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        window=replace(window, size=window.out, padding=padding),
    )
