"""What is known of a value, where a graph runs, and an operation made ready: what all operations share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

import npconv as nc
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


def has_loops(where: Where) -> bool:
    """Whether there are compiled loops on the CPU."""
    return nc.plan((1, 1, 1), (1, 1, 1), backend=where.backend).backend.name == "numba"


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
    on_arrays : callable, optional
        ``on_arrays(*inputs, *results)`` gives what does the same as `run` with these whenever it is called, for arrays
        that stay where they are.
    """

    results: tuple[Value, ...] | None
    run: Callable[..., Any]
    view: bool = False
    in_place: bool = False
    held: int = 0
    on_arrays: Callable[..., Callable[[], Any]] | None = None


@dataclass(frozen=True)
class Step:
    """One node of a program, made ready, and what is known of the values that it gives."""

    node: Node
    bound: Bound
    results: tuple[Value | None, ...]


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


def layout_of(node: Node) -> str:
    """The layout of the images that a node reads and makes."""
    layout: str = node.attributes.get("layout", "channels_first")
    return layout


def channel_axis(node: Node, ndim: int) -> int:
    """The axis of an image's channels."""
    return 1 if layout_of(node) == "channels_first" else ndim - 1


def spatial_axes(node: Node, ndim: int) -> tuple[int, ...]:
    """The axes of an image but for batch and channels."""
    channels = channel_axis(node, ndim)
    return tuple(axis for axis in range(1, ndim) if axis != channels)


def channels_last(shape: Shape) -> Shape:
    """The shape of a channels-first image after its channels went last."""
    return (*shape[:1], *shape[2:], *shape[1:2])


def channels_first(shape: Shape) -> Shape:
    """The shape of a channels-last image after its channels went to axis 1."""
    return (*shape[:1], *shape[1:][-1:], *shape[1:-1])


def same_dtype(*values: Value | None) -> np.dtype[Any]:
    """The one dtype of all arrays."""
    dtypes = {value.dtype for value in values if value is not None}
    if len(dtypes) != 1:
        raise TypeError(f"all arrays must have one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()
