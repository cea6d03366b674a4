"""Graphs made shorter: scales and shifts move into the weights before them, activations into what makes their input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from npconv.inference.graph import Array, Graph, Node, own_name

FUSABLE = ("add", "affine", "conv", "conv_transpose", "linear", "mul")
"""Operations that apply an activation to their result."""

KEEP_RANK = (*FUSABLE, "activation", "avg_pool", "batch_norm", "concat", "lrn", "max_pool")
"""Operations whose result has as many axes as their first input."""


def optimise(graph: Graph, ranks: dict[str, int] | None = None) -> Graph:
    """Fuse what can be fused; the results stay the same up to rounding.

    Parameters
    ----------
    graph : Graph
    ranks : dict of str to int, optional
        Number of axes of the inputs, where it is known. It tells a scale per channel from one per column.

    Returns
    -------
    Graph

    Examples
    --------
    >>> import numpy as np
    >>> from npconv.inference import Graph, Node, optimise
    >>> how = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 1}
    >>> relu = {"activation": ("relu", ())}
    >>> nodes = [Node("conv", ("x", "w"), ("y",), how), Node("activation", ("y",), ("z",), relu)]
    >>> [node.op for node in optimise(Graph(["x"], ["z"], {"w": np.ones((1, 1, 3))}, nodes)).nodes]
    ['conv']
    """
    graph = Graph(list(graph.inputs), list(graph.outputs), dict(graph.constants), list(graph.nodes))
    _known_statistics(graph)
    _per_channel(graph, _all_ranks(graph, ranks or {}))
    _fuse(graph, _scale_into_weights)
    _gates(graph)
    _fuse(graph, _activation_into_producer)
    used = graph.uses()
    graph.nodes = [node for node in graph.nodes if any(used[name] for name in node.outputs)]
    used = graph.uses()
    graph.constants = {name: value for name, value in graph.constants.items() if used[name]}
    return graph


def _all_ranks(graph: Graph, known: dict[str, int]) -> dict[str, int]:
    """Number of axes of every value that it can be told of."""
    ranks = {name: value.ndim for name, value in graph.constants.items()} | known
    for node in graph.nodes:
        if node.op in ("conv", "conv_transpose") and node.inputs[1] in graph.constants:
            ranks[node.outputs[0]] = graph.constants[node.inputs[1]].ndim
        elif node.op in KEEP_RANK:
            found = [ranks.get(name) for name in node.inputs if name]
            if node.op not in ("add", "mul"):
                found = found[:1]
            if None not in found:
                ranks[node.outputs[0]] = max(rank for rank in found if rank is not None)
    return ranks


def _known_statistics(graph: Graph) -> None:
    """Turn batch normalisation by constants into an affine node."""
    for place, node in enumerate(graph.nodes):
        if node.op != "batch_norm" or any(name not in graph.constants for name in node.inputs[1:]):
            continue
        if any(graph.constants[name].dtype.kind != "f" for name in node.inputs[1:]):
            continue
        scale, bias, mean, var = (graph.constants[name].astype("float64") for name in node.inputs[1:])
        if not scale.shape == bias.shape == mean.shape == var.shape:
            shapes = ", ".join(str(part.shape) for part in (scale, bias, mean, var))
            raise ValueError(f"node {node}: scale, bias, mean and variance must be of one shape, got {shapes}")
        factor = scale / (var + node.attributes["eps"]) ** 0.5
        dtype = graph.constants[node.inputs[1]].dtype
        shift = bias - mean * factor
        graph.nodes[place] = _affine(graph, node, node.inputs[0], factor.astype(dtype), shift.astype(dtype))


def _per_channel(graph: Graph, ranks: dict[str, int]) -> None:
    """Turn a product or a sum with one constant per channel into an affine node."""
    for place, node in enumerate(graph.nodes):
        if node.op not in ("add", "mul") or len(node.inputs) != 2:
            continue
        for x, other in (node.inputs, node.inputs[::-1]):
            constant, rank = graph.constants.get(other), ranks.get(x)
            if constant is None or x in graph.constants or rank is None or constant.dtype.kind != "f":
                continue
            if rank < 3 or constant.size < 2 or constant.shape[-rank + 1 :] != (constant.size, *(1,) * (rank - 2)):
                continue
            vector = constant.reshape(-1)
            scale, shift = (vector, 0 * vector) if node.op == "mul" else (0 * vector + 1, vector)
            graph.nodes[place] = _affine(graph, node, x, scale, shift)
            break


def _affine(graph: Graph, node: Node, x: str, scale: Array, shift: Array) -> Node:
    """An affine node with constants of its own, in the place of another."""
    names = [own_name(node.outputs[0], part) for part in ("scale", "shift")]
    graph.constants |= dict(zip(names, (scale, shift), strict=True))
    kept = {"activation": node.attributes["activation"]} if "activation" in node.attributes else {}
    return Node("affine", (x, *names), node.outputs, kept, node.name)


def _fuse(graph: Graph, merged: Callable[[Graph, Node, Node], Node | None]) -> None:
    """Merge nodes into those that make their first input, where nobody else reads it."""
    uses = graph.uses()
    place: dict[str, int] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        before = place.get(node.inputs[0]) if node.inputs else None
        joint = None
        if before is not None and uses[node.inputs[0]] == 1 and "activation" not in nodes[before].attributes:
            joint = merged(graph, nodes[before], node)
        if joint is None or before is None:
            before = len(nodes)
            nodes.append(node)
        else:
            nodes[before] = joint
        place |= dict.fromkeys(nodes[before].outputs, before)
    graph.nodes = nodes


def _scale_into_weights(graph: Graph, before: Node, node: Node) -> Node | None:
    """A convolution or an affine node, and then an affine one."""
    if node.op != "affine" or before.op not in ("conv", "affine"):
        return None
    names = (*node.inputs[1:], *(name for name in before.inputs[1:] if name))
    if any(name not in graph.constants for name in names):
        return None
    # In double precision, so that the new weights are rounded once.
    scale, shift, w, *bias = (graph.constants[name].astype("float64") for name in names)
    dtype = graph.constants[before.inputs[1]].dtype
    if before.op == "affine":
        values = {"scale": w * scale, "shift": bias[0] * scale + shift}
    else:
        if w.shape[0] != scale.size:
            return None
        per_output = scale.reshape(-1, *(1,) * (w.ndim - 1))
        values = {"weight": w * per_output, "bias": shift + (bias[0] * scale if bias else 0)}
    inputs = {own_name(node.outputs[0], part): value.astype(dtype) for part, value in values.items()}
    graph.constants |= inputs
    return Node(
        before.op, (before.inputs[0], *inputs), node.outputs, {**before.attributes, **node.attributes}, before.name
    )


def _gates(graph: Graph) -> None:
    """``x * sigmoid(x)`` and ``x * hardsigmoid(x)`` are activations of x."""
    uses, producers, gone = graph.uses(), graph.producers(), set()
    for place, node in enumerate(graph.nodes):
        if node.op != "mul" or len(node.inputs) != 2:
            continue
        for x, other in (node.inputs, node.inputs[::-1]):
            gate = producers.get(other)
            if gate is not None and gate.op == "activation" and gate.inputs == (x,) and uses[other] == 1:
                found = _gated(*gate.attributes["activation"])
                if found is not None:
                    graph.nodes[place] = Node("activation", (x,), node.outputs, {"activation": (found,)}, node.name)
                    gone.add(other)
                    break
    graph.nodes = [node for node in graph.nodes if not gone.intersection(node.outputs)]


def _gated(name: str, *numbers: float) -> str | None:
    """The activation that is x times another one."""
    if name == "hardsigmoid" and abs(numbers[0] - 1 / 6) < 1e-6 and numbers[1] == 0.5:
        return "hardswish"
    return "silu" if name == "sigmoid" else None


def _activation_into_producer(_: Graph, before: Node, node: Node) -> Node | None:
    """Anything that can apply an activation, and then an activation."""
    if node.op != "activation" or before.op not in FUSABLE:
        return None
    return replace(before, outputs=node.outputs, attributes={**before.attributes, **node.attributes})
