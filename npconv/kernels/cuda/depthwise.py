"""Launch plans of the depthwise kernels: how much a thread computes, how wide it reads, which variant that is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.arrays import Array
from npconv.geometry import ConvSpec, Size, Window
from npconv.kernels.cuda.launch import (
    ACTIVATIONS,
    ELEMENTS,
    THREADS,
    Kernel,
    Launch,
    ceil_div,
    checked,
    element_name,
    index_type,
    offset,
    planar,
    span,
    steps_structure,
    structure,
    sum_dtype,
    vector_width,
    window_structure,
)

Workspace = Callable[[Size, Any], Array]
"""``empty(shape, dtype)`` on the device."""

# 32-bit registers that sums, weights and a segment of a row may take. The compiler reads several lines ahead, and takes
# twice as many: up to FEW of them leave room for twice as many blocks at once.
MOST_REGISTERS = 88
FEW = 44

# Blocks that keep any GPU busy. The same everywhere, so that a sum is cut, and rounded, the same way everywhere.
ENOUGH_BLOCKS = 1024


@dataclass(frozen=True)
class Patch:
    """What a thread computes, and the taps whose weights it holds in registers."""

    rows: int
    cols: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    words: int

    @property
    def registers(self) -> int:
        """32-bit registers that sums, weights and a segment of a row take, each sum taking `words`."""
        segment = (self.cols - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        return self.words * (self.rows * self.cols + math.prod(self.kernel) + segment)

    def defines(self) -> tuple[tuple[str, int], ...]:
        """The definitions that say so to the kernels."""
        names = ("KERNEL_H", "KERNEL_W", "STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W")
        resident = 4 if self.registers <= FEW else 2
        values = (*self.kernel, *self.stride, *self.dilation)
        return (*zip(names, values, strict=True), ("COLS", self.cols), ("THREADS", THREADS), ("RESIDENT", resident))


@functools.lru_cache(maxsize=512)
def patch_for(window: Window, element: str, rows: int = 4) -> Patch:
    """The largest patch that fits the registers, for a window of at least two axes.

    A step of more than two makes neighbours share little, so a thread then computes one result along that axis; taps
    that lie further apart than that are pieces of their own.
    """
    words = sum_dtype(element).itemsize // 4
    out, kernel, stride, dilation = (part[-2:] for part in (window.out, window.kernel, window.stride, window.dilation))
    wanted = (rows if stride[0] == 1 else max(1, rows // 2)), (8 if element in ("float16", "bfloat16") else 4)
    sizes = [_power_below(n, w) if s <= 2 else 1 for n, w, s in zip(out, wanted, stride, strict=True)]
    piece = [k if d <= 2 else 1 for k, d in zip(kernel, dilation, strict=True)]
    while (patch := _patch(sizes, piece, stride, dilation, words)).registers > MOST_REGISTERS:
        # A long kernel is cut first, then rows are halved, then columns; a 7x7 kernel is worth more than a second row.
        axis = 0 if piece[0] >= piece[1] else 1
        if piece[axis] > 7 or (piece[axis] > 1 and sizes[0] == 1):
            piece[axis] = max(k for k in range(1, piece[axis]) if kernel[axis] % k == 0)
        else:
            sizes[0 if sizes[0] > 1 else 1] //= 2
    return patch


def _patch(sizes: list[int], piece: list[int], stride: Size, dilation: Size, words: int) -> Patch:
    """A patch with the steps that its variant is compiled for: 1 where it takes none."""
    steps = [s if n > 1 else 1 for n, s in zip(sizes, stride, strict=True)]
    apart = [d if k > 1 else 1 for k, d in zip(piece, dilation, strict=True)]
    return Patch(sizes[0], sizes[1], (piece[0], piece[1]), (steps[0], steps[1]), (apart[0], apart[1]), words)


def forward(
    spec: ConvSpec, x: Array, w: Array, bias: Array | None, activation: str | None, y: Array, element: str | None = None
) -> Launch:
    """``y = activation(x * w + bias)``, for a result that has elements."""
    window, spread = planar(spec.window), spec.out_channels // spec.groups
    element = element_name(x, element)
    checked(element, x=x, w=w, bias=bias, y=y)
    return _correlation(window, (spec.batch, spec.out_channels, spread, 1), False, x, w, bias, activation, y, element)


def input_grad(spec: ConvSpec, dy: Array, w: Array, dx: Array, element: str | None = None) -> Launch:
    """The gradient in the image, which has elements: a convolution itself where the stride is 1."""
    window, fan = planar(spec.window), spec.out_channels // spec.groups
    element = element_name(dy, element)
    checked(element, dy=dy, w=w, dx=dx)
    planes = (spec.batch, spec.in_channels, 1, fan)
    if set(window.stride) == {1} and window.positions:
        low = tuple(reach - low for reach, (low, _) in zip(window.reach, window.padding, strict=True))
        axes = zip(window.size, window.reach, window.out, low, strict=True)
        high = tuple(n + reach - out - lo for n, reach, out, lo in axes)
        turned = Window(window.out, window.kernel, window.stride, tuple(zip(low, high, strict=True)), window.dilation)
        return _correlation(turned, planes, True, dy, w, None, None, dx, element)
    blocks = ceil_div(dx.size, THREADS)
    index = index_type(dx.size + THREADS, dy.size, w.size, span(window))
    defines = (*_basics(element, index, window), ("THREADS", THREADS))
    kernel = Kernel("depthwise_input_grad.cu", "depthwise_input_grad", defines)
    arguments = (
        dy, w, dx, window_structure(index, window), steps_structure(index, window), structure(index, *planes),
    )  # fmt: skip
    return Launch(kernel, blocks, THREADS, arguments)


def weight_grad(
    spec: ConvSpec, x: Array, dy: Array, dw: Array, empty: Workspace, element: str | None = None
) -> tuple[Launch, ...]:
    """The gradient in the weights, of which there are some: sums over shares of the results, then their sum."""
    window, spread = planar(spec.window), spec.out_channels // spec.groups
    element = element_name(x, element)
    checked(element, x=x, dy=dy, dw=dw)
    # A thread walks along rows, so a patch of one row leaves most registers to the taps.
    patch = patch_for(window, element, rows=1)
    load, skew = _reading(window, patch, x)
    load_dy = vector_width(dy, window.out[-1])
    load_dy = load_dy if patch.cols % load_dy == 0 else 1
    strips = spec.batch * math.prod(window.out[:-1]) * ceil_div(window.out[-1], patch.cols)
    rows = dw.size // math.prod(patch.kernel)
    shares = max(1, min(ceil_div(ENOUGH_BLOCKS, rows), ceil_div(strips, 4 * THREADS)))
    index = index_type(shares * dw.size, x.size, dy.size + strips, span(window), rows * shares)
    defines = (
        *_basics(element, index, window), *patch.defines(), ("LOAD", load), ("SKEW", skew),
        ("LOAD_DY", load_dy), ("PARTIAL", int(shares > 1)),
    )  # fmt: skip
    kernel = Kernel("depthwise_weight_grad.cu", "depthwise_weight_grad", defines)
    parts = dw if shares == 1 else empty((shares, dw.size), sum_dtype(element))
    planes = structure(index, spec.batch, spec.out_channels, spread, 1)
    first = Launch(
        kernel, rows * shares, THREADS, (x, dy, parts, window_structure(index, window), planes, np.int32(shares))
    )
    return (first,) if shares == 1 else (first, sum_shares(parts, dw, element))


def sum_shares(parts: Array, result: Array, element: str) -> Launch:
    """Add the shares of a result, ``(shares, result.size)``, in their order."""
    index = index_type(parts.size + THREADS)
    kernel = Kernel(
        "sum_shares.cu", "sum_shares", (("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("THREADS", THREADS))
    )
    arguments = (parts, result, offset(index, result.size), np.int32(parts.shape[0]))
    return Launch(kernel, ceil_div(result.size, THREADS), THREADS, arguments)


def _correlation(
    window: Window, planes: tuple[int, int, int, int], turned: bool, image: Array, w: Array, bias: Array | None,
    activation: str | None, result: Array, element: str,
) -> Launch:  # fmt: skip
    patch = patch_for(window, element)
    load, skew = _reading(window, patch, image)
    store = vector_width(result, window.out[-1])
    store = store if patch.cols % store == 0 else 1
    patches = ceil_div(window.out[-2], patch.rows) * ceil_div(window.out[-1], patch.cols)
    threads = planes[0] * planes[1] * math.prod(window.out[:-2]) * patches
    index = index_type(threads + THREADS, image.size, result.size, w.size, span(window))
    defines = (
        *_basics(element, index, window), *patch.defines(), ("ROWS", patch.rows), ("LOAD", load),
        ("SKEW", skew), ("STORE", store), ("TURNED", int(turned)),
    )  # fmt: skip
    arguments = (
        image, w, bias, result, window_structure(index, window), structure(index, *planes),
        np.int32(ACTIVATIONS[activation]),
    )  # fmt: skip
    return Launch(Kernel("depthwise.cu", "depthwise", defines), ceil_div(threads, THREADS), THREADS, arguments)


def _reading(window: Window, patch: Patch, image: Array) -> tuple[int, int]:
    """How many elements of a row are read at once, and how many of those lie before the first that is wanted."""
    load = vector_width(image, window.size[-1])
    if (
        patch.kernel[1] < window.kernel[-1]
        or patch.cols * patch.stride[1] % load
        or patch.stride[1] != window.stride[-1]
    ):
        return 1, 0
    return load, -window.padding[-1][0] % load


def _basics(element: str, index: str, window: Window) -> tuple[tuple[str, str | int], ...]:
    return ("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("AXES", window.ndim)


def _power_below(n: int, most: int) -> int:
    """The largest power of two up to `most` that is not twice too large for `n`."""
    size = most
    while size > 1 and size >= 2 * n:
        size //= 2
    return size
