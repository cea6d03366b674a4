"""The geometry of a filter: axes, modes, origins and boundaries, and what each result needs of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from npconv.arrays import Array, Backend, Operands
from npconv.geometry import Pairs, Size, check_extent, choice, integer, per_axis, sequence

Ints = int | tuple[int, ...]

MODES = ("same", "full", "valid")

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


@dataclass(frozen=True)
class Frame:
    """One filter's geometry: which axes, and what of the image and of what lies beyond it every result needs.

    `pairs` is what is added on either side; a negative number on the high side counts elements that a stride never
    reaches, fewer than it.
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
    def of(cls, operands: Operands, flip: bool, mode: str, boundary: str, origin: Any, axes: Any, stride: Any) -> Frame:
        """Check and normalise what a caller wrote."""
        choice("mode", mode, MODES)
        choice("boundary", boundary, tuple(BOUNDARIES))
        x_shape, kernel = operands.shape("x"), operands.shape("w")
        chosen = named_axes(axes, len(x_shape))
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
        dense = _dense(mode, size, kernel)
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
        """Of the image, on the axes that are filtered."""
        return tuple(self.x_shape[a] for a in self.axes)

    @property
    def y_shape(self) -> Size:
        """Of the result, in the order of the caller's axes."""
        sizes = dict(zip(self.axes, self.out, strict=True))
        return tuple(sizes.get(i, n) for i, n in enumerate(self.x_shape))

    @property
    def added(self) -> Pairs:
        """What is added on either side."""
        return tuple((lo, max(hi, 0)) for lo, hi in self.pairs)

    def dense(self) -> Frame:
        """The frame of a filter that gives one centred result for every element of the image."""
        low = tuple(lo if self.mode == "same" else k // 2 for (lo, _), k in zip(self.pairs, self.kernel, strict=True))
        pairs = tuple((lo, k - 1 - lo) for lo, k in zip(low, self.kernel, strict=True))
        return replace(self, stride=(1,) * len(self.axes), pairs=pairs, out=self.size, mode="same")

    def unstrided(self) -> Frame:
        """The frame of the same filter at stride 1."""
        out = _dense(self.mode, self.size, self.kernel)
        pairs = tuple(
            (lo, o + k - 1 - lo - n) for (lo, _), o, k, n in zip(self.pairs, out, self.kernel, self.size, strict=True)
        )
        return replace(self, stride=(1,) * len(self.axes), pairs=pairs, out=out)

    def strided(self, y: Array) -> Array:
        """Of a result at stride 1, the part that this frame is for; a view."""
        steps = dict(zip(self.axes, self.stride, strict=True))
        return y[tuple(slice(None, None, steps.get(axis, 1)) for axis in range(y.ndim))]

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


def named_axes(axes: Any, ndim: int, name: str = "axes") -> Size:
    """Numbers of the axes that a caller named, from 0."""
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


def _dense(mode: str, size: Size, kernel: Size) -> Size:
    """The size of a result at stride 1."""
    more = {"same": 0, "full": 1, "valid": -1}[mode]
    return tuple(n + more * (k - 1) for n, k in zip(size, kernel, strict=True))


def _low(mode: str, kernel: Size, origins: Size) -> Size:
    if mode == "same":
        return tuple(k // 2 + o for k, o in zip(kernel, origins, strict=True))
    return tuple(k - 1 if mode == "full" else 0 for k in kernel)
