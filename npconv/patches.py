"""Patches: `unfold` (im2col) copies what lies under each window into a column, `fold` (col2im) is its adjoint."""

from __future__ import annotations

from typing import Any

from npconv.arrays import Array, Backend, Operands, check_shape, from_channels_first
from npconv.geometry import (
    LAYOUTS,
    Size,
    Window,
    check_extent,
    choice,
    join_shape,
    per_axis,
    sequence,
    shape,
    split_shape,
)


def unfold(
    x: Array,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    padding: Any = 0,
    stride: int | tuple[int, ...] = 1,
    *,
    layout: str = "channels_first",
    backend: str | None = None,
) -> Array:
    """Copy the patch under every window position into a column (im2col).

    Parameters
    ----------
    x : array
        ``(N, C, *spatial)`` or ``(C, *spatial)``, any supported dtype.
    kernel_size : int or tuple of int
        A tuple decides the number of dimensions; an integer stands for all axes after batch and channels.
    dilation, stride : int or tuple of int
        In PyTorch's order, so that its calls run unchanged.
    padding : int, tuple or str
        As for `npconv.conv`; padded elements are zero.
    layout : {"channels_first", "channels_last"}
        Of `x`. The columns are the same for both.
    backend : str, optional

    Returns
    -------
    array
        ``(N, C * taps, positions)``, or without ``N``: channels outermost, then kernel taps and window positions,
        both in row-major order.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    See Also
    --------
    fold : the adjoint.

    References
    ----------
    K. Chellapilla, S. Puri, P. Simard, *High performance convolutional neural networks for document processing*, 2006.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.unfold(np.arange(5.0).reshape(1, 1, 5), 3)
    array([[[0., 1., 2.],
            [1., 2., 3.],
            [2., 3., 4.]]])
    """
    operands = Operands(backend, x=x)
    batch, channels, size, batched, kernel = spatial_form("x", operands.shape("x"), kernel_size, layout)
    window = Window.over(size, kernel, stride, padding, dilation)
    check_extent("the columns", (batch, channels, window.taps, window.positions))
    columns = columns_of(operands.backend, window, operands.load_image("x", layout, batched))
    columns = columns.reshape(batch, channels * window.taps, window.positions)
    return operands.deliver(columns if batched else columns[0])


def fold(
    cols: Array,
    output_size: int | tuple[int, ...],
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    padding: Any = 0,
    stride: int | tuple[int, ...] = 1,
    *,
    layout: str = "channels_first",
    backend: str | None = None,
) -> Array:
    """Add every column back to the patch that it came from (col2im): the adjoint of `unfold`.

    Parameters
    ----------
    cols : array
        ``(N, C * taps, positions)`` or ``(C * taps, positions)``, as `unfold` returns it.
    output_size : int or tuple of int
        Spatial size of the image. It or `kernel_size` must be a tuple, which decides the number of dimensions.
    kernel_size, dilation, padding, stride
        As they were given to `unfold`.
    layout : {"channels_first", "channels_last"}
        Of the result.
    backend : str, optional

    Returns
    -------
    array
        ``(N, C, *output_size)``, or without ``N``. Where patches overlap their elements are summed.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    See Also
    --------
    unfold : the adjoint.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.fold(np.ones((1, 3, 3)), (5,), 3)
    array([[[1., 2., 3., 2., 1.]]])
    """
    operands = Operands(backend, cols=cols)
    choice("layout", layout, LAYOUTS)
    sizes = sequence(output_size) or sequence(kernel_size)
    if not sizes:
        raise ValueError("output_size must be a tuple, one integer per dimension, where kernel_size is an integer")
    ndim = len(sizes)
    size = shape("output_size", per_axis("output_size", output_size, ndim, minimum=0))
    window = Window.over(size, per_axis("kernel_size", kernel_size, ndim), stride, padding, dilation)
    given = operands.shape("cols")
    if len(given) not in (2, 3):
        raise ValueError(f"cols must have shape (N, C * taps, positions), or without N, got {given}")
    batched = len(given) == 3
    batch, rows = (given[0], given[1]) if batched else (1, given[0])
    channels = rows // window.taps
    expected = (channels * window.taps, window.positions)
    why = f"a whole number of channels times {window.taps} taps, and {window.positions} window positions"
    check_shape("cols", given, (batch, *expected) if batched else expected, why)
    check_extent("the output", (batch, channels, *size))
    columns = operands.load("cols").reshape(batch, channels, window.taps, window.positions)
    x = image_of(operands.backend, window, columns)
    return operands.deliver(from_channels_first(operands.backend, x, layout, batched))


im2col, col2im = unfold, fold


def spatial_form(
    name: str, given: Size, kernel_size: int | tuple[int, ...], layout: str
) -> tuple[int, int, Size, bool, Size]:
    """Batch, channels, spatial size, whether there was a batch axis, and the kernel as a tuple."""
    choice("layout", layout, LAYOUTS)
    items = sequence(kernel_size)
    dims = len(given) - 2 if items is None else len(items)
    if dims < 1:
        raise ValueError(
            f"{name} must have a batch axis, a channel axis and at least one spatial axis where kernel_size is not a "
            f"non-empty tuple; got shape {given}, kernel_size {kernel_size!r}"
        )
    return *split_shape(name, given, dims, layout), per_axis("kernel_size", kernel_size, dims)


def columns_of(backend: Backend, window: Window, x: Array) -> Array:
    """Columns ``(N, C, taps, positions)`` of an image ``(N, C, *size)``."""
    batch, channels = x.shape[:2]
    shape_ = (batch, channels, window.taps, window.positions)
    if backend.kernels is not None:
        columns = backend.xp.empty(shape_, x.dtype)
        backend.kernels.unfold(window, x, columns)
        return columns
    columns = backend.xp.zeros(shape_, x.dtype)
    targets = columns.reshape(batch, channels, window.taps, *window.out)
    for tap, inp, out in window.tap_slices():
        targets[:, :, tap][..., *out] = x[..., *inp]
    return columns


def image_of(backend: Backend, window: Window, columns: Array) -> Array:
    """The adjoint of `columns_of`."""
    shape_ = join_shape(columns.shape[0], columns.shape[1], window.size, "channels_first", True)
    if backend.kernels is not None:
        x = backend.xp.empty(shape_, columns.dtype)
        backend.kernels.fold(window, columns, x)
        return x
    x = backend.xp.zeros(shape_, columns.dtype)
    sources = columns.reshape(*columns.shape[:3], *window.out)
    for tap, inp, out in window.tap_slices():
        x[..., *inp] += sources[:, :, tap][..., *out]
    return x
