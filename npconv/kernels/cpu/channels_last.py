"""Forward convolution of channels-last arrays, read and written as they lie: which room does it, for whom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import dense_last, depthwise_last, drivers, turning
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.operands import BOUNDS
from npconv.runners import ByWeights


def _room(spec: ConvSpec, dtype: np.dtype[Any]) -> Any:
    return next((room for room in (dense_last, depthwise_last) if room.suits(spec, dtype)), None)


def reads_channels_last(spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> bool:
    """Whether there are loops for channels-last arrays of a dtype, which then need not be transposed."""
    return op == "forward" and _room(spec, dtype) is not None


def last_details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How `last_runner` would do it, as pairs of words for a person."""
    found: tuple[tuple[str, str], ...] = _room(spec, dtype).details(spec, dtype)
    return found


def last_weights(spec: ConvSpec, w: Any) -> Any:
    """Weights as `last_runner` takes them: in panels, or as they are where what they meet in the padding counts."""
    room = _room(spec, w.dtype)
    if room is depthwise_last and spec.window.has_padding and not np.isfinite(w).all():
        return w
    return room.pack_weights(spec, w)


@functools.lru_cache(maxsize=1024)
def last_runner(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """The forward convolution of channels-last arrays with `last_weights`, prepared for many calls.

    The runner takes an image, the weights, a bias or None, a result and the number of threads. Nothing but the arrays'
    addresses is looked at: they must be in C order and of the dtype.
    """
    bounds, room = BOUNDS.get(activation, BOUNDS[None]), _room(spec, dtype)
    straight: Callable[..., None] = room.runner(spec, dtype, bounds, activation == "hardswish")

    @functools.cache
    def turned() -> Callable[..., None]:
        return _turned(spec, dtype, activation)

    return straight if room is dense_last else ByWeights(lambda w: straight if isinstance(w, Panels) else turned())


def _turned(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """The same with weights as they are: zeros of the padding times infinity are NaN, and must not be left out.

    That is so rare that the image may be transposed for it.
    """
    run = drivers.runner(replace(spec, layout="channels_first"), dtype, activation)
    shape = (spec.batch, *spec.window.size, spec.in_channels)

    def call(x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        first = np.empty((spec.batch, spec.out_channels, *spec.window.out), dtype)
        run(turning.turned(x.reshape(shape), to_last=False), w, bias, first, limit)
        y[...] = turning.turned(first, to_last=True).reshape(y.shape)

    return call


def conv_forward_last(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    """A convolution of channels-last arrays, where `reads_channels_last`; weights are `last_weights`."""
    last_runner(spec, x.dtype, activation)(x, w, bias, y)
