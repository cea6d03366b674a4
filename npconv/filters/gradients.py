"""The gradients of both operations, which are adjoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv import padding
from npconv.arrays import Array, Operands, check_shape, compute_dtype, contiguous
from npconv.filters.arguments import constant, dtypes, kernel_of, narrow
from npconv.filters.frame import Frame, Ints
from npconv.filters.sums import Run, surround
from npconv.gradients import conv_input_grad, conv_weight_grad

Pullback = Callable[[Array], tuple[Array, Array]]


def correlate_vjp(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`correlate` and its vector-Jacobian product: the result, and how a gradient travels back through it.

    Parameters
    ----------
    x, w, mode, boundary, cval, origin, axes, stride, dtype, backend
        As for `correlate`; missing values have no gradient here, so a NaN is a number like any other. `x` and `w`
        must not be changed until the pullback has been called.

    Returns
    -------
    y : array
        ``correlate(x, w, ...)``.
    pullback : callable
        ``dx, dw = pullback(dy)``, of the shapes of `x` and `w` and the dtype of ``numpy.result_type(y, dy)``. With
        `cval` 0, `dx` is the adjoint: ``vdot(correlate(x, w), dy) == vdot(x, dx)``, and, since the kernel is
        conjugated, the real part of ``vdot(w, dw)`` equals that of ``vdot(correlate(x, w), dy)``.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.filters.correlate_vjp(np.array([1.0, 2.0, 4.0]), np.array([1.0, 10.0]), mode="valid")
    >>> pullback(np.array([1.0, 1.0]))
    (array([ 1., 11., 10.]), array([3., 6.]))
    """
    return _vjp(False, x, w, mode, boundary, cval, origin, axes, stride, dtype, backend)


def convolve_vjp(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`convolve` and its vector-Jacobian product.

    Parameters
    ----------
    x, w, mode, boundary, cval, origin, axes, stride, dtype, backend
        As for `convolve` and `correlate_vjp`.

    Returns
    -------
    y : array
        ``convolve(x, w, ...)``.
    pullback : callable
        ``dx, dw = pullback(dy)``, as for `correlate_vjp`; with `cval` 0 both are adjoints, complex ones too.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.filters.convolve_vjp(np.array([1.0, 2.0, 4.0]), np.array([1.0, 10.0]), mode="valid")
    >>> pullback(np.array([1.0, 1.0]))
    (array([10., 11.,  1.]), array([6., 3.]))
    """
    return _vjp(True, x, w, mode, boundary, cval, origin, axes, stride, dtype, backend)


def _vjp(
    flip: bool, x: Array, w: Array, mode: str, boundary: str, cval: complex, origin: Ints, axes: Ints | None,
    stride: Ints, dtype: Any, backend: str | None,
) -> tuple[Array, Pullback]:  # fmt: skip
    operands = Operands(backend, x=x, w=w)
    frame = Frame.of(operands, flip, mode, boundary, origin, axes, stride)
    result, wide = dtypes(operands, dtype, False)
    cval = constant(cval, wide, frame)
    here, xp = operands.backend, operands.backend.xp
    kernel = kernel_of(operands, flip).astype(wide)
    given = operands.load("x", wide)
    image = frame.enter(here, given)
    if math.prod(frame.y_shape) == 0:
        y = xp.zeros(frame.y_shape, wide)
    else:
        y = narrow(Run(here, "auto")(frame, given, kernel, cval), operands, result)

    def pullback(dy: Array) -> tuple[Array, Array]:
        grads = operands.companion(dy=dy)
        check_shape("dy", grads.shape("dy"), frame.y_shape, "that of the result")
        kind = np.result_type(result, grads.dtype)
        inner = compute_dtype(np.result_type(wide, kind))
        g = frame.enter(here, grads.load("dy", inner))
        dx, dw = xp.zeros(image.shape, inner), xp.zeros(kernel.shape, inner)
        if g.size:
            used, pairs = image[frame.used].astype(inner), frame.added
            nothing = ((0, 0),) * len(pairs)
            size = used.shape[2:]
            if frame.boundary != "zeros":
                used = padding.pad(here, used, pairs, frame.boundary)
            elif cval != 0:
                used = surround(here, used, pairs, cval)
            virtual = pairs if frame.boundary == "zeros" and cval == 0 else nothing
            how: dict[str, Any] = {"stride": frame.stride, "padding": virtual, "backend": here.name}
            dw = conv_weight_grad(used, g, (1, 1, *kernel.shape), **how)[0, 0]
            inside = conv_input_grad(g, kernel.astype(inner)[None, None], used.shape, **how)
            if frame.boundary != "zeros":
                inside = padding.pad_adjoint(here, inside, pairs, size, frame.boundary)
            elif cval != 0:
                inside = inside[(..., *(slice(lo, lo + n) for n, (lo, _) in zip(size, pairs, strict=True)))]
            dx[frame.used] = inside
        if flip:
            dw = dw[(slice(None, None, -1),) * dw.ndim]
        elif dw.dtype.kind == "c":
            dw = dw.conj()
        dw = contiguous(here, dw, inner)
        return grads.deliver(frame.leave(here, dx), dtype=kind), grads.deliver(dw, dtype=kind)

    return operands.deliver(y, dtype=result), pullback
