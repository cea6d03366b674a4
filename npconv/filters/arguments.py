"""What a caller wrote, checked: dtypes, the constant beyond the edge, masks, kernels that can normalise."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from npconv.arrays import Array, Operands, check_shape, compute_dtype, supported_dtype
from npconv.filters.frame import Frame

CANCELLED = 1e-12
"""Weights of both signs whose present part sums to less than this share of their magnitudes have cancelled."""


def dtypes(operands: Operands, asked: Any, missing: bool) -> tuple[np.dtype[Any], np.dtype[Any]]:
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


def narrow(y: Array, operands: Operands, result: np.dtype[Any]) -> Array:
    """Sums of unsigned integers in 64 bits as what they are, before a floating-point dtype takes them."""
    unsigned = all(operands.dtype_of(name).kind in "ub" for name in ("x", "w"))
    return y.view(np.uint64) if y.dtype == np.int64 and unsigned and result.kind in "fc" else y


def constant(cval: Any, wide: np.dtype[Any], frame: Frame) -> Any:
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


def number(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """A real number within its limits."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number, got {value!r:.60}")
    number = float(value)
    if not low <= number <= high or (above and number == low) or math.isinf(number):
        within = f"more than {low:g}" if above else f"at least {low:g}"
        raise ValueError(
            f"{name} must be {within}{f' and at most {high:g}' if math.isfinite(high) else ''}, got {value!r}"
        )
    return number


def check_mask(operands: Operands, frame: Frame, nan_policy: str) -> None:
    """Raise unless a mask is one, for `x`, and said what to do with."""
    if nan_policy not in ("omit", "interpolate"):
        raise ValueError(f"mask needs nan_policy 'omit' or 'interpolate', which say what to do; got {nan_policy!r}")
    if operands.dtype_of("mask").kind != "b":
        raise TypeError(f"mask must be of dtype bool, got {operands.dtype_of('mask')}")
    check_shape("mask", operands.shape("mask"), frame.x_shape, "that of x")


def kernel_of(operands: Operands, flip: bool) -> Array:
    """The kernel that is to be correlated without a conjugate, in its own precision (float16 in float32)."""
    dtype = operands.dtype_of("w").newbyteorder("=")
    w = operands.load("w", compute_dtype(np.dtype(np.int8) if dtype.kind == "b" else dtype))
    if flip:
        w = turned(w)
    elif w.dtype.kind == "c":
        w = w.conj()
    return w


def turned(w: Array) -> Array:
    """A kernel, turned round on every axis."""
    return w[(slice(None, None, -1),) * w.ndim]


def check_weights(w: Array) -> None:
    """Raise unless a kernel can normalise what it sums."""
    total, magnitude = abs(w.sum()), abs(w).sum()
    if not magnitude < math.inf:
        raise ValueError("w must be finite where missing values are left out or interpolated, it holds NaN or infinity")
    if total <= CANCELLED * magnitude:
        raise ValueError(
            "the weights of w sum to zero, so they cannot normalise what is present; "
            "nan_policy 'omit' and 'interpolate' need a kernel that sums to something else"
        )


def has_nan(xp: Any, x: Array) -> bool:
    """Whether an element is NaN."""
    return x.dtype.kind in "fc" and bool(xp.isnan(x).any())
