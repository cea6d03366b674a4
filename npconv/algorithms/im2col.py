"""im2col: the patches under all window positions as one matrix, and the convolution as one matrix product per group.

The matrix is `taps` times as large as the image, so a large batch is worked through in parts that fit `WORKSPACE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from npconv.algorithms.base import Work, grouped_weights, image_shape, is_narrow, result_shape
from npconv.arrays import Array, Backend, flatten
from npconv.epilogue import finish
from npconv.geometry import ConvSpec
from npconv.machine import predicted_seconds
from npconv.patches import columns_of, image_of
from npconv.runners import Runner

WORKSPACE = 64 * 2**20
"""Bytes of columns that are held at once, unless a single image needs more."""


class Im2col:
    """See `npconv.algorithms.base.Algorithm`."""

    name = "im2col"
    before_matmul = "unfold_"

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        return None

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        one = spec.in_channels * spec.window.taps * spec.window.positions * itemsize
        # Columns are written once and read once.
        return Work(spec.flops, spec.bytes(itemsize) + 2 * spec.batch * one, one * images_at_once(spec, itemsize))

    def kernel(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> str:
        if backend.kernels is None:
            return "narrow_matmul" if is_narrow(spec.parameters, spec) else f"{self.before_matmul}matmul"
        return f"{self.before_matmul}{'tiles' if backend.kernels.multiplies_on_tiles(spec, op, dtype) else 'rows'}"

    def seconds(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool) -> float:
        work, kernel = self.cost(spec, op, dtype.itemsize), self.kernel(spec, op, backend, dtype)
        # Rates are those of float32: vectors hold half as many of the other, which `tile_times` knows too.
        flops = work.flops * dtype.itemsize // 4 if kernel == "unfold_tiles" and op == "forward" else work.flops
        return predicted_seconds(backend.name, kernel, flops, work.bytes)

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        depth = spec.in_channels // spec.groups * spec.window.taps
        groups = f", {spec.groups} groups" if spec.groups > 1 else ""
        images = images_at_once(spec, dtype.itemsize)
        return (("blocks", f"{images} of {spec.batch} images at once, {depth} x {spec.window.positions}{groups}"),)

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Array:
        return w

    def forward(
        self, spec: ConvSpec, backend: Backend, x: Array, packed: Array, bias: Array | None, activation: str | None
    ) -> Array:
        y = backend.xp.empty(result_shape(spec), x.dtype)
        weights = flatten(grouped_weights(spec, packed), 2)
        for part in batches(spec, x.dtype.itemsize):
            columns = self.columns(spec, backend, x[part])
            y[part] = backend.matmul(weights, columns).reshape(y[part].shape)
        return finish(backend, y, bias, activation)

    def prepare(self, spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner | None:
        return None

    def prepare_gradient(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], limit: int
    ) -> Runner | None:
        return None

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        dx = backend.xp.empty(image_shape(spec), dy.dtype)
        weights = flatten(grouped_weights(spec, w), 2).swapaxes(1, 2)
        for part in batches(spec, dy.dtype.itemsize):
            dx[part] = self.image(spec, backend, backend.matmul(weights, self.rows(spec, dy[part])))
        return dx

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        dw = backend.xp.zeros(spec.w_shape, x.dtype)
        grad = flatten(grouped_weights(spec, dw), 2)
        for part in batches(spec, x.dtype.itemsize):
            columns, rows = self.columns(spec, backend, x[part]), self.rows(spec, dy[part])
            # Batch and positions become one long axis, which the product sums over.
            left = flatten(rows.transpose(1, 2, 0, 3), 2)
            right = flatten(columns.transpose(1, 2, 0, 3), 2).swapaxes(1, 2)
            grad += backend.matmul(left, right[None])[0]
        return dw

    def columns(self, spec: ConvSpec, backend: Backend, x: Array) -> Array:
        """Patches of `x` as ``(N, groups, C / groups * taps, positions)``."""
        columns = columns_of(backend, spec.window, x)
        depth = spec.in_channels // spec.groups * spec.window.taps
        return columns.reshape(x.shape[0], spec.groups, depth, spec.window.positions)

    def image(self, spec: ConvSpec, backend: Backend, columns: Array) -> Array:
        """The adjoint of `columns`: an image with every patch added where it came from."""
        taps, positions = spec.window.taps, spec.window.positions
        return image_of(backend, spec.window, columns.reshape(columns.shape[0], spec.in_channels, taps, positions))

    def rows(self, spec: ConvSpec, dy: Array) -> Array:
        """A result as ``(N, groups, C_out / groups, positions)``."""
        return dy.reshape(dy.shape[0], spec.groups, spec.out_channels // spec.groups, spec.window.positions)


def images_at_once(spec: ConvSpec, itemsize: int) -> int:
    """How many images' columns fit the workspace; at least one."""
    one = spec.in_channels * spec.window.taps * spec.window.positions * itemsize
    return max(1, min(spec.batch, WORKSPACE // max(one, 1)))


def batches(spec: ConvSpec, itemsize: int) -> Iterator[slice]:
    """The batch in parts whose columns fit the workspace."""
    step = images_at_once(spec, itemsize)
    return (slice(start, start + step) for start in range(0, spec.batch, step))
