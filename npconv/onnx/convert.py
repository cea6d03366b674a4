"""From ONNX's graph to npconv's: what npconv knows becomes its own nodes, everything else a call of the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npconv.inference import Budget, Graph, Model, Node, optimise
from npconv.onnx.evaluator import node_function, outer_names
from npconv.onnx.lowering import LOWERINGS, Source

Array = Any

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators whose results differ from run to run."""


def convert(onnx: Any, proto: Any, budget: Budget) -> Model:
    """Make a model of a parsed file.

    Parameters
    ----------
    onnx : module
    proto : ModelProto
        Its tensors are checked already.
    budget : Budget

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If the graph is not valid; the message names the node.
    """
    opsets = _opsets(onnx, proto)
    _check_nodes(onnx, proto, opsets)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for s in proto.graph.sparse_initializer:
        constants[s.values.name] = _dense(onnx, s, budget, f"initializer {s.values.name!r}")
    for name, value in constants.items():
        budget.take(value.nbytes, f"initializer {name!r}")
    inputs = {value.name: _spec(onnx, value) for value in proto.graph.input if value.name not in constants}
    nodes: list[Node] = []
    read = {name for node in proto.graph.node for name in [*node.input, *outer_names(node)]}
    read |= {value.name for value in proto.graph.output}
    for number, node in enumerate(proto.graph.node):
        wanted = [name if name in read else "" for name in node.output]
        _convert_node(onnx, proto, node, number, wanted, opsets, constants, nodes, budget)
    graph = Graph(list(inputs), [value.name for value in proto.graph.output], constants, nodes)
    ranks = {name: len(shape) for name, (shape, _) in inputs.items() if shape is not None}
    return Model(optimise(graph, ranks), inputs, max_memory=budget.limit, backend=_cpu_backend())


def _cpu_backend() -> str | None:
    """The evaluator's arrays are NumPy's, so a model from a file is."""
    import npconv as nc

    return "auto" if nc.get_backend() == "cupy" else None


def _convert_node(
    onnx: Any, proto: Any, node: Any, number: int, wanted: list[str], opsets: Mapping[str, int],
    constants: dict[str, Array], nodes: list[Node], budget: Budget,
) -> None:  # fmt: skip
    """Add a node to `nodes`, or its results to `constants` where they are the same in every run.

    `wanted` are the names of its outputs, empty where nobody reads one.
    """
    name = f"{node.name or number} ({node.op_type})"
    outer = outer_names(node)
    names = [*node.input, *outer]
    random = node.op_type in RANDOM or _inside(node)
    sparse = next((a.sparse_tensor for a in node.attribute if a.name == "sparse_value"), None)
    if node.op_type == "Constant" and sparse is not None:
        dense = _dense(onnx, sparse, budget, f"node {name}")
        budget.take(dense.nbytes, f"node {name}")
        constants[node.output[0]] = dense
        return
    foreign = _lazily(lambda: node_function(onnx, proto, node, outer, budget), name)
    if not random and all(not n or n in constants for n in names):
        results = dict(zip(node.output, foreign(*(constants.get(n) for n in names)), strict=True))
        results.pop("", None)
        if all(isinstance(value, np.ndarray) for value in results.values()):
            budget.take(sum(value.nbytes for value in results.values()), f"node {name}")
            constants |= results
            return
    lower = LOWERINGS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    found = None
    if lower is not None:
        try:
            found = lower(Source(node, wanted, attributes_of(onnx, node), opsets.get(node.domain, 1), constants, name))
        except KeyError as error:
            raise ValueError(f"node {name} has no attribute {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"node {name}: {error}") from error
    if found is None:
        known = {"operator": node.op_type} if node.domain in ("", "ai.onnx") else {}
        how = {"function": foreign, "pure": not random, **known}
        found = [Node("call", tuple(names), tuple(node.output), how, name)]
    nodes.extend(found)


def _lazily(make: Callable[[], Callable[..., Any]], name: str) -> Callable[..., Any]:
    """A function that is made when it is first called; errors name the node."""
    made: list[Callable[..., Any]] = []

    def run(*arrays: Array) -> Any:
        try:
            if not made:
                made.append(make())
            return made[0](*arrays)
        except NotImplementedError as error:
            raise NotImplementedError(f"node {name}: {error}") from error
        except Exception as error:  # whatever the evaluator's operators raise on bad input
            text = str(error)
            kind = next((known for known in (TypeError, MemoryError) if isinstance(error, known)), ValueError)
            raise kind(text if text.startswith("node ") else f"node {name}: {text or type(error).__name__}") from error

    return run


def attributes_of(onnx: Any, node: Any) -> dict[str, Any]:
    """Attributes that are numbers, words or lists of them."""
    kinds = onnx.AttributeProto
    plain = (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.FLOATS, kinds.STRING, kinds.STRINGS)
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type in plain}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


# --------------------------------------------------------------------------------------------------------------------
# What a graph must be
# --------------------------------------------------------------------------------------------------------------------


def _opsets(onnx: Any, proto: Any) -> dict[str, int]:
    """Version of each operator set, none newer than the installed `onnx` knows."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if not opsets:
        raise ValueError("this is no ONNX model: it names no operator set")
    newest = onnx.defs.onnx_opset_version()
    version = opsets.get("", 1)
    if not 1 <= version <= newest:
        raise ValueError(
            f"the model is written for operator set {version}; onnx {onnx.__version__} knows 1 to {newest}"
        )
    return opsets


def _check_nodes(onnx: Any, proto: Any, opsets: Mapping[str, int]) -> None:
    """Check that every node's operator is known and well-formed, and that its inputs are there before it."""
    graph = proto.graph
    names = [value.name for value in graph.input]
    initial = [*(t.name for t in graph.initializer), *(s.values.name for s in graph.sparse_initializer)]
    known = {*names, *initial, ""}
    made = {name for node in graph.node for name in node.output if name}
    functions = {(f.domain, f.name) for f in proto.functions}
    _check_text("the graph", *names, *initial, *(value.name for value in graph.output))
    if len(set(names)) != len(names):
        raise ValueError("two inputs of the graph have the same name")
    if len(set(initial)) != len(initial):
        twice = next(name for name in initial if initial.count(name) > 1)
        raise ValueError(f"two initializers of the graph have the name {twice!r}")
    if not graph.output:
        raise ValueError("the graph has no output")
    for number, node in enumerate(graph.node):
        who = f"node {node.name or number} ({node.op_type})"
        attributes = (attribute.name for attribute in node.attribute)
        _check_text(who, node.name, node.op_type, node.domain, *node.input, *node.output, *attributes)
        if (node.domain, node.op_type) not in functions:
            _check_operator(onnx, who, node, opsets, proto.ir_version)
        for name in [*node.input, *outer_names(node)]:
            if name in known:
                continue
            if name in made:
                raise ValueError(
                    f"{who} reads {name!r}, which is made after it: the nodes are in no order, or in a cycle"
                )
            raise ValueError(f"{who} reads {name!r}, which nothing makes")
        for name in filter(None, node.output):
            if name in known:
                raise ValueError(f"{who} makes {name!r}, which is there already")
            known.add(name)
    reserved = next((name for name in known if name.startswith("\0")), None)
    if reserved is not None:
        raise ValueError(f"the name {reserved!r} starts with a character that names may not have")
    for value in graph.output:
        if value.name not in known or not value.name:
            raise ValueError(f"the graph's output {value.name!r} is made by no node")


def _check_text(who: str, *names: Any) -> None:
    """Names in a file may be any bytes; those that are no UTF-8 are given as such."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{who} has a name that is no UTF-8, {name!r:.60}")


def _check_operator(onnx: Any, who: str, node: Any, opsets: Mapping[str, int], ir_version: int) -> None:
    """Check a node against the definition of its operator."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, opsets.get(node.domain, 1 if domain == "" else 0))
    if not version:
        raise ValueError(f"{who} is of the domain {node.domain!r}, of which the model names no version")
    try:
        onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        raise NotImplementedError(
            f"{who}: version {version} of the domain {node.domain or 'ai.onnx'!r} has no operator {node.op_type!r}"
        ) from None
    checker = onnx.checker
    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = ir_version, dict(opsets)
    if not any(a.HasField("g") or a.graphs for a in node.attribute):
        try:
            checker.check_node(node, context)
        except checker.ValidationError as error:
            raise ValueError(f"{who}: {' '.join(str(error).split())}") from error


def _spec(onnx: Any, value: Any) -> tuple[tuple[int | None, ...] | None, Any]:
    """Shape and dtype of an input as the model declares them; None for what it leaves open."""
    if not value.type.HasField("tensor_type"):
        raise TypeError(f"the graph's input {value.name!r} is no tensor")
    kind = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        raise ValueError(f"the graph's input {value.name!r} has the unknown data type {kind.elem_type}") from None
    if not kind.HasField("shape"):
        return None, dtype
    # Some write -1 for a size that is open.
    known = (d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return tuple(None if n < 0 else n for n in known), dtype


def _dense(onnx: Any, sparse: Any, budget: Budget, who: str) -> Array:
    """A sparse tensor with its zeros written down."""
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    dims = tuple(sparse.dims)
    if any(n < 0 for n in dims):
        raise ValueError(f"{who} has the impossible shape {dims}")
    count = int(np.prod(dims, dtype=object)) if dims else 1
    budget.check(count * values.dtype.itemsize, who)
    if indices.ndim == 2 and indices.shape[1] == len(dims):
        inside = bool(((indices >= 0) & (indices < np.array(dims))).all())
        indices = np.ravel_multi_index(tuple(indices.T), dims) if inside else np.array([-1])
    if indices.shape != values.shape or (indices.size and not 0 <= indices.min() <= indices.max() < count):
        raise ValueError(f"{who} has indices that do not fit its shape {dims}")
    dense = np.zeros(count, values.dtype)
    dense[indices] = values
    return dense.reshape(dims)


def _inside(node: Any) -> bool:
    """Whether a graph in a node's attributes, at any depth, gives other results from run to run."""
    graphs = [g for a in node.attribute for g in [*([a.g] if a.HasField("g") else []), *a.graphs]]
    return any(inner.op_type in RANDOM or _inside(inner) for graph in graphs for inner in graph.node)
