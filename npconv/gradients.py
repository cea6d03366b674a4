"""The gradients of a convolution: in its input, in its weights, and both at once as a pullback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from npconv import epilogue, planning
from npconv.arrays import Array, ConvOperands, check_shape, compute_dtype, from_channels_first
from npconv.geometry import ConvSpec
from npconv.lazy import is_lazy, later, stand_in
from npconv.planning import recent

if TYPE_CHECKING:
    from npconv.planning import Plan

Ints = int | tuple[int, ...]
Pullback = Callable[[Array], tuple[Array, Array, Array | None]]


def conv_input_grad(
    dy: Array,
    w: Array,
    input_shape: tuple[int, ...],
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    algorithm: str = "auto",
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of a convolution in its input: the adjoint of ``x -> conv(x, w)`` applied to `dy`.

    Parameters
    ----------
    dy : array
        Gradient of the result, of the shape that ``conv(x, w, ...)`` has.
    w : array
        ``(C_out, C / groups, *kernel)``. Complex weights are conjugated, so that
        ``vdot(conv(x, w), dy) == vdot(x, dx)``.
    input_shape : tuple of int
        Shape of `x`.
    stride, padding, dilation, groups, padding_mode, layout, algorithm, backend, out
        As for `conv`.

    Returns
    -------
    array
        ``dx``, of shape `input_shape` and the dtype of ``numpy.result_type(dy, w)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv_input_grad(np.ones((1, 1, 3)), np.array([[[1.0, 10.0]]]), (1, 1, 4))
    array([[[ 1., 11., 11., 10.]]])
    """
    key = _key(
        "input_grad",
        dy,
        w,
        out,
        input_shape,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        layout,
        algorithm,
        backend,
    )
    if key is not None and (call := recent.find(key)) is not None:
        return call(dy, w, None)
    operands = ConvOperands(backend, dy=stand_in(dy), w=stand_in(w))
    spec = ConvSpec.of(
        input_shape, operands.shape("w"), stride, padding, dilation, groups, padding_mode, layout, x_name="input_shape"
    )
    check_shape("dy", operands.shape("dy"), spec.y_shape, f"what input_shape {spec.x_shape} and w give")
    if is_lazy(dy, w):
        return later(
            "conv_input_grad", dy=dy, w=w, input_shape=input_shape, stride=stride, padding=padding,
            dilation=dilation, groups=groups, padding_mode=padding_mode, layout=layout, algorithm=algorithm,
            backend=backend, out=out,
        )  # fmt: skip
    operands.check_out(out, spec.x_shape)
    plan = planning.plan_for(spec, "input_grad", operands.backend, operands.dtype, algorithm)
    dtype = plan.operand_dtype
    if plan.reads_channels_last:
        return operands.deliver(plan.run_last(operands.load("dy", dtype), _conj(operands.load("w", dtype))), out)
    dx = plan.run(operands.load_image("dy", layout, spec.batched, dtype), _conj(operands.load("w", dtype)))
    _remember(key, plan)
    return operands.deliver(from_channels_first(operands.backend, dx, layout, spec.batched), out)


def conv_weight_grad(
    x: Array,
    dy: Array,
    weight_shape: tuple[int, ...],
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    algorithm: str = "auto",
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of a convolution in its weights: the adjoint of ``w -> conv(x, w)`` applied to `dy`.

    Parameters
    ----------
    x : array
        The convolution's input. A complex one is conjugated, so that ``vdot(conv(x, w), dy) == vdot(w, dw)``.
    dy : array
        Gradient of the result, of the shape that ``conv(x, w, ...)`` has.
    weight_shape : tuple of int
        Shape of `w`, ``(C_out, C / groups, *kernel)``.
    stride, padding, dilation, groups, padding_mode, layout, algorithm, backend, out
        As for `conv`.

    Returns
    -------
    array
        ``dw``, of shape `weight_shape` and the dtype of ``numpy.result_type(x, dy)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv_weight_grad(np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 3)), (1, 1, 2))
    array([[[3., 6.]]])
    """
    key = _key(
        "weight_grad",
        x,
        dy,
        out,
        weight_shape,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        layout,
        algorithm,
        backend,
    )
    if key is not None and (call := recent.find(key)) is not None:
        return call(x, dy, None)
    operands = ConvOperands(backend, x=stand_in(x), dy=stand_in(dy))
    spec = ConvSpec.of(
        operands.shape("x"),
        weight_shape,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        layout,
        w_name="weight_shape",
    )
    check_shape("dy", operands.shape("dy"), spec.y_shape, f"what x and weight_shape {spec.w_shape} give")
    if is_lazy(x, dy):
        return later(
            "conv_weight_grad", x=x, dy=dy, weight_shape=weight_shape, stride=stride, padding=padding,
            dilation=dilation, groups=groups, padding_mode=padding_mode, layout=layout, algorithm=algorithm,
            backend=backend, out=out,
        )  # fmt: skip
    operands.check_out(out, spec.w_shape)
    plan = planning.plan_for(spec, "weight_grad", operands.backend, operands.dtype, algorithm)
    if plan.reads_channels_last:
        x_, dy_ = (operands.load(name, plan.operand_dtype) for name in ("x", "dy"))
        return operands.deliver(plan.run_last(_conj(x_), dy_), out)
    x_, dy_ = (operands.load_image(name, layout, spec.batched, plan.operand_dtype) for name in ("x", "dy"))
    dw = plan.run(_conj(x_), dy_)
    _remember(key, plan)
    return operands.deliver(dw, out)


def conv_vjp(
    x: Array,
    w: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    activation: str | None = None,
    algorithm: str = "auto",
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`conv` and its vector-Jacobian product: the result, and how a gradient travels back through it.

    Parameters
    ----------
    x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend
        As for `conv`. `x` and `w` must not be changed until the pullback has been called.

    Returns
    -------
    y : array
        ``conv(x, w, bias, ...)``.
    pullback : callable
        ``dx, dw, db = pullback(dy)``; `db` is None where there is no bias.

    Raises
    ------
    ValueError, TypeError
        As for `conv`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.conv_vjp(np.arange(4.0).reshape(1, 1, 4), np.array([[[1.0, 2.0]]]), np.array([5.0]))
    >>> dx, dw, db = pullback(np.ones((1, 1, 3)))
    >>> dx, dw, db
    (array([[[1., 3., 3., 2.]]]), array([[[3., 6.]]]), array([3.]))
    """
    operands = ConvOperands(backend, x=x, w=w, bias=bias)
    spec = ConvSpec.of(
        operands.shape("x"), operands.shape("w"), stride, padding, dilation, groups, padding_mode, layout
    )
    epilogue.check(operands, spec.out_channels, activation)
    # All three see the image as it is loaded once, for all of them.
    first = replace(spec, layout="channels_first")
    plans = {
        op: planning.plan_for(first, op, operands.backend, operands.dtype, algorithm)
        for op in ("forward", "input_grad", "weight_grad")
    }
    xp = operands.backend.xp
    # What an activation sees must not have been rounded.
    here = operands.compute_dtype if activation else plans["forward"].operand_dtype
    x_, w_ = operands.load_image("x", layout, spec.batched, here), operands.load("w", here)
    bias_ = None if bias is None else operands.load("bias", here)
    after = plans["forward"].run(x_, plans["forward"].packed(w_), bias_)
    slope = None
    if activation:
        slope = epilogue.slope(operands.backend, epilogue.wrapped(after, operands.dtype), activation)
        after = epilogue.activate(operands.backend, epilogue.wrapped(after, operands.dtype), activation)
    y = operands.deliver(from_channels_first(operands.backend, after, layout, spec.batched))

    def pullback(dy: Array) -> tuple[Array, Array, Array | None]:
        grads = operands.companion(dy=dy)
        check_shape("dy", grads.shape("dy"), spec.y_shape, "that of the result")
        dtype = np.result_type(grads.dtype, operands.dtype)
        wide = compute_dtype(dtype)
        narrow = slope is None and dtype == operands.dtype
        dz = grads.load_image("dy", layout, spec.batched, plans["weight_grad"].operand_dtype if narrow else wide)
        if slope is not None:
            # Where the activation is flat nothing passes, not even infinity.
            dz = xp.where(slope == 0, 0, dz) * slope.astype(wide, copy=False)

        def cast(op: str, *values: Array) -> Iterator[Array]:
            own = plans[op].operand_dtype if narrow else wide
            return (value.astype(own, copy=False) for value in values)

        dz_, factor = cast("input_grad", dz, w_)
        dx = plans["input_grad"].run(dz_, _conj(factor))
        factor, dz_ = cast("weight_grad", x_, dz)
        dw = plans["weight_grad"].run(_conj(factor), dz_)
        db = None if bias is None else grads.deliver(dz.sum(axis=(0, *range(2, dz.ndim)), dtype=wide), dtype=dtype)
        dx = from_channels_first(operands.backend, dx, layout, spec.batched)
        return grads.deliver(dx, dtype=dtype), grads.deliver(dw, dtype=dtype), db

    return y, pullback


def _key(op: str, a: Array, b: Array, out: Array | None, *arguments: Any) -> Any:
    """What a gradient is remembered by; see `recent.key`."""
    return None if out is not None else recent.key(op, a, b, None, arguments[:5], arguments[5:])


def _remember(key: Any, plan: Plan) -> None:
    """Keep a call whose operands and result need no conversion."""
    spec = plan.spec
    plain = spec.batched and spec.layout == "channels_first" and plan.dtype.kind == "f" and plan.backend.xp is np
    if key is not None and plain and compute_dtype(plan.dtype) == plan.dtype:
        compute = plan.ready_gradient()
        recent.remember(key, lambda a, b, _: compute(a, b))


def _conj(value: Array) -> Array:
    return value.conj() if value.dtype.kind == "c" else value
