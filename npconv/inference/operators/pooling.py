"""Pooling and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

import npconv as nc
from npconv.inference.graph import Array, Node
from npconv.inference.operators.binding import Bound, Pairs, Shape, Value, Where, axis_of

SHORT = 128
"""Elements up to which a mean is a product with ones: NumPy begins a sum slowly, so many short ones take five times as
long. Partial sums of a product grow with its length, so longer ones are left to NumPy."""


def max_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """`npconv.max_pool`."""
    (x,) = inputs
    assert x is not None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    arguments = {name: node.attributes[name] for name in names}
    shape = _pooled_shape(x.shape, **arguments)

    def run(x: Array, y: Array) -> None:
        nc.max_pool(x, **arguments, backend=where.backend, out=y)

    return Bound((Value(shape, x.dtype),), run)


def avg_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """`npconv.avg_pool`, of floating numbers: a convolution of each channel by itself, planned once."""
    (x,) = inputs
    assert x is not None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    kernel, stride, padding, dilation, _ = arguments = [node.attributes[name] for name in names]
    shape = _pooled_shape(x.shape, *arguments)
    pads = _resolved(x.shape, kernel, stride, padding, dilation)
    if tuple(kernel) == x.shape[2:] and not any(map(sum, pads)):
        return mean(node, inputs, where)
    if x.dtype.kind not in "fc":
        raise TypeError(f"averages are of floating numbers, got dtype {x.dtype}")
    channels, taps = x.shape[1], math.prod(kernel)
    # What the last, partial windows of `ceil_mode` reach beyond the padding.
    beyond = [
        max((out - 1) * s + (k - 1) * d + 1 - n - low - high, 0)
        for out, s, k, d, n, (low, high) in zip(shape[2:], stride, kernel, dilation, x.shape[2:], pads, strict=True)
    ]
    counts_pads = node.attributes["count_include_pad"]
    counted = ((0, 0),) * len(kernel) if counts_pads else pads
    extent = [n + counts_pads * (low + high) for n, (low, high) in zip(x.shape[2:], pads, strict=True)]
    where.budget.check(8 * (math.prod(shape) + math.prod(extent) + channels * taps), f"node {node}")
    ones = np.ones(extent)
    edges = tuple((low, high + more) for (low, high), more in zip(counted, beyond, strict=True))
    one = np.full((1, 1, *kernel), 1 / taps)
    share = nc.conv(ones[None, None], one, None, stride, edges, dilation, backend="numpy", algorithm="direct")
    even = bool(np.abs(share - 1).max() < 1e-9)
    with np.errstate(divide="ignore"):
        factor = where.xp.asarray(np.where(share > 1e-9, 1 / share, math.nan).astype(x.dtype))
    edges = tuple((low, high + more) for (low, high), more in zip(pads, beyond, strict=True))
    weights = where.xp.full((channels, 1, *kernel), 1 / taps, x.dtype)
    plan = nc.plan(x.shape, weights.shape, stride, edges, dilation, channels, dtype=x.dtype, backend=where.backend)
    packed = plan.pack(weights)

    def run(x: Array, y: Array) -> None:
        packed(x, out=y)
        if not even:
            where.xp.multiply(y, factor, out=y)

    return Bound((Value(shape, x.dtype),), run)


def _resolved(x: Shape, kernel: Shape, stride: Shape, padding: Pairs | str, dilation: Shape) -> Pairs:
    """A padding in numbers."""
    if not isinstance(padding, str):
        return padding
    return nc.plan((1, 1, *x[2:]), (1, 1, *kernel), stride, padding, dilation).spec.window.padding


def _pooled_shape(
    x: Shape, kernel_size: Shape, stride: Shape, padding: Pairs | str, dilation: Shape, ceil_mode: bool
) -> Shape:
    """Shape of a pooled image."""
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
    return (*x[:2], *out)


def mean(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Mean over `axes`, by default all but the first two: global average pooling."""
    (x,) = inputs
    assert x is not None
    given, keepdims = node.attributes.get("axes"), node.attributes.get("keepdims", True)
    axes = tuple(range(2, len(x.shape))) if given is None else tuple(axis_of(axis, len(x.shape)) for axis in given)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    shape = kept if keepdims else tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    if x.dtype.kind != "f":
        return Bound(None, lambda x: (where.xp.asarray(x.mean(axis=axes, keepdims=keepdims)).astype(x.dtype),))

    size = math.prod(x.shape[axis] for axis in axes)
    if sorted(axes) == list(range(len(x.shape) - len(axes), len(x.shape))) and 0 < size <= SHORT and x.dtype != "f2":
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
    axes = tuple(range(2, len(x.shape)))

    def run(x: Array, y: Array) -> None:
        x.max(axis=axes, out=y.reshape(x.shape[:2]))

    return Bound((Value(x.shape[:2] + (1,) * len(axes), x.dtype),), run)


def batch_norm(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with statistics that are computed by the graph itself."""
    x = inputs[0]
    assert x is not None
    eps, per_channel = node.attributes["eps"], (-1,) + (1,) * (len(x.shape) - 2)

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
