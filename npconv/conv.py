"""The public convolutions: a call becomes a spec, a spec becomes a plan, a plan runs.

All of them are the three operations of `npconv.algorithms.base`; this room only checks, converts and names things.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from npconv import config, epilogue
from npconv.arrays import (
    Array,
    Operands,
    check_shape,
    compute_dtype,
    from_channels_first,
    require,
    supported_dtype,
)
from npconv.geometry import (
    ConvSpec,
    choice,
    integer,
    join_shape,
)

if TYPE_CHECKING:
    from npconv.planning import Plan

Ints = int | tuple[int, ...]
Pullback = Callable[[Array], tuple[Array, Array, Array | None]]


def conv(
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
    out: Array | None = None,
) -> Array:
    """Convolve multi-channel signals, images or volumes with a bank of kernels.

    The operation is cross-correlation, as in every network library:
    ``y[n, o, p] = bias[o] + sum over c, t of w[o, c, t] * x[n, c, p * stride + t * dilation - low]``.

    Parameters
    ----------
    x : array
        ``(N, C, *spatial)``, or ``(C, *spatial)`` for one without a batch. NumPy, CuPy, or anything that speaks
        DLPack: float16, float32, float64, complex64, complex128 or any integer.
    w : array
        ``(C_out, C / groups, *kernel)``; its rank decides the number of dimensions.
    bias : array, optional
        ``(C_out,)``. A bias of length 1 does not broadcast.
    stride, dilation : int or tuple of int
        Step between outputs and between kernel taps, one for all dimensions or one each.
    padding : int, tuple or str
        Elements added around `x`: one integer; one integer or one ``(low, high)`` pair per dimension; or ``"valid"``
        (none), ``"same"`` = ``"same_upper"`` (output size ``ceil(size / stride)``, an odd leftover on the high side),
        ``"same_lower"``, ``"full"`` or ``"causal"``.
    groups : int
        Input and output channels are split into this many groups that do not see each other.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the added elements hold.
    layout : {"channels_first", "channels_last"}
        With the latter `x` is ``(N, *spatial, C)``, and so is the result; `w` stays as it is.
    activation : {None, "relu", "relu6", "hardswish"}
        Applied to the result.
    algorithm : str
        ``"auto"``, ``"direct"``, ``"im2col"``, ``"pointwise"`` or ``"depthwise"``. See `npconv.plan`.
    backend : {"auto", "numpy", "numba", "cupy"}, optional
        Defaults to `npconv.get_backend`.
    out : array, optional
        Receives the result; must have its shape and dtype and share no memory with the operands.

    Returns
    -------
    array
        ``(N, C_out, *out)``, in the dtype of ``numpy.result_type`` of the operands. Integers wrap as NumPy's do;
        float16 is computed in float32 and rounded once.

    Raises
    ------
    ValueError
        If a value or a shape is not what is described here.
    TypeError
        If a dtype or a kind of argument is not. Both name the argument, and come before anything is compiled or
        allocated.

    See Also
    --------
    conv_transpose, conv_input_grad, conv_weight_grad, conv_vjp, plan

    References
    ----------
    V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, arXiv:1603.07285.

    Examples
    --------
    Two channels, one kernel (the sum over the channels is part of the operation):

    >>> import numpy as np
    >>> import npconv as nc
    >>> x = np.arange(18.0).reshape(1, 2, 3, 3)
    >>> w = np.ones((1, 2, 2, 2))
    >>> nc.conv(x, w)
    array([[[[52., 60.],
             [76., 84.]]]])
    """
    return _forward(
        None, x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
    )


def _forward(
    ndim: int | None,
    x: Array,
    w: Array,
    bias: Array | None,
    stride: Ints,
    padding: Any,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    layout: str,
    activation: str | None,
    algorithm: str,
    backend: str | None,
    out: Array | None,
) -> Array:
    operands = Operands(backend, x=x, w=w, bias=bias)
    spec = ConvSpec.of(
        operands.shape("x"), operands.shape("w"), stride, padding, dilation, groups, padding_mode, layout, ndim=ndim
    )
    epilogue.check(operands, spec.out_channels, activation)
    operands.check_out(out, spec.y_shape)
    plan = _plan_for(spec, "forward", operands.backend, operands.dtype, algorithm, activation)
    y = plan.run(
        operands.load_image("x", layout, spec.batched),
        operands.load("w"),
        None if bias is None else operands.load("bias"),
    )
    return operands.deliver(from_channels_first(operands.backend.xp, y, layout, spec.batched), out)


def conv1d(
    x: Array, w: Array, bias: Array | None = None, stride: Ints = 1, padding: Any = 0, dilation: Ints = 1,
    groups: int = 1, *, padding_mode: str = "zeros", layout: str = "channels_first", activation: str | None = None,
    algorithm: str = "auto", backend: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Convolve multi-channel signals: `conv` for `x` of ``(N, C, length)`` or ``(C, length)``.

    Parameters
    ----------
    x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
        As for `conv`; `w` has 3 dimensions.

    Returns
    -------
    array
        ``(N, C_out, length_out)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv1d(np.arange(5.0).reshape(1, 5), np.array([[[-1.0, 1.0]]]))
    array([[1., 1., 1., 1.]])
    """
    return _forward(
        1, x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
    )


def conv2d(
    x: Array, w: Array, bias: Array | None = None, stride: Ints = 1, padding: Any = 0, dilation: Ints = 1,
    groups: int = 1, *, padding_mode: str = "zeros", layout: str = "channels_first", activation: str | None = None,
    algorithm: str = "auto", backend: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Convolve multi-channel images: `conv` for `x` of ``(N, C, H, W)`` or ``(C, H, W)``.

    Parameters
    ----------
    x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
        As for `conv`; `w` has 4 dimensions.

    Returns
    -------
    array
        ``(N, C_out, H_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv2d(np.zeros((8, 3, 32, 32)), np.zeros((16, 3, 5, 5)), stride=2, padding="same").shape
    (8, 16, 16, 16)
    """
    return _forward(
        2, x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
    )


def conv3d(
    x: Array, w: Array, bias: Array | None = None, stride: Ints = 1, padding: Any = 0, dilation: Ints = 1,
    groups: int = 1, *, padding_mode: str = "zeros", layout: str = "channels_first", activation: str | None = None,
    algorithm: str = "auto", backend: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Convolve multi-channel volumes: `conv` for `x` of ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Parameters
    ----------
    x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
        As for `conv`; `w` has 5 dimensions.

    Returns
    -------
    array
        ``(N, C_out, D_out, H_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv3d(np.zeros((1, 2, 8, 8, 8)), np.zeros((4, 2, 3, 3, 3))).shape
    (1, 4, 6, 6, 6)
    """
    return _forward(
        3, x, w, bias, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm, backend, out
    )


# --------------------------------------------------------------------------------------------------------------------
# Transposed convolution
# --------------------------------------------------------------------------------------------------------------------


def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    algorithm: str = "auto",
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Transposed convolution: the adjoint of `conv` in `x`, as a layer that enlarges.

    Parameters
    ----------
    x : array
        ``(N, C, *spatial)`` or ``(C, *spatial)``.
    w : array
        ``(C, C_out / groups, *kernel)``.
    bias : array, optional
        ``(C_out,)``.
    stride, dilation, groups, layout, activation, algorithm, backend, out
        As for `conv`.
    padding : int, tuple or str
        What the convolution that this one transposes adds, so that much is cut off here; any form that `conv` takes.
        ``"same"`` gives the output size ``size * stride``.
    output_padding : int or tuple of int
        Added to the output size at the high side; smaller than the stride or the dilation.

    Returns
    -------
    array
        ``(N, C_out, *out)`` with
        ``out = (size - 1) * stride - low - high + dilation * (kernel - 1) + output_padding + 1``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Notes
    -----
    As in PyTorch nothing is conjugated: for complex weights the adjoint is `conv_input_grad`, which conjugates them.

    References
    ----------
    V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv_transpose(np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0, 100.0]]]), stride=2)
    array([[[  1.,  10., 102.,  20., 200.]]])
    """
    return _transpose(
        None, x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
    )


def _transpose(
    ndim: int | None,
    x: Array,
    w: Array,
    bias: Array | None,
    stride: Ints,
    padding: Any,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    layout: str,
    activation: str | None,
    algorithm: str,
    backend: str | None,
    out: Array | None,
) -> Array:
    operands = Operands(backend, x=x, w=w, bias=bias)
    spec, beyond = ConvSpec.transposed(
        operands.shape("x"), operands.shape("w"), stride, padding, output_padding, dilation, groups, layout, ndim=ndim
    )
    size = tuple(n + extra for n, extra in zip(spec.window.size, beyond, strict=True))
    y_shape = join_shape(spec.batch, spec.in_channels, size, layout, spec.batched)
    epilogue.check(operands, spec.in_channels, activation)
    operands.check_out(out, y_shape)
    plan = _plan_for(spec, "input_grad", operands.backend, operands.dtype, algorithm)
    y = plan.run(operands.load_image("x", layout, spec.batched), operands.load("w"))
    if any(beyond):
        y = operands.backend.xp.pad(y, ((0, 0), (0, 0), *((0, extra) for extra in beyond)))
    y = epilogue.finish(operands.backend, y, None if bias is None else operands.load("bias"), None)
    y = epilogue.activate(operands.backend, epilogue.wrapped(y, operands.dtype), activation)
    return operands.deliver(from_channels_first(operands.backend.xp, y, layout, spec.batched), out)


def conv_transpose1d(
    x: Array, w: Array, bias: Array | None = None, stride: Ints = 1, padding: Any = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, *, layout: str = "channels_first", activation: str | None = None,
    algorithm: str = "auto", backend: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """`conv_transpose` for signals.

    Parameters
    ----------
    x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
        As for `conv_transpose`; `w` has 3 dimensions.

    Returns
    -------
    array
        ``(N, C_out, length_out)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv_transpose1d(np.array([[1.0, 2.0]]), np.ones((1, 1, 2)), stride=2)
    array([[1., 1., 2., 2.]])
    """
    return _transpose(
        1, x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
    )


def conv_transpose2d(
    x: Array, w: Array, bias: Array | None = None, stride: Ints = 1, padding: Any = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, *, layout: str = "channels_first", activation: str | None = None,
    algorithm: str = "auto", backend: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """`conv_transpose` for images.

    Parameters
    ----------
    x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
        As for `conv_transpose`; `w` has 4 dimensions.

    Returns
    -------
    array
        ``(N, C_out, H_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv_transpose2d(np.zeros((1, 8, 16, 16)), np.zeros((8, 4, 2, 2)), stride=2).shape
    (1, 4, 32, 32)
    """
    return _transpose(
        2, x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
    )


def conv_transpose3d(
    x: Array, w: Array, bias: Array | None = None, stride: Ints = 1, padding: Any = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, *, layout: str = "channels_first", activation: str | None = None,
    algorithm: str = "auto", backend: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """`conv_transpose` for volumes.

    Parameters
    ----------
    x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
        As for `conv_transpose`; `w` has 5 dimensions.

    Returns
    -------
    array
        ``(N, C_out, D_out, H_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.conv_transpose3d(np.zeros((1, 2, 4, 4, 4)), np.zeros((2, 1, 2, 2, 2)), stride=2).shape
    (1, 1, 8, 8, 8)
    """
    return _transpose(
        3, x, w, bias, stride, padding, output_padding, groups, dilation, layout, activation, algorithm, backend, out
    )


# --------------------------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------------------------


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
    operands = Operands(backend, dy=dy, w=w)
    spec = ConvSpec.of(
        input_shape, operands.shape("w"), stride, padding, dilation, groups, padding_mode, layout, x_name="input_shape"
    )
    check_shape("dy", operands.shape("dy"), spec.y_shape, f"what input_shape {spec.x_shape} and w give")
    operands.check_out(out, spec.x_shape)
    plan = _plan_for(spec, "input_grad", operands.backend, operands.dtype, algorithm)
    dx = plan.run(operands.load_image("dy", layout, spec.batched), _conj(operands.load("w")))
    return operands.deliver(from_channels_first(operands.backend.xp, dx, layout, spec.batched), out)


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
    operands = Operands(backend, x=x, dy=dy)
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
    operands.check_out(out, spec.w_shape)
    plan = _plan_for(spec, "weight_grad", operands.backend, operands.dtype, algorithm)
    x_, dy_ = (operands.load_image(name, layout, spec.batched) for name in ("x", "dy"))
    return operands.deliver(plan.run(_conj(x_), dy_), out)


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
    operands = Operands(backend, x=x, w=w, bias=bias)
    spec = ConvSpec.of(
        operands.shape("x"), operands.shape("w"), stride, padding, dilation, groups, padding_mode, layout
    )
    epilogue.check(operands, spec.out_channels, activation)
    plans = {
        op: _plan_for(spec, op, operands.backend, operands.dtype, algorithm)
        for op in ("forward", "input_grad", "weight_grad")
    }
    xp = operands.backend.xp
    x_, w_ = operands.load_image("x", layout, spec.batched), operands.load("w")
    after = plans["forward"].run(x_, w_, None if bias is None else operands.load("bias"))
    slope = None
    if activation:
        slope = epilogue.slope(operands.backend, epilogue.wrapped(after, operands.dtype), activation)
        after = epilogue.activate(operands.backend, epilogue.wrapped(after, operands.dtype), activation)
    y = operands.deliver(from_channels_first(xp, after, layout, spec.batched))

    def pullback(dy: Array) -> tuple[Array, Array, Array | None]:
        grads = operands.companion(dy=dy)
        check_shape("dy", grads.shape("dy"), spec.y_shape, "that of the result")
        dtype = np.result_type(grads.dtype, operands.dtype)
        wide = compute_dtype(dtype)
        dz = grads.load_image("dy", layout, spec.batched, wide)
        if slope is not None:
            # Where the activation is flat nothing passes, not even infinity.
            dz = xp.where(slope == 0, 0, dz) * slope.astype(wide, copy=False)
        dx = plans["input_grad"].run(dz, _conj(w_.astype(wide, copy=False)))
        dw = plans["weight_grad"].run(_conj(x_.astype(wide, copy=False)), dz)
        db = None if bias is None else grads.deliver(dz.sum(axis=(0, *range(2, dz.ndim))), dtype=dtype)
        dx = from_channels_first(xp, dx, layout, spec.batched)
        return grads.deliver(dx, dtype=dtype), grads.deliver(dw, dtype=dtype), db

    return y, pullback


def _conj(value: Array) -> Array:
    return value.conj() if value.dtype.kind == "c" else value


# --------------------------------------------------------------------------------------------------------------------
# Plans
# --------------------------------------------------------------------------------------------------------------------


def plan(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    activation: str | None = None,
    dtype: Any = "float32",
    backend: str | None = None,
    algorithm: str = "auto",
    threads: int | None = None,
    max_workspace: int | None = None,
) -> Plan:
    """Decide how a convolution would run, without running it.

    Parameters
    ----------
    x_shape, w_shape : tuple of int
        Shapes of the arrays that `conv` would take.
    stride, padding, dilation, groups, padding_mode, layout, activation, algorithm
        As for `conv`.
    dtype : str or numpy.dtype
        Of the result.
    backend : {"auto", "numpy", "numba", "cupy"}, optional
        Defaults to `npconv.get_backend`; ``"auto"`` stands for NumPy arrays.
    threads : int, optional
        Number of threads, defaults to `npconv.get_num_threads`.
    max_workspace : int, optional
        Bytes of memory that an algorithm may use beyond operands and result.

    Returns
    -------
    Plan
        Print it to see the choice and its reasons; call it with arrays of these shapes; ``pack(w, bias)`` takes the
        weights in once.

    Raises
    ------
    ValueError, TypeError
        As for `conv`; also if `algorithm` cannot run this convolution, with the reason.

    Examples
    --------
    >>> import npconv as nc
    >>> plan = nc.plan((1, 64, 56, 56), (128, 64, 1, 1))
    >>> plan.algorithm, plan.macs
    ('pointwise', 25690112)
    """
    spec = ConvSpec.of(
        x_shape, w_shape, stride, padding, dilation, groups, padding_mode, layout, x_name="x_shape", w_name="w_shape"
    )
    dtype = supported_dtype("dtype", dtype)
    epilogue.check_activation(dtype, activation)
    chosen = config.get_backend() if backend is None else choice("backend", backend, config.BACKENDS)
    threads = None if threads is None else config.thread_count("threads", threads)
    max_workspace = None if max_workspace is None else integer("max_workspace", max_workspace)
    return _plan_for(spec, "forward", require(chosen), dtype, algorithm, activation, threads, max_workspace)


def _plan_for(*arguments: Any, **options: Any) -> Plan:
    """`npconv.planning.plan_for`; the planner and the algorithms are loaded at the first convolution."""
    from npconv.planning import plan_for

    return plan_for(*arguments, **options)
