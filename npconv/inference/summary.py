"""What a model ready for inference does, step by step: multiply-accumulates, parameters, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npconv.inference.graph import Array, Graph
from npconv.inference.operators import Step, Value, Where
from npconv.inference.program import first_run


@dataclass(frozen=True)
class Row:
    """A step of a model.

    Attributes
    ----------
    name : str
    kind : str
        The operation; of what ONNX's evaluator runs, ONNX's name for it.
    shape : tuple of int
        Of the first result.
    macs : int or None
        Multiply-accumulates of convolutions and matrix products, 0 for everything else; None where nobody knows, as
        for a loop.
    parameters : int
        Constant floating-point numbers that it reads, those that an earlier step read not counted again.
    weight_bytes, activation_bytes : int
        Of all constants that it reads; of all else that it reads and of its results.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int | None
    parameters: int
    weight_bytes: int
    activation_bytes: int


def summarize(graph: Graph, feeds: Mapping[str, Array], where: Where) -> tuple[Row, ...]:
    """Run a graph once, and note every step that moves or computes anything; see `Model.summary`."""
    fixed: dict[str, Array] = {**graph.constants, "": None}
    steps, _ = first_run(graph, feeds, where, fixed)
    known = {name: Value.of(value) for name, value in feeds.items()}
    constants = {name: Value.of(value) for name, value in fixed.items() if hasattr(value, "shape")}
    seen: set[str] = set()
    rows = []
    for step in steps:
        known |= {name: value for name, value in zip(step.node.outputs, step.results, strict=False) if value}
        if not step.bound.view:
            rows.append(_row(step, known, constants, seen))
    return tuple(rows)


def _row(step: Step, known: Mapping[str, Value], constants: Mapping[str, Value], seen: set[str]) -> Row:
    node = step.node
    weights = {name: constants[name] for name in node.inputs if name in constants}
    learned = [value.shape for name, value in weights.items() if name not in seen and value.dtype.kind == "f"]
    seen.update(weights)
    read = [known[name] for name in dict.fromkeys(node.inputs) if name in known]
    results = [value for value in step.results if value is not None]
    kind = node.attributes.get("operator", node.op)
    inputs = [weights.get(name) or known.get(name) for name in node.inputs]
    return Row(
        str(node.name or node.outputs[0]),
        kind,
        results[0].shape if results else (),
        _macs(kind, inputs, results),
        sum(map(math.prod, learned)),
        sum(value.nbytes for value in weights.values()),
        sum(value.nbytes for value in (*read, *results)),
    )


def _macs(kind: str, inputs: Sequence[Value | None], results: Sequence[Value]) -> int | None:
    """Multiply-accumulates from the shapes: of npconv's own operations, and of ONNX's."""
    if kind in UNKNOWN or not results:
        return None
    y, shapes = results[0].shape, [() if value is None else value.shape for value in inputs]
    match kind:
        case "conv" | "Conv" | "ConvInteger":
            return math.prod(y) * math.prod(shapes[1][1:])
        case "QLinearConv":
            return math.prod(y) * math.prod(shapes[3][1:])
        case "conv_transpose" | "ConvTranspose":
            return math.prod(shapes[0]) * math.prod(shapes[1][1:])
        case "linear" | "MatMul" | "MatMulInteger" | "QLinearMatMul":
            return math.prod(y) * shapes[0][-1]
        case "Gemm":
            return math.prod(shapes[0]) * y[1]
    return 0


UNKNOWN = frozenset(
    {"call", "Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan", "SequenceMap"}
)
"""What multiplies, but by a number of times that its shapes do not say."""
