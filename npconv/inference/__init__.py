"""Networks made ready for inference: one small executor of fused graphs, used by `npconv.nn.compile` and `npconv.onnx`.

A `Graph` says what is computed. `optimise` folds constants and fuses what follows a convolution into it. A `Model` runs
it: for every shape of its inputs a `Program` is made once, with each node planned and one arena of memory for all.
"""

from __future__ import annotations

from npconv.inference.graph import Graph, Node, own_name
from npconv.inference.memory import Budget, LimitError
from npconv.inference.model import MAX_MEMORY, Model
from npconv.inference.optimise import optimise

__all__ = ["MAX_MEMORY", "Budget", "Graph", "LimitError", "Model", "Node", "optimise", "own_name"]
