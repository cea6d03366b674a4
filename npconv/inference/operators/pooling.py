"""Pooling and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

import npconv as nc
from npconv.inference.graph import Array, Node
from npconv.inference.operators.binding import (
    Bound,
    Pairs,
    Shape,
    Value,
    Where,
    axis_of,
    channel_axis,
    channels_first,
    channels_last,
    layout_of,
    spatial_axes,
)
from npconv.inference.operators.products import conv_plan

SHORT = 128
"""Elements up to which a mean is a product with ones: NumPy begins a sum slowly, so many short ones take five times as
long. Partial sums of a product grow with its length, so longer ones are left to NumPy."""


def max_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """`npconv.max_pool`."""
    (x,) = inputs
    assert x is not None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    arguments = {name: node.attributes[name] for name in names}
    layout = layout_of(node)
    shape = _pooled_shape(x.shape, **arguments, layout=layout)

    def run(x: Array, y: Array) -> None:
        nc.max_pool(x, **arguments, layout=layout, backend=where.backend, out=y)

    return Bound((Value(shape, x.dtype),), run)


def avg_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """`npconv.avg_pool`, of floating numbers: a convolution of each channel by itself, planned once."""
    (x,) = inputs
    assert x is not None
    layout = layout_of(node)
    kernel, stride, padding, dilation, ceil_mode = (node.attributes[name] for name in WINDOW)
    shape = _pooled_shape(x.shape, kernel, stride, padding, dilation, ceil_mode, layout)
    pads = _pads(node, x)
    if tuple(kernel) == _size(node, x) and not any(map(sum, pads)):
        return mean(node, inputs, where)
    if x.dtype.kind not in "fc":
        raise TypeError(f"averages are of floating numbers, got dtype {x.dtype}")
    inner, (image, weights), counted = windows(node, x)
    channels = weights.shape[0]
    counts_pads, taps = node.attributes["count_include_pad"], math.prod(kernel)
    extent = [n + counts_pads * (low + high) for n, (low, high) in zip(_size(node, x), pads, strict=True)]
    where.budget.check(8 * (math.prod(shape) + math.prod(extent) + channels * taps), f"node {node}")
    ones = np.ones(extent)
    one = np.full((1, 1, *kernel), 1 / taps)
    share = nc.conv(ones[None, None], one, None, stride, counted, dilation, backend="numpy", algorithm="direct")
    even = bool(np.abs(share - 1).max() < 1e-9)
    if layout == "channels_last":
        share = share.reshape(1, *share.shape[2:], 1)
    with np.errstate(divide="ignore"):
        factor = where.xp.asarray(np.where(share > 1e-9, 1 / share, math.nan).astype(x.dtype))
    packed = conv_plan(inner, (image, weights), where).pack(where.xp.full(weights.shape, 1 / taps, x.dtype))

    def run(x: Array, y: Array) -> None:
        packed(x, out=y)
        if not even:
            where.xp.multiply(y, factor, out=y)

    return Bound((Value(shape, x.dtype),), run)


WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def windows(node: Node, x: Value) -> tuple[Node, tuple[Value, Value], Pairs]:
    """An average pool as a convolution: that, its operands, and the padding that counts as elements of a window."""
    kernel, stride, _, dilation, _ = arguments = [node.attributes[name] for name in WINDOW]
    size, pads = _size(node, x), _pads(node, x)
    pooled = _pooled_shape((1, 1, *size), *arguments)
    # What the last, partial windows of `ceil_mode` reach beyond the padding.
    beyond = [
        max((out - 1) * s + (k - 1) * d + 1 - n - low - high, 0)
        for out, s, k, d, n, (low, high) in zip(pooled[2:], stride, kernel, dilation, size, pads, strict=True)
    ]
    edges = tuple((low, high + more) for (low, high), more in zip(pads, beyond, strict=True))
    counted = edges if not node.attributes["count_include_pad"] else tuple((0, more) for more in beyond)
    channels = x.shape[channel_axis(node, len(x.shape))]
    how = {"stride": stride, "padding": edges, "dilation": dilation, "groups": channels, "layout": layout_of(node)}
    return Node("conv", node.inputs, node.outputs, how, node.name), (x, Value((channels, 1, *kernel), x.dtype)), counted


def _size(node: Node, x: Value) -> Shape:
    """Spatial extents of an image."""
    return tuple(x.shape[axis] for axis in spatial_axes(node, len(x.shape)))


def _pads(node: Node, x: Value) -> Pairs:
    """The padding of a pool in numbers."""
    kernel, stride, padding, dilation = (node.attributes[name] for name in WINDOW[:4])
    return _resolved((1, 1, *_size(node, x)), kernel, stride, padding, dilation)


def _resolved(x: Shape, kernel: Shape, stride: Shape, padding: Pairs | str, dilation: Shape) -> Pairs:
    """A padding in numbers."""
    if not isinstance(padding, str):
        return padding
    return nc.plan((1, 1, *x[2:]), (1, 1, *kernel), stride, padding, dilation).spec.window.padding


def _pooled_shape(
    x: Shape, kernel_size: Shape, stride: Shape, padding: Pairs | str, dilation: Shape, ceil_mode: bool,
    layout: str = "channels_first",
) -> Shape:  # fmt: skip
    """Shape of a pooled image."""
    x = x if layout == "channels_first" else channels_first(x)
    if len(kernel_size) != len(x) - 2:
        raise ValueError(
            f"a window of {kernel_size} does not fit an array of shape {x}: one number for each axis from 2"
        )
    padding = _resolved(x, kernel_size, stride, padding, dilation)
    out = []
    for n, k, step, (low, high), d in zip(x[2:], kernel_size, stride, padding, dilation, strict=True):
        room = n + low + high - (k - 1) * d - 1
        count = room // step + 1
        # A last, partial window counts if it starts inside the input or the padding before it.
        if ceil_mode and room % step and count * step < n + low:
            count += 1
        out.append(count)
    if any(n < 1 for n in out):
        raise ValueError(f"a window of {kernel_size} with padding {padding} does not fit an image of {x[2:]}")
    pooled = (*x[:2], *out)
    return pooled if layout == "channels_first" else channels_last(pooled)


def mean(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Mean over `axes`, by default all but the first two: global average pooling."""
    (x,) = inputs
    assert x is not None
    given, keepdims = node.attributes.get("axes"), node.attributes.get("keepdims", True)
    axes = spatial_axes(node, len(x.shape)) if given is None else tuple(axis_of(axis, len(x.shape)) for axis in given)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    shape = kept if keepdims else tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    if x.dtype.kind != "f":
        return Bound(None, lambda x: (where.xp.asarray(x.mean(axis=axes, keepdims=keepdims)).astype(x.dtype),))

    size = math.prod(x.shape[axis] for axis in axes)
    short = 0 < size <= SHORT and x.dtype != "f2"
    if given is None and layout_of(node) == "channels_last":
        window = _size(node, x)

        def run_last(x: Array, y: Array) -> None:
            nc.avg_pool(x, window, layout="channels_last", backend=where.backend, out=y.reshape(kept))

        return Bound((Value(shape, x.dtype),), run_last)
    if sorted(axes) == list(range(len(x.shape) - len(axes), len(x.shape))) and short:
        ones = where.xp.full(size, 1, x.dtype)

        def run_product(x: Array, y: Array) -> None:
            where.xp.matmul(x.reshape(-1, size), ones, out=y.reshape(-1))
            y /= size

        return Bound((Value(shape, x.dtype),), run_product)

    def run(x: Array, y: Array) -> None:
        x.mean(axis=axes, keepdims=True, out=y.reshape(kept))

    return Bound((Value(shape, x.dtype),), run)


def global_max_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Largest element over all axes but the first two, which stay as axes of length 1."""
    (x,) = inputs
    assert x is not None
    axes = spatial_axes(node, len(x.shape))
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))

    def run(x: Array, y: Array) -> None:
        x.max(axis=axes, keepdims=True, out=y)

    return Bound((Value(shape, x.dtype),), run)


def batch_norm(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with statistics that are computed by the graph itself."""
    x = inputs[0]
    assert x is not None
    eps, channels = node.attributes["eps"], channel_axis(node, len(x.shape))
    per_channel = (-1,) + (1,) * (len(x.shape) - 1 - channels)

    def run(x: Array, *rest: Array) -> None:
        scale, bias, mean, var = (value.reshape(per_channel) for value in rest[:4])
        factor = scale / where.xp.sqrt(var + eps)
        y = rest[4]
        where.xp.multiply(x, factor, out=y)
        y += bias - mean * factor

    return Bound((Value(x.shape, x.dtype),), run)


def lrn(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Local response normalisation across channels: ``x / (bias + alpha / size * sum of squares) ** beta``."""
    (x,) = inputs
    assert x is not None
    size, alpha, beta, bias = (node.attributes[name] for name in ("size", "alpha", "beta", "bias"))
    low = (size - 1) // 2

    def run(x: Array, y: Array) -> None:
        _lrn(where.xp, x, y, (low, size - 1 - low), alpha / size, beta, bias)

    return Bound((Value(x.shape, x.dtype),), run)


def _lrn(xp: ModuleType, x: Array, y: Array, reach: tuple[int, int], alpha: float, beta: float, bias: float) -> None:
    """LRN, one image after the other: running sums over the channels, in blocks that stay in the cache."""
    channels, low, high = x.shape[1], *reach
    for image, result in zip(x.reshape(*x.shape[:2], -1), y.reshape(*y.shape[:2], -1), strict=True):
        step = max(1, 2**16 // max(channels, 1))
        for start in range(0, image.shape[1], step):
            part = image[:, start : start + step]
            squares = part * part
            total = xp.zeros_like(squares)
            for offset in range(-min(low, channels - 1), min(high, channels - 1) + 1):
                inside = slice(max(0, -offset), channels - max(0, offset))
                total[inside] += squares[max(0, offset) : channels - max(0, -offset)]
            total *= alpha
            total += bias
            if beta == 0.75:
                root = xp.sqrt(total)
                root *= xp.sqrt(root)
                xp.divide(part, root, out=result[:, start : start + step])
            else:
                xp.multiply(part, total**-beta, out=result[:, start : start + step])


def softmax(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Softmax along `axis`; with `flat` along all axes from `axis` on."""
    (x,) = inputs
    assert x is not None
    ndim = max(len(x.shape), 1)
    axis = axis_of(node.attributes["axis"], ndim)
    axes = tuple(range(axis, ndim)) if node.attributes.get("flat") else axis

    def run(x: Array, y: Array) -> None:
        where.xp.subtract(x, x.max(axis=axes, keepdims=True), out=y)
        where.xp.exp(y, out=y)
        y /= y.sum(axis=axes, keepdims=True)

    return Bound((Value(x.shape, x.dtype),), run, in_place=True)
