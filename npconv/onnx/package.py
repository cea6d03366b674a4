"""The package `onnx`, imported when it is first needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(name: str = "onnx") -> Any:
    """Import `onnx` or one of its modules, or say which extra installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"npconv.onnx needs the package onnx, which cannot be imported ({error}); install it with: "
            "pip install 'npconv[onnx]'"
        ) from error
