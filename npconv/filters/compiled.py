"""Filters on compiled strips: how an array's axes become planes, rows and columns, and what lies beyond their edges.

No axis is moved and nothing is padded. Axes before the first filtered one are a batch; those between filtered ones are
filtered with one tap; what follows the last one are columns, or the distance of columns where there are few of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from npconv import padding
from npconv.arrays import Array, Backend
from npconv.conv import plan
from npconv.filters.frame import Frame

FEW_COLUMNS = 32
"""Elements behind the last filtered axis up to which they are the distance of its taps."""

MOST_PLANES = 2**22
"""Entries of a table of planes; filters that need more go another way."""

LONG = 2**16
"""Places on an axis from which on a table that says where each comes from is large: it has 8 bytes for each."""

MOST_LONG = 8
"""Filters with such tables that are remembered."""

# Seconds that a call of `npconv.conv` takes beside its work, and that a byte of the padded copy for it takes.
_CONV, _PADDED = 100e-6, 2e-10

# Products of an output up to which no transform is faster.
_FEW_TAPS = 128


class Axis(NamedTuple):
    """One axis of a filter, or several without taps as one."""

    size: int
    kernel: int
    low: int
    out: int


Make = TypeVar("Make", bound=Callable[..., Any])


def remembered(make: Make) -> Make:
    """Remember what was made for the last 256 frames, but for few of those with large tables."""
    many, few = functools.lru_cache(256)(make), functools.lru_cache(MOST_LONG)(make)

    @functools.wraps(make)
    def made(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> Any:
        return (few if is_long(frame) else many)(backend, frame, dtype)

    return cast(Make, made)


def is_long(frame: Frame) -> bool:
    """Whether a filter's tables are large."""
    return max(frame.x_shape) >= LONG


Summed = Callable[[Array, Array, Any, Array | None], Array]
"""``y = sum(x, w, outside, out)``: `w` of the frame's kernel, `outside` the constant beyond the edge.

The result is written into `out` unless that is None.
"""


def fits(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> bool:
    """Whether a filter runs on strips."""
    if backend.name != "numba" or dtype.kind != "f" or set(frame.stride) != {1} or math.prod(frame.x_shape) == 0:
        return False
    *leading, _, _ = arranged(frame)[1]
    return math.prod(axis.out * axis.kernel for axis in leading) <= MOST_PLANES


@functools.lru_cache(maxsize=256)
def prefers_transform(backend: Backend, frame: Frame, dtype: np.dtype[Any], strict: bool) -> bool:
    """Whether an FFT is expected to take less time than the sums."""
    taps = math.prod(frame.kernel)
    if taps <= _FEW_TAPS or strict:
        return False
    direct = seconds(backend, frame, dtype)
    padded = tuple(n + k - 1 for n, k in zip(frame.out, frame.kernel, strict=True))
    batch = math.prod(frame.y_shape) // math.prod(frame.out)
    found = plan((batch, 1, *padded), (1, 1, *frame.kernel), dtype=dtype, backend=backend.name, threads=1)
    return found.algorithm == "fft" and found.predicted_seconds < direct


def seconds(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> float:
    """About how long the sums take on one core."""
    batch, axes, spread = arranged(frame)
    *leading, down, across = axes
    planes, taps = batch * math.prod(axis.out for axis in leading), math.prod(axis.kernel for axis in leading)
    out, kernel = (down.out, across.out * spread), (down.kernel, across.kernel)
    return float(compiled_filters(backend).stencil_seconds(dtype, planes, taps, out, kernel))


@functools.lru_cache(maxsize=256)
def seconds_by_conv(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> float:
    """About how long `npconv.conv` takes on one core, with its padded copy."""
    padded = tuple((o - 1) * s + k for o, s, k in zip(frame.out, frame.stride, frame.kernel, strict=True))
    batch = math.prod(frame.y_shape) // math.prod(frame.out)
    found = plan((batch, 1, *padded), (1, 1, *frame.kernel), frame.stride, dtype=dtype, backend=backend.name, threads=1)
    return found.predicted_seconds + _CONV + _PADDED * batch * math.prod(padded) * dtype.itemsize


@remembered
def summer(backend: Backend, frame: Frame, dtype: np.dtype[Any]) -> Summed:
    """The sums of a dense kernel, made ready."""
    batch, axes, spread = arranged(frame)
    *leading, down, across = axes
    leads = _planes(backend, leading, frame.boundary)
    rows, columns = (origins(backend, axis, frame.boundary) for axis in (down, across))
    columns = _spread(columns, spread)
    run = compiled_filters(backend).stencil(
        dtype, batch, math.prod(axis.size for axis in leading), (down.size, across.size * spread),
        (down.out, across.out * spread), (down.kernel, across.kernel), spread, leads, rows, columns,
        across.low * spread,
    )  # fmt: skip
    as_stored, shape = stored_order(frame, dtype), frame.y_shape

    def summed(x: Array, w: Array, outside: Any, out: Array | None) -> Array:
        y = np.empty(shape, dtype) if out is None else out
        run(x, as_stored(w), outside, y)
        return y

    return summed


def by_axes(
    backend: Backend, frame: Frame, factors: list[Array], x: Array, outside: Any, into: Array | None = None
) -> Array:
    """The sums of a kernel that is an outer product: a pass for each axis, the last two together where they can be.

    The result is written into `into` unless that is None.
    """
    order, passes = _passes(backend, frame, x.dtype)
    shape, lines = list(x.shape), [np.ascontiguousarray(factors[n].ravel(), x.dtype) for n in order]
    for left, (run, numbers, out) in reversed(list(zip(range(len(passes)), reversed(passes), strict=True))):
        mine = [lines[n] for n in numbers]
        for axis, size in out:
            shape[axis] = size
        last = np.empty(shape, x.dtype) if into is None and not left else into
        y = backend.scratch(tuple(shape), x.dtype) if left else last
        run(x, *mine, outside, y)
        for line in mine if left and outside != 0 else ():
            # What a pass makes of the constant is what lies beyond the edge for the next one.
            outside = x.dtype.type((line * outside).sum())
        x = y
    return x


@remembered
def _passes(
    backend: Backend, frame: Frame, dtype: np.dtype[Any]
) -> tuple[list[int], list[tuple[Any, list[int], list[tuple[int, int]]]]]:
    """The factors in the order of the image's axes; for each pass what runs it, which of them, and its axes' sizes."""
    kernels, shape = compiled_filters(backend), list(frame.x_shape)
    order = [int(n) for n in np.argsort(frame.axes)]
    found = []
    number = 0
    while number < len(order):
        n = order[number]
        axis, line = frame.axes[n], Axis(frame.size[n], frame.kernel[n], frame.pairs[n][0], frame.out[n])
        spread = math.prod(shape[axis + 1 :])
        rows = origins(backend, line, frame.boundary)
        last = number + 2 == len(order) and frame.axes[order[-1]] == axis + 1
        after = math.prod(shape[axis + 2 :])
        if last and after <= FEW_COLUMNS and kernels.fits_separable(dtype, spread, line.kernel):
            m = order[-1]
            other = Axis(frame.size[m], frame.kernel[m], frame.pairs[m][0], frame.out[m])
            columns = _spread(origins(backend, other, frame.boundary), after)
            run = kernels.separable(
                dtype, math.prod(shape[:axis]), (line.size, spread), (line.out, other.out * after),
                (line.kernel, other.kernel), after, rows, columns, other.low * after,
            )  # fmt: skip
            found.append((run, [number, number + 1], [(axis, line.out), (axis + 1, other.out)]))
            break
        before, lead = math.prod(shape[:axis]), np.zeros((1, 1), np.int64)
        if spread > FEW_COLUMNS:
            run = kernels.stencil(
                dtype, before, 1, (line.size, spread), (line.out, spread), (line.kernel, 1), 1, lead, rows,
                np.arange(spread), 0,
            )  # fmt: skip
        else:
            run = kernels.stencil(
                dtype, 1, 1, (before, line.size * spread), (before, line.out * spread), (1, line.kernel), spread, lead,
                np.arange(before), _spread(rows, spread), line.low * spread,
            )  # fmt: skip
        found.append((run, [number], [(axis, line.out)]))
        shape[axis] = line.out
        number += 1
    return order, found


def compiled_filters(backend: Backend) -> Any:
    """The compiled filters, which are loaded when they are needed."""
    assert backend.kernels is not None
    return backend.kernels.filters


def stored_order(frame: Frame, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """What lays a kernel out as the image is, its axes in the order of the image's."""
    order = tuple(map(int, np.argsort(frame.axes)))
    if order == tuple(range(len(order))):
        return lambda w: np.ascontiguousarray(w, dtype)
    return lambda w: np.ascontiguousarray(w.transpose(order), dtype)


@functools.lru_cache(maxsize=256)
def arranged(frame: Frame) -> tuple[int, list[Axis], int]:
    """The batch, at least two axes, and how many elements follow the last one that is filtered."""
    first, last = min(frame.axes), max(frame.axes)
    axes: list[Axis] = []
    for i in range(first, last + 1):
        if i in frame.axes:
            n = frame.axes.index(i)
            axes.append(Axis(frame.size[n], frame.kernel[n], frame.pairs[n][0], frame.out[n]))
        elif i - 1 in frame.axes:
            axes.append(Axis(frame.x_shape[i], 1, 0, frame.x_shape[i]))
        else:
            size = axes[-1].size * frame.x_shape[i]
            axes[-1] = Axis(size, 1, 0, size)
    batch, spread = math.prod(frame.x_shape[:first]), math.prod(frame.x_shape[last + 1 :])
    if spread > FEW_COLUMNS:
        axes, spread = [*axes, Axis(spread, 1, 0, spread)], 1
    if len(axes) == 1:
        # Signals are rows of one plane.
        batch, axes = 1, [Axis(batch, 1, 0, batch), *axes]
    return batch, axes, spread


def origins(backend: Backend, axis: Axis, boundary: str) -> Any:
    """Where each element of a padded axis comes from, -1 for the constant."""
    high = axis.out + axis.kernel - 1 - axis.low - axis.size
    if boundary != "zeros":
        return padding.source_index(backend, boundary, axis.low, high, axis.size)
    position = np.arange(-axis.low, axis.size + high)
    return np.where((position >= 0) & (position < axis.size), position, -1)


def _planes(backend: Backend, axes: list[Axis], boundary: str) -> Any:
    """The plane for each leading place of the result and leading tap, -1 for one of the constant."""
    planes = np.zeros((1, 1), np.int64)
    for axis in axes:
        sources = origins(backend, axis, boundary)
        under = sources[np.arange(axis.out)[:, None] + np.arange(axis.kernel)]
        here = planes[:, None, :, None] * axis.size + under[None, :, None, :]
        inside = (under >= 0)[None, :, None, :] & (planes >= 0)[:, None, :, None]
        planes = np.where(inside, here, -1).reshape(len(planes) * axis.out, -1)
    return planes


def _spread(sources: Any, spread: int) -> Any:
    """The table of an axis whose elements are so many columns each."""
    if spread == 1:
        return sources
    columns = sources[:, None] * spread + np.arange(spread)
    return np.where(sources[:, None] >= 0, columns, -1).ravel()
