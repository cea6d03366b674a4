"""What is known of a value, where a graph runs, and an operation made ready: what all operations share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from npconv.inference.graph import Array, Node
from npconv.inference.memory import Budget

Shape = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Value:
    """What is known of an array before it is computed; `constant` is the array where it is known already."""

    shape: Shape
    dtype: np.dtype[Any]
    constant: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, array: Array, constant: bool = False) -> Value:
        """What is known of an array that is there."""
        return cls(tuple(array.shape), array.dtype, array if constant else None)


@dataclass(frozen=True)
class Where:
    """Where a graph runs, and how much memory it may use there."""

    xp: ModuleType
    backend: str
    budget: Budget


@dataclass(frozen=True)
class Bound:
    """An operation made ready for inputs of certain shapes.

    Attributes
    ----------
    results : tuple of Value, or None
        None where nobody knows before it has run; `run` returns a tuple of arrays then.
    run : callable
        ``run(*inputs, *results)`` writes all elements of the results, which are in C order.
    view : bool
        The result is the memory of the first input in another shape; there is nothing to run.
    in_place : bool
        The result may be the memory of the first input, if that has its shape and dtype and nobody else reads it.
    held : int
        Bytes of memory that `run` keeps from run to run, such as packed weights.
    """

    results: tuple[Value, ...] | None
    run: Callable[..., Any]
    view: bool = False
    in_place: bool = False
    held: int = 0


Build = Callable[[Node, Sequence["Value | None"], Where], Bound]


def named(node: Node, error: BaseException) -> BaseException:
    """The error of a node, with the node's name."""
    kinds = (TypeError, NotImplementedError, MemoryError)
    kind = next((known for known in kinds if isinstance(error, known)), ValueError)
    text = str(error)
    return error if text.startswith("node ") else kind(f"node {node}: {text or type(error).__name__}")


def axis_of(axis: int, ndim: int) -> int:
    """The number of an axis, counted from the first."""
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is none of an array with {ndim} axes")
    return axis % ndim


def same_dtype(*values: Value | None) -> np.dtype[Any]:
    """The one dtype of all arrays."""
    dtypes = {value.dtype for value in values if value is not None}
    if len(dtypes) != 1:
        raise TypeError(f"all arrays must have one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()
