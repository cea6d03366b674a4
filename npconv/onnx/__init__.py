"""Networks that others trained: run ONNX models, and lend npconv's operators to `onnx`'s own evaluator.

`load` makes a `npconv.inference.Model` of a file. `ops` are classes for
``onnx.reference.ReferenceEvaluator(model, new_ops=npconv.onnx.ops)``. They need the extra ``onnx``, which is imported
when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from npconv.onnx.reading import load

if TYPE_CHECKING:
    ops: list[Any]

__all__ = ["load", "ops"]


def _made_on_touch(name: str) -> Any:
    if name == "ops":
        globals()[name] = importlib.import_module("npconv.onnx.operators").classes()
        return globals()[name]
    raise AttributeError(f"module 'npconv.onnx' has no attribute {name!r}")


if not TYPE_CHECKING:  # a type checker would take every name for one of the module's
    __getattr__ = _made_on_touch
