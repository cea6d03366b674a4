"""npconv: N-d, multi-channel convolution on plain NumPy and CuPy arrays, forward and backward, without a framework.

``import npconv as nc``, then ``nc.conv2d(x, w, bias)``. Importing loads NumPy and nothing else; Numba and the rooms below are
loaded when first touched.
"""

from __future__ import annotations

import importlib
from typing import Any

from npconv.arrays import available_backends
from npconv.config import get_backend, get_num_threads, set_backend, set_num_threads, use_backend
from npconv.conv import (
    conv,
    conv1d,
    conv2d,
    conv3d,
    conv_input_grad,
    conv_transpose,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    conv_vjp,
    conv_weight_grad,
    plan,
)
from npconv.patches import col2im, fold, im2col, unfold
from npconv.pooling import avg_pool, avg_pool_vjp, max_pool, max_pool_vjp
from npconv.report import show_config, warmup

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "available_backends",
    "avg_pool",
    "avg_pool_vjp",
    "col2im",
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_input_grad",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_vjp",
    "conv_weight_grad",
    "cost",
    "d2l",
    "fold",
    "get_backend",
    "get_num_threads",
    "im2col",
    "max_pool",
    "max_pool_vjp",
    "nn",
    "plan",
    "reference",
    "set_backend",
    "set_num_threads",
    "show_config",
    "unfold",
    "use_backend",
    "warmup",
]

_ROOMS = ("cost", "d2l", "nn", "reference")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"npconv.{name}")
    raise AttributeError(f"module 'npconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
