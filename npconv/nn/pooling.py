"""Pooling layers."""

from __future__ import annotations

from typing import Any, ClassVar

import npconv as nc
from npconv.nn.arguments import Array, Ints, flag, per_axis, positive
from npconv.nn.module import Module


class _Pool(Module):
    """What both kinds share: the window. Where `ndim` is None, an integer stands for all axes after the channels."""

    ndim: ClassVar[int | None] = None

    def __init__(self, kernel_size: Ints, stride: Ints | None, padding: Any, ceil_mode: bool) -> None:
        self.kernel_size = self._sizes("kernel_size", kernel_size)
        self.stride = None if stride is None else self._sizes("stride", stride)
        self.padding = padding
        self.ceil_mode = flag("ceil_mode", ceil_mode)

    def _sizes(self, name: str, value: Any) -> Ints:
        if self.ndim is not None:
            return per_axis(name, value, self.ndim)
        return per_axis(name, value, len(value)) if isinstance(value, tuple | list) else positive(name, value)

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        return self.recall()(dy)

    def describe(self) -> str:
        """Return the window, and what is not at its default."""
        one = self._sizes("dilation", 1)
        return f"kernel_size={self.kernel_size}" + self._unusual(
            stride=None, padding=0, dilation=one, ceil_mode=False, count_include_pad=True
        )


class MaxPool(_Pool):
    """Largest element under every window, over any number of dimensions: `npconv.max_pool` as a layer.

    `MaxPool1d`, `MaxPool2d` and `MaxPool3d` are the same with the number of dimensions fixed.

    Parameters
    ----------
    kernel_size : int or tuple of int
        A tuple decides the number of dimensions; an integer stands for all axes after batch and channels.
    stride : int or tuple of int, optional
        Defaults to `kernel_size`.
    padding : int, tuple or str
        As for `npconv.max_pool`, which checks it in the first forward pass. Padded elements never win.
    dilation : int or tuple of int
    ceil_mode : bool
        Keep a last window that only starts inside the input.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, C, *spatial)`` to ``(N, C, *out)``; without ``N`` where `kernel_size` is a tuple. The gradient goes to
    the first of the largest elements of a window.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.MaxPool(2)
    >>> layer(np.array([[[1.0, 5.0, 2.0, 4.0]]]))
    array([[[5., 4.]]])
    >>> layer.backward(np.array([[[10.0, 20.0]]]))
    array([[[ 0., 10.,  0., 20.]]])
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Any = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = self._sizes("dilation", dilation)

    def forward(self, x: Array) -> Array:
        """Pool.

        Parameters
        ----------
        x : array
            ``(N, C, *spatial)``, or without ``N`` where the number of dimensions is known.

        Returns
        -------
        array
            ``(N, C, *out)``, or without ``N``.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        arguments = (x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        if not self.training:
            return nc.max_pool(*arguments)
        y, pullback = nc.max_pool_vjp(*arguments)
        self.keep(pullback)
        return y


class MaxPool1d(MaxPool):
    """`MaxPool` for signals, ``(N, C, length)`` or ``(C, length)``.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As for `MaxPool`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.MaxPool1d(2)(np.array([[1.0, 5.0, 2.0, 4.0]]))
    array([[5., 4.]])
    """

    ndim = 1


class MaxPool2d(MaxPool):
    """`MaxPool` for images, ``(N, C, H, W)`` or ``(C, H, W)``.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As for `MaxPool`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.MaxPool2d(3, stride=2, padding=1)(np.zeros((1, 6, 28, 28))).shape
    (1, 6, 14, 14)
    """

    ndim = 2


class MaxPool3d(MaxPool):
    """`MaxPool` for volumes, ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As for `MaxPool`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.MaxPool3d((1, 2, 2))(np.zeros((1, 2, 8, 8, 8))).shape
    (1, 2, 8, 4, 4)
    """

    ndim = 3


class AvgPool(_Pool):
    """Mean of the elements under every window, over any number of dimensions: `npconv.avg_pool` as a layer.

    `AvgPool1d`, `AvgPool2d` and `AvgPool3d` are the same with the number of dimensions fixed.

    Parameters
    ----------
    kernel_size : int or tuple of int
        A tuple decides the number of dimensions; an integer stands for all axes after batch and channels.
    stride : int or tuple of int, optional
        Defaults to `kernel_size`.
    padding : int, tuple or str
        As for `npconv.avg_pool`, which checks it in the first forward pass. Padded elements are zero.
    ceil_mode : bool
        Keep a last window that only starts inside the input.
    count_include_pad : bool
        Whether padded elements count in the mean.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, C, *spatial)`` to ``(N, C, *out)``; without ``N`` where `kernel_size` is a tuple.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.AvgPool(2)
    >>> layer(np.array([[[1.0, 5.0, 2.0, 4.0]]]))
    array([[[3., 3.]]])
    >>> layer.backward(np.array([[[10.0, 20.0]]]))
    array([[[ 5.,  5., 10., 10.]]])
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = flag("count_include_pad", count_include_pad)

    def forward(self, x: Array) -> Array:
        """Pool.

        Parameters
        ----------
        x : array
            ``(N, C, *spatial)``, or without ``N`` where the number of dimensions is known.

        Returns
        -------
        array
            ``(N, C, *out)``, or without ``N``.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        arguments = (x, self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)
        if not self.training:
            return nc.avg_pool(*arguments, count_include_pad=self.count_include_pad)
        y, pullback = nc.avg_pool_vjp(*arguments, count_include_pad=self.count_include_pad)
        self.keep(pullback)
        return y


class AvgPool1d(AvgPool):
    """`AvgPool` for signals, ``(N, C, length)`` or ``(C, length)``.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As for `AvgPool`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.AvgPool1d(2)(np.array([[1.0, 5.0, 2.0, 4.0]]))
    array([[3., 3.]])
    """

    ndim = 1


class AvgPool2d(AvgPool):
    """`AvgPool` for images, ``(N, C, H, W)`` or ``(C, H, W)``.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As for `AvgPool`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.AvgPool2d(2)(np.zeros((1, 6, 28, 28))).shape
    (1, 6, 14, 14)
    """

    ndim = 2


class AvgPool3d(AvgPool):
    """`AvgPool` for volumes, ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As for `AvgPool`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.AvgPool3d((1, 2, 2))(np.zeros((1, 2, 8, 8, 8))).shape
    (1, 2, 8, 4, 4)
    """

    ndim = 3
