"""The sum of two arrays with an activation after it: where a residual branch meets its shortcut."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv import config, epilogue
from npconv.arrays import Array, Operands, check_shape, is_plain, require

COMPILED = (np.dtype(np.float32), np.dtype(np.float64))


def add(
    x: Array, other: Array, activation: str | None = None, *, backend: str | None = None, out: Array | None = None
) -> Array:
    """Add two arrays of one shape and apply an activation, in one pass over the memory.

    Parameters
    ----------
    x, other : array
        Of one shape, any supported dtypes; mixed ones follow `numpy.result_type`.
    activation : {None, "relu", "relu6", "hardswish"}
    backend : str, optional
        As for `npconv.conv`.
    out : array, optional
        Receives the result. It may be `x` or `other` itself, and share no memory with them otherwise.

    Returns
    -------
    array
        ``activation(x + other)``.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    References
    ----------
    K. He et al., *Deep residual learning for image recognition*, arXiv:1512.03385, figure 2.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.add(np.array([1.0, -5.0]), np.array([2.0, 3.0]), "relu")
    array([3., 0.])
    """
    name = config.get_backend() if backend is None else backend
    if name in ("auto", "numba") and activation in epilogue.ACTIVATIONS and _is_ready(x, other, out):
        kernels: Any = require(name).kernels
        if kernels is not None:
            kernels.add(x, other, activation, out)
            return out
    operands = Operands(backend, x=x, other=other)
    check_shape("other", operands.shape("other"), operands.shape("x"), "that of x")
    epilogue.check_activation(operands.dtype, activation)
    if not (_is_same(out, x) or _is_same(out, other)):
        operands.check_out(out, operands.shape("x"))
    return operands.deliver(_sum(operands, activation), out)


def _sum(operands: Operands, activation: str | None) -> Array:
    """The sum, in memory of its own."""
    backend, dtype = operands.backend, operands.compute_dtype
    a, b = operands.load("x"), operands.load("other")
    kernels: Any = backend.kernels
    if backend.name == "numba" and dtype in COMPILED:
        y = np.empty(a.shape, dtype)
        kernels.add(a, b, activation, y)
        return y
    return epilogue.activate(backend, epilogue.wrapped(a + b, operands.dtype), activation)


def _is_ready(x: Any, other: Any, out: Any) -> bool:
    """Whether the compiled loop can have the arrays as they are."""
    if not (is_plain(x) and is_plain(other) and is_plain(out) and out.flags.writeable):
        return False
    if not x.shape == other.shape == out.shape or not x.dtype == other.dtype == out.dtype or x.dtype not in COMPILED:
        return False
    return all(a is out or not np.may_share_memory(out, a) or _begin_alike(out, a) for a in (x, other))


def _begin_alike(out: Array, operand: Array) -> bool:
    """Whether two arrays, aligned and in C order, have their first element in common."""
    return np.may_share_memory(out.reshape(-1)[:1], operand.reshape(-1)[:1])


def _is_same(out: Any, operand: Any) -> bool:
    """Whether both are one array in memory."""
    if type(out) is not np.ndarray or type(operand) is not np.ndarray:
        return out is operand
    there, here = out.__array_interface__, operand.__array_interface__
    return bool(out.flags.writeable) and all(there[key] == here[key] for key in ("data", "shape", "strides", "typestr"))
