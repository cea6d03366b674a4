"""Forward convolution of channels-last arrays, read and written as they lie: which room does it, for whom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import dense_last
from npconv.kernels.cpu.operands import BOUNDS

ROOMS = (dense_last,)


def _room(spec: ConvSpec, dtype: np.dtype[Any]) -> Any:
    return next((room for room in ROOMS if room.suits(spec, dtype)), None)


def reads_channels_last(spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> bool:
    """Whether there are loops for channels-last arrays of a dtype, which then need not be transposed."""
    return op == "forward" and _room(spec, dtype) is not None


def last_details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How `last_runner` would do it, as pairs of words for a person."""
    found: tuple[tuple[str, str], ...] = _room(spec, dtype).details(spec, dtype)
    return found


def last_weights(spec: ConvSpec, w: Any) -> Any:
    """Weights as `last_runner` takes them."""
    return _room(spec, w.dtype).weight_panels(spec, w)


@functools.lru_cache(maxsize=1024)
def last_runner(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """The forward convolution of channels-last arrays with `last_weights`, prepared for many calls.

    The runner takes an image, the weights, a bias or None, a result and the number of threads. Nothing but the arrays'
    addresses is looked at: they must be in C order and of the dtype.
    """
    bounds, room = BOUNDS.get(activation, BOUNDS[None]), _room(spec, dtype)
    run: Callable[..., None] = room.panel_runner(spec, dtype, bounds, activation == "hardswish")
    return run


def conv_forward_last(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    """A convolution of channels-last arrays, where `reads_channels_last`; weights are `last_weights`."""
    last_runner(spec, x.dtype, activation)(x, w, bias, y)
