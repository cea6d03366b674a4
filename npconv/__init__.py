"""npconv: N-d, multi-channel convolution on plain NumPy and CuPy arrays, forward and backward, without a framework.

``import npconv as nc``, then ``nc.conv2d(x, w, bias)``. Importing loads NumPy and nothing else; Numba and the rooms
below are loaded when first touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from npconv.config import float32_as, get_backend, get_num_threads, set_backend, set_num_threads, strict, use_backend
from npconv.conv import conv, conv1d, conv2d, conv3d, plan
from npconv.gradients import conv_input_grad, conv_vjp, conv_weight_grad
from npconv.transposed import conv_transpose, conv_transpose1d, conv_transpose2d, conv_transpose3d

if TYPE_CHECKING:
    from npconv import cost, d2l, dask, filters, inference, jit, machine, models, nn, onnx, plot, reference
    from npconv.arrays import available_backends, free_workspace
    from npconv.filters import convolve, correlate
    from npconv.normalization import batch_norm_vjp
    from npconv.patches import col2im, fold, im2col, unfold
    from npconv.planning import autotune
    from npconv.pooling import avg_pool, avg_pool_vjp, max_pool, max_pool_vjp
    from npconv.report import show_config, warmup
    from npconv.roofs import this_machine
    from npconv.sums import add

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "add",
    "autotune",
    "available_backends",
    "avg_pool",
    "avg_pool_vjp",
    "batch_norm_vjp",
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
    "convolve",
    "correlate",
    "cost",
    "d2l",
    "dask",
    "filters",
    "float32_as",
    "fold",
    "free_workspace",
    "get_backend",
    "get_num_threads",
    "im2col",
    "inference",
    "jit",
    "machine",
    "max_pool",
    "max_pool_vjp",
    "models",
    "nn",
    "onnx",
    "plan",
    "plot",
    "reference",
    "set_backend",
    "set_num_threads",
    "show_config",
    "strict",
    "this_machine",
    "unfold",
    "use_backend",
    "warmup",
]

# What is loaded when it is first touched: whole rooms, and the functions of some.
_ROOMS = (
    "cost", "d2l", "dask", "filters", "inference", "jit", "machine", "models", "nn", "onnx", "plot", "reference",
)  # fmt: skip
_FUNCTIONS = {
    "add": "sums",
    "autotune": "planning.tuning",
    "batch_norm_vjp": "normalization",
    **dict.fromkeys(("available_backends", "free_workspace"), "arrays"),
    **dict.fromkeys(("convolve", "correlate"), "filters"),
    **dict.fromkeys(("col2im", "fold", "im2col", "unfold"), "patches"),
    **dict.fromkeys(("avg_pool", "avg_pool_vjp", "max_pool", "max_pool_vjp"), "pooling"),
    **dict.fromkeys(("show_config", "warmup"), "report"),
    "this_machine": "roofs",
}


def _load_on_touch(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"npconv.{name}")
    if name in _FUNCTIONS:
        function = getattr(importlib.import_module(f"npconv.{_FUNCTIONS[name]}"), name)
        globals()[name] = function
        return function
    raise AttributeError(f"module 'npconv' has no attribute {name!r}")


if not TYPE_CHECKING:  # a type checker would take every name for one of the module's
    __getattr__ = _load_on_touch


def __dir__() -> list[str]:
    return sorted(__all__)
