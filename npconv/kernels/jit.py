"""The compiled loops as functions that other compiled code calls; see `npconv.jit`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from npconv.kernels.cpu import loops

_njit: Any = numba.njit
_overload: Any = overload

_NEVER_STOPPED = np.zeros(1, np.int64)


def _both(value):  # type: ignore[no-untyped-def]  # Numba compares signatures to the letter
    """One number for both axes, or one each, as a pair."""
    return (value, value) if isinstance(value, int) else value


@_overload(_both)
def _compiled_pair(value):  # type: ignore[no-untyped-def]
    if isinstance(value, types.BaseTuple):
        return lambda value: value
    return lambda value: (value, value)


def _expected(x, w, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    """Nothing; in compiled code the call raises unless `conv2d` has a form for these types."""


@_overload(_expected)
def _check_types(x, w, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    # A TypeError of Python's own comes through as it is; Numba's would be told among all that was tried.
    for name, given in (("x", x), ("w", w)):
        if not (isinstance(given, types.Array) and given.ndim == 4 and given.dtype in (types.float32, types.float64)):
            raise TypeError(f"{name} must be an array of 4 dimensions, of float32 or float64, got {_shown(given)}")
    if w.dtype != x.dtype:
        raise TypeError(f"w must be of the dtype of x, {x.dtype}, got {w.dtype}")
    if not _is_none(bias) and not (isinstance(bias, types.Array) and bias.ndim == 1 and bias.dtype == x.dtype):
        raise TypeError(
            f"bias must be None or an array of 1 dimension, of the dtype of x, {x.dtype}, got {_shown(bias)}"
        )
    for name, given in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        if not all(_is_integer(part) for part in _parts(given)):
            raise TypeError(f"{name} must be an integer or a pair of integers, got {_shown(given)}")
    if not _is_integer(groups):
        raise TypeError(f"groups must be an integer, got {_shown(groups)}")
    return _expected


def _parts(given: Any) -> tuple[Any, ...]:
    """The two of a pair, or what else it is."""
    parts = tuple(getattr(given, "types", ()))
    return parts if len(parts) == 2 else (given,)


def _is_none(given: Any) -> bool:
    return (
        given is None or isinstance(given, types.NoneType) or (isinstance(given, types.Omitted) and given.value is None)
    )


def _is_integer(given: Any) -> bool:
    if isinstance(given, types.Omitted):
        given = given.value
    return isinstance(given, types.Integer | types.IntegerLiteral) or type(given) is int


def _shown(given: Any) -> str:
    """A type as Numba calls it, without what a person does not ask for."""
    if isinstance(given, types.Array):
        return f"an array of {given.ndim} dimensions, of {given.dtype}"
    return str(given)


_pair: Any = _both
_check: Any = _expected


@_njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def conv2d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> Any:
    """`npconv.conv2d` for compiled code; see `npconv.jit.conv2d`."""
    _check(x, w, bias, stride, padding, dilation, groups)
    strides, pads, steps = _pair(stride), _pair(padding), _pair(dilation)
    batch, channels, height, width = x.shape
    outputs, depth, rows, columns = w.shape
    if min(strides[0], strides[1], steps[0], steps[1], groups) < 1:
        raise ValueError("stride, dilation and groups must be positive")
    if min(pads[0], pads[1]) < 0:
        raise ValueError("padding must not be negative")
    if min(rows, columns) < 1:
        raise ValueError("w must have at least one element along each spatial axis")
    if channels != depth * groups:
        raise ValueError("x must have as many channels as w.shape[1] * groups")
    if outputs % groups != 0:
        raise ValueError("groups must divide the number of output channels")
    out_h = (height + 2 * pads[0] - (rows - 1) * steps[0] - 1) // strides[0] + 1
    out_w = (width + 2 * pads[1] - (columns - 1) * steps[1] - 1) // strides[1] + 1
    if out_h < 1 or out_w < 1:
        raise ValueError("the window must fit into the padded input")
    shift = np.zeros(outputs, x.dtype)
    if bias is not None:
        if bias.shape[0] != outputs:
            raise ValueError("bias must have one element for each output channel")
        shift[:] = bias
    geometry = np.array([
        [height, width], [rows, columns], [strides[0], strides[1]], [steps[0], steps[1]], [pads[0], pads[1]],
        [out_h, out_w],
    ])  # fmt: skip
    spans = np.empty((columns, 2), np.int64)
    for k in range(columns):
        offset = k * steps[1] - pads[1]
        spans[k, 0] = min(out_w, max(0, -(offset // strides[1])))
        spans[k, 1] = max(spans[k, 0], min(out_w, (width - 1 - offset) // strides[1] + 1))
    y = np.empty((batch, outputs, out_h, out_w), x.dtype)
    image = np.ascontiguousarray(x).reshape(batch, channels, height * width)
    weights = np.ascontiguousarray(w).reshape(outputs, depth, rows * columns)
    loops.conv_forward(
        0, batch * outputs * out_h, image, weights, shift, y.reshape(batch, outputs, out_h * out_w), groups, 0,
        geometry, spans, _NEVER_STOPPED,
    )  # fmt: skip
    return y
