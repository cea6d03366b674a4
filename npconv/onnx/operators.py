"""ONNX's convolutions and poolings by npconv, as classes for `onnx.reference.ReferenceEvaluator`.

Each is a function of the inputs, the attributes and the node; `classes` wraps them. Attributes that are not set are
None or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import npconv as nc
from npconv.onnx.package import require
from npconv.onnx.window import Attributes, check_kernel, pool, transposed, window

Array = Any
Inputs = Sequence[Array | None]


class Context(NamedTuple):
    """What an operator knows of its node: the number of results that are wanted, and the operator set's version."""

    results: int
    opset: int


def conv(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``Conv``."""
    x, w, bias = _three(inputs)
    return (_conv(x, w, bias, attributes),)


def _conv(x: Array, w: Array, bias: Array | None, attributes: Attributes) -> Array:
    check_kernel(attributes, w.shape[2:])
    return nc.conv(x, w, bias, **window(attributes, w.ndim - 2), groups=attributes.get("group") or 1)


def conv_transpose(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``ConvTranspose``."""
    x, w, bias = _three(inputs)
    check_kernel(attributes, w.shape[2:])
    arguments = transposed(attributes, x.shape[2:], w.shape[2:])
    beyond = _beyond(arguments)
    y = nc.conv_transpose(x, w, bias, **arguments, groups=attributes.get("group") or 1)
    if not any(beyond):
        return (y,)
    # Positions that no input reaches hold the bias alone.
    full = np.zeros((*y.shape[:2], *(n + e for n, e in zip(y.shape[2:], beyond, strict=True))), y.dtype)
    if bias is not None:
        full += bias.reshape(-1, *(1,) * len(beyond))
    full[(slice(None), slice(None), *(slice(n) for n in y.shape[2:]))] = y
    return (full,)


def _beyond(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Take from the output padding what npconv does not add: all that reaches the stride and the dilation."""
    most = [max(s, d) - 1 for s, d in zip(arguments["stride"], arguments["dilation"], strict=True)]
    wanted = arguments["output_padding"]
    arguments["output_padding"] = tuple(min(e, m) for e, m in zip(wanted, most, strict=True))
    return tuple(max(e - m, 0) for e, m in zip(wanted, most, strict=True))


def conv_integer(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``ConvInteger``: 8-bit operands less their zero points, summed in int32."""
    x, w, x_zero, w_zero = (*inputs, None, None)[:4]
    return (_integer_conv(x, w, x_zero, w_zero, attributes),)


def qlinear_conv(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``QLinearConv``: as ``ConvInteger``, then scaled, rounded half to even, moved and saturated."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *more = inputs
    assert w is not None
    assert y_zero is not None
    total = _integer_conv(x, w, x_zero, w_zero, attributes)
    per_channel = (-1,) + (1,) * (w.ndim - 2)
    if more and more[0] is not None:
        total = total + more[0].astype(np.int32).reshape(per_channel)
    factor = np.asarray(x_scale, np.float64) * np.asarray(w_scale, np.float64) / np.asarray(y_scale, np.float64)
    rounded = np.rint(total * factor.reshape(per_channel)) + np.asarray(y_zero, np.float64)
    limits = np.iinfo(y_zero.dtype)
    return (np.clip(rounded, limits.min, limits.max).astype(y_zero.dtype),)


def _integer_conv(x: Array, w: Array, x_zero: Array | None, w_zero: Array | None, attributes: Attributes) -> Array:
    """Convolve integers of 8 bits, exactly.

    In float64, whose tiles are fast: every product is below 2 ** 17 and every sum of less than 2 ** 36 of them exact,
    as long as nothing is transformed first. int32 wraps.
    """
    wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
    if x_zero is not None:
        wide_x -= np.asarray(x_zero, np.float64)
    if w_zero is not None:
        wide_w -= np.asarray(w_zero, np.float64).reshape((-1,) + (1,) * (w.ndim - 1))
    with nc.strict():
        return _conv(wide_x, wide_w, None, attributes).astype(np.int64).astype(np.int32)


def max_pool(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``MaxPool``, with the place of each maximum in the whole tensor where it is wanted."""
    (x,) = inputs
    assert x is not None
    arguments = pool(attributes)
    if context.results == 1:
        return (nc.max_pool(x, **arguments),)
    y, place = nc.max_pool(x, **arguments, return_indices=True)
    if attributes.get("storage_order"):
        axes = np.unravel_index(place, x.shape[2:])
        place = np.ravel_multi_index(axes, x.shape[2:], order="F")
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64) * int(np.prod(x.shape[2:]))
    return y, place + planes.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


def average_pool(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``AveragePool``."""
    (x,) = inputs
    return (nc.avg_pool(x, **pool(attributes), count_include_pad=bool(attributes.get("count_include_pad"))),)


def global_average_pool(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``GlobalAveragePool``."""
    (x,) = inputs
    assert x is not None
    return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=_wide(x.dtype)).astype(x.dtype),)


def global_max_pool(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``GlobalMaxPool``."""
    (x,) = inputs
    assert x is not None
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def batch_normalization(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``BatchNormalization``; in training mode by the batch's own statistics, which are returned if wanted."""
    x, scale, bias, mean, var = inputs[:5]
    assert x is not None
    assert scale is not None
    assert bias is not None
    assert mean is not None
    assert var is not None
    axes, per_channel = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    wide = x.astype(_wide(x.dtype))
    training = attributes.get("training_mode") or (context.opset < 7 and not attributes.get("is_test"))
    running: tuple[Array, ...] = ()
    if training:
        momentum = attributes.get("momentum")
        momentum = 0.9 if momentum is None else float(momentum)
        batch = wide.mean(axis=axes), wide.var(axis=axes)
        pairs = zip((mean, var), batch, strict=True)
        running = tuple((old * momentum + new * (1 - momentum)).astype(old.dtype) for old, new in pairs)
        mean, var = batch
    eps = attributes.get("epsilon")
    factor = scale / np.sqrt(var.astype(wide.dtype) + (1e-5 if eps is None else float(eps)))
    y = (wide - mean.reshape(per_channel)) * factor.reshape(per_channel) + bias.reshape(per_channel)
    return (y.astype(x.dtype), *running)[: context.results]


def col2im(inputs: Inputs, attributes: Attributes, context: Context) -> tuple[Array, ...]:
    """``Col2Im``."""
    cols, size, kernel = inputs
    assert size is not None
    assert kernel is not None
    geometry = window(attributes, len(kernel))
    folded = nc.fold(cols, tuple(map(int, size)), tuple(map(int, kernel)), **geometry)
    return (folded,)


FUNCTIONS: dict[str, Callable[[Inputs, Attributes, Context], tuple[Array, ...]]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Col2Im": col2im,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "QLinearConv": qlinear_conv,
}
"""The functions by the names of ONNX's operators."""


def classes() -> list[Any]:
    """The operator classes for ``ReferenceEvaluator(model, new_ops=...)``.

    Raises
    ------
    ImportError
        If `onnx` is not installed.
    """
    base = require("onnx.reference.op_run").OpRun
    return [_operator(base, name, function) for name, function in FUNCTIONS.items()]


def _operator(base: Any, name: str, function: Callable[..., tuple[Array, ...]]) -> Any:
    def _run(self: Any, *inputs: Array, **attributes: Any) -> tuple[Array, ...]:
        wanted = len(self.onnx_node.output)
        while wanted > 1 and not self.onnx_node.output[wanted - 1]:
            wanted -= 1
        opset = self.run_params["opsets"].get(self.onnx_node.domain, 1)
        return function(inputs, attributes, Context(wanted, opset))

    return type(name, (base,), {"op_domain": "", "__doc__": function.__doc__, "__module__": __name__, "_run": _run})


def _three(inputs: Inputs) -> tuple[Array, Array, Array | None]:
    x, w, bias = (*inputs, None)[:3]
    return x, w, bias


def _wide(dtype: Any) -> Any:
    return np.float32 if dtype == np.float16 else dtype
