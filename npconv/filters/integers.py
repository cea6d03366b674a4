"""Filters of integers by floating-point sums, where those are exact: they run in compiled strips, which is faster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.arrays import Array, Backend
from npconv.filters import compiled
from npconv.filters.arguments import turned
from npconv.filters.frame import Frame
from npconv.filters.separable import may_split, taken_apart
from npconv.filters.sums import Run

_WIDE: np.dtype[Any] = np.dtype(np.int64)

# Bits up to which every integer is a number of the dtype, the bound itself being rounded; and integers that hold them.
_EXACT: tuple[tuple[np.dtype[Any], int, np.dtype[Any]], ...] = (
    (np.dtype(np.float32), 23, np.dtype(np.int32)),
    (np.dtype(np.float64), 52, _WIDE),
)


def largest(dtype: np.dtype[Any], load: Callable[[], Array]) -> int:
    """A bound of an image's magnitudes: what its dtype allows where that is little, else what is in it."""
    if dtype.itemsize <= 2:
        return int(2 ** (8 * dtype.itemsize))
    x = load()
    return max(abs(int(x.min())), abs(int(x.max())))


def exact_in(most: int, kernel: Array, cval: Any) -> tuple[np.dtype[Any], np.dtype[Any]] | None:
    """The dtype in which sums of magnitudes up to `most`, and all parts of them, are exact; and that of the results."""
    bound = max(most, abs(int(cval))) * float(np.abs(kernel.astype(np.float64)).sum())
    return next(((kind, whole) for kind, bits, whole in _EXACT if bound < 2.0**bits), None)


def made_ready(
    backend: Backend, frame: Frame, method: str, flip: bool, cval: Any, result: np.dtype[Any],
    otherwise: Callable[[Array, Array, Array | None], Array],
) -> Callable[[Array, Array, Any], Array]:  # fmt: skip
    """A call for arrays like those of an earlier one; `otherwise` takes those whose numbers are too large.

    It writes into its third argument unless that is None.
    """
    split, kernels = may_split(frame.kernel, method), compiled.compiled_filters(backend)
    # Of what has long tables few are remembered, and not here.
    cache: Any = (lambda make: make) if compiled.is_long(frame) else functools.cache
    dense, shape = cache(functools.partial(Run(backend, "direct").dense, frame)), frame.y_shape

    def call(x: Array, w: Array, out: Array | None) -> Array:
        kernel = (turned(w) if flip else w).astype(_WIDE)
        # What the image's largest number is, is known when it has been brought into some dtype.
        for kind, _, _ in _EXACT:
            image = backend.scratch(x.shape, kind)
            found = exact_in(kernels.to_floats(x, image), kernel, cval)
            if found is None or found[0] == kind:
                break
        if found is None:
            return otherwise(x, w, out)
        factors = taken_apart(backend, kernel, _WIDE, method) if split else None
        kernel, outside, sums = kernel.astype(kind), kind.type(cval), None if factors else dense(kind)
        if sums is None:
            y = Run(backend, "direct", factors)(frame, image, kernel, outside)
        else:
            y = sums(image, kernel, outside, backend.scratch(shape, kind))
        into = np.empty(shape, result) if out is None else out
        kernels.to_integers(y, into)
        return into

    return call
