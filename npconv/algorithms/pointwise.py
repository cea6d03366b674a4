"""Pointwise (1x1) convolution: the image already is the matrix of its patches, so one matrix product is all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from npconv.algorithms.base import Work, image_shape
from npconv.algorithms.direct import Direct
from npconv.algorithms.im2col import Im2col
from npconv.arrays import Array, Backend
from npconv.geometry import ConvSpec
from npconv.runners import Runner


class Pointwise(Im2col):
    """im2col without the copy. See `npconv.algorithms.base.Algorithm`."""

    name = "pointwise"
    before_matmul = ""

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        if spec.is_pointwise:
            return None
        kernel, padding = spec.window.kernel, spec.window.padding
        return f"a pointwise convolution has a 1x1 kernel and no padding, here {kernel} and {padding}"

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        return Work(spec.flops, spec.bytes(itemsize), 0)

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        return Direct().details(spec, op, backend, dtype, reused)

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Any:
        return Direct().pack(spec, backend, w, reused)

    def seconds(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool) -> float:
        if backend.kernels is None:
            return super().seconds(spec, op, backend, dtype, reused)
        return Direct().seconds(spec, op, backend, dtype, reused)

    def forward(
        self, spec: ConvSpec, backend: Backend, x: Array, packed: Any, bias: Array | None, activation: str | None
    ) -> Array:
        if backend.kernels is None:
            return super().forward(spec, backend, x, packed, bias, activation)
        return Direct().forward(spec, backend, x, packed, bias, activation)

    def prepare(self, spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner | None:
        return Direct().prepare(spec, backend, dtype, activation)

    def prepare_gradient(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], limit: int
    ) -> Runner | None:
        return Direct().prepare_gradient(spec, op, backend, dtype, limit)

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        if backend.kernels is None:
            return super().input_grad(spec, backend, dy, w)
        return Direct().input_grad(spec, backend, dy, w)

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        if backend.kernels is None:
            return super().weight_grad(spec, backend, x, dy)
        return Direct().weight_grad(spec, backend, x, dy)

    def columns(self, spec: ConvSpec, backend: Backend, x: Array) -> Array:
        ((_, seen, _),) = spec.window.tap_slices()
        channels = spec.in_channels // spec.groups
        return x[..., *seen].reshape(x.shape[0], spec.groups, channels, spec.window.positions)

    def image(self, spec: ConvSpec, backend: Backend, columns: Array) -> Array:
        ((_, seen, _),) = spec.window.tap_slices()
        values = columns.reshape(columns.shape[0], spec.in_channels, *spec.window.out)
        if math.prod(spec.window.out) == math.prod(spec.window.size):
            return values
        x = backend.xp.zeros((columns.shape[0], *image_shape(spec)[1:]), columns.dtype)
        x[..., *seen] = values
        return x
