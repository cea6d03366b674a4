"""What layers, losses and optimisers ask of their arguments: whose array it is, its shape, integers and rates.

Only what a layer needs before it calls npconv: how a window lies on an image, npconv checks itself.
"""

from __future__ import annotations

import importlib
import math
import numbers
import operator
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy or CuPy array; its kind is the caller's affair, so the type checker does not ask."""

Ints = int | tuple[int, ...]


def namespace(name: str, value: Any) -> ModuleType:
    """Return the module whose functions take this array; anything but an array is a `TypeError` that names it."""
    if type(value).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    if isinstance(value, np.ndarray):
        check_unmasked(name, value)
        return np
    raise TypeError(f"{name} must be a NumPy or CuPy array, got {value!r:.60} ({type(value).__name__})")


def check_unmasked(name: str, value: Any) -> None:
    """Raise a `TypeError` for a masked array, whose mask would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; fill it first, as with .filled(0)")


def array_mover(backend: str) -> Callable[[Array], Array]:
    """Return the function that gives an array of the kind that a backend computes with; ``"auto"`` is the host's."""
    if backend == "cupy":
        return importlib.import_module("cupy").asarray  # type: ignore[no-any-return]
    return lambda value: value if namespace("value", value) is np else namespace("value", value).asnumpy(value)


def floating(name: str, value: Any) -> ModuleType:
    """Return the module whose functions take this array of real floating-point numbers, or raise a `TypeError`."""
    xp = namespace(name, value)
    if value.dtype.kind != "f":
        raise TypeError(f"{name} must be of a floating dtype, got {value.dtype}")
    return xp


def widened(xp: ModuleType, value: Array) -> Array:
    """Return `value` in the dtype to compute in: float16 in float32, anything else as it is."""
    return value.astype(xp.result_type(value.dtype, xp.float32), copy=False)


def check_shape(name: str, value: Array, expected: tuple[int, ...], why: str) -> None:
    """Raise unless `value` is an array of this shape: one that merely broadcasts would give a wrong gradient."""
    namespace(name, value)
    if tuple(value.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, {why}; got {tuple(value.shape)}")


def positive(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an integer of at least 1, or with ``least=0`` of zero or more."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r:.60} ({type(value).__name__})") from None
    if number < least:
        raise ValueError(f"{name} must be {'positive' if least else 'zero or more'}, got {number}")
    return number


def per_axis(name: str, value: Any, ndim: int, least: int = 1) -> tuple[int, ...]:
    """Return `value`, one integer of at least `least` (0 or 1) or one per dimension, as a tuple."""
    if not isinstance(value, tuple | list):
        return (positive(name, value, least),) * ndim
    if len(value) != ndim:
        raise ValueError(f"{name} must be an integer or a tuple of {ndim}, one per dimension; got {value!r}")
    return tuple(positive(f"{name}[{axis}]", item, least) for axis, item in enumerate(value))


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False: anything else is nearly always an argument in the wrong place."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r:.60}")
    return bool(value)


def rate(name: str, value: Any) -> float:
    """Return a hyperparameter, a finite number of zero or more.

    As a Python number it leaves the dtype of the arrays alone that it multiplies; a NumPy scalar would widen them.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r:.60} ({type(value).__name__})")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be finite and zero or more, got {value}")
    return number


def fraction(name: str, value: Any, *, below_one: bool = False) -> float:
    """Return a finite number from 0 to 1, or `below_one`."""
    number = rate(name, value)
    if number > 1 or (below_one and number == 1):
        raise ValueError(f"{name} must be from 0 to 1{', 1 excluded' if below_one else ''}, got {value}")
    return number


def converted(name: str, value: Any, like: Array) -> Array:
    """Return a copy of `value` in the dtype and the kind of array of `like`, or raise a `TypeError` that names it."""
    xp = namespace(name, like)
    try:
        array = xp.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} in state cannot be read as an array: {error}") from error
    if not xp.can_cast(array.dtype, like.dtype, "same_kind"):
        raise TypeError(f"{name!r} in state has dtype {array.dtype}, which does not convert to {like.dtype}")
    return array.astype(like.dtype, copy=True)
