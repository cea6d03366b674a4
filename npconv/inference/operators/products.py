"""Convolutions and matrix products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import npconv as nc
from npconv.inference.activation import FUSED, Activation, activate
from npconv.inference.graph import Array, Node
from npconv.inference.operators.binding import (
    Bound,
    Pairs,
    Shape,
    Value,
    Where,
    channel_axis,
    channels_last,
    layout_of,
    same_dtype,
    spatial_axes,
)


def conv(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``conv(x, w, bias)``; weights that are constant are packed once."""
    x, w, *more = inputs
    assert x is not None
    assert w is not None
    bias = more[0] if more else None
    dtype = same_dtype(x, w, bias)
    _, after = _split(node.attributes.get("activation"), dtype)
    plan = conv_plan(node, inputs, where)
    result = Value(plan.spec.y_shape, dtype)
    if w.constant is None or (bias is not None and bias.constant is None):

        def run(x: Array, w: Array, *rest: Array) -> None:
            *bias, y = rest
            activate(where.xp, plan(x, w, *(b for b in bias if b is not None), out=y), after)

        return Bound((result,), run)
    where.budget.check(w.nbytes, f"node {node}")  # of which a plan makes a copy of its own
    packed = plan.pack(w.constant, None if bias is None else bias.constant)

    def run_packed(x: Array, _w: Array, *rest: Array) -> None:
        packed(x, out=rest[-1])
        if after is not None:
            activate(where.xp, rest[-1], after)

    def packed_on(x: Array, _w: Array, *rest: Array) -> Callable[[], Any]:
        again: Callable[[], Any] = packed.bound(x, rest[-1])
        return again

    return Bound((result,), run_packed, held=packed.nbytes, on_arrays=packed_on if after is None else None)


def conv_plan(node: Node, inputs: Sequence[Value | None], where: Where) -> Any:
    """The plan of a convolution; nothing is packed."""
    x, w, *more = inputs
    assert x is not None
    assert w is not None
    dtype = same_dtype(x, w, more[0] if more else None)
    geometry = {name: node.attributes[name] for name in ("stride", "padding", "dilation", "groups")}
    mode = node.attributes.get("padding_mode", "zeros")
    fused, _ = _split(node.attributes.get("activation"), dtype)
    return nc.plan(
        x.shape, w.shape, **geometry, padding_mode=mode, layout=layout_of(node), activation=fused, dtype=dtype,
        backend=where.backend, max_workspace=where.budget.limit,
    )  # fmt: skip


def conv_transpose(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``conv_transpose(x, w, bias)``."""
    x, w, *_ = inputs
    assert x is not None
    assert w is not None
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    geometry = {name: node.attributes[name] for name in names}
    activation = node.attributes.get("activation")
    run: Any = functools.partial(nc.conv_transpose, **geometry, backend=where.backend)
    shape = _enlarged_shape(x.shape, w.shape, **geometry)
    dtype = same_dtype(*inputs)

    def write(x: Array, w: Array, *rest: Array) -> None:
        activate(where.xp, run(x, w, rest[0] if len(rest) == 2 else None, out=rest[-1]), activation)

    return Bound((Value(shape, dtype),), write)


def _enlarged_shape(
    x: Shape, w: Shape, stride: Shape, padding: Pairs, output_padding: Shape, groups: int, dilation: Shape
) -> Shape:
    """Shape that a transposed convolution gives."""
    if len(x) != len(w):
        raise ValueError(f"an array of shape {x} and weights of shape {w} must have equally many axes")
    axes = zip(x[2:], w[2:], stride, padding, output_padding, dilation, strict=True)
    out = ((n - 1) * step - low - high + d * (k - 1) + extra + 1 for n, k, step, (low, high), extra, d in axes)
    return (x[0], w[1] * groups, *out)


def affine(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``x * scale + shift`` with one number a channel: a convolution of 1 x 1, each channel by itself."""
    x, scale, shift = inputs
    assert x is not None
    assert scale is not None
    assert shift is not None
    channels = x.shape[channel_axis(node, len(x.shape))] if len(x.shape) > 1 else 0
    if len(x.shape) < 2 or scale.shape != (channels,) or shift.shape != (channels,):
        raise ValueError(f"scale {scale.shape} and shift {shift.shape} must have one number for each channel of "
                         f"x {x.shape}")  # fmt: skip
    inner, operands = depthwise(node, inputs)
    bound, image = conv(inner, operands, where), operands[0].shape

    def run(x: Array, scale: Array, shift: Array, y: Array) -> None:
        bound.run(x.reshape(image), scale.reshape(-1, 1, 1), shift, y.reshape(image))

    return Bound((Value(x.shape, x.dtype),), run, held=bound.held)


def depthwise(node: Node, inputs: Sequence[Value | None]) -> tuple[Node, tuple[Value, Value, Value]]:
    """An affine node as a convolution of 1 x 1, and the operands of that."""
    x, scale, shift = inputs
    assert x is not None
    assert scale is not None
    assert shift is not None
    (channels,) = scale.shape
    first = (x.shape[0], channels, math.prod(x.shape[axis] for axis in spatial_axes(node, len(x.shape))))
    image = first if layout_of(node) == "channels_first" else channels_last(first)
    weights = None if scale.constant is None else scale.constant.reshape(-1, 1, 1)
    inner = Node("conv", node.inputs, node.outputs, {**ONE_BY_ONE, "groups": channels, **node.attributes})
    return inner, (Value(image, x.dtype), Value((channels, 1, 1), scale.dtype, weights), shift)


ONE_BY_ONE = {"stride": 1, "padding": 0, "dilation": 1}


def linear(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``x @ w + bias`` over any leading axes."""
    x, w, *more = inputs
    assert x is not None
    assert w is not None
    if not x.shape or not w.shape or (len(w.shape) > 1 and x.shape[-1] != w.shape[-2]):
        raise ValueError(f"x of shape {x.shape} cannot be multiplied by w of shape {w.shape}")
    dtype = same_dtype(*inputs)
    activation = node.attributes.get("activation")
    shape = _matmul_shape(x.shape, w.shape)

    def run(x: Array, w: Array, *rest: Array) -> None:
        *bias, y = rest
        where.xp.matmul(x, w, out=y)
        if bias and bias[0] is not None:
            y += bias[0]
        activate(where.xp, y, activation)

    if more and more[0] is not None and np.broadcast_shapes(more[0].shape, shape) != shape:
        raise ValueError(f"the bias of shape {more[0].shape} does not fit a result of shape {shape}")
    return Bound((Value(shape, dtype),), run)


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    """Shape of ``a @ b``."""
    if len(a) == 1 or len(b) == 1:
        return a[:-1] if len(b) == 1 else (*b[:-2], b[-1])
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _split(activation: Activation | None, dtype: np.dtype[Any]) -> tuple[str | None, Activation | None]:
    """What the convolution applies itself, and what is applied after it."""
    if activation is not None and activation[0] in FUSED and dtype.kind == "f":
        return activation[0], None
    return None, activation
