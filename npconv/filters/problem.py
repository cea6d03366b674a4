"""One filter as a problem: everything that a caller wrote, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.arrays import Array, Operands
from npconv.filters import compiled, integers
from npconv.filters.arguments import check_mask, check_weights, constant, dtypes, has_nan, kernel_of, number
from npconv.filters.frame import Frame, Ints
from npconv.filters.separable import factors_for
from npconv.filters.sums import METHODS, Run
from npconv.geometry import choice

NAN_POLICIES = ("propagate", "raise", "omit", "interpolate")


@dataclass(frozen=True)
class Problem:
    """A filter that can be computed: its arrays, its geometry, its dtypes, and how it is summed."""

    operands: Operands
    frame: Frame
    result: np.dtype[Any]
    wide: np.dtype[Any]
    """What it is computed in."""
    kernel: Array
    """As it is correlated without a conjugate, in its own precision."""
    cval: Any
    run: Run
    nan_policy: str
    min_weight: float

    @classmethod
    def of(
        cls, flip: bool, x: Array, w: Array, mode: str, boundary: str, cval: complex, origin: Ints, axes: Ints | None,
        stride: Ints, nan_policy: str, mask: Array | None, min_weight: float, method: str, dtype: Any,
        backend: str | None, out: Array | None = None,
    ) -> Problem:  # fmt: skip
        """Check and normalise the arguments of `npconv.correlate`."""
        choice("nan_policy", nan_policy, NAN_POLICIES)
        choice("method", method, METHODS)
        min_weight = number("min_weight", min_weight, 0.0, 1.0)
        missing = nan_policy in ("omit", "interpolate")
        if min_weight and not missing:
            raise ValueError(f"min_weight is for the policies 'omit' and 'interpolate', nan_policy is {nan_policy!r}")
        operands = Operands(backend, x=x, w=w) if mask is None else Operands(backend, x=x, w=w, mask=mask)
        frame = Frame.of(operands, flip, mode, boundary, origin, axes, stride)
        if mask is not None:
            check_mask(operands, frame, nan_policy)
        result, wide = dtypes(operands, dtype, missing)
        operands.check_out(out, frame.y_shape, result)
        value = constant(cval, wide, frame)
        kernel = kernel_of(operands, flip)
        run = Run(operands.backend, method, factors_for(operands.backend, frame, kernel, wide, method))
        if missing:
            check_weights(kernel)
        return cls(operands, frame, result, wide, kernel, value, run, nan_policy, min_weight)

    @property
    def missing(self) -> bool:
        """Whether elements may be missing."""
        return self.nan_policy in ("omit", "interpolate")

    def summed(self) -> Array:
        """The sums of everything; those of integers in floating point where they are exact, which is faster."""
        operands, backend = self.operands, self.operands.backend
        if self.wide.kind == "i" and compiled.fits(backend, self.frame.unstrided(), np.dtype(np.float32)):
            dtype = operands.dtype_of("x")
            most = integers.largest(dtype, lambda: operands.load("x", dtype.newbyteorder("=")))
            if found := integers.exact_in(most, self.kernel, self.cval):
                kind, whole = found
                run = Run(backend, "direct", self.run.factors)
                y = run(self.frame, operands.load("x", kind), self.kernel.astype(kind), kind.type(self.cval))
                return y.astype(whole)
        return self.run(self.frame, self.image(), self.kernel.astype(self.wide), self.cval)

    def image(self) -> Array:
        """The image in the dtype that is computed in; raises if it holds NaN and that was asked for."""
        image = self.operands.load("x", self.wide)
        if self.nan_policy == "raise" and has_nan(self.operands.backend.xp, image):
            raise ValueError("x contains NaN, and nan_policy is 'raise'")
        return image

    def gaps(self, image: Array) -> Array:
        """Which elements are missing."""
        gaps = self.operands.backend.xp.isnan(image)
        if self.operands.has("mask"):
            gaps |= self.operands.load("mask", np.dtype(bool))
        return gaps
