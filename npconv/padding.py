"""Padding modes: what stands beyond the edge of an image, as an index into it, and the adjoint of copying it there.

The modes have PyTorch's names; "reflect", "replicate" and "circular" are `numpy.pad`'s "reflect", "edge" and "wrap".
"symmetric", which repeats the edge itself, has `numpy.pad`'s name; PyTorch has none for it, and only filters use it.
Any width works, also beyond the image's own size, where the pattern repeats.
"""

from __future__ import annotations

import itertools

from npconv.arrays import Array, Backend
from npconv.geometry import Pairs, Size


def source_index(backend: Backend, mode: str, low: int, high: int, size: int) -> Array:
    """Where each element of a padded axis comes from, as an array of indices into the axis."""
    xp = backend.xp
    position = xp.arange(-low, size + high)
    if mode == "replicate":
        return position.clip(0, size - 1)
    if mode == "circular":
        return position % size
    if mode == "symmetric":
        position %= 2 * size
        return xp.where(position < size, position, 2 * size - 1 - position)
    period = max(2 * (size - 1), 1)
    position %= period
    return xp.where(position < size, position, period - position)


def pad(backend: Backend, x: Array, padding: Pairs, mode: str) -> Array:
    """Pad the spatial axes of ``(N, C, *spatial)``: one copy of the image, then strips along its edges."""
    if not any(low or high for low, high in padding):
        return x
    size = x.shape[2:]
    padded = backend.scratch(
        (*x.shape[:2], *(n + low + high for n, (low, high) in zip(size, padding, strict=True))), x.dtype
    )
    inside = [slice(low, low + n) for n, (low, _) in zip(size, padding, strict=True)]
    padded[(slice(None), slice(None), *inside)] = x
    for axis, (n, (low, high)) in enumerate(zip(size, padding, strict=True)):
        if not (low or high):
            continue
        # Earlier axes are whole by now, later ones are not begun.
        before, after = (slice(None),) * (axis + 2), tuple(inside[axis + 1 :])
        index = source_index(backend, mode, low, high, n) + low
        for strip in (slice(0, low), slice(low + n, low + n + high)):
            if strip.start < strip.stop:
                padded[(*before, strip, *after)] = padded[(*before, slice(None), *after)].take(
                    index[strip], axis=axis + 2
                )
    return padded


def pad_adjoint(backend: Backend, dy: Array, padding: Pairs, size: Size, mode: str) -> Array:
    """Return every padded element's gradient to the element that was copied there: the adjoint of `pad`."""
    for axis, ((low, high), n) in reversed(list(enumerate(zip(padding, size, strict=True), start=2))):
        if low or high:
            before = (slice(None),) * axis
            dx = dy[(*before, slice(low, low + n))].copy()
            for first, last in ((-low, 0), (n, n + high)):
                if mode == "replicate" or n == 1:
                    edge = slice(0, 1) if first < 0 else slice(n - 1, n)
                    part = dy[(*before, slice(first + low, last + low))]
                    dx[(*before, edge)] += part.sum(axis=axis, keepdims=True, dtype=dy.dtype)
                    continue
                index = source_index(backend, mode, low, high, n)
                for start, stop in _stretches(first, last, n - 1 if mode == "reflect" else n):
                    here = slice(start + low, stop + low)
                    dx[(*before, index[here])] += dy[(*before, here)]
            dy = dx
    return dy


def _stretches(first: int, last: int, length: int) -> list[tuple[int, int]]:
    """A range of positions cut at the multiples of `length`: within one, no element is the source of two."""
    cuts = [first, *range(first - first % length + length, last, length), last]
    return list(itertools.pairwise(cuts)) if first < last else []
