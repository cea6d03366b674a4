"""Kernels of rank 1: the factors of an outer product, one for each axis."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from npconv.arrays import Array, Backend, compute_dtype
from npconv.filters.frame import Frame
from npconv.geometry import Size

_REMEMBERED = 2**14
"""Bytes of a kernel up to which it is known by its content, so that one used again is not taken apart again."""


def factors_for(backend: Backend, frame: Frame, w: Array, wide: np.dtype[Any], method: str) -> list[Array] | None:
    """The kernel's factors if the filter is to run one pass per axis, or None; raises where a method cannot run."""
    if method == "fft":
        if wide.kind not in "fc":
            raise ValueError(
                "method 'fft' rounds, and sums of integers are exact; ask for a floating-point x, or 'auto'"
            )
        if all((k - 1) // s == 0 for k, s in zip(frame.kernel, frame.stride, strict=True)):
            raise ValueError(
                f"method 'fft' has nothing to transform where windows do not overlap, "
                f"here a kernel of shape {frame.kernel} at stride {frame.stride}"
            )
    return taken_apart(backend, w, wide, method) if may_split(frame.kernel, method) else None


def taken_apart(backend: Backend, w: Array, wide: np.dtype[Any], method: str) -> list[Array] | None:
    """The factors of a kernel whose shape `may_split`, or None; raises where a method needs them."""
    host = backend.xp.asnumpy(w) if backend.xp is not np else w
    if host.nbytes <= _REMEMBERED:
        found = _remembered(host.tobytes(), host.shape, host.dtype, wide, method == "auto")
    else:
        found = _factors_in(host, wide, method == "auto")
    if found is None:
        if method == "separable":
            raise ValueError("method 'separable' needs a kernel of rank 1, an outer product; w is not one")
        return None
    return found if backend.xp is np else [backend.xp.asarray(factor) for factor in found]


def may_split(kernel: Size, method: str) -> bool:
    """Whether a kernel of this shape would run one pass per axis, if it were of rank 1."""
    return method == "separable" or (method == "auto" and sum(kernel) < math.prod(kernel))


@functools.lru_cache(maxsize=256)
def _remembered(data: bytes, shape: Size, dtype: np.dtype[Any], wide: np.dtype[Any], fully: bool) -> list[Array] | None:
    found = _factors_in(np.frombuffer(data, dtype).reshape(shape), wide, fully)
    for factor in found or ():
        factor.flags.writeable = False
    return found


def _factors_in(w: Array, wide: np.dtype[Any], fully: bool) -> list[Array] | None:
    """The factors, unless they differ from the kernel in what is zero: zero times infinity is NaN.

    They are as precise as the wider of kernel and sums; if `fully`, so must their product be, else only as the kernel.
    """
    precise = w.astype(np.result_type(w, wide)) if w.dtype.kind in "fc" else w
    found = _split(precise, _rounding(w, wide if fully else None))
    zero = np.zeros((1,) * w.ndim, bool)
    for factor in found or ():
        zero = zero | (factor.astype(wide) == 0)
    return None if found is None or (zero != (w.astype(wide) == 0)).any() else found


def factors(w: Array) -> list[Array] | None:
    """One factor per axis whose outer product is the kernel, or None where there are none.

    Parameters
    ----------
    w : numpy.ndarray
        A kernel of any number of dimensions: floating-point, complex or integer.

    Returns
    -------
    list of numpy.ndarray or None
        Factor i has the size of axis i there and 1 elsewhere, so that their product broadcasts to `w`. They are the
        lines through the largest element rather than singular vectors: what is zero in `w` is zero in a factor, which
        a singular vector's rounding would spoil, and integers have integer factors. An element may differ from the
        product by a few roundings of its own dtype; integers are equal, modulo 2**64.

    Raises
    ------
    TypeError
        If `w` is not an array of numbers.

    Examples
    --------
    >>> import npconv as nc
    >>> [factor.ravel() for factor in nc.filters.factors(nc.filters.sobel())]
    [array([1, 2, 1]), array([-1,  0,  1])]
    >>> nc.filters.factors(nc.filters.laplace()) is None
    True
    """
    if not isinstance(w, np.ndarray) or w.dtype.kind not in "iufc":
        raise TypeError(f"w must be a NumPy array of numbers, got {getattr(w, 'dtype', type(w).__name__)}")
    return _split(w, _rounding(w))


def _rounding(w: Array, wide: np.dtype[Any] | None = None) -> float:
    """What one rounding may be of a kernel's element, or of the wider dtype's."""
    if w.dtype.kind not in "fc":
        return 0.0
    kind = compute_dtype(w.dtype)
    return float(np.finfo(kind if wide is None or wide.kind not in "fc" else np.result_type(kind, wide)).eps)


def _split(w: Array, rounding: float) -> list[Array] | None:
    """`factors` of an array of numbers, whose product may differ by a few of these roundings."""
    if w.size == 0 or w.ndim == 0:
        return None
    w = w.astype(compute_dtype(w.dtype))
    magnitude = np.abs(w)
    peak = np.unravel_index(int(magnitude.argmax()), w.shape)
    pivot = w[peak]
    if not magnitude.max() < np.inf or pivot == 0 or magnitude.min() < 0:  # which that of -2**63 is
        return None
    lines = [
        w[tuple(slice(None) if i == axis else slice(p, p + 1) for i, p in enumerate(peak))] for axis in range(w.ndim)
    ]
    if w.dtype.kind == "i":
        lines = [line // (int(np.gcd.reduce(line, axis=None)) * (-1 if line.sum() < 0 else 1)) for line in lines]
        scale, rest = divmod(int(pivot), math.prod(int(line.ravel()[p]) for line, p in zip(lines, peak, strict=True)))
        if rest:
            return None
        lines[-1] = lines[-1] * np.int64(scale)
    else:
        lines = [lines[0], *(line / pivot for line in lines[1:])]
    product = np.ones((1,) * w.ndim, w.dtype)
    for line in lines:
        product = product * line
    if w.dtype.kind == "i":
        return lines if (product == w).all() else None
    close = np.abs(product - w) <= 8 * w.ndim * rounding * magnitude
    return lines if close.all() else None
