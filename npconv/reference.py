"""The definition: convolution and its two gradients as the textbook's loops. Slow, obvious, and the oracle of every
test.

Nothing here shares a line with the rest of the package. Sums are taken in float64, complex128 or wrapping int64, and
rounded once at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Pairs = tuple[tuple[int, int], ...]


def conv(
    x: Any, w: Any, bias: Any = None, *, stride: tuple[int, ...], padding: Pairs, dilation: tuple[int, ...], groups: int
) -> Any:
    """Cross-correlate a batch of multi-channel images with a bank of kernels.

    Parameters
    ----------
    x : array of shape (N, C, *size)
    w : array of shape (C_out, C / groups, *kernel)
    bias : array of shape (C_out,), optional
    stride, dilation : tuple of int, one per dimension
    padding : tuple of (low, high), one per dimension
    groups : int

    Returns
    -------
    array of shape (N, C_out, *out), in the dtype of ``numpy.result_type`` of the operands

    Examples
    --------
    >>> x, w = np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 2))
    >>> conv(x, w, stride=(1,), padding=((0, 0),), dilation=(1,), groups=1)
    array([[[1., 3., 5.]]])
    """
    dtype = np.result_type(x, w) if bias is None else np.result_type(x, w, bias)
    wide = _wide(dtype)
    padded = np.pad(x.astype(wide), ((0, 0), (0, 0), *padding))
    out = _output_size(padded.shape[2:], w.shape[2:], stride, dilation)
    y = np.zeros((x.shape[0], w.shape[0], *out), wide)
    for n, o in np.ndindex(y.shape[:2]):
        for position in np.ndindex(*out):
            for c in range(w.shape[1]):
                for tap in np.ndindex(*w.shape[2:]):
                    source = _source(position, tap, stride, dilation)
                    y[n, o, *position] += w[o, c, *tap].astype(wide) * padded[n, _channel(o, c, w, groups), *source]
        if bias is not None:
            y[n, o] += bias[o].astype(wide)
    return y.astype(dtype)


def conv_input_grad(
    dy: Any,
    w: Any,
    size: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
) -> Any:
    """Gradient of ``sum(conv(x, w) * dy)`` in x, for an input of spatial `size`; complex weights are conjugated.

    Examples
    --------
    >>> dy, w = np.ones((1, 1, 3)), np.array([[[1.0, 10.0]]])
    >>> conv_input_grad(dy, w, (4,), stride=(1,), padding=((0, 0),), dilation=(1,), groups=1)
    array([[[ 1., 11., 11., 10.]]])
    """
    dtype = np.result_type(dy, w)
    wide = _wide(dtype)
    w, dy = np.conj(w).astype(wide), dy.astype(wide)
    padded_size = tuple(n + lo + hi for n, (lo, hi) in zip(size, padding, strict=True))
    dx = np.zeros((dy.shape[0], w.shape[1] * groups, *padded_size), wide)
    for n, o in np.ndindex(dy.shape[:2]):
        for position in np.ndindex(*dy.shape[2:]):
            for c in range(w.shape[1]):
                for tap in np.ndindex(*w.shape[2:]):
                    source = _source(position, tap, stride, dilation)
                    dx[n, _channel(o, c, w, groups), *source] += w[o, c, *tap] * dy[n, o, *position]
    inside = tuple(slice(lo, lo + n) for n, (lo, _) in zip(size, padding, strict=True))
    return dx[:, :, *inside].astype(dtype)


def conv_weight_grad(
    x: Any,
    dy: Any,
    kernel: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
) -> Any:
    """Gradient of ``sum(conv(x, w) * dy)`` in w, for kernels of size `kernel`; complex images are conjugated.

    Examples
    --------
    >>> x, dy = np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 3))
    >>> conv_weight_grad(x, dy, (2,), stride=(1,), padding=((0, 0),), dilation=(1,), groups=1)
    array([[[3., 6.]]])
    """
    dtype = np.result_type(x, dy)
    wide = _wide(dtype)
    padded = np.pad(np.conj(x).astype(wide), ((0, 0), (0, 0), *padding))
    dw = np.zeros((dy.shape[1], x.shape[1] // groups, *kernel), wide)
    for n, o in np.ndindex(dy.shape[:2]):
        for position in np.ndindex(*dy.shape[2:]):
            for c in range(dw.shape[1]):
                for tap in np.ndindex(*kernel):
                    source = _source(position, tap, stride, dilation)
                    dw[o, c, *tap] += dy[n, o, *position].astype(wide) * padded[n, _channel(o, c, dw, groups), *source]
    return dw.astype(dtype)


def _source(
    position: tuple[int, ...], tap: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """The padded input element under kernel element `tap` at output `position`."""
    return tuple(p * s + t * d for p, t, s, d in zip(position, tap, stride, dilation, strict=True))


def _channel(o: int, c: int, w: Any, groups: int) -> int:
    """The input channel that output channel `o` sees as its channel `c`."""
    group = o // (w.shape[0] // groups)
    return int(group * w.shape[1] + c)


def _output_size(
    padded: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(padded, kernel, stride, dilation, strict=True))


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind in "iu":
        return np.dtype(np.int64)
    return np.dtype(np.complex128) if dtype.kind == "c" else np.dtype(np.float64)
