"""Max and average pooling over any number of dimensions, with their gradients.

An average is a depthwise convolution with a kernel of ones, divided by how many elements each window counted: no loop
of its own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.algorithms import ALGORITHMS
from npconv.arrays import Array, Backend, Operands, check_shape, compute_dtype, from_channels_first, is_plain
from npconv.geometry import ConvSpec, Pairs, Size, Window, check_extent, join_shape, resolve_padding
from npconv.lazy import is_lazy, later, stand_in
from npconv.patches import spatial_form

Pullback = Callable[[Array], Array]


def max_pool(
    x: Array,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: Any = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    out: Array | None = None,
) -> Any:
    """Largest element under every window position.

    Parameters
    ----------
    x : array
        ``(N, C, *spatial)`` or ``(C, *spatial)``, any supported dtype. Complex numbers are ordered as NumPy does, by
        their real, then their imaginary part. A NaN wins its window.
    kernel_size : int or tuple of int
        A tuple decides the number of dimensions; an integer stands for all axes after batch and channels.
    stride : int or tuple of int, optional
        Defaults to `kernel_size`.
    padding : int, tuple or str
        As for `npconv.conv`, less than the window on every side. Padded elements never win.
    dilation : int or tuple of int
        Distance between the elements of a window.
    ceil_mode : bool
        Keep a last window that only starts inside the input.
    return_indices : bool
        Whether to return also where in its image, numbered in C order, each of the largest elements is.
    layout : {"channels_first", "channels_last"}
    backend : str, optional
    out : array, optional
        Receives the result; must have its shape and dtype and share no memory with `x`.

    Returns
    -------
    array
        ``(N, C, *out)`` in the dtype of `x`. A dilated window that touches no element at all gives the dtype's lowest
        value.
    array of int64
        Only with `return_indices`: of the same shape, the first of the largest elements; -1 where there is none.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    References
    ----------
    PyTorch's ``max_pool2d``, whose definition this follows.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.max_pool(np.array([[[1, 5, 2, 4]]]), 2)
    array([[[5, 4]]])
    """
    pool = _Pool.of(stand_in(x), kernel_size, stride, padding, dilation, ceil_mode, layout, backend)
    if is_lazy(x):
        return later(
            "max_pool", x=x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation,
            ceil_mode=ceil_mode, return_indices=return_indices, layout=layout, backend=backend, out=out,
        )  # fmt: skip
    pool.operands.check_out(out, pool.y_shape)
    if not _flag("return_indices", return_indices):
        if pool.can_fill(out):
            _max_values(pool, out)
            return out
        return pool.operands.deliver(_max_values(pool), out)
    y, winner = _max_forward(pool)
    places = pool.as_result(_places(pool, winner))
    return pool.operands.deliver(pool.as_result(y), out), pool.operands.deliver(places, dtype=places.dtype)


def max_pool_vjp(
    x: Array,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: Any = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
    *,
    layout: str = "channels_first",
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`max_pool` and its vector-Jacobian product.

    Parameters
    ----------
    x, kernel_size, stride, padding, dilation, ceil_mode, layout, backend
        As for `max_pool`.

    Returns
    -------
    y : array
        ``max_pool(x, ...)``.
    pullback : callable
        ``dx = pullback(dy)``: every gradient goes to the first of the largest elements of its window.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.max_pool_vjp(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    >>> pullback(np.array([[[10.0, 20.0]]]))
    array([[[ 0., 10.,  0., 20.]]])
    """
    pool = _Pool.of(x, kernel_size, stride, padding, dilation, ceil_mode, layout, backend)
    y, winner = _max_forward(pool)

    def pullback(dy: Array) -> Array:
        operands = pool.gradient(dy)
        grad = operands.load_image("dy", layout, pool.batched)
        dx = _max_backward(operands.backend, pool.window, grad, winner, pool.image)
        return operands.deliver(from_channels_first(operands.backend, dx, layout, pool.batched))

    return pool.operands.deliver(pool.as_result(y)), pullback


def avg_pool(
    x: Array,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: Any = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
    *,
    count_include_pad: bool = True,
    layout: str = "channels_first",
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Mean of the elements under every window position.

    Parameters
    ----------
    x : array
        ``(N, C, *spatial)`` or ``(C, *spatial)``, any supported dtype.
    kernel_size, stride, padding, dilation, ceil_mode, layout, backend
        As for `max_pool`. Padded elements are zero.
    count_include_pad : bool
        Whether padded elements count in the mean. What `ceil_mode` adds beyond the padding never does.
    out : array, optional
        Receives the result; must have its shape and dtype and share no memory with `x`.

    Returns
    -------
    array
        ``(N, C, *out)`` in the dtype of `x`; float64 for integers, summed in it, as by `numpy.mean`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    References
    ----------
    PyTorch's ``avg_pool2d``, whose definition this follows.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.avg_pool(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    array([[[3., 3.]]])
    """
    pool = _Pool.of(stand_in(x), kernel_size, stride, padding, dilation, ceil_mode, layout, backend)
    if is_lazy(x):
        return later(
            "avg_pool", x=x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation,
            ceil_mode=ceil_mode, count_include_pad=count_include_pad, layout=layout, backend=backend, out=out,
        )  # fmt: skip
    pool.operands.check_out(out, pool.y_shape, _mean_dtype(pool.operands))
    return pool.operands.deliver(_average(pool, count_include_pad), out, _mean_dtype(pool.operands))


def avg_pool_vjp(
    x: Array,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: Any = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
    *,
    count_include_pad: bool = True,
    layout: str = "channels_first",
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`avg_pool` and its vector-Jacobian product.

    Parameters
    ----------
    x, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, layout, backend
        As for `avg_pool`.

    Returns
    -------
    y : array
        ``avg_pool(x, ...)``.
    pullback : callable
        ``dx = pullback(dy)``: every gradient is spread evenly over its window.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.avg_pool_vjp(np.array([[[1.0, 5.0, 2.0, 4.0]]]), 2)
    >>> pullback(np.array([[[10.0, 20.0]]]))
    array([[[ 5.,  5., 10., 10.]]])
    """
    pool = _Pool.of(x, kernel_size, stride, padding, dilation, ceil_mode, layout, backend)
    y = _average(pool, count_include_pad)

    def pullback(dy: Array) -> Array:
        operands = pool.gradient(dy)
        dtype = _mean_dtype(operands)
        grad = operands.load_image("dy", layout, pool.batched).astype(compute_dtype(dtype), copy=False)
        grad = grad / _counts(pool, count_include_pad, grad.dtype, operands.backend)
        planes = grad.reshape(pool.spec.batch, 1, *pool.window.out)
        dx = ALGORITHMS["depthwise"].input_grad(pool.spec, operands.backend, planes, pool.ones(grad.dtype))
        dx = dx.reshape(pool.image)
        return operands.deliver(from_channels_first(operands.backend, dx, layout, pool.batched), dtype=dtype)

    return pool.operands.deliver(y, dtype=_mean_dtype(pool.operands)), pullback


# --------------------------------------------------------------------------------------------------------------------
# What both share
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """One pooling call: its operand and geometry. `given` is the padding before `ceil_mode` added to it."""

    operands: Operands
    window: Window
    given: Pairs
    batch: int
    channels: int
    layout: str
    batched: bool

    @classmethod
    def of(
        cls,
        x: Array,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: Any,
        layout: str,
        backend: str | None,
    ) -> _Pool:
        operands = Operands(backend, x=x)
        batch, channels, size, batched, kernel = spatial_form("x", operands.shape("x"), kernel_size, layout)
        window = Window.over(
            size, kernel, kernel if stride is None else stride, padding, dilation, _flag("ceil_mode", ceil_mode)
        )
        given = resolve_padding(padding, size, kernel, window.stride, window.dilation)
        for (low, high), reach in zip(given, window.reach, strict=True):
            if max(low, high) > reach:
                raise ValueError(
                    f"padding must be smaller than the window, got {given} for a window spanning "
                    f"{tuple(r + 1 for r in window.reach)}"
                )
        check_extent("the output", (batch, channels, *window.out))
        return cls(operands, window, given, batch, channels, layout, batched)

    @property
    def y_shape(self) -> Size:
        return join_shape(self.batch, self.channels, self.window.out, self.layout, self.batched)

    @property
    def image(self) -> Size:
        return (self.batch, self.channels, *self.window.size)

    @property
    def spec(self) -> ConvSpec:
        """Every plane as an image of its own, through one kernel."""
        return ConvSpec(self.batch * self.channels, 1, 1, 1, self.window)

    def ones(self, dtype: np.dtype[Any]) -> Array:
        """The kernel that sums a window."""
        return self.operands.backend.xp.ones(self.spec.w_shape, dtype)

    @property
    def is_whole(self) -> bool:
        """Whether one window is the whole image, whose mean needs no window."""
        window = self.window
        return window.positions == 1 and window.kernel == window.size and not window.has_padding

    def as_result(self, y: Array) -> Array:
        return from_channels_first(self.operands.backend, y, self.layout, self.batched)

    @property
    def has_values_alone(self) -> bool:
        """Whether there is a loop that looks for no indices."""
        return hasattr(self.operands.backend.kernels, "max_values") and self.operands.dtype.kind != "c"

    @property
    def reads_channels_last(self) -> bool:
        """Whether there are loops for channels-last arrays as they are."""
        return self.layout == "channels_last" and hasattr(self.operands.backend.kernels, "max_values_last")

    def can_fill(self, out: Any) -> bool:
        """Whether that loop can write into `out`, which was checked, without a copy."""
        dtype = self.operands.dtype
        as_it_is = self.reads_channels_last or (self.layout == "channels_first" and self.operands.backend.xp is np)
        return as_it_is and self.has_values_alone and is_plain(out) and out.dtype == dtype == compute_dtype(dtype)

    @property
    def wide(self) -> np.dtype[Any]:
        """What maxima are taken in. Modulo 2^64 an unsigned and a signed integer are the same, but not in order."""
        dtype = self.operands.dtype
        return dtype if dtype == np.uint64 else compute_dtype(dtype)

    def gradient(self, dy: Array) -> Operands:
        """The gradient of the result, checked, on the backend that computed it."""
        operands = self.operands.companion(dy=dy)
        check_shape("dy", operands.shape("dy"), self.y_shape, "that of the result")
        return operands


def _max_values(pool: _Pool, out: Array | None = None) -> Array:
    """The result alone, by a faster loop where there is one; `out` is for those that `_Pool.can_fill` lets pass."""
    kernels: Any = pool.operands.backend.kernels
    if not pool.has_values_alone:
        return pool.as_result(_max_forward(pool)[0])
    if pool.reads_channels_last:
        x, y = pool.operands.load("x", pool.wide), np.empty(pool.y_shape, pool.wide) if out is None else out
        images = x.reshape(pool.batch, math.prod(pool.window.size), pool.channels)
        results = y.reshape(pool.batch, pool.window.positions, pool.channels)
        kernels.max_values_last(pool.window, images, np.array([_lowest(pool.operands.dtype)], pool.wide), results)
        return y
    x, y = _max_operands(pool, out)
    kernels.max_values(pool.window, x, y)
    return pool.as_result(y)


def _max_operands(pool: _Pool, out: Array | None = None) -> tuple[Array, Array]:
    """The image, and a result that every element exceeds, in the memory of `out` if there is one."""
    x = pool.operands.load_image("x", pool.layout, pool.batched, pool.wide)
    shape = (pool.batch, pool.channels, *pool.window.out)
    y = pool.operands.backend.xp.empty(shape, pool.wide) if out is None else out.reshape(shape)
    y.fill(_lowest(pool.operands.dtype))
    return x, y


def _places(pool: _Pool, winner: Array) -> Array:
    """Where in its image the winning tap of each window lies."""
    xp, window = pool.operands.backend.xp, pool.window
    place, tap, scale = 0, winner, 1
    for axis in reversed(range(window.ndim)):
        starts = xp.arange(window.out[axis]) * window.stride[axis] - window.padding[axis][0]
        starts = starts.reshape(-1, *(1,) * (window.ndim - 1 - axis))
        place = place + (starts + tap % window.kernel[axis] * window.dilation[axis]) * scale
        tap, scale = tap // window.kernel[axis], scale * window.size[axis]
    return xp.where(winner < 0, -1, place)


def _max_forward(pool: _Pool) -> tuple[Array, Array]:
    backend, window = pool.operands.backend, pool.window
    x, y = _max_operands(pool)
    winner = backend.xp.full(y.shape, -1, np.int64)
    if backend.kernels is not None:
        backend.kernels.max_pool(window, x, y, winner)
        return y, winner
    for tap, inp, out in window.tap_slices():
        seen, best, chosen = x[..., *inp], y[..., *out], winner[..., *out]
        better = (chosen < 0) | (_exceeds(seen, best) & (best == best))
        y[..., *out] = backend.xp.where(better, seen, best)
        winner[..., *out] = backend.xp.where(better, tap, chosen)
    return y, winner


def _max_backward(backend: Backend, window: Window, dy: Array, winner: Array, shape: Size) -> Array:
    if backend.kernels is not None:
        dx = backend.xp.empty(shape, dy.dtype)
        backend.kernels.max_pool_grad(window, dy, winner, dx)
        return dx
    dx = backend.xp.zeros(shape, dy.dtype)
    for tap, inp, out in window.tap_slices():
        dx[..., *inp] += backend.xp.where(winner[..., *out] == tap, dy[..., *out], 0)
    return dx


def _exceeds(value: Array, best: Array) -> Array:
    """Elementwise: greater (complex: by real, then imaginary part) or NaN."""
    if value.dtype.kind == "c":
        greater = (value.real > best.real) | ((value.real == best.real) & (value.imag > best.imag))
    else:
        greater = value > best
    return greater | (value != value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _lowest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    return complex(-math.inf, -math.inf) if dtype.kind == "c" else -math.inf


def _average(pool: _Pool, count_include_pad: bool) -> Array:
    operands, backend = pool.operands, pool.operands.backend
    count_include_pad = _flag("count_include_pad", count_include_pad)
    mean = compute_dtype(_mean_dtype(operands))
    if pool.reads_channels_last and (y := _average_last(pool, count_include_pad, mean)) is not None:
        return y
    x = operands.load_image("x", pool.layout, pool.batched, mean)
    if pool.is_whole:
        return pool.as_result(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))
    planes = x.reshape(pool.spec.batch, 1, *pool.window.size)
    total = ALGORITHMS["depthwise"].forward(pool.spec, backend, planes, pool.ones(x.dtype), None, None)
    total = total.reshape(pool.batch, pool.channels, *pool.window.out)
    return pool.as_result(total / _counts(pool, count_include_pad, mean, backend))


def _average_last(pool: _Pool, count_include_pad: bool, mean: np.dtype[Any]) -> Array | None:
    """The averages of channels-last floats by loops that read them as they are; None where there is none."""
    kernels: Any = pool.operands.backend.kernels
    shape = (pool.batch, *pool.window.out, pool.channels)
    if mean.kind != "f" or not math.prod(shape):
        return None
    x, y = pool.operands.load("x", mean).reshape(pool.batch, *pool.window.size, pool.channels), np.empty(shape, mean)
    if pool.is_whole:
        kernels.mean_last(x.reshape(pool.batch, -1, pool.channels), y.reshape(pool.batch, pool.channels))
    elif kernels.sum_windows_last(pool.window, x, y):
        counts = _counts(pool, count_include_pad, mean, pool.operands.backend)
        y /= counts[..., None] if pool.window.has_padding else pool.window.taps
    else:
        return None
    return y.reshape(pool.y_shape)


def _counts(pool: _Pool, count_include_pad: bool, dtype: np.dtype[Any], backend: Backend) -> Array:
    """How many elements each window counts, over the output's spatial axes: a product of one count per axis."""
    axes = [
        _axis_counts(pool.window, axis, pads if count_include_pad else (0, 0)) for axis, pads in enumerate(pool.given)
    ]
    counts = functools.reduce(operator.mul, np.ix_(*axes)).astype(dtype)
    counts[counts == 0] = math.nan  # the mean of nothing
    return backend.xp.asarray(counts)


def _axis_counts(window: Window, axis: int, margin: tuple[int, int]) -> Array:
    starts = np.arange(window.out[axis]) * window.stride[axis] - window.padding[axis][0]
    taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]
    return ((taps >= -margin[0]) & (taps < window.size[axis] + margin[1])).sum(axis=1)


def _mean_dtype(operands: Operands) -> np.dtype[Any]:
    return np.dtype(np.float64) if operands.dtype.kind in "iu" else operands.dtype
