"""Activations, in place. An activation is a tuple: its name, and its parameters if it has any."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from npconv.inference.graph import Array

Activation = tuple[Any, ...]

FUSED = ("relu", "relu6", "hardswish")
"""Those that a convolution applies as it stores its result."""

BLOCK = 2**15
"""Elements of an array that are treated at a time by what takes several passes, so that all but the first find them in
the cache."""


def activate(xp: ModuleType, y: Array, activation: Activation | None) -> Array:
    """Apply an activation to `y`, in C order, in place."""
    if activation is None:
        return y
    name, *parameters = activation
    flat = y.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        ACTIVATIONS[name](xp, flat[start : start + BLOCK], *parameters)
    return y


def _relu(xp: ModuleType, y: Array) -> None:
    # With an array of zeros NumPy is four times as fast as with the number.
    xp.maximum(y, _zeros(xp, y.dtype)[: y.size], out=y)


@functools.lru_cache(maxsize=16)
def _zeros(xp: ModuleType, dtype: np.dtype[Any]) -> Array:
    return xp.zeros(BLOCK, dtype)


def _clip(xp: ModuleType, y: Array, low: float, high: float) -> None:
    xp.clip(y, low, high, out=y)


def _hardswish(xp: ModuleType, y: Array) -> None:
    y *= xp.clip(y + 3, 0, 6) / 6


def _hardsigmoid(xp: ModuleType, y: Array, slope: float, offset: float) -> None:
    y *= slope
    y += offset
    xp.clip(y, 0, 1, out=y)


def _sigmoid(xp: ModuleType, y: Array) -> None:
    with np.errstate(over="ignore"):  # far below zero, where the result is 0
        xp.exp(-y, out=y)
    y += 1
    xp.reciprocal(y, out=y)


def _silu(xp: ModuleType, y: Array) -> None:
    gate = y.copy()
    _sigmoid(xp, gate)
    y *= gate


def _tanh(xp: ModuleType, y: Array) -> None:
    xp.tanh(y, out=y)


def _leaky_relu(xp: ModuleType, y: Array, slope: float) -> None:
    xp.copyto(y, y * slope, where=y < 0)


ACTIVATIONS: dict[str, Callable[..., None]] = {
    "relu": _relu,
    "relu6": lambda xp, y: _clip(xp, y, 0, 6),
    "clip": _clip,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "tanh": _tanh,
    "leaky_relu": _leaky_relu,
}
