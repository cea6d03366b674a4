"""What each operation of a graph does: the shapes of its results, and a function that writes them."""

from __future__ import annotations

from collections.abc import Sequence

from npconv.inference.graph import Node
from npconv.inference.operators.binding import (
    Bound,
    Build,
    Step,
    Value,
    Where,
    axis_of,
    channels_last,
    named,
)
from npconv.inference.operators.elementwise import activation, elementwise
from npconv.inference.operators.pooling import (
    avg_pool,
    batch_norm,
    global_max_pool,
    lrn,
    max_pool,
    mean,
    softmax,
    windows,
)
from npconv.inference.operators.products import affine, conv, conv_plan, conv_transpose, depthwise, linear
from npconv.inference.operators.shapes import call, concat, reshape, shape, transpose

__all__ = [
    "OPERATORS", "Bound", "Build", "Step", "Value", "Where", "axis_of", "bind", "channels_last", "conv_plan",
    "depthwise", "named", "windows",
]  # fmt: skip

OPERATORS: dict[str, Build] = {
    "activation": activation,
    "add": elementwise("add"),
    "affine": affine,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "call": call,
    "concat": concat,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "global_max_pool": global_max_pool,
    "linear": linear,
    "lrn": lrn,
    "max_pool": max_pool,
    "mean": mean,
    "mul": elementwise("multiply"),
    "reshape": reshape,
    "shape": shape,
    "softmax": softmax,
    "transpose": transpose,
}
"""Every operation by the name that a `Node` calls it."""


def bind(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Make a node ready, or raise an error that names it."""
    try:
        bound = OPERATORS[node.op](node, inputs, where)
        for value in bound.results or ():
            where.budget.check(value.nbytes, f"node {node}")
        return bound
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError) as error:
        raise named(node, error) from error
