"""Filters without channels: an image, a signal or a volume and one kernel, with the boundaries and modes of SciPy.

A filter is a convolution with one input and one output channel, so what is here is the geometry of `scipy.signal`'s
modes and `scipy.ndimage`'s boundaries, kernels split into one factor per axis, missing values, and kernels ready made.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npconv import padding
from npconv.arrays import Array, Backend, Operands, check_shape, compute_dtype, contiguous, supported_dtype
from npconv.conv import conv
from npconv.geometry import Pairs, Size, check_extent, choice, integer, per_axis, sequence
from npconv.gradients import conv_input_grad, conv_weight_grad

Ints = int | tuple[int, ...]
Pullback = Callable[[Array], tuple[Array, Array]]

MODES = ("same", "full", "valid")
METHODS = ("auto", "direct", "fft", "separable")
NAN_POLICIES = ("propagate", "raise", "omit", "interpolate")

BOUNDARIES = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "constant": "zeros",
    "grid-constant": "zeros",
    "nearest": "replicate",
    "mirror": "reflect",
    "wrap": "circular",
    "grid-wrap": "circular",
}
"""`scipy.ndimage`'s names, and the mode of `npconv.padding` that each one is."""

# Weights of both signs whose present part sums to less than this share of their magnitudes have cancelled.
_CANCELLED = 1e-12

# Shares of a kernel's weight are compared to this accuracy, so that a rounding error does not decide at a tie.
_TIE = 1e-9

# Up to this many taps the direct sum is what every plan takes, and looking for NaN first would only cost.
_SMALL = 32


# --------------------------------------------------------------------------------------------------------------------
# The two operations
# --------------------------------------------------------------------------------------------------------------------


def correlate(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    nan_policy: str = "propagate",
    mask: Array | None = None,
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Correlate an array of any number of dimensions with a kernel.

    ``y[p] = sum over t of conj(w[t]) * x[p * stride + t - low]``, where ``low`` is ``w.shape // 2 + origin`` in mode
    ``"same"``, ``w.shape - 1`` in ``"full"`` and 0 in ``"valid"``. A complex kernel is conjugated, as
    `numpy.correlate`, `scipy.signal.correlate` and `scipy.ndimage.correlate` do; `npconv.conv` does not.

    Parameters
    ----------
    x : array
        Any shape. NumPy, CuPy, or anything that speaks DLPack: float16, float32, float64, complex64, complex128 or
        any integer.
    w : array
        The kernel, with one dimension for each of `axes`.
    mode : {"same", "full", "valid"}
        Size of the result, as in `scipy.signal`: that of `x`, every overlap, or only whole overlaps. A kernel that is
        larger than `x` has no valid result here; `scipy.signal` swaps the two.
    boundary : {"reflect", "mirror", "nearest", "wrap", "constant", "grid-mirror", "grid-wrap", "grid-constant"}
        What stands beyond the edge, in `scipy.ndimage`'s words: ``"reflect"`` = ``"grid-mirror"`` is
        ``b a | a b c | c b``, ``"mirror"`` is ``c b | a b c | b a``, ``"nearest"`` is ``a a | a b c | c c``,
        ``"wrap"`` = ``"grid-wrap"`` is ``b c | a b c | a b``, and ``"constant"`` = ``"grid-constant"`` is `cval`.
        `scipy.signal` always means ``"constant"``.
    cval : number
        What stands beyond the edge where `boundary` is ``"constant"``. NaN there is a missing value.
    origin : int or tuple of int
        Moves the kernel to the left, as in `scipy.ndimage`; from ``-(w.shape // 2)`` to ``(w.shape - 1) // 2``. For
        mode ``"same"`` only.
    axes : int or tuple of int, optional
        The axes that the kernel's dimensions stand for; the rest is a batch. All by default.
    stride : int or tuple of int
        Keep every so many-th result along each of `axes`; the others are not computed.
    nan_policy : {"propagate", "raise", "omit", "interpolate"}
        ``"propagate"``: a NaN reaches every result whose kernel covers it, also with weight 0. ``"raise"``: a NaN in
        `x` raises. ``"omit"``: results are the sum over what is present, times the kernel's sum over the sum of the
        weights that were present (astropy's ``nan_treatment="interpolate"``). ``"interpolate"``: what is missing is
        first replaced by the kernel's weighted mean of what is present around it (astropy's
        ``interpolate_replace_nans``), and what cannot be is NaN.
    mask : array of bool, optional
        Of the shape of `x`; True marks an element as missing, as in `numpy.ma`. For the policies ``"omit"`` and
        ``"interpolate"`` only.
    min_weight : float
        Share of the kernel's weight, in magnitudes, that must be present; results, and interpolated elements, with
        less are NaN. With 0 only those are that have nothing but missing values under weights other than 0, or present
        weights of both signs that cancel.
    method : {"auto", "direct", "fft", "separable"}
        ``"separable"`` runs one pass per axis and needs a kernel that is the outer product of one factor per axis, to
        the rounding of its dtype; ``"auto"`` does so where it is fewer products, and otherwise asks `npconv.plan`.
        All give NaN at the same places. Where `x` holds infinities, ``"fft"`` sums directly, since a transform would
        spread them.
    dtype : str or numpy.dtype, optional
        Of the result. By default a floating-point `x` keeps its precision whatever that of `w`, complex if either is;
        otherwise it is ``numpy.result_type(x, w)``, and int64 where integers have no common integer type.
    backend : {"auto", "numpy", "numba", "cupy"}, optional
        Defaults to `npconv.get_backend`.
    out : array, optional
        Receives the result; must have its shape and dtype and share no memory with the operands.

    Returns
    -------
    array
        The axes of `x` in their order. Integers are summed in 64 bits and wrap only if `dtype` is narrower; with
        integers the policies ``"omit"`` and ``"interpolate"`` give float64. float16 is computed in float32.

    Raises
    ------
    ValueError
        If a value or a shape is not what is described here; if `nan_policy` is ``"raise"`` and `x` holds NaN; if the
        kernel's weights sum to zero where they normalise.
    TypeError
        If a dtype or a kind of argument is not.

    See Also
    --------
    convolve, correlate_vjp

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.correlate(np.array([1, 2, 4, 8]), np.array([-1, 0, 1]))
    array([1, 3, 6, 4])
    >>> x = np.array([1.0, np.nan, 3.0, 5.0])
    >>> nc.correlate(x, nc.filters.box(3, ndim=1), nan_policy="omit")
    array([1.        , 2.        , 4.        , 4.33333333])
    """
    return _filter(
        False,
        x,
        w,
        mode,
        boundary,
        cval,
        origin,
        axes,
        stride,
        nan_policy,
        mask,
        min_weight,
        method,
        dtype,
        backend,
        out,
    )


def convolve(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    nan_policy: str = "propagate",
    mask: Array | None = None,
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Convolve an array of any number of dimensions with a kernel, which is turned round and not conjugated.

    In mode ``"same"`` the result is centred as `scipy.signal.convolve` centres it. `scipy.ndimage.convolve` differs
    for even kernels, by one element: its `origin` is one less on an axis where `w` is even.

    Parameters
    ----------
    x, w, mode, boundary, cval, axes, stride, nan_policy, mask, min_weight, method, dtype, backend, out
        As for `correlate`.
    origin : int or tuple of int
        Moves the kernel to the right; from ``-((w.shape - 1) // 2)`` to ``w.shape // 2``.

    Returns
    -------
    array
        As for `correlate`.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.convolve(np.array([1, 2, 4]), np.array([1, 10]), mode="full", boundary="constant")
    array([ 1, 12, 24, 40])
    """
    return _filter(
        True,
        x,
        w,
        mode,
        boundary,
        cval,
        origin,
        axes,
        stride,
        nan_policy,
        mask,
        min_weight,
        method,
        dtype,
        backend,
        out,
    )


def _filter(
    flip: bool,
    x: Array,
    w: Array,
    mode: str,
    boundary: str,
    cval: complex,
    origin: Ints,
    axes: Ints | None,
    stride: Ints,
    nan_policy: str,
    mask: Array | None,
    min_weight: float,
    method: str,
    dtype: Any,
    backend: str | None,
    out: Array | None,
) -> Array:
    choice("nan_policy", nan_policy, NAN_POLICIES)
    choice("method", method, METHODS)
    min_weight = _number("min_weight", min_weight, 0.0, 1.0)
    missing = nan_policy in ("omit", "interpolate")
    if min_weight and not missing:
        raise ValueError(f"min_weight is for the policies 'omit' and 'interpolate', nan_policy is {nan_policy!r}")
    operands = Operands(backend, x=x, w=w) if mask is None else Operands(backend, x=x, w=w, mask=mask)
    frame = _Frame.of(operands, flip, mode, boundary, origin, axes, stride)
    if mask is not None:
        _check_mask(operands, frame, nan_policy)
    result, wide = _dtypes(operands, dtype, missing)
    operands.check_out(out, frame.y_shape, result)
    cval = _constant(cval, wide, frame)
    xp = operands.backend.xp
    w = _kernel(operands, flip)
    factors = _plan(operands.backend, frame, w, wide, method)
    if missing:
        _check_weights(w)
    image = frame.enter(operands.backend, operands.load("x", wide))
    if math.prod(frame.y_shape) == 0:
        return operands.deliver(xp.zeros(frame.y_shape, wide), out, result)
    if nan_policy == "raise" and _has_nan(xp, image):
        raise ValueError("x contains NaN, and nan_policy is 'raise'")
    run = _Run(operands.backend, method, factors)
    if missing:
        gaps = xp.isnan(image)
        if mask is not None:
            gaps |= frame.enter(operands.backend, operands.load("mask", np.dtype(bool)))
        y = (_omit if nan_policy == "omit" else _interpolate)(run, frame, image, gaps, w, cval, min_weight)
    else:
        y = run(frame, image, w.astype(wide), cval)
    return operands.deliver(frame.leave(operands.backend, _narrow(y, operands, result)), out, result)


# --------------------------------------------------------------------------------------------------------------------
# Geometry
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """One filter's geometry: which axes, and what of the image and of what lies beyond it every result needs.

    `pairs` is what is added on either side; a negative number on the high side leaves elements out that a stride
    never reaches.
    """

    x_shape: Size
    axes: Size
    kernel: Size
    stride: Size
    pairs: Pairs
    out: Size
    mode: str
    boundary: str

    @classmethod
    def of(
        cls, operands: Operands, flip: bool, mode: str, boundary: str, origin: Any, axes: Any, stride: Any
    ) -> _Frame:
        """Check and normalise what a caller wrote."""
        choice("mode", mode, MODES)
        choice("boundary", boundary, tuple(BOUNDARIES))
        x_shape, kernel = operands.shape("x"), operands.shape("w")
        chosen = _axes(axes, len(x_shape))
        if len(kernel) != len(chosen):
            hint = "; name the axes to filter with axes=, the rest is a batch" if axes is None else ""
            raise ValueError(
                f"w must have one dimension for each filtered axis of x, {len(chosen)}, got shape {kernel}{hint}"
            )
        if not kernel:
            raise ValueError("x and w must have at least one dimension to filter, got shape ()")
        if 0 in kernel:
            raise ValueError(f"w must not be empty, got shape {kernel}")
        strides = per_axis("stride", stride, len(kernel))
        low = _low(mode, kernel, _origins(origin, kernel, flip, mode))
        size = tuple(x_shape[a] for a in chosen)
        dense = tuple(
            {"same": n, "full": n + k - 1, "valid": n - k + 1}[mode] for n, k in zip(size, kernel, strict=True)
        )
        if (mode == "valid" and min(dense) < 1) or (mode == "full" and 0 in size):
            raise ValueError(f"mode {mode!r} has no result for a kernel of shape {kernel} over axes of size {size}")
        out = tuple(-(-n // s) for n, s in zip(dense, strides, strict=True))
        pairs = tuple(
            (lo, (o - 1) * s + k - lo - n) for lo, o, s, k, n in zip(low, out, strides, kernel, size, strict=True)
        )
        check_extent("x with its boundary", tuple(n + lo + hi for n, (lo, hi) in zip(size, pairs, strict=True) if n))
        return cls(x_shape, chosen, kernel, strides, pairs, out, mode, BOUNDARIES[boundary])

    @property
    def size(self) -> Size:
        return tuple(self.x_shape[a] for a in self.axes)

    @property
    def y_shape(self) -> Size:
        sizes = dict(zip(self.axes, self.out, strict=True))
        return tuple(sizes.get(i, n) for i, n in enumerate(self.x_shape))

    @property
    def added(self) -> Pairs:
        """What is added on either side."""
        return tuple((lo, max(hi, 0)) for lo, hi in self.pairs)

    @property
    def used(self) -> tuple[slice, ...]:
        """The part of an image ``(N, 1, *size)`` that some result needs."""
        return (
            slice(None),
            slice(None),
            *(slice(0, n + min(hi, 0)) for n, (_, hi) in zip(self.size, self.pairs, strict=True)),
        )

    def dense(self) -> _Frame:
        """The frame of a filter that gives one centred result for every element of the image."""
        low = tuple(lo if self.mode == "same" else k // 2 for (lo, _), k in zip(self.pairs, self.kernel, strict=True))
        pairs = tuple((lo, k - 1 - lo) for lo, k in zip(low, self.kernel, strict=True))
        return replace(self, stride=(1,) * len(self.axes), pairs=pairs, out=self.size, mode="same")

    def enter(self, backend: Backend, x: Array) -> Array:
        """An image, or a result, as ``(N, 1, *size)``."""
        ndim, first = len(self.x_shape), len(self.x_shape) - len(self.axes)
        x = backend.xp.moveaxis(x, self.axes, tuple(range(first, ndim)))
        return x.reshape(math.prod(x.shape[:first]), 1, *x.shape[first:])

    def leave(self, backend: Backend, y: Array) -> Array:
        """The inverse of `enter`."""
        ndim, first = len(self.x_shape), len(self.x_shape) - len(self.axes)
        batch = tuple(n for i, n in enumerate(self.x_shape) if i not in self.axes)
        return backend.xp.moveaxis(y.reshape(*batch, *y.shape[2:]), tuple(range(first, ndim)), self.axes)


def _axes(axes: Any, ndim: int, name: str = "axes") -> Size:
    if axes is None:
        return tuple(range(ndim))
    items = sequence(axes)
    given = tuple(integer(name, a, -ndim) for a in ((axes,) if items is None else items))
    if any(a >= ndim for a in given):
        raise ValueError(f"{name} must name axes of an array of {ndim} dimensions, got {axes!r}")
    chosen = tuple(a % ndim for a in given)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{name} must name each axis once, got {axes!r}")
    return chosen


def _origins(origin: Any, kernel: Size, flip: bool, mode: str) -> Size:
    """How far each axis of the kernel is moved to the left, for a kernel that is correlated."""
    given = per_axis("origin", origin, len(kernel), -(2**62))
    if mode != "same" and any(given):
        raise ValueError(f"origin is for mode 'same', got {origin!r} for mode {mode!r}")
    moved = tuple(-o if flip else o for o in given)
    if any(not 0 <= k // 2 + o < k for k, o in zip(kernel, moved, strict=True)):
        limits = ("-((w.shape - 1) // 2)", "w.shape // 2") if flip else ("-(w.shape // 2)", "(w.shape - 1) // 2")
        raise ValueError(f"origin must lie within {' and '.join(limits)} for w of shape {kernel}, got {origin!r}")
    return moved


def _low(mode: str, kernel: Size, origins: Size) -> Size:
    if mode == "same":
        return tuple(k // 2 + o for k, o in zip(kernel, origins, strict=True))
    return tuple(k - 1 if mode == "full" else 0 for k in kernel)


# --------------------------------------------------------------------------------------------------------------------
# Dtypes and values
# --------------------------------------------------------------------------------------------------------------------


def _dtypes(operands: Operands, asked: Any, missing: bool) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The result's dtype, and the one that it is computed in."""
    x, w = (np.dtype(operands.dtype_of(name)).newbyteorder("=") for name in ("x", "w"))
    base: np.dtype[Any]
    if x.kind in "fc":
        base = np.result_type(x, np.complex64) if w.kind == "c" else x
    else:
        base = np.result_type(x, w)
        if base.kind == "f" and w.kind not in "fc":
            base = np.dtype(np.int64)
        if missing and base.kind in "iu":
            base = np.dtype(np.float64)
    if asked is None:
        return base, compute_dtype(base)
    result = supported_dtype("dtype", asked)
    order = {"i": 0, "u": 0, "f": 1, "c": 2}
    if order[result.kind] < order[base.kind]:
        raise TypeError(f"dtype {result} cannot hold results of dtype {base} without losing their kind; convert them")
    if base.kind in "iu":
        return result, compute_dtype(base)
    return result, compute_dtype(np.result_type(base, result))


def _narrow(y: Array, operands: Operands, result: np.dtype[Any]) -> Array:
    """Sums of unsigned integers in 64 bits as what they are, before a floating-point dtype takes them."""
    unsigned = all(operands.dtype_of(name).kind in "ub" for name in ("x", "w"))
    return y.view(np.uint64) if y.dtype == np.int64 and unsigned and result.kind in "fc" else y


def _constant(cval: Any, wide: np.dtype[Any], frame: _Frame) -> Any:
    """`cval` in the dtype that is computed in."""
    if not isinstance(cval, numbers.Complex) or isinstance(cval, bool | np.bool_):
        raise TypeError(f"cval must be a number, got {cval!r}")
    if frame.boundary != "zeros":
        return wide.type(0)
    if wide.kind == "i":
        if isinstance(cval, numbers.Integral):
            value = int(cval)
        elif complex(cval).imag or not complex(cval).real.is_integer():
            raise ValueError(f"cval must be an integer where x and w are, got {cval!r}")
        else:
            value = int(complex(cval).real)
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"cval must fit into 64 bits, got {cval!r}")
        return np.int64((value + 2**63) % 2**64 - 2**63)
    if wide.kind == "f" and isinstance(cval, complex | np.complexfloating):
        raise TypeError(f"cval must be real where x and w are, got {cval!r}")
    with np.errstate(over="ignore"):
        try:
            value = wide.type(cval)
        except OverflowError:
            value = wide.type(math.inf)
    if np.isinf(value) and not (isinstance(cval, float | complex | np.inexact) and np.isinf(cval)):
        raise ValueError(f"cval must fit into {wide}, got {cval!r}")
    return value


def _number(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not low <= number <= high or (above and number == low) or math.isinf(number):
        within = f"more than {low:g}" if above else f"at least {low:g}"
        raise ValueError(
            f"{name} must be {within}{f' and at most {high:g}' if math.isfinite(high) else ''}, got {value!r}"
        )
    return number


def _check_mask(operands: Operands, frame: _Frame, nan_policy: str) -> None:
    if nan_policy not in ("omit", "interpolate"):
        raise ValueError(f"mask needs nan_policy 'omit' or 'interpolate', which say what to do; got {nan_policy!r}")
    if operands.dtype_of("mask").kind != "b":
        raise TypeError(f"mask must be of dtype bool, got {operands.dtype_of('mask')}")
    check_shape("mask", operands.shape("mask"), frame.x_shape, "that of x")


def _kernel(operands: Operands, flip: bool) -> Array:
    """The kernel that is to be correlated without a conjugate, in its own precision (float16 in float32)."""
    w = operands.load("w", compute_dtype(operands.dtype_of("w").newbyteorder("=")))
    if flip:
        w = w[(slice(None, None, -1),) * w.ndim]
    elif w.dtype.kind == "c":
        w = w.conj()
    return w


def _check_weights(w: Array) -> None:
    """Raise unless a kernel can normalise what it sums."""
    total, magnitude = abs(w.sum()), abs(w).sum()
    if not magnitude < math.inf:
        raise ValueError("w must be finite where missing values are left out or interpolated, it holds NaN or infinity")
    if total <= _CANCELLED * magnitude:
        raise ValueError(
            "the weights of w sum to zero, so they cannot normalise what is present; "
            "nan_policy 'omit' and 'interpolate' need a kernel that sums to something else"
        )


def _has_nan(xp: Any, x: Array) -> bool:
    return x.dtype.kind in "fc" and bool(xp.isnan(x).any())


# --------------------------------------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------------------------------------


def _plan(backend: Backend, frame: _Frame, w: Array, wide: np.dtype[Any], method: str) -> list[Array] | None:
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
    if method not in ("auto", "separable"):
        return None
    if method == "auto" and sum(frame.kernel) >= math.prod(frame.kernel):
        return None
    found = factors(backend.xp.asnumpy(w) if backend.xp is not np else w)
    if found is not None:
        host = backend.xp.asnumpy(w) if backend.xp is not np else w
        # What is zero must stay zero, and nothing else may become so: zero times infinity is NaN.
        zero = np.zeros((1,) * w.ndim, bool)
        for factor in found:
            zero = zero | (factor.astype(wide) == 0)
        if (zero != (host.astype(wide) == 0)).any():
            found = None
    if found is None:
        if method == "separable":
            raise ValueError("method 'separable' needs a kernel of rank 1, an outer product; w is not one")
        return None
    return [backend.xp.asarray(factor) for factor in found]


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
        raise TypeError(f"w must be a NumPy array of numbers, got {w!r}")
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
    close = np.abs(product - w) <= 8 * w.ndim * np.finfo(w.dtype).eps * magnitude
    return lines if close.all() else None


@dataclass(frozen=True)
class _Run:
    """How the sums of one call are formed."""

    backend: Backend
    method: str
    factors: list[Array] | None = None

    def __call__(self, frame: _Frame, x: Array, w: Array, cval: Any) -> Array:
        """Correlate an image ``(N, 1, *size)`` with `w` itself."""
        xp = self.backend.xp
        watch = self.factors is None and self.method in ("auto", "fft") and math.prod(frame.kernel) > _SMALL
        nan = xp.isnan(x) if watch and x.dtype.kind in "fc" else None
        if nan is None or not (nan.any() or cval != cval) or not bool(xp.isfinite(w).all()):
            return self._sum(frame, x, w, cval)
        # A transform would spread NaN over its block: filter without, and mark what a NaN reaches.
        zero = x.dtype.type(0)
        y = self._sum(frame, xp.where(nan, zero, x), w, zero if cval != cval else cval)
        y[self.reached(frame, nan, cval != cval)] = np.nan if x.dtype.kind == "f" else complex(np.nan, np.nan)
        return y

    def reached(self, frame: _Frame, marked: Array, beyond: bool) -> Array:
        """Which results have a marked element under the kernel: a box filter of ones, one pass per axis."""
        kind = np.dtype(np.float32 if math.prod(frame.kernel) < 2**24 else np.float64)  # in which counts are exact
        ones = [self.backend.xp.ones(line, kind) for line in _lines(frame.kernel)]
        count = _Run(self.backend, "direct", ones)._sum(frame, marked.astype(kind), ones[0], kind.type(beyond))
        return count > 0

    def _sum(self, frame: _Frame, x: Array, w: Array, cval: Any) -> Array:
        x, pairs, mode = x[frame.used], frame.added, frame.boundary
        if mode == "zeros" and cval != 0:
            x, pairs = _surround(self.backend, x, pairs, cval), ((0, 0),) * len(pairs)
        if self.factors is None:
            return self._pass(x, w, frame.stride, pairs, mode)
        for axis in reversed(range(len(frame.axes))):
            stride = _only(axis, frame.stride, 1)
            x = self._pass(x, self.factors[axis].astype(x.dtype), stride, _only(axis, pairs, (0, 0)), mode)
        return x

    def _pass(self, x: Array, w: Array, stride: Size, pairs: Pairs, mode: str) -> Array:
        """One convolution, of an image that `pairs` are still to be added to."""
        if mode != "zeros":
            x, pairs = padding.pad(self.backend, x, pairs, mode), ((0, 0),) * len(pairs)
        how = "direct" if self.method == "separable" else self.method
        return conv(x, w[None, None], stride=stride, padding=pairs, algorithm=how, backend=self.backend.name)


def _only(axis: int, values: tuple[Any, ...], neutral: Any) -> tuple[Any, ...]:
    return tuple(v if i == axis else neutral for i, v in enumerate(values))


def _lines(kernel: Size) -> list[Size]:
    return [_only(axis, kernel, 1) for axis in range(len(kernel))]


def _surround(backend: Backend, x: Array, pairs: Pairs, value: Any) -> Array:
    """The image with a constant around it."""
    shape = (*x.shape[:2], *(n + lo + hi for n, (lo, hi) in zip(x.shape[2:], pairs, strict=True)))
    padded = backend.xp.full(shape, value, x.dtype)
    padded[(slice(None), slice(None), *(slice(lo, lo + n) for n, (lo, _) in zip(x.shape[2:], pairs, strict=True)))] = x
    return padded


# --------------------------------------------------------------------------------------------------------------------
# Missing values
# --------------------------------------------------------------------------------------------------------------------


def _omit(run: _Run, frame: _Frame, x: Array, gaps: Array, w: Array, cval: Any, min_weight: float) -> Array:
    """The sum over what is present, times the kernel's sum over that of the weights that were present."""
    xp, beyond = run.backend.xp, bool(cval != cval)
    w = w.astype(x.dtype)
    if not beyond and not bool(gaps.any()):
        return run(frame, x, w, cval)
    y = run(frame, xp.where(gaps, x.dtype.type(0), x), w, x.dtype.type(0) if beyond else cval)
    ratio, lost = _weights(run, frame, gaps, w, beyond, min_weight)
    y *= ratio.astype(x.dtype)
    y[lost] = np.nan if x.dtype.kind == "f" else complex(np.nan, np.nan)
    return y


def _interpolate(run: _Run, frame: _Frame, x: Array, gaps: Array, w: Array, cval: Any, min_weight: float) -> Array:
    """The filter of an image whose missing elements are the kernel's mean of those around them."""
    w = w.astype(x.dtype)
    if bool(gaps.any()):
        means = _omit(run, frame.dense(), x, gaps, w, cval, min_weight) / w.sum()
        x = run.backend.xp.where(gaps, means, x)
    return run(frame, x, w, cval)


def _weights(run: _Run, frame: _Frame, gaps: Array, w: Array, beyond: bool, min_weight: float) -> tuple[Array, Array]:
    """The kernel's sum over that of the weights present, and where too few of them are.

    Taps are counted, in whole numbers that are exact by every method, so that NaN stands at the same places whatever
    the method, and that nothing is scaled where all are present.
    """
    xp, one = run.backend.xp, np.float64(not beyond)
    w = w.astype(np.complex128 if w.dtype.kind == "c" else np.float64)
    present = (~gaps).astype(np.float64)

    def sums(of: Callable[[Array], Array]) -> Array:
        # Magnitudes and patterns of an outer product are outer products.
        factors = None if run.factors is None else [of(factor) for factor in run.factors]
        weights = of(w)
        return replace(run, factors=factors)(frame, present.astype(weights.dtype), weights, weights.dtype.type(one))

    count = xp.rint(sums(lambda weights: (weights != 0).astype(np.float64)))
    weight, total, magnitude = sums(lambda weights: weights), w.sum(), abs(w).sum()
    one_sign = w.dtype.kind == "f" and bool((w >= 0).all() or (w <= 0).all())
    lost = count == 0
    if not one_sign:
        lost |= abs(weight) <= _CANCELLED * magnitude
    if min_weight:
        share = abs(weight) if one_sign else sums(abs)
        lost |= share < min_weight * magnitude * (1 - _TIE)
    whole = count == (w != 0).sum()
    return xp.where(whole, 1, total / xp.where(lost | whole, total, weight)), lost


# --------------------------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------------------------


def correlate_vjp(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`correlate` and its vector-Jacobian product: the result, and how a gradient travels back through it.

    Parameters
    ----------
    x, w, mode, boundary, cval, origin, axes, stride, dtype, backend
        As for `correlate`; missing values have no gradient here, so a NaN is a number like any other. `x` and `w`
        must not be changed until the pullback has been called.

    Returns
    -------
    y : array
        ``correlate(x, w, ...)``.
    pullback : callable
        ``dx, dw = pullback(dy)``, of the shapes of `x` and `w` and the dtype of ``numpy.result_type(y, dy)``. With
        `cval` 0, `dx` is the adjoint: ``vdot(correlate(x, w), dy) == vdot(x, dx)``, and, since the kernel is
        conjugated, the real part of ``vdot(w, dw)`` equals that of ``vdot(correlate(x, w), dy)``.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.filters.correlate_vjp(np.array([1.0, 2.0, 4.0]), np.array([1.0, 10.0]), mode="valid")
    >>> pullback(np.array([1.0, 1.0]))
    (array([ 1., 11., 10.]), array([3., 6.]))
    """
    return _vjp(False, x, w, mode, boundary, cval, origin, axes, stride, dtype, backend)


def convolve_vjp(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`convolve` and its vector-Jacobian product.

    Parameters
    ----------
    x, w, mode, boundary, cval, origin, axes, stride, dtype, backend
        As for `convolve` and `correlate_vjp`.

    Returns
    -------
    y : array
        ``convolve(x, w, ...)``.
    pullback : callable
        ``dx, dw = pullback(dy)``, as for `correlate_vjp`; with `cval` 0 both are adjoints, complex ones too.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.filters.convolve_vjp(np.array([1.0, 2.0, 4.0]), np.array([1.0, 10.0]), mode="valid")
    >>> pullback(np.array([1.0, 1.0]))
    (array([10., 11.,  1.]), array([6., 3.]))
    """
    return _vjp(True, x, w, mode, boundary, cval, origin, axes, stride, dtype, backend)


def _vjp(
    flip: bool, x: Array, w: Array, mode: str, boundary: str, cval: complex, origin: Ints, axes: Ints | None,
    stride: Ints, dtype: Any, backend: str | None,
) -> tuple[Array, Pullback]:  # fmt: skip
    operands = Operands(backend, x=x, w=w)
    frame = _Frame.of(operands, flip, mode, boundary, origin, axes, stride)
    result, wide = _dtypes(operands, dtype, False)
    cval = _constant(cval, wide, frame)
    here, xp = operands.backend, operands.backend.xp
    kernel = _kernel(operands, flip).astype(wide)
    image = frame.enter(here, operands.load("x", wide))
    if math.prod(frame.y_shape) == 0:
        y = xp.zeros(frame.y_shape, wide)
    else:
        y = frame.leave(here, _narrow(_Run(here, "auto")(frame, image, kernel, cval), operands, result))

    def pullback(dy: Array) -> tuple[Array, Array]:
        grads = operands.companion(dy=dy)
        check_shape("dy", grads.shape("dy"), frame.y_shape, "that of the result")
        kind = np.result_type(result, grads.dtype)
        inner = compute_dtype(np.result_type(wide, kind))
        g = frame.enter(here, grads.load("dy", inner))
        dx, dw = xp.zeros(image.shape, inner), xp.zeros(kernel.shape, inner)
        if g.size:
            used, pairs = image[frame.used].astype(inner), frame.added
            nothing = ((0, 0),) * len(pairs)
            size = used.shape[2:]
            if frame.boundary != "zeros":
                used = padding.pad(here, used, pairs, frame.boundary)
            elif cval != 0:
                used = _surround(here, used, pairs, cval)
            virtual = pairs if frame.boundary == "zeros" and cval == 0 else nothing
            how: dict[str, Any] = {"stride": frame.stride, "padding": virtual, "backend": here.name}
            dw = conv_weight_grad(used, g, (1, 1, *kernel.shape), **how)[0, 0]
            inside = conv_input_grad(g, kernel.astype(inner)[None, None], used.shape, **how)
            if frame.boundary != "zeros":
                inside = padding.pad_adjoint(here, inside, pairs, size, frame.boundary)
            elif cval != 0:
                inside = inside[(..., *(slice(lo, lo + n) for n, (lo, _) in zip(size, pairs, strict=True)))]
            dx[frame.used] = inside
        if flip:
            dw = dw[(slice(None, None, -1),) * dw.ndim]
        elif dw.dtype.kind == "c":
            dw = dw.conj()
        dw = contiguous(here, dw, inner)
        return grads.deliver(frame.leave(here, dx), dtype=kind), grads.deliver(dw, dtype=kind)

    return operands.deliver(y, dtype=result), pullback


# --------------------------------------------------------------------------------------------------------------------
# Kernels ready made
# --------------------------------------------------------------------------------------------------------------------


def gaussian(sigma: float | tuple[float, ...], truncate: float = 4.0, *, ndim: int | None = None) -> Array:
    """Gaussian kernel, that of `scipy.ndimage.gaussian_filter`.

    Parameters
    ----------
    sigma : float or tuple of float
        Standard deviation in elements, one for all dimensions or one each; 0 leaves an axis as it is.
    truncate : float
        Radius in standard deviations; it is rounded to whole elements, ``int(truncate * sigma + 0.5)``.
    ndim : int, optional
        Number of dimensions; that of a tuple `sigma`, otherwise 2.

    Returns
    -------
    numpy.ndarray
        float64, of odd sizes, with sum 1.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.gaussian(0.5, truncate=2.0, ndim=1).round(4)
    array([0.1065, 0.787 , 0.1065])
    """
    sigmas = [_number("sigma", s, 0.0) for s in _each("sigma", sigma, ndim)]
    truncate = _number("truncate", truncate, 0.0)
    lines = []
    for s in sigmas:
        radius = int(truncate * s + 0.5)
        position = np.arange(-radius, radius + 1)
        line = np.exp(-0.5 / (s * s) * position**2) if radius else np.ones(1)
        lines.append(line / line.sum())
    return _outer(lines)


def box(size: Ints, *, ndim: int | None = None) -> Array:
    """Kernel of equal weights, that of `scipy.ndimage.uniform_filter`.

    Parameters
    ----------
    size : int or tuple of int
        Elements, one for all dimensions or one each.
    ndim : int, optional
        Number of dimensions; that of a tuple `size`, otherwise 2.

    Returns
    -------
    numpy.ndarray
        float64, with sum 1.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.box((2, 1))
    array([[0.5],
           [0.5]])
    """
    sizes = check_extent("size", tuple(integer("size", n, 1) for n in _each("size", size, ndim)))
    return np.full(sizes, 1 / math.prod(sizes))


def sobel(axis: int = -1, *, ndim: int = 2) -> Array:
    """Sobel kernel, that of `scipy.ndimage.sobel`: a difference along one axis, smoothed along the others.

    Parameters
    ----------
    axis : int
        The axis of the derivative. As correlation it is positive where values rise.
    ndim : int
        Number of dimensions.

    Returns
    -------
    numpy.ndarray
        int64, 3 elements along each axis.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.sobel(0)
    array([[-1, -2, -1],
           [ 0,  0,  0],
           [ 1,  2,  1]])
    """
    ndim = _dimensions(ndim)
    (chosen,) = _axes((axis,), ndim, "axis")
    return _outer([np.array([-1, 0, 1] if i == chosen else [1, 2, 1]) for i in range(ndim)])


def laplace(*, ndim: int = 2) -> Array:
    """Laplace kernel, that of `scipy.ndimage.laplace`: the sum of the second differences.

    Parameters
    ----------
    ndim : int
        Number of dimensions.

    Returns
    -------
    numpy.ndarray
        int64, 3 elements along each axis.

    Raises
    ------
    ValueError, TypeError
        If `ndim` is not a positive integer.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.laplace()
    array([[ 0,  1,  0],
           [ 1, -4,  1],
           [ 0,  1,  0]])
    """
    ndim = _dimensions(ndim)
    middle = [np.array([0, 1, 0])] * ndim
    lines = ([np.array([1, -2, 1]) if i == axis else line for i, line in enumerate(middle)] for axis in range(ndim))
    return sum(_outer(line) for line in lines)


def gabor(
    frequency: float,
    theta: float = 0.0,
    bandwidth: float = 1.0,
    sigma_x: float | None = None,
    sigma_y: float | None = None,
    n_stds: float = 3,
    offset: float = 0.0,
) -> Array:
    """Gabor kernel in two dimensions, `skimage.filters.gabor_kernel`: a plane wave under a Gaussian.

    Parameters
    ----------
    frequency : float
        Cycles per element.
    theta : float
        Direction of the wave in radians, from the second axis towards the first.
    bandwidth : float
        In octaves; gives the standard deviations that are not given.
    sigma_x, sigma_y : float, optional
        Standard deviations along the wave and across it, in elements.
    n_stds : float
        Radius in standard deviations.
    offset : float
        Phase of the wave at the centre, in radians.

    Returns
    -------
    numpy.ndarray
        complex128, of odd sizes.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.gabor(0.25).shape
    (15, 15)
    """
    frequency = _number("frequency", frequency, 0.0, above=True)
    theta, offset = _number("theta", theta, -1e300), _number("offset", offset, -1e300)
    bandwidth, n_stds = _number("bandwidth", bandwidth, 0.0, above=True), _number("n_stds", n_stds, 0.0)
    if bandwidth > 1000:
        raise ValueError(f"bandwidth must be at most 1000 octaves, got {bandwidth!r}")
    usual = math.sqrt(math.log(2) / 2) / math.pi * (2**bandwidth + 1) / (2**bandwidth - 1) / frequency
    along = usual if sigma_x is None else _number("sigma_x", sigma_x, 0.0, above=True)
    across = usual if sigma_y is None else _number("sigma_y", sigma_y, 0.0, above=True)
    c, s = math.cos(theta), math.sin(theta)
    rx = math.ceil(max(abs(n_stds * along * c), abs(n_stds * across * s), 1))
    ry = math.ceil(max(abs(n_stds * across * c), abs(n_stds * along * s), 1))
    check_extent("the kernel", (2 * ry + 1, 2 * rx + 1))
    y, x = np.ogrid[-ry : ry + 1, -rx : rx + 1]
    turned_x, turned_y = x * c + y * s, y * c - x * s
    envelope = -0.5 * (turned_x**2 / along**2 + turned_y**2 / across**2)
    wave = np.exp(envelope + 1j * (2 * math.pi * frequency * turned_x + offset))
    return wave / (2 * math.pi * along * across)


def _dimensions(ndim: Any) -> int:
    count = integer("ndim", ndim, 1)
    if count > 32:
        raise ValueError(f"ndim must be at most 32, got {count}")
    return count


def _each(name: str, value: Any, ndim: Any) -> tuple[Any, ...]:
    """One value per dimension."""
    items = sequence(value)
    if items is None:
        return (value,) * (2 if ndim is None else _dimensions(ndim))
    if not items or (ndim is not None and len(items) != _dimensions(ndim)):
        raise ValueError(f"{name} must have one value for each dimension, got {value!r} for ndim={ndim}")
    return items


def _outer(lines: list[Any]) -> Any:
    """The outer product of one line per axis."""
    check_extent("the kernel", tuple(len(line) for line in lines))
    product: Any = np.ones((1,) * len(lines), lines[0].dtype)
    for axis, line in enumerate(lines):
        product = product * line.reshape(_only(axis, (len(line),) * len(lines), 1))
    return product
