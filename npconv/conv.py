"""The public convolutions: a call becomes a spec, a spec becomes a plan, a plan runs.

Their gradients are in `npconv.gradients`, transposed convolutions in `npconv.transposed`. All of them are the three
operations of `npconv.algorithms.base`; these rooms only check, convert and name things.
"""

from __future__ import annotations

from typing import Any

from npconv import epilogue, planning
from npconv.arrays import Array, ConvOperands
from npconv.geometry import ConvSpec
from npconv.lazy import is_lazy, later, stand_in
from npconv.planning import recent

Ints = int | tuple[int, ...]


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
        DLPack; for a dask array, see `npconv.dask`. float16, float32, float64, complex64, complex128 or any integer;
        on a GPU also bfloat16 of the package ml_dtypes.
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
        float16 and bfloat16 are summed in float32 and rounded once.

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
    key = None
    if out is None:
        geometry, words = (stride, padding, dilation, groups), (padding_mode, layout, activation, algorithm, backend)
        key = recent.key(ndim, x, w, bias, geometry, words)
        if key is not None and (call := recent.find(key)) is not None:
            return call(x, w, bias)
    operands = ConvOperands(backend, x=stand_in(x), w=stand_in(w), bias=stand_in(bias))
    spec = ConvSpec.of(
        operands.shape("x"), operands.shape("w"), stride, padding, dilation, groups, padding_mode, layout, ndim=ndim
    )
    epilogue.check(operands, spec.out_channels, activation)
    if is_lazy(x, w, bias):
        return later(
            "conv", x=x, w=w, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups,
            padding_mode=padding_mode, layout=layout, activation=activation, algorithm=algorithm, backend=backend,
            out=out,
        )  # fmt: skip
    operands.check_out(out, spec.y_shape)
    plan = planning.plan_for(spec, "forward", operands.backend, operands.dtype, algorithm, activation)
    dtype = plan.operand_dtype
    weights = operands.load("w", dtype)
    packed = plan.packed(weights)
    y = plan.finish(operands, packed, None if bias is None else operands.load("bias", dtype), out)
    if key is not None and (compute := plan.ready()) is not None:
        as_they_are = packed is weights and not plan.reads_channels_last
        recent.remember(key, compute if as_they_are else lambda x, w, bias: compute(x, plan.packed(w), bias))
    return y


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
) -> planning.Plan:
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
        Bytes of memory that an algorithm may use beyond operands and result; 1 GiB where the choice is ``"auto"``.
        What `npconv.autotune` has measured decides before any prediction does.

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
    where, dtype, threads, max_workspace = planning.checked(dtype, activation, backend, threads, max_workspace)
    return planning.plan_for(spec, "forward", where, dtype, algorithm, activation, threads, max_workspace, True)
