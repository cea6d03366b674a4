"""What loops are handed beside the arrays themselves: operands as read-only views, geometry as tables, activations."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from npconv.geometry import Window
from npconv.kernels.cpu import loops

BOUNDS: dict[str | None, tuple[float, float]] = {None: (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}
"""Activations that are a clamp."""

ACTIVATIONS = {None: 0, "relu": loops.RELU, "relu6": loops.RELU6, "hardswish": loops.HARDSWISH}


@functools.lru_cache(maxsize=32)
def clamp_bounds(clamp: str | None, dtype: np.dtype[Any]) -> Any:
    """The two ends of a clamp, for a loop that takes them as an array."""
    return read_only(np.array(BOUNDS[clamp], dtype))


@functools.lru_cache(maxsize=512)
def tables(window: Window) -> tuple[Any, Any]:
    """The `geometry` and `spans` arrays of the kernels' contract."""
    low = [lo for lo, _ in window.padding]
    geometry = np.array([window.size, window.kernel, window.stride, window.dilation, low, window.out], np.int64)
    last = window.ndim - 1
    stride, out = window.stride[last], window.out[last]
    offset = np.arange(window.kernel[last]) * window.dilation[last] - low[last]
    first = np.maximum(0, -(offset // stride))
    stop = np.minimum(out, (window.size[last] - 1 - offset) // stride + 1)
    spans = np.stack([first, np.maximum(first, stop)], axis=1)
    return read_only(geometry), read_only(spans)


@functools.lru_cache(maxsize=8)
def linear_places(window: Window) -> tuple[Any, Any]:
    """Where the first tap of each window lies in a flat plane, and how much further each tap does.

    Their sum is the place of a tap that lies inside the plane, and means nothing for one in the padding.
    """
    starts, steps, pitch = np.zeros(1, np.int64), np.zeros(1, np.int64), 1
    for size, kernel, stride, (low, _), dilation, out in reversed(
        list(zip(window.size, window.kernel, window.stride, window.padding, window.dilation, window.out, strict=True))
    ):
        starts = (((np.arange(out) * stride - low) * pitch)[:, None] + starts).reshape(-1)
        steps = ((np.arange(kernel) * dilation * pitch)[:, None] + steps).reshape(-1)
        pitch *= size
    return read_only(starts), read_only(steps)


def read_only(value: Any) -> Any:
    """An operand as a read-only view.

    Read-only arrays have a type of their own in compiled code: so there is one variant of each loop, whatever the
    caller's array was, and the compiler refuses a loop that writes into an operand.
    """
    view = value.view()
    view.flags.writeable = False
    return view


def as_table(value: Any) -> Any:
    """Integers as a table of compiled code: int64, in C order, read-only."""
    table = np.ascontiguousarray(value, np.int64)
    table.flags.writeable = False
    return table


def nothing(*_: Any) -> None:
    """A runner for a result without elements."""


def largest(value: Any) -> Any:
    """Largest magnitude of a float array; not finite where an element is not."""
    return np.array([_largest_bits(value)], _INTEGERS[value.itemsize]).view(value.dtype)[0]


def is_finite(value: Any) -> bool:
    """Whether every element of a float array is."""
    return not value.size or bool(_largest_bits(value) < _INFINITE[value.itemsize])


def _largest_bits(value: Any) -> Any:
    """The largest magnitude as the integer that has its bits: their order is that of the numbers."""
    return loops.largest_magnitude(read_only(value.reshape(-1).view(_INTEGERS[value.itemsize])))


_INTEGERS: dict[int, np.dtype[Any]] = {4: np.dtype(np.int32), 8: np.dtype(np.int64)}
_INFINITE = {4: int(np.float32(np.inf).view(np.int32)), 8: int(np.float64(np.inf).view(np.int64))}
