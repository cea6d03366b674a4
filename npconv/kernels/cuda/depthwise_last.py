"""Launch plans of the depthwise kernels for channels-last arrays: no array is transposed but the weights."""

from __future__ import annotations

import math

import numpy as np

from npconv.arrays import Array
from npconv.geometry import ConvSpec
from npconv.kernels.cuda.depthwise import ENOUGH_BLOCKS, Workspace, sum_shares
from npconv.kernels.cuda.launch import (
    ACTIVATIONS,
    ELEMENTS,
    THREADS,
    Kernel,
    Launch,
    address,
    ceil_div,
    checked,
    element_name,
    index_type,
    offset,
    planar,
    span,
    steps_structure,
    sum_dtype,
    window_structure,
)

LEAST_PLACES = 64
"""Results of a share, so that adding shares stays cheap."""


def forward(
    spec: ConvSpec, x: Array, w: Array, bias: Array | None, activation: str | None, y: Array, element: str | None = None
) -> Launch:
    """``y = activation(x * w + bias)`` with weights ``(taps, C)``, for a result that has elements."""
    element = element_name(x, element)
    checked(element, x=x, w=w, bias=bias, y=y)
    code = np.int32(ACTIVATIONS[activation])
    return _launch("depthwise_last", spec, element, x, w, y, y.size, (x, w, bias, y), after=(code,))


def input_grad(spec: ConvSpec, dy: Array, w: Array, dx: Array, element: str | None = None) -> Launch:
    """The gradient in the image, which has elements, with weights ``(taps, C)``."""
    element = element_name(dy, element)
    checked(element, dy=dy, w=w, dx=dx)
    return _launch("depthwise_last_input_grad", spec, element, dy, w, dx, dx.size, (dy, w, dx), steps=True)


def weight_grad(
    spec: ConvSpec, x: Array, dy: Array, dw: Array, empty: Workspace, element: str | None = None
) -> tuple[Launch, ...]:
    """The gradient in the weights, ``(taps, C)``: sums over shares of the results, then their sum."""
    element = element_name(x, element)
    checked(element, x=x, dy=dy, dw=dw)
    places = spec.batch * spec.window.positions
    blocks = ceil_div(dw.size, _lanes(spec, x, dy, dw) * THREADS)
    shares = max(1, min(ENOUGH_BLOCKS // blocks, places // LEAST_PLACES))
    parts = dw if shares == 1 else empty((shares, dw.size), sum_dtype(element))
    first = _launch(
        "depthwise_last_weight_grad", spec, element, x, dy, parts, shares * dw.size, (x, dy, parts), shares=shares
    )
    return (first,) if shares == 1 else (first, sum_shares(parts, dw, element))


def _launch(
    name: str, spec: ConvSpec, element: str, a: Array, b: Array, result: Array, size: int, arrays: tuple[Array, ...],
    steps: bool = False, shares: int | None = None, after: tuple[np.int32, ...] = (),
) -> Launch:  # fmt: skip
    """A launch of a thread for every few of `size` elements, with the geometry behind the arrays."""
    window, channels = planar(spec.window), spec.in_channels
    lanes = _lanes(spec, a, b, result)
    index = index_type(size + THREADS * lanes, a.size, b.size, channels * span(window), spec.batch * window.positions)
    defines = (
        ("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("AXES", window.ndim), ("THREADS", THREADS),
        ("LANES", lanes), ("PARTIAL", int(shares is not None and shares > 1)),
    )  # fmt: skip
    geometry = [window_structure(index, window), *([steps_structure(index, window)] if steps else [])]
    counts = (spec.batch, channels, *([shares] if shares else []))
    arguments = (*arrays, *geometry, *(offset(index, count) for count in counts), *after)
    return Launch(Kernel("depthwise_last.cu", name, defines), ceil_div(size // lanes, THREADS), THREADS, arguments)


def _lanes(spec: ConvSpec, *arrays: Array) -> int:
    """Channels that are read at once: 16 bytes of them where every place begins aligned."""
    width = max(1, 16 // arrays[0].dtype.itemsize)
    aligned = all(address(value) % math.gcd(16, width * value.dtype.itemsize) == 0 for value in arrays)
    return width if spec.in_channels % width == 0 and aligned else 1
