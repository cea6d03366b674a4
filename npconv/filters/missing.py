"""Missing values: left out of the sums, or interpolated before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from npconv.arrays import Array
from npconv.filters.arguments import CANCELLED
from npconv.filters.frame import Frame
from npconv.filters.sums import Run

# Shares of a kernel's weight are compared to this accuracy, so that a rounding error does not decide at a tie.
_TIE = 1e-9


def omit(run: Run, frame: Frame, x: Array, gaps: Array, w: Array, cval: Any, min_weight: float) -> Array:
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


def interpolate(run: Run, frame: Frame, x: Array, gaps: Array, w: Array, cval: Any, min_weight: float) -> Array:
    """The filter of an image whose missing elements are the kernel's mean of those around them."""
    w = w.astype(x.dtype)
    if bool(gaps.any()):
        means = omit(run, frame.dense(), x, gaps, w, cval, min_weight) / w.sum()
        x = run.backend.xp.where(gaps, means, x)
    return run(frame, x, w, cval)


def _weights(run: Run, frame: Frame, gaps: Array, w: Array, beyond: bool, min_weight: float) -> tuple[Array, Array]:
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
        lost |= abs(weight) <= CANCELLED * magnitude
    if min_weight:
        share = abs(weight) if one_sign else sums(abs)
        lost |= share < min_weight * magnitude * (1 - _TIE)
    whole = count == (w != 0).sum()
    return xp.where(whole, 1, total / xp.where(lost | whole, total, weight)), lost
