"""The CUDA kernels as the algorithms call them: pick the family, make the launch plan, launch it.

Every function takes arrays of the device in C order and of one dtype, reads its operands, and writes all of the array
that it is handed for the result; nothing waits for the device. See docs/gpu.md; none of it is verified on a GPU yet.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.arrays import NARROW
from npconv.config import float32_products
from npconv.geometry import ConvSpec, Window
from npconv.kernels.cuda import depthwise, depthwise_last, implicit_gemm, windows, winograd
from npconv.kernels.cuda.launch import ceil_div, element_name, planar
from npconv.kernels.cuda.loader import architecture, run

WINOGRAD_GUARDS_ITSELF = True
"""Winograd's kernels sum directly where a tile's results are not finite: nobody has to ask for magnitudes before."""


def uses_tiles(dtype: np.dtype[Any]) -> bool:  # noqa: ARG001 - the rooms share one signature
    """Whether operations in a dtype run on register tiles: here all of them do."""
    return True


def uses_tensor_cores(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether the current device multiplies a convolution's operands of this dtype on tensor cores anyway."""
    return not spec.is_depthwise and implicit_gemm.format_of(dtype.name, architecture()) is not None


def multiplies_on_tiles(spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> bool:  # noqa: ARG001 - likewise
    """Whether the matrix product of an operation's columns runs on tiles: those of CuPy's libraries."""
    return True


def conv_forward(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    """``y = activation(x * w + bias)``."""
    if y.size:
        if spec.is_depthwise:
            run(depthwise.forward(spec, x, w, bias, activation, y))
        else:
            run(implicit_gemm.forward(spec, x, w, bias, activation, y, products=_products(x)))


def conv_input_grad(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> None:
    """The gradient in the image."""
    if dx.size:
        if spec.is_depthwise:
            run(depthwise.input_grad(spec, dy, w, dx))
        else:
            run(implicit_gemm.input_grad(spec, dy, w, dx, products=_products(dy)))


def conv_weight_grad(spec: ConvSpec, x: Any, dy: Any, dw: Any) -> None:
    """The gradient in the weights; the same bits in every run."""
    if dw.size:
        if spec.is_depthwise:
            run(*depthwise.weight_grad(spec, x, dy, dw, _cupy().empty))
        else:
            run(*implicit_gemm.weight_grad(spec, x, dy, dw, _cupy().empty, products=_products(x)))


def reads_channels_last(spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> bool:
    """Whether there are kernels for channels-last arrays of a dtype, which then need not be transposed."""
    if spec.is_depthwise:
        return spec.out_channels == spec.in_channels
    # Narrow floats on ordinary arithmetic would need more registers than there are.
    return op != "weight_grad" and (dtype.name not in NARROW or uses_tensor_cores(spec, dtype))


def conv_forward_last(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    """`conv_forward` of channels-last arrays, where `reads_channels_last`; weights are as everywhere."""
    if not y.size:
        return
    if spec.is_depthwise:
        run(depthwise_last.forward(spec, x, _taps_first(spec, w), bias, activation, y))
    else:
        channels_last = w.reshape(*w.shape[:2], spec.window.taps).transpose(0, 2, 1)
        w = _cupy().ascontiguousarray(channels_last)
        run(implicit_gemm.forward(spec, x, w, bias, activation, y, products=_products(x), last=True))


def conv_input_grad_last(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> None:
    """`conv_input_grad` of channels-last arrays."""
    if not dx.size:
        return
    if spec.is_depthwise:
        run(depthwise_last.input_grad(spec, dy, _taps_first(spec, w), dx))
    else:
        grouped = w.reshape(spec.groups, spec.out_channels // spec.groups, w.shape[1], spec.window.taps)
        w = _cupy().ascontiguousarray(grouped.transpose(0, 2, 3, 1))
        run(implicit_gemm.input_grad(spec, dy, w, dx, products=_products(dy), last=True))


def conv_weight_grad_last(spec: ConvSpec, x: Any, dy: Any, dw: Any) -> None:
    """`conv_weight_grad` of channels-last arrays of a depthwise convolution."""
    if dw.size:
        taps_first = _cupy().empty((spec.window.taps, spec.out_channels), dw.dtype)
        run(*depthwise_last.weight_grad(spec, x, dy, taps_first, _cupy().empty))
        dw.reshape(spec.out_channels, -1)[...] = taps_first.T


def _taps_first(spec: ConvSpec, w: Any) -> Any:
    """Depthwise weights as ``(taps, C)``."""
    return _cupy().ascontiguousarray(w.reshape(spec.out_channels, -1).T)


def runner(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:  # noqa: ARG001 - likewise
    """The forward convolution, prepared for many calls; `limit` is the CPU's number of threads."""

    def forward(x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:  # noqa: ARG001
        conv_forward(spec, x, w, bias, activation, y)

    return forward


def details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """What a thread or a block of the forward convolution computes, for a plan to print."""
    if spec.layout == "channels_last" and spec.is_depthwise and reads_channels_last(spec, "forward", dtype):
        return (("patch", "16 bytes of neighbouring channels a thread"),)
    if spec.is_depthwise:
        patch = depthwise.patch_for(planar(spec.window), dtype.name)
        taps = "x".join(map(str, patch.kernel))
        return (("patch", f"{patch.rows}x{patch.cols} results a thread, {taps} weights in registers"),)
    products = implicit_gemm.format_of(dtype.name, architecture(), float32_products())
    rows, cols, _ = implicit_gemm.extents(spec, "forward")
    tile = implicit_gemm.tile_for(dtype.name, rows, cols, spec.groups, products)
    blocks = ceil_div(rows, tile.m) * ceil_div(cols, tile.n) * spec.groups
    where = f"{products} on tensor cores" if products else "multiply-adds"
    return (("tile", f"{tile.m}x{tile.n} in slices of {tile.k}, {where}, {blocks} blocks of {tile.threads} threads"),)


def winograd_weights(
    spec: ConvSpec, transforms: tuple[Any, ...], w: Any, turned: bool = False, stacked: int = 1, ahead: bool = True
) -> Any:
    """Weights for what `winograd_runner` makes; see `npconv.kernels.cpu.winograd_weights`. Always transformed ahead."""
    del stacked, ahead  # planes that are stacked come as channels
    count = math.prod(len(f.bt) for f in transforms)
    values = _cupy().empty((count, spec.out_channels, spec.in_channels // spec.groups), w.dtype)
    points = winograd.Points(values, w, turned)
    if values.size:
        run(winograd.weights(spec, transforms, points))
    return points


def winograd_runner(
    spec: ConvSpec,
    dtype: np.dtype[Any],  # noqa: ARG001
    transforms: tuple[Any, ...],
    activation: str | None,
    planes: Any,  # noqa: ARG001
) -> Callable[..., None]:
    """The forward convolution with transformed weights, prepared for many calls; see `runner`.

    Images are those of `spec`: under each of them lies one plane, that of its number.
    """

    def forward(x: Any, points: Any, bias: Any, y: Any, limit: int | None = None) -> None:  # noqa: ARG001
        if y.size:
            run(*winograd.forward(spec, transforms, x, points, bias, activation, y, _cupy().empty))

    return forward


def matmul(a: Any, b: Any, product: Any) -> None:
    """``product[n, g] = a[g] @ b[n, g]`` for ``(G, M, K)`` and ``(N, G, K, P)``, by CuPy's libraries."""
    _cupy().matmul(a, b, out=product)


def unfold(window: Window, x: Any, columns: Any) -> None:
    """Columns ``(N, C, taps, positions)`` of an image ``(N, C, *size)``."""
    if columns.size:
        run(windows.unfold(window, x, columns))


def fold(window: Window, columns: Any, x: Any) -> None:
    """The adjoint of `unfold`."""
    if x.size:
        run(windows.fold(window, columns, x))


def max_pool(window: Window, x: Any, y: Any, winner: Any) -> None:
    """The largest elements and their taps; both arrays stay as they are where a window sees nothing."""
    if y.size:
        run(windows.max_pool(window, x, y, winner))


def max_pool_grad(window: Window, dy: Any, winner: Any, dx: Any) -> None:
    """The gradient in the image."""
    if dx.size:
        run(windows.max_pool_grad(window, dy, winner, dx))


def largest(value: Any) -> Any:
    """Largest magnitude of a float array, which is waited for; not finite where an element is not."""
    return max(float(value.max()), -float(value.min()))


def free_workspace() -> None:
    """See `npconv.free_workspace`: what CuPy's pool of memory holds and nobody uses."""
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()


def _products(operand: Any) -> str | None:
    """What the current device multiplies on tensor cores, if anything."""
    return implicit_gemm.format_of(element_name(operand), architecture(), float32_products())


def _cupy() -> Any:
    return importlib.import_module("cupy")
