"""Operations on one element at a time, of one array or of several."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

import npconv as nc
from npconv.inference.activation import FUSED, Activation, activate
from npconv.inference.graph import Array, Node
from npconv.inference.operators.binding import Bound, Build, Value, Where, has_loops, same_dtype


def elementwise(function: str) -> Build:
    """A NumPy function of two or more arrays that broadcast, folded from the left."""

    def build(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
        values = [value for value in inputs if value is not None]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        dtype = same_dtype(*inputs)
        activation = node.attributes.get("activation")
        ufunc = getattr(where.xp, function)
        alike = all(value.shape == shape for value in values)
        pair = function == "add" and alike and len(values) == 2 and (activation is None or activation[0] in FUSED)
        compiled = pair and dtype in ("f4", "f8") and has_loops(where)

        def run(*arrays: Array) -> None:
            *arrays_in, y = arrays
            if compiled:
                nc.add(arrays_in[0], arrays_in[1], activation and activation[0], backend=where.backend, out=y)
                return
            if alike:
                # Block by block, so that the activation finds its operand in the cache.
                _blockwise(where.xp, ufunc, [a.reshape(-1) for a in arrays_in], y.reshape(-1), activation)
                return
            _fold(ufunc, arrays_in, y)
            activate(where.xp, y, activation)

        in_place = values[0].shape == shape
        return Bound((Value(shape, dtype),), run, in_place=in_place)

    return build


BLOCK = 2**15


def _blockwise(xp: ModuleType, ufunc: Any, arrays: list[Array], y: Array, activation: Activation | None) -> None:
    for start in range(0, y.size, BLOCK):
        part = slice(start, start + BLOCK)
        _fold(ufunc, [a[part] for a in arrays], y[part])
        activate(xp, y[part], activation)


def _fold(ufunc: Any, arrays: Sequence[Array], y: Array) -> None:
    """The function of all arrays, from the left, into `y`."""
    if len(arrays) == 1:
        y[...] = arrays[0]
        return
    ufunc(arrays[0], arrays[1], out=y)
    for other in arrays[2:]:
        ufunc(y, other, out=y)


def activation(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """An activation that could not be fused into what made its input."""
    (x,) = inputs
    assert x is not None

    def run(x: Array, y: Array) -> None:
        if y is not x:
            y[...] = x
        activate(where.xp, y, node.attributes["activation"])

    return Bound((Value(x.shape, x.dtype),), run, in_place=True)
