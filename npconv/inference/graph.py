"""What is computed: nodes that read and write values by name. Values are NumPy or CuPy arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Array: TypeAlias = Any


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes
    ----------
    op : str
        A name in `npconv.inference.operators.OPERATORS`.
    inputs : tuple of str
        Names of values; an empty one stands for an optional input that is left out.
    outputs : tuple of str
    attributes : mapping
        What the operator takes besides arrays. ``activation`` names an activation and its parameters, and is applied
        to the result.
    name : str
        What error messages call it.

    Examples
    --------
    >>> from npconv.inference import Node
    >>> str(Node("activation", ("x",), ("y",), {"activation": ("relu", ())}, name="last rectifier"))
    'last rectifier'
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{self.op} that makes {', '.join(self.outputs)}"


def own_name(value: str, part: str) -> str:
    r"""Name of a constant that was made for the node of `value`; no name of a file has its first character.

    Examples
    --------
    >>> own_name("y", "scale")
    '\x00y/scale'
    """
    return f"\0{value}/{part}"


@dataclass
class Graph:
    """Nodes in the order in which they run.

    Attributes
    ----------
    inputs, outputs : list of str
        Names of values.
    constants : dict of str to array
    nodes : list of Node
        Each after those that make its inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from npconv.inference import Graph, Node
    >>> graph = Graph(["x"], ["y"], {"w": np.ones((3, 2))}, [Node("linear", ("x", "w"), ("y",))])
    >>> graph.uses()["w"], graph.producers()["y"].op
    (1, 'linear')
    """

    inputs: list[str]
    outputs: list[str]
    constants: dict[str, Array]
    nodes: list[Node]

    def uses(self) -> Counter[str]:
        """How often each value is read, being an output included."""
        return Counter([name for node in self.nodes for name in node.inputs] + self.outputs)

    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs}
