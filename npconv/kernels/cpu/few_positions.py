"""Many small images: their positions side by side, as those of one long signal.

A tile of the gradient is loaded and stored once for every image, so four positions an image, as of 512 channels at 2x2,
leave little else to do. Here the patches of several images are laid out as columns, a channel and tap a row, and the
gradients of the results beside each other likewise; what remains is the weight gradient of a kernel of one tap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.geometry import Window
from npconv.kernels.cpu import weight_grad

# Positions of an image below which the copies are worth it. Of 512 channels and 3x3 taps, a batch of 16, four positions
# take 0.4 times as long this way, of 1024 channels and one tap nine take 0.8, and of 256 and 3x3 taps sixteen 0.96.
FEW = 16

# The same for the forward pass, whose tiles are as wide as 16 positions: of 512 channels and 3x3 taps, four positions
# take 0.5 times as long side by side, of 1024 channels and one tap nine take 0.8, and 16 take longer than one by one.
FEW_FORWARD = 10

# Multiply-adds below which Python's own time for the copies is most of a call.
WORTH_COPYING = 2**22

# Bytes of columns at once: the memory that a call takes is bounded.
MOST_BYTES = 8 * 2**20


def suits(window: Window, batch: int, groups: int, channels: int, outputs: int, itemsize: int) -> bool:
    """Whether the weight gradient is faster this way; the numbers of channels are those of all groups."""
    macs = batch * window.positions * window.taps * channels * outputs // groups
    narrow = weight_grad.is_narrow(outputs // groups, itemsize)
    return batch > 1 and window.positions < FEW and macs >= WORTH_COPYING and not narrow


def suits_forward(window: Window, batch: int, work: int) -> bool:
    """Whether a convolution of `work` multiply-adds on tiles is faster this way."""
    cuts = any(low < 0 or high < 0 for low, high in window.padding)
    return batch > 1 and window.positions < FEW_FORWARD and work >= WORTH_COPYING and not cuts


def lines(window: Window, batch: int, channels: int, itemsize: int) -> tuple[int, Window]:
    """How many images are laid side by side at once, and the window of their product."""
    most = min(batch, _images_at_once(window, channels, itemsize))
    return most, line(most * window.positions)


def forward(window: Window, at_once: int, x: Any, y: Any, product: Callable[[Any, Any], None]) -> None:
    """Convolve images ``(N, C, *size)`` into ``(N, outputs, positions)``, so many at once.

    ``product(columns, results)`` multiplies ``(channels * taps, positions)`` of them by the weights.
    """
    for first in range(0, x.shape[0], at_once):
        part, images = y[first : first + at_once], x[first : first + at_once]
        results = np.empty((y.shape[1], *part.shape[::2]), y.dtype)
        product(_columns(window, images), results)
        part[...] = results.swapaxes(0, 1)


def run(window: Window, groups: int, x: Any, dy: Any, dw: Any) -> None:
    """Write the gradient ``(outputs, depth)``; arguments are as for `weight_grad.run`."""
    most = _images_at_once(window, x.shape[1], x.itemsize)
    for first in range(0, x.shape[0], most):
        part = dw if first == 0 else np.empty_like(dw)
        _run_at_once(window, groups, x[first : first + most], dy[first : first + most], part)
        if first:
            dw += part


def _images_at_once(window: Window, channels: int, itemsize: int) -> int:
    """Images whose columns fit."""
    return max(2, MOST_BYTES // max(1, channels * window.taps * window.positions * itemsize))


def line(positions: int) -> Window:
    """So many positions, one tap each."""
    return Window((positions,), (1,), (1,), ((0, 0),), (1,))


def _run_at_once(window: Window, groups: int, x: Any, dy: Any, dw: Any) -> None:
    """The gradient of so many images that their columns fit."""
    positions = math.prod((x.shape[0], *window.out))
    gradients = np.ascontiguousarray(dy.swapaxes(0, 1)).reshape(1, dy.shape[1], positions)
    weight_grad.run(line(positions), groups, _columns(window, x).reshape(1, -1, positions), gradients, dw)


def _columns(window: Window, x: Any) -> Any:
    """``(channels, taps, batch, *out)``: what lies under every tap; zero where that is padding."""
    columns: Any = np.zeros((x.shape[1], window.taps, x.shape[0], *window.out), x.dtype)
    images = x.swapaxes(0, 1)
    for tap, inp, out in window.tap_slices():
        columns[:, tap, :, *out] = images[..., *inp]
    return columns
