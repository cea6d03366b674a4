"""Single nodes in `onnx`'s own evaluator, which says before each how large its results will be.

Subgraphs and functions run in evaluators of the same kind, so that what is nested is bounded too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from npconv.inference import Budget
from npconv.onnx.package import require
from npconv.onnx.sizes import SCRATCH, SIZES, given

Array = Any

SMALL = 4096
"""Elements up to which an input may be a shape, a number of repeats and the like, which decide a result's size."""

BOUNDED = frozenset(
    [
        "Compress",
        "ConcatFromSequence",
        "FeatureVectorizer",
        "GroupNormalization",
        "If",
        "Imputer",
        "Loop",
        "MeanVarianceNormalization",
        "NonMaxSuppression",
        "Normalizer",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "RegexFullMatch",
        "SVMRegressor",
        "Scaler",
        "Scan",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "StringNormalizer",
        "TfIdfVectorizer",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
        "Unique",
    ]
)
"""Operators of which nobody can say the shape of a result, but whose results are no larger than a few times their
inputs; what a loop gives in all its iterations is counted by itself."""


def node_function(onnx: Any, proto: Any, node: Any, outer: Sequence[str], budget: Budget) -> Callable[..., Any]:
    """A node as a function of its inputs and then of the values of the graph around it that its own graphs read.

    Parameters
    ----------
    onnx : module
    proto : ModelProto
        Whose operator sets and functions hold.
    node : NodeProto
    outer : sequence of str
        Names of those further values.
    budget : Budget

    Returns
    -------
    callable
        It takes arrays and returns a tuple of arrays, one for each output of the node.
    """
    names = list(dict.fromkeys([*(name for name in node.input if name), *outer]))
    wanted = [name for name in node.output if name]
    info = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph([node], "node", [info(name) for name in names], [info(name) for name in wanted])
    model = onnx.helper.make_model(graph, functions=list(proto.functions), opset_imports=list(proto.opset_import))
    evaluator = _evaluator(budget)(model, new_ops=require("npconv.onnx").ops)
    places = [[*node.input, *outer].index(name) for name in names]

    def run(*arrays: Array) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            found = evaluator.run(None, {name: arrays[place] for name, place in zip(names, places, strict=True)})
        results = dict(zip(wanted, found, strict=True))
        return tuple(results.get(name) for name in node.output)

    return run


def outer_names(node: Any) -> list[str]:
    """Values of the graph around a node that the graphs in its attributes read."""
    found: list[str] = []
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            known = {value.name for value in [*graph.input, *graph.initializer]}
            known |= {sparse.values.name for sparse in graph.sparse_initializer}
            for inner in graph.node:
                found += [name for name in [*inner.input, *outer_names(inner)] if name and name not in known]
                known |= set(inner.output)
            found += [value.name for value in graph.output if value.name not in known]
    return [name for name in dict.fromkeys(found) if name not in node.input]


def _evaluator(budget: Budget) -> Any:
    """The class of evaluators that keep to a budget."""
    base: Any = require("onnx.reference").ReferenceEvaluator

    class Evaluator(base):  # type: ignore[misc]
        """`ReferenceEvaluator` with every operator guarded."""

        produced = 0

        def _load_impl(self, node: Any, input_types: Any = None) -> Any:
            return _guarded(super()._load_impl(node, input_types), budget)

        def run(self, *arguments: Any, **options: Any) -> Any:
            """Run, and count what iterations of a loop give."""
            results = super().run(*arguments, **options)
            if isinstance(results, list):
                self.produced += sum(map(_size, results))
                budget.check(self.produced, "a graph inside a node")
            return results

    return Evaluator


def _guarded(operator: Any, budget: Budget) -> Any:
    """An operator class that checks the size of its results before it computes them."""
    if not isinstance(operator, type):
        return functools.partial(_guarded_instance, operator, budget)

    plain: Any = operator

    def run(self: Any, *inputs: Array, **options: Any) -> Any:
        for value in vars(self).values():
            if hasattr(value, "produced"):
                value.produced = 0
        _check(self, inputs, budget)
        if hasattr(self, "locale"):  # of StringNormalizer, which would set it for the whole process
            self.locale = None
        return plain.run(self, *inputs, **options)

    return type(operator.__name__, (operator,), {"run": run, "__module__": __name__})


def _guarded_instance(make: Callable[..., Any], budget: Budget, *arguments: Any) -> Any:
    """As `_guarded`, for operators that are made by a function."""
    instance = make(*arguments)
    plain = instance.run

    def run(*inputs: Array, **options: Any) -> Any:
        _check(instance, inputs, budget)
        return plain(*inputs, **options)

    instance.run = run
    return instance


def _check(operator: Any, inputs: Sequence[Array], budget: Budget) -> None:
    """Raise ValueError if the results of an operator would take too much memory, or if nobody can say."""
    node = operator.onnx_node
    who = f"node {node.name or node.op_type}"
    budget.check(sum(map(_size, inputs)), f"the input of {who}")
    opset = operator.run_params["opsets"].get(node.domain, 1)
    if node.op_type in SCRATCH:
        budget.check(SCRATCH[node.op_type](node, inputs), who)
    if node.op_type == "Split" and given(node, "num_outputs", len(node.output)) != len(node.output):
        raise ValueError(f"{who} (Split): num_outputs must be {len(node.output)}, the number of its outputs")
    shapes = result_shapes(node, opset, inputs)
    if shapes is None:
        return
    for shape, itemsize in shapes:
        if shape is None:
            if node.op_type not in BOUNDED:
                raise ValueError(f"{who} ({node.op_type}) has a result whose size cannot be told beforehand")
        else:
            budget.check(math.prod(shape) * itemsize, who)


def result_shapes(node: Any, opset: int, inputs: Sequence[Array]) -> list[tuple[tuple[int, ...] | None, int]] | None:
    """Shape and bytes an element of each result by `onnx`'s rules; None for a shape that they do not tell.

    None for all where there are no rules, or where an input is no tensor.
    """
    onnx, inference = require(), require("onnx.shape_inference")
    if node.op_type == "Constant" or not onnx.defs.has(node.op_type, node.domain):
        return None
    if any(value is not None and not isinstance(value, np.ndarray | np.generic) for value in inputs):
        return None
    if node.op_type in SIZES:
        return [((SIZES[node.op_type](node, inputs),), 8)]
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    given = {name: np.asarray(value) for name, value in zip(node.input, inputs, strict=False) if name}
    plain = {name: value for name, value in given.items() if value.dtype.kind in "biuf"}
    kind = onnx.helper.np_dtype_to_tensor_dtype
    types = {name: onnx.helper.make_tensor_type_proto(kind(v.dtype), v.shape) for name, v in given.items()}
    small = {name: onnx.numpy_helper.from_array(v, name) for name, v in plain.items() if v.size <= SMALL}
    opsets = [onnx.helper.make_opsetid(node.domain, opset)]
    try:
        found = inference.infer_node_outputs(schema, node, types, small, opset_imports=opsets)
    except inference.InferenceError:
        found = {}
    return [_told(onnx, found.get(name)) for name in node.output if name]


def _told(onnx: Any, kind: Any) -> tuple[tuple[int, ...] | None, int]:
    """What a type says of a tensor."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None, 1
    dims = kind.tensor_type.shape.dim
    itemsize = 8
    if kind.tensor_type.elem_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        itemsize = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)).itemsize
    if any(not d.HasField("dim_value") for d in dims):
        return None, itemsize
    return tuple(d.dim_value for d in dims), itemsize


def _size(value: Any) -> int:
    """Bytes of an array, or of all arrays in a sequence."""
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return int(getattr(value, "nbytes", 0))
