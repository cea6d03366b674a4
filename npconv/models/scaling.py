"""How the networks are scaled: to small pictures, and to fewer channels."""

from __future__ import annotations

import math
import operator
from typing import Any

HALVINGS = 5
"""Layers of stride 2 in a network for ImageNet: 224 pixels become 7."""


def strides(size: Any) -> tuple[int, ...]:
    """Return the strides of the five layers that halve a picture, in their order, for pictures of this size.

    Pictures from 64 pixels on are halved five times. Smaller ones keep their size in the first of these layers, so that
    2 pixels are left at the end: 8 pixels are halved in the last two.

    Parameters
    ----------
    size : int
        The shorter side of a picture, in pixels.

    Returns
    -------
    tuple of int
        Five, each 1 or 2.

    Raises
    ------
    TypeError, ValueError
        If it is not a positive integer.

    Examples
    --------
    >>> strides(224), strides(32), strides(8)
    ((2, 2, 2, 2, 2), (1, 2, 2, 2, 2), (1, 1, 1, 2, 2))
    """
    halvings = min(HALVINGS, max(0, whole("size", size).bit_length() - 2))
    return (1,) * (HALVINGS - halvings) + (2,) * halvings


def scaled(channels: int, width: Any) -> int:
    """Return so many times the channels, rounded to a multiple of 8, but never down by more than a tenth.

    Parameters
    ----------
    channels : int
    width : float
        The width multiplier, above zero.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If `width` is not such a number.

    References
    ----------
    ``_make_divisible`` of torchvision, which has it from TensorFlow's model repository.

    Examples
    --------
    >>> scaled(32, 0.75), scaled(24, 0.5), scaled(32, 0.1)
    (24, 16, 8)
    """
    if isinstance(width, bool) or not isinstance(width, int | float):
        raise TypeError(f"width must be a number, got {width!r:.60} ({type(width).__name__})")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be finite and above zero, got {width}")
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def whole(name: str, value: Any) -> int:
    """Return `value`, a positive integer, or raise a `TypeError` or `ValueError` that names it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r:.60} ({type(value).__name__})") from None
    if number < 1:
        raise ValueError(f"{name} must be positive, got {number}")
    return number
