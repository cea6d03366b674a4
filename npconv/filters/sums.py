"""How the sums of a filter are formed: one convolution, or one for each axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv import padding
from npconv.arrays import Array, Backend, contiguous
from npconv.config import is_strict
from npconv.conv import conv
from npconv.filters import compiled, transformed
from npconv.filters.frame import Frame
from npconv.geometry import Pairs, Size

METHODS = ("auto", "direct", "fft", "separable")

# Up to this many taps the direct sum is what every plan takes, and looking for NaN first would only cost.
_SMALL = 32


@dataclass(frozen=True)
class Run:
    """How the sums of one call are formed."""

    backend: Backend
    method: str
    factors: list[Array] | None = None

    def __call__(self, frame: Frame, x: Array, w: Array, cval: Any) -> Array:
        """Correlate an image, in C order and with its axes as the caller has them, with `w` itself."""
        if self.sums_all(frame, x.dtype):
            return frame.strided(self(frame.unstrided(), x, w, cval)).copy()
        if self.factors is not None and compiled.fits(self.backend, frame, x.dtype):
            return compiled.by_axes(self.backend, frame, self.factors, x, cval)
        if self.transforms(frame, x.dtype):
            y = transformed.filter_for(self.backend, frame, x.dtype)(x, w, cval)
            if y is not None:
                return y
        return self.without_tiles(frame, x, w, cval)

    def sums_all(self, frame: Frame, dtype: np.dtype[Any]) -> bool:
        """Whether a stride leaves out results that cost less in strips, or on tiles, than to be passed over."""
        if set(frame.stride) == {1} or self.method == "fft":
            return False
        dense = frame.unstrided()
        if not compiled.fits(self.backend, dense, dtype):
            return False
        if self.factors is not None:
            return True
        seconds = transformed.seconds if self.transforms(dense, dtype) else compiled.seconds
        return seconds(self.backend, dense, dtype) < compiled.seconds_by_conv(self.backend, frame, dtype)

    def without_tiles(self, frame: Frame, x: Array, w: Array, cval: Any) -> Array:
        """The same where the compiled transforms do not fit, or the numbers do not allow them."""
        if (dense := self.dense(frame, x.dtype)) is not None:
            return dense(x, w, cval, None)
        xp = self.backend.xp
        watch = self.factors is None and self.method in ("auto", "fft") and math.prod(frame.kernel) > _SMALL
        nan = xp.isnan(x) if watch and x.dtype.kind in "fc" else None
        if nan is None or not (nan.any() or cval != cval) or not bool(xp.isfinite(w).all()):
            return self._convolved(frame, x, w, cval)
        # A transform would spread NaN over its block: filter without, and mark what a NaN reaches.
        zero = x.dtype.type(0)
        y = self._convolved(frame, xp.where(nan, zero, x), w, zero if cval != cval else cval)
        y[self.reached(frame, nan, cval != cval)] = np.nan if x.dtype.kind == "f" else complex(np.nan, np.nan)
        return y

    def reached(self, frame: Frame, marked: Array, beyond: bool) -> Array:
        """Which results have a marked element under the kernel: a box filter of ones, one pass per axis."""
        kind = np.dtype(np.float32 if math.prod(frame.kernel) < 2**24 else np.float64)  # in which counts are exact
        ones = [self.backend.xp.ones(line, kind) for line in lines_of(frame.kernel)]
        return Run(self.backend, "direct", ones)(frame, marked.astype(kind), ones[0], kind.type(beyond)) > 0

    def transforms(self, frame: Frame, dtype: np.dtype[Any]) -> bool:
        """Whether tiles are transformed, if the numbers allow it."""
        if self.factors is not None or not transformed.fits(self.backend, frame, dtype):
            return False
        return self.method == "fft" or (
            self.method == "auto" and not is_strict() and transformed.is_faster(self.backend, frame, dtype)
        )

    def dense(self, frame: Frame, dtype: np.dtype[Any]) -> compiled.Summed | None:
        """The compiled sums of all taps, if that is how it is done."""
        if self.factors is not None or self.method == "fft" or not compiled.fits(self.backend, frame, dtype):
            return None
        if self.method == "auto" and compiled.prefers_transform(self.backend, frame, dtype, is_strict()):
            return None
        return compiled.summer(self.backend, frame, dtype)

    def _convolved(self, frame: Frame, x: Array, w: Array, cval: Any) -> Array:
        """The sums by `npconv.conv`, which takes an image ``(N, 1, *size)``."""
        x = contiguous(self.backend, frame.enter(self.backend, x), x.dtype)
        pairs, mode = frame.added, frame.boundary
        if mode == "zeros" and cval != 0:
            x, pairs = surround(self.backend, x, pairs, cval), ((0, 0),) * len(pairs)
        if self.factors is None:
            x = self._pass(x, w, frame.stride, pairs, mode)
        else:
            for axis in reversed(range(len(frame.axes))):
                stride = only(axis, frame.stride, 1)
                x = self._pass(x, self.factors[axis].astype(x.dtype), stride, only(axis, pairs, (0, 0)), mode)
        return frame.leave(self.backend, x)

    def _pass(self, x: Array, w: Array, stride: Size, pairs: Pairs, mode: str) -> Array:
        """One convolution, of an image that `pairs` are still to be added to."""
        if mode != "zeros":
            x, pairs = padding.pad(self.backend, x, pairs, mode), ((0, 0),) * len(pairs)
        how = "direct" if self.method == "separable" else self.method
        return conv(x, w[None, None], stride=stride, padding=pairs, algorithm=how, backend=self.backend.name)


def only(axis: int, values: tuple[Any, ...], neutral: Any) -> tuple[Any, ...]:
    """A value on one axis and something neutral on the others."""
    return tuple(v if i == axis else neutral for i, v in enumerate(values))


def lines_of(kernel: Size) -> list[Size]:
    """The shape of a kernel's factor on each axis."""
    return [only(axis, kernel, 1) for axis in range(len(kernel))]


def surround(backend: Backend, x: Array, pairs: Pairs, value: Any) -> Array:
    """The image with a constant around it."""
    shape = (*x.shape[:2], *(n + lo + hi for n, (lo, hi) in zip(x.shape[2:], pairs, strict=True)))
    padded = backend.xp.full(shape, value, x.dtype)
    padded[(slice(None), slice(None), *(slice(lo, lo + n) for n, (lo, _) in zip(x.shape[2:], pairs, strict=True)))] = x
    return padded
