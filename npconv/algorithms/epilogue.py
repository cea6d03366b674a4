"""What happens to a result on its way to the caller: bias, then activation, in place; and the activations' derivatives."""

from __future__ import annotations

from npconv.arrays import Array, Backend

ACTIVATIONS = (None, "relu", "relu6", "hardswish")


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
        y *= xp.clip(y + 3, 0, 6)
        y /= 6
    return y


def derivative(backend: Backend, before: Array, activation: str | None) -> Array:
    """Derivative of the activation at `before`; 0 at the corners of relu and relu6, and outside (-3, 3] of hardswish."""
    xp = backend.xp
    if activation == "relu":
        return (before > 0).astype(before.dtype)
    if activation == "relu6":
        return ((before > 0) & (before < 6)).astype(before.dtype)
    if activation == "hardswish":
        slope = before / 3 + xp.asarray(0.5, before.dtype)
        return xp.where(before < -3, 0, xp.where(before <= 3, slope, 1)).astype(before.dtype)
    return xp.ones_like(before)
