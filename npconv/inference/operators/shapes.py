"""Operations that move elements, or only name them anew; and any function of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from npconv.inference.graph import Array, Node
from npconv.inference.operators.binding import Bound, Value, Where, axis_of, same_dtype


def concat(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Arrays joined along `axis`. A result that already lies where it belongs is not copied."""
    values = [value for value in inputs if value is not None]
    axis = axis_of(node.attributes["axis"], len(values[0].shape))
    shapes = [value.shape for value in values]
    if len({(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}) != 1:
        raise ValueError(f"arrays of shapes {shapes} cannot be joined along axis {axis}")
    total = sum(shape[axis] for shape in shapes)

    def run(*arrays: Array) -> None:
        *parts, y = arrays
        start = 0
        for part in parts:
            place = y[(slice(None),) * axis + (slice(start, start + part.shape[axis]),)]
            if place.size and _address(place) != _address(part):
                place[...] = part
            start += part.shape[axis]

    return Bound((Value((*shapes[0][:axis], total, *shapes[0][axis + 1 :]), same_dtype(*inputs)),), run)


def _address(array: Array) -> int:
    """Where the first element is."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def reshape(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Another shape for the same elements.

    ``attributes["shape"]`` is a function: of the shape of the first input, and of the second input where there is one.
    """
    x, *more = inputs
    assert x is not None
    target = node.attributes["shape"]
    if more and (more[0] is None or more[0].constant is None):
        return Bound(None, lambda x, wanted: (x.reshape(target(x.shape, wanted)).copy(),))
    shape = tuple(int(n) for n in target(x.shape, *(value.constant for value in more if value is not None)))
    if math.prod(shape) != math.prod(x.shape) or any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {x.shape} cannot take the shape {shape}")
    return Bound((Value(shape, x.dtype),), _nothing, view=True)


def shape(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """The shape of an array, from axis `start` to `stop`: known before anything runs."""
    (x,) = inputs
    assert x is not None
    found = np.array(x.shape[node.attributes["start"] : node.attributes["stop"]], np.int64)
    return Bound((Value(found.shape, found.dtype, where.xp.asarray(found)),), _nothing)


def _nothing(*arrays: Array) -> None:
    """Nothing is left to do."""


SHORT = 8
"""Elements of an axis that comes last up to which each of them is moved by itself: for so few NumPy's inner loop is not
worth beginning, and an image of three channels takes a seventh of the time."""


def transpose(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Axes in another order, written down."""
    (x,) = inputs
    assert x is not None
    axes = node.attributes["axes"]
    axes = tuple(range(len(x.shape)))[::-1] if axes is None else tuple(axes)
    if sorted(axes) != list(range(len(x.shape))):
        raise ValueError(f"axes {axes} do not order those of an array of shape {x.shape}")
    scattered = len(axes) > 1 and axes[-1] != len(axes) - 1 and x.shape[axes[-1]] <= SHORT

    def run(x: Array, y: Array) -> None:
        moved = x.transpose(axes)
        if not scattered:
            y[...] = moved
            return
        for place in range(moved.shape[-1]):
            y[..., place] = moved[..., place]

    return Bound((Value(tuple(x.shape[a] for a in axes), x.dtype),), run)


def call(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Any function of arrays: ``attributes["function"](*inputs)`` returns a tuple of arrays."""
    return Bound(None, node.attributes["function"])
