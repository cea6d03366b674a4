"""Axes before the last two: which planes of an image lie under an output. A table, so that loops need not know more."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.geometry import Window


def leading_planes(window: Window) -> Any:
    """The plane under each output of these axes for each of their taps, or -1 in the padding: ``(outputs, taps)``."""
    planes = np.zeros((1, 1), np.int64)
    for axis in range(window.ndim):
        position = np.arange(window.out[axis])[:, None] * window.stride[axis] - window.padding[axis][0]
        position = position + np.arange(window.kernel[axis])[None, :] * window.dilation[axis]
        inside = (position >= 0) & (position < window.size[axis])
        here = planes[:, None, :, None] * window.size[axis] + position[None, :, None, :]
        inside = inside[None, :, None, :] & (planes >= 0)[:, None, :, None]
        shape = planes.shape[0] * position.shape[0], planes.shape[1] * position.shape[1]
        planes = np.where(inside, here, -1).reshape(shape)
    return np.ascontiguousarray(planes)
