"""Where pictures are drawn: matplotlib when it is needed, the caller's Axes or new ones, and colours for everybody."""

from __future__ import annotations

from typing import Any

import numpy as np

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The palette of M. Okabe and K. Ito, *Color Universal Design* (2008), which colour-blind people tell apart.

None of these is too light for a white page or too dark for a black one.
"""

MARKS = "osD^vP"
"""A second way to tell them apart."""


def axes_for(ax: Any) -> Any:
    """The caller's Axes, or new ones in the current style.

    Raises
    ------
    ImportError
        If matplotlib is missing; the message names the extra.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"npconv.plot needs the extra 'plot' ({error}): pip install 'npconv[plot]'") from None
    return plt.subplots(layout="constrained")[1]


def host(name: str, value: Any, ndims: tuple[int, ...]) -> Any:
    """A NumPy array of numbers, of a number of dimensions that can be drawn.

    Raises
    ------
    ValueError, TypeError
        If it is not; the message names it.
    """
    array = np.asarray(value.get() if hasattr(value, "get") else value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    if array.ndim not in ndims or not array.size:
        wanted = " or ".join(map(str, ndims))
        raise ValueError(f"{name} must have {wanted} dimensions and elements, got shape {array.shape}")
    return array.astype(np.float64)


def tiled(images: Any, columns: int | None) -> tuple[Any, int]:
    """Images ``(n, H, W)`` side by side in one, NaN between them, and the number of columns."""
    count, height, width = images.shape
    columns = int(np.ceil(np.sqrt(count * height / width))) if columns is None else columns
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    gap = max(1, round(0.04 * max(height, width)))
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for number, image in enumerate(images):
        y, x = number // columns * (height + gap), number % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas, columns


def writing_on(color: str) -> str:
    """Black or white, whichever is read better on a colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
