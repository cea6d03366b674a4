"""Direct convolution: a sum over kernel taps, with no matrix of patches and no padded copy in memory.

On `xp` every tap is one product of its weights, ``(C_out, C)``, with the part of the image under it. The numba backend
has its own loops, which read the image in place, a row at a time.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from npconv.algorithms.base import (
    Work,
    grouped,
    grouped_weights,
    image_shape,
    is_narrow,
    is_turnable,
    result_shape,
    turned,
)
from npconv.algorithms.rates import rates_of
from npconv.algorithms.tile_times import forward_seconds
from npconv.arrays import Array, Backend, flatten
from npconv.epilogue import finish
from npconv.geometry import ConvSpec
from npconv.machine import predicted_seconds
from npconv.runners import ByWeights, Runner


class Direct:
    """See `npconv.algorithms.base.Algorithm`."""

    name = "direct"

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        return None

    def portable_kernel(self, spec: ConvSpec) -> str:
        """Name of the work on `xp`."""
        return "narrow_matmul" if is_narrow(spec.parameters // spec.window.taps, spec) else "matmul_per_tap"

    def cost(self, spec: ConvSpec, op: str, itemsize: int) -> Work:
        return Work(spec.flops, spec.bytes(itemsize), 0)

    def kernel(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> str:
        if backend.kernels is None:
            return self.portable_kernel(spec)
        if not backend.kernels.uses_tiles(dtype):
            return "rows"
        on_tensor_cores = backend.name == "cupy" and backend.kernels.uses_tensor_cores(spec, dtype)
        return "tensor_tiles" if on_tensor_cores else "tiles"

    def seconds(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool) -> float:
        work, kernel = self.cost(spec, op, dtype.itemsize), self.kernel(spec, op, backend, dtype)
        same = spec if op == "forward" else turned(spec) if op == "input_grad" and is_turnable(spec) else None
        if same is not None and (backend.name, kernel) == ("numba", "tiles"):
            kernels: Any = backend.kernels
            forward = op == "forward" and not spec.is_pointwise
            panels = forward and (takes_panels(spec, backend, dtype) if reused else kernels.lays_out(spec, dtype))
            shallow = forward and not panels and kernels.is_shallow(spec, dtype)
            return forward_seconds(rates_of(backend), same, dtype.itemsize, reused, panels, shallow)
        return predicted_seconds(backend.name, kernel, work.flops, work.bytes)

    def details(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
    ) -> tuple[tuple[str, str], ...]:
        if op != "forward" or backend.kernels is None or self.kernel(spec, op, backend, dtype) == "rows":
            return ()
        kernels: Any = backend.kernels
        panels = reused and takes_panels(spec, backend, dtype)
        found: tuple[tuple[str, str], ...] = (kernels.panel_details if panels else kernels.details)(spec, dtype)
        return found

    def pack(self, spec: ConvSpec, backend: Backend, w: Array, reused: bool) -> Any:
        if reused and takes_panels(spec, backend, w.dtype):
            kernels: Any = backend.kernels
            return kernels.weight_panels(spec, w)
        return w

    def forward(
        self, spec: ConvSpec, backend: Backend, x: Array, packed: Any, bias: Array | None, activation: str | None
    ) -> Array:
        xp = backend.xp
        if isinstance(packed, tuple):
            kernels: Any = backend.kernels
            y = xp.empty(result_shape(spec), x.dtype)
            kernels.panel_runner(spec, x.dtype, activation)(x, packed, bias, y)
            return y
        if not (backend.kernels is not None and backend.kernels.uses_tiles(x.dtype)):
            # Tiles write the padding down themselves.
            spec, x = explicit_zeros(spec, backend, x, packed)
        if backend.kernels is not None:
            y = xp.empty(result_shape(spec), x.dtype)
            backend.kernels.conv_forward(spec, x, packed, bias, activation, y)
            return y
        y = xp.zeros(result_shape(spec), x.dtype)
        images, outputs, weights = grouped(spec, x), grouped(spec, y), grouped_weights(spec, packed)
        for tap, inp, out in spec.window.tap_slices():
            outputs[..., *out] += self.product(backend, weights[..., tap], images[..., *inp])
        return finish(backend, y, bias, activation)

    def prepare(self, spec: ConvSpec, backend: Backend, dtype: np.dtype[Any], activation: str | None) -> Runner | None:
        if backend.kernels is None or not backend.kernels.uses_tiles(dtype):
            return None
        kernels: Any = backend.kernels
        if not takes_panels(spec, backend, dtype):
            straight: Runner = kernels.runner(spec, dtype, activation)
            return straight
        # Whether weights come in panels is seen when they come; the other form's loops need not be compiled.
        plain: Any = functools.cache(lambda: kernels.runner(spec, dtype, activation))
        panels: Any = functools.cache(lambda: kernels.panel_runner(spec, dtype, activation))
        return ByWeights(lambda packed: (panels if isinstance(packed, tuple) else plain)())

    def prepare_gradient(
        self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], limit: int
    ) -> Runner | None:
        kernels: Any = backend.kernels
        if backend.name != "numba" or not kernels.uses_tiles(dtype):
            return None
        if op == "weight_grad":
            runner: Runner = kernels.weight_grad_runner(spec, dtype, limit)
            return runner
        run = kernels.input_grad_runner(spec, dtype, limit)

        def input_grad(dy: Array, w: Array, dx: Array) -> None:
            if not run(dy, w, dx):
                kernels.conv_input_grad(spec, dy, w, dx)

        return input_grad

    def input_grad(self, spec: ConvSpec, backend: Backend, dy: Array, w: Array) -> Array:
        xp = backend.xp
        if backend.kernels is not None:
            dx = xp.empty(image_shape(spec), dy.dtype)
            backend.kernels.conv_input_grad(spec, dy, w, dx)
            return dx
        dx = xp.zeros(image_shape(spec), dy.dtype)
        images, outputs, weights = grouped(spec, dx), grouped(spec, dy), grouped_weights(spec, w)
        for tap, inp, out in spec.window.tap_slices():
            images[..., *inp] += self.product(backend, weights[..., tap].swapaxes(1, 2), outputs[..., *out])
        return dx

    def weight_grad(self, spec: ConvSpec, backend: Backend, x: Array, dy: Array) -> Array:
        xp = backend.xp
        if not (backend.kernels is not None and backend.kernels.uses_tiles(x.dtype)):
            spec, x = explicit_zeros(spec, backend, x, dy)
        if backend.kernels is not None:
            dw = xp.empty(spec.w_shape, x.dtype)
            backend.kernels.conv_weight_grad(spec, x, dy, dw)
            return dw
        dw = xp.zeros(spec.w_shape, x.dtype)
        images, outputs, weights = grouped(spec, x), grouped(spec, dy), grouped_weights(spec, dw)
        for tap, inp, out in spec.window.tap_slices():
            weights[..., tap] = self.correlation(backend, outputs[..., *out], images[..., *inp])
        return dw

    def product(self, backend: Backend, w: Array, part: Array) -> Array:
        """``(G, M, K)`` times ``(N, G, K, *spatial)``: one matrix product over all positions."""
        y = backend.xp.matmul(w, flatten(part, 3))
        return y.reshape(*part.shape[:2], w.shape[1], *part.shape[3:])

    def correlation(self, backend: Backend, dy: Array, part: Array) -> Array:
        """``(N, G, M, *spatial)`` with ``(N, G, K, *spatial)``, summed over batch and positions: ``(G, M, K)``."""
        left = flatten(dy.swapaxes(0, 1).swapaxes(1, 2), 2)
        right = flatten(part.swapaxes(0, 1).swapaxes(1, 2), 2)
        return backend.xp.matmul(left, right.swapaxes(1, 2))


def takes_panels(spec: ConvSpec, backend: Backend, dtype: np.dtype[Any]) -> bool:
    """Whether weights that are reused are worth laying out."""
    kernels: Any = backend.kernels
    return backend.name == "numba" and bool(kernels.takes_panels(spec, dtype))


def explicit_zeros(spec: ConvSpec, backend: Backend, x: Array, factor: Array) -> tuple[ConvSpec, Array]:
    """Write the padding down where what it meets is not finite: zero times infinity is NaN, and cannot be left out.

    On a GPU the question alone would wait for the device, so there the padding counts as absent.
    """
    if not spec.window.has_padding or factor.dtype.kind not in "fc" or backend.name == "cupy":
        return spec, x
    if backend.xp.isfinite(factor).all():
        return spec, x
    return spec.without_padding(), backend.xp.pad(x, ((0, 0), (0, 0), *spec.window.padding))
