"""What happens to a result on its way out: bias, then activation, in place; and the activations' slopes."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.arrays import Array, Backend, Operands, check_shape, is_float
from npconv.geometry import choice

ACTIVATIONS = (None, "relu", "relu6", "hardswish")


def check(operands: Operands, channels: int, activation: str | None) -> None:
    """Raise unless the bias has one element per output channel and the activation is defined for the dtype."""
    check_activation(operands.dtype, activation)
    if operands.has("bias"):
        check_shape("bias", operands.shape("bias"), (channels,), "one element per output channel")


def check_activation(dtype: np.dtype[Any], activation: str | None) -> None:
    """Raise unless the activation is known, and defined for a result of this dtype."""
    choice("activation", activation, ACTIVATIONS)
    if activation is not None and (dtype.kind == "c" or (activation == "hardswish" and not is_float(dtype))):
        raise TypeError(f"activation {activation!r} is not defined for {dtype}")


def finish(backend: Backend, y: Array, bias: Array | None, activation: str | None) -> Array:
    """``activation(y + bias)`` with one bias per channel; overwrites `y`."""
    if bias is not None:
        y += bias.reshape(-1, *(1,) * (y.ndim - 2))
    return activate(backend, y, activation)


def activate(backend: Backend, y: Array, activation: str | None) -> Array:
    """Apply an activation in place."""
    xp = backend.xp
    if activation == "relu":
        xp.maximum(y, 0, out=y)
    elif activation == "relu6":
        xp.clip(y, 0, 6, out=y)
    elif activation == "hardswish":
        bent = xp.clip(y, -3, 3)
        bent *= (bent + 3) / 6
        y[...] = xp.where(y <= -3, 0, xp.where(y < 3, bent, y))
    return y


def wrapped(y: Array, dtype: np.dtype[Any]) -> Array:
    """An integer sum as its dtype wraps it, which is what an activation sees; anything else as it is."""
    return y.astype(dtype, copy=False) if dtype.kind in "iu" else y


def slope(backend: Backend, before: Array, activation: str | None) -> Array:
    """Slope of the activation at `before`: 0 at the corners of relu and relu6, and up to -3 of hardswish."""
    xp = backend.xp
    if activation == "relu":
        return (before > 0).astype(before.dtype)
    if activation == "relu6":
        return ((before > 0) & (before < 6)).astype(before.dtype)
    if activation == "hardswish":
        between = xp.clip(before, -3, 3) / 3 + before.dtype.type(0.5)
        return xp.where(before <= -3, 0, xp.where(before < 3, between, 1)).astype(before.dtype)
    return xp.ones_like(before)
