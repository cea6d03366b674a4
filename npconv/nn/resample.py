"""Layers that change the size of an image, axis by axis: adaptive and global average pooling, upsampling."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar

from npconv.nn.arguments import Array, Ints, check_shape, flag, floating, per_axis, positive, widened
from npconv.nn.module import Module

SHORT = 128
"""Elements up to which a mean is taken by a product, whose partial sums grow as long as the row."""


class _Resample(Module):
    """A linear map along each spatial axis. A subclass says what size results, and which elements make each of them."""

    ndim: ClassVar[int | None] = None

    def _sizes(self, name: str, value: Any) -> Ints:
        if self.ndim is not None:
            return per_axis(name, value, self.ndim)
        return per_axis(name, value, len(value)) if isinstance(value, tuple | list) else positive(name, value)

    def _result(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial shape of the result."""
        raise NotImplementedError

    def _taps(self, xp: ModuleType, size: int, out: int) -> tuple[Array, Array]:
        """Return indices and weights, ``(taps, out)``: element `i` of an axis becomes ``sum(weight * x[index])[i]``."""
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        """Resample.

        Parameters
        ----------
        x : array
            ``(N, C, *spatial)``, of a floating dtype, no spatial axis empty.

        Returns
        -------
        array
            ``(N, C, *out)``, of the dtype of `x`.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        xp = floating("x", x)
        if x.ndim < 3 or (self.ndim is not None and x.ndim != self.ndim + 2):
            wanted = "at least 3" if self.ndim is None else self.ndim + 2
            raise ValueError(f"x must have {wanted} dimensions, (N, C, *spatial), got shape {x.shape}")
        if 0 in x.shape[2:]:
            raise ValueError(f"x must not be empty along an axis after batch and channels, got shape {x.shape}")
        result = self._result(tuple(x.shape[2:]))
        y = self._resampled(xp, widened(xp, x), result)
        self.keep((tuple(x.shape), result))
        return y.astype(x.dtype, copy=False)

    def _resampled(self, xp: ModuleType, x: Array, result: tuple[int, ...]) -> Array:
        """Resample one axis after the other."""
        for axis, out in enumerate(result, 2):
            x = self._along(xp, x, axis, out)
        return x

    def _along(self, xp: ModuleType, x: Array, axis: int, out: int) -> Array:
        """Resample one axis."""
        per_axis = (-1, *(1,) * (x.ndim - axis - 1))
        terms = (
            xp.take(x, index, axis=axis) * weight.astype(x.dtype).reshape(per_axis)
            for index, weight in zip(*self._taps(xp, x.shape[axis], out), strict=True)
        )
        y = next(terms)
        for term in terms:
            y = y + term
        return y

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        shape, result = self.recall()
        check_shape("dy", dy, (*shape[:2], *result), "that of the result")
        xp = floating("dy", dy)
        dx = widened(xp, dy)
        for axis, out in enumerate(result, 2):
            size = shape[axis]
            index, weight = self._taps(xp, size, out)
            # The map as a matrix, (out, size): its transpose gathers what one element went into.
            matrix = (weight[..., None] * (index[..., None] == xp.arange(size))).sum(axis=0).astype(dx.dtype)
            dx = xp.moveaxis(xp.tensordot(dx, matrix, axes=(axis, 0)), -1, axis)
        return dx.astype(dy.dtype, copy=False)


class AdaptiveAvgPool(_Resample):
    """Average pooling to a given size, over any number of dimensions.

    `AdaptiveAvgPool1d`, `AdaptiveAvgPool2d` and `AdaptiveAvgPool3d` are the same with the number of dimensions fixed.

    Parameters
    ----------
    output_size : int or tuple of int
        A tuple decides the number of dimensions; an integer stands for all axes after batch and channels.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, C, *spatial)`` to ``(N, C, *output_size)``. Element `i` is the mean from ``floor(i * size / out)`` to
    ``ceil((i + 1) * size / out)``, that one excluded: neighbouring windows may share an element.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.AdaptiveAvgPool(2)
    >>> layer(np.array([[[1.0, 2.0, 6.0]]]))
    array([[[1.5, 4. ]]])
    >>> layer.backward(np.array([[[10.0, 20.0]]]))
    array([[[ 5., 15., 10.]]])
    """

    def __init__(self, output_size: Ints) -> None:
        self.output_size = self._sizes("output_size", output_size)

    def _result(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        return per_axis("output_size", self.output_size, len(spatial))

    def _along(self, xp: ModuleType, x: Array, axis: int, out: int) -> Array:
        size = x.shape[axis]
        if size % out:
            return super()._along(xp, x, axis, out)
        return x.reshape(*x.shape[:axis], out, size // out, *x.shape[axis + 1 :]).mean(axis=axis + 1)

    def _taps(self, xp: ModuleType, size: int, out: int) -> tuple[Array, Array]:
        i = xp.arange(out)
        start, stop = i * size // out, -(-(i + 1) * size // out)
        tap = xp.arange(int((stop - start).max()))[:, None]
        return xp.minimum(start + tap, stop - 1), (start + tap < stop) / (stop - start)

    def describe(self) -> str:
        """Return the size."""
        return f"output_size={self.output_size}"


class GlobalAvgPool(AdaptiveAvgPool):
    """Mean over all axes after batch and channels, which stay with length 1: `AdaptiveAvgPool` to size 1.

    Notes
    -----
    Maps ``(N, C, *spatial)`` to ``(N, C, 1, ...)``; `Flatten` makes it ``(N, C)``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.GlobalAvgPool()
    >>> layer(np.array([[[[1.0, 5.0], [2.0, 4.0]]]]))
    array([[[[3.]]]])
    >>> layer.backward(np.array([[[[8.0]]]]))
    array([[[[2., 2.],
             [2., 2.]]]])
    """

    def __init__(self) -> None:
        super().__init__(1)

    def _resampled(self, xp: ModuleType, x: Array, result: tuple[int, ...]) -> Array:
        rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        size = rows.shape[-1]
        # A sum takes a while to begin: for many short rows a product with ones is five times as fast.
        y = rows @ xp.full(size, 1, x.dtype) / size if size <= SHORT else rows.mean(axis=-1)
        return y.reshape(*x.shape[:2], *result)

    def describe(self) -> str:
        """Return nothing: there is no choice."""
        return ""


class AdaptiveAvgPool1d(AdaptiveAvgPool):
    """`AdaptiveAvgPool` for signals, ``(N, C, length)``.

    Parameters
    ----------
    output_size : int or tuple of int

    Raises
    ------
    ValueError, TypeError
        If `output_size` is not what is described here.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.AdaptiveAvgPool1d(3)(np.zeros((1, 2, 7))).shape
    (1, 2, 3)
    """

    ndim = 1


class AdaptiveAvgPool2d(AdaptiveAvgPool):
    """`AdaptiveAvgPool` for images, ``(N, C, H, W)``.

    Parameters
    ----------
    output_size : int or tuple of int

    Raises
    ------
    ValueError, TypeError
        If `output_size` is not what is described here.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.AdaptiveAvgPool2d(3)(np.zeros((1, 2, 7, 7))).shape
    (1, 2, 3, 3)
    """

    ndim = 2


class AdaptiveAvgPool3d(AdaptiveAvgPool):
    """`AdaptiveAvgPool` for volumes, ``(N, C, D, H, W)``.

    Parameters
    ----------
    output_size : int or tuple of int

    Raises
    ------
    ValueError, TypeError
        If `output_size` is not what is described here.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.AdaptiveAvgPool3d(3)(np.zeros((1, 2, 7, 7, 7))).shape
    (1, 2, 3, 3, 3)
    """

    ndim = 3


class Upsample(_Resample):
    """Enlarge an image, or bring it to a given size: the nearest element, or straight lines between neighbours.

    Parameters
    ----------
    size : int or tuple of int, optional
        Of the result; an integer stands for all axes after batch and channels.
    scale_factor : int or tuple of int, optional
        How many times the input's size. Either this or `size`.
    mode : {"nearest", "linear", "bilinear", "trilinear"}
        The last three are one method, for one, two and three dimensions.
    align_corners : bool, optional
        Whether the first and last elements stay where they are, instead of the outer edges of the image. Not for
        ``"nearest"``.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, C, *spatial)`` to ``(N, C, *out)``. Positions are computed exactly, in integers. PyTorch rounds those of
    ``"nearest"`` in float32, so for sizes that are no multiples it may, rarely, choose the neighbour.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> x = np.array([[[0.0, 4.0]]])
    >>> nc.nn.Upsample(scale_factor=2)(x)
    array([[[0., 0., 4., 4.]]])
    >>> layer = nc.nn.Upsample(scale_factor=2, mode="linear")
    >>> layer(x)
    array([[[0., 1., 3., 4.]]])
    >>> layer.backward(np.array([[[1.0, 1.0, 1.0, 1.0]]]))
    array([[[2., 2.]]])
    """

    _dims: ClassVar[dict[str, int | None]] = {"nearest": None, "linear": 1, "bilinear": 2, "trilinear": 3}

    def __init__(
        self,
        size: Ints | None = None,
        scale_factor: Ints | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        if not isinstance(mode, str) or mode not in self._dims:
            raise ValueError(f"mode must be one of {', '.join(map(repr, self._dims))}, got {mode!r:.60}")
        if (size is None) == (scale_factor is None):
            raise ValueError(f"either size or scale_factor must be given, got {size!r:.60} and {scale_factor!r:.60}")
        if mode == "nearest" and align_corners is not None:
            raise ValueError(f"align_corners is not for mode 'nearest', got {align_corners!r:.60}")
        self.mode = mode
        self.size = None if size is None else self._of_mode("size", size)
        self.scale_factor = None if scale_factor is None else self._of_mode("scale_factor", scale_factor)
        self.align_corners = False if align_corners is None else flag("align_corners", align_corners)

    def _of_mode(self, name: str, value: Any) -> Ints:
        dims = self._dims[self.mode]
        return self._sizes(name, value) if dims is None else per_axis(name, value, dims)

    def _result(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        dims = self._dims[self.mode]
        if dims not in (None, len(spatial)):
            raise ValueError(
                f"x must have {dims} axes after batch and channels for mode {self.mode!r}, got {len(spatial)}"
            )
        if self.size is not None:
            return per_axis("size", self.size, len(spatial))
        factors = per_axis("scale_factor", self.scale_factor, len(spatial))
        return tuple(n * factor for n, factor in zip(spatial, factors, strict=True))

    def _taps(self, xp: ModuleType, size: int, out: int) -> tuple[Array, Array]:
        i = xp.arange(out)
        if self.mode == "nearest":
            return (i * size // out)[None], xp.ones((1, out))
        # The position in the input is `top / bottom`.
        if self.align_corners:
            top, bottom = i * (size - 1), max(out - 1, 1)
        else:
            top, bottom = xp.maximum((2 * i + 1) * size - out, 0), 2 * out
        low, share = top // bottom, top % bottom / bottom
        return xp.stack([low, xp.minimum(low + 1, size - 1)]), xp.stack([1 - share, share])

    def describe(self) -> str:
        """Return what was given."""
        given = f"size={self.size}" if self.scale_factor is None else f"scale_factor={self.scale_factor}"
        return given + f", mode={self.mode!r}" + self._unusual(align_corners=False)
