"""Transposed convolutions: the input gradient of a convolution, as layers that enlarge."""

from __future__ import annotations

from typing import Any

from npconv import epilogue, planning
from npconv.arrays import Array, ConvOperands, from_channels_first
from npconv.geometry import ConvSpec, join_shape
from npconv.lazy import is_lazy, later, stand_in

Ints = int | tuple[int, ...]


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
    operands = ConvOperands(backend, x=stand_in(x), w=stand_in(w), bias=stand_in(bias))
    spec, beyond = ConvSpec.transposed(
        operands.shape("x"), operands.shape("w"), stride, padding, output_padding, dilation, groups, layout, ndim=ndim
    )
    size = tuple(n + extra for n, extra in zip(spec.window.size, beyond, strict=True))
    y_shape = join_shape(spec.batch, spec.in_channels, size, layout, spec.batched)
    epilogue.check(operands, spec.in_channels, activation)
    if is_lazy(x, w, bias):
        return later(
            "conv_transpose", x=x, w=w, bias=bias, stride=stride, padding=padding, output_padding=output_padding,
            groups=groups, dilation=dilation, layout=layout, activation=activation, algorithm=algorithm,
            backend=backend, out=out,
        )  # fmt: skip
    operands.check_out(out, y_shape)
    plan = planning.plan_for(spec, "input_grad", operands.backend, operands.dtype, algorithm)
    # What is still to be added to sums must not meet rounded ones.
    dtype = plan.operand_dtype if bias is None and activation is None else operands.compute_dtype
    y = plan.run(operands.load_image("x", layout, spec.batched, dtype), operands.load("w", dtype))
    if any(beyond):
        y = operands.backend.xp.pad(y, ((0, 0), (0, 0), *((0, extra) for extra in beyond)))
    y = epilogue.finish(operands.backend, y, None if bias is None else operands.load("bias"), None)
    y = epilogue.activate(operands.backend, epilogue.wrapped(y, operands.dtype), activation)
    return operands.deliver(from_channels_first(operands.backend, y, layout, spec.batched), out)


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
