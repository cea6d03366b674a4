"""Sizes and words as callers write them: what they mean, or an error that names the argument."""

from __future__ import annotations

import math
import operator
from typing import Any

Size = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = ("channels_first", "channels_last")

# Offsets are computed in signed 64-bit integers; a complex128 element takes 16 bytes.
_MAX_ELEMENTS = (2**63 - 1) // 16
_MAX_INTEGER = 2**62


def integer(name: str, value: Any, minimum: int = 0) -> int:
    """Return `value` as a Python integer of at least `minimum`, or raise an error that names `name`.

    Booleans and floats are refused even where they are equal to an integer: they are nearly always a swapped argument.
    """
    if type(value) is not int:
        try:
            if type(value).__name__ in ("bool", "bool_", "_bool"):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {show(value)}") from None
    if value < minimum:
        kind = {0: "zero or more", 1: "positive"}.get(minimum, f"at least {minimum}")
        raise ValueError(f"{name} must be {kind}, got {value}")
    if value > _MAX_INTEGER:
        raise ValueError(f"{name} is too large for 64-bit offsets, got {value}")
    return int(value)


def choice(name: str, value: Any, known: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of `known`, else raise a `ValueError` that lists them."""
    if not any(value is k or (isinstance(value, str) and value == k) for k in known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {show(value)}")
    return value


def shape(name: str, value: Any) -> Size:
    """Return `value` as a tuple of sizes, each zero or more."""
    items = sequence(value)
    if items is None:
        raise TypeError(f"{name} must be a shape, a tuple of integers, got {show(value)}")
    sizes = tuple(integer(f"{name}[{i}]", v) for i, v in enumerate(items))
    return check_extent(name, sizes)


def per_axis(name: str, value: Any, ndim: int, minimum: int = 1) -> Size:
    """Return `value`, one integer or one per dimension, as a tuple of `ndim` integers."""
    items = sequence(value)
    if items is None:
        return (integer(name, value, minimum),) * ndim
    if len(items) != ndim:
        raise ValueError(
            f"{name} must be an integer or {count_of(ndim, 'integer')}, one per dimension; got {show(value)}"
        )
    return tuple(integer(f"{name}[{i}]", v, minimum) for i, v in enumerate(items))


def check_extent(name: str, sizes: Size) -> Size:
    """Return `sizes` unless their product leaves 64-bit byte offsets."""
    if math.prod(sizes) > _MAX_ELEMENTS:
        raise ValueError(f"{name} of shape {sizes} has too many elements for 64-bit byte offsets")
    return sizes


def sequence(value: Any) -> tuple[Any, ...] | None:
    """The items of a tuple, a list or an array; None for anything else."""
    if isinstance(value, tuple | list):
        return tuple(value)
    if getattr(value, "ndim", 0) >= 1 and hasattr(value, "__iter__"):
        return tuple(value)
    return None


def show(value: Any) -> str:
    """A short `repr` with the type, for error messages."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"


def count_of(n: int, noun: str) -> str:
    """So many things, as an error message says it."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
