"""Padding modes: what stands beyond the edge of an image, as an index into it, and the adjoint of copying it there.

The modes have PyTorch's names; "reflect", "replicate" and "circular" are `numpy.pad`'s "reflect", "edge" and "wrap".
Any width works, also beyond the image's own size, where the pattern repeats.
"""

from __future__ import annotations

from npconv.arrays import Array, Backend
from npconv.geometry import Pairs, Size


def source_index(mode: str, position: int, size: int) -> int:
    """Where in an axis of `size` elements a padded axis takes its element from; `position` may lie outside."""
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    if size == 1:
        return 0
    period = 2 * (size - 1)
    position %= period
    return position if position < size else period - position


def pad(backend: Backend, x: Array, padding: Pairs, mode: str) -> Array:
    """Pad the spatial axes of ``(N, C, *spatial)``."""
    for axis, (low, high) in enumerate(padding, start=2):
        if low or high:
            size = x.shape[axis]
            index = [source_index(mode, position, size) for position in range(-low, size + high)]
            x = backend.xp.take(x, backend.xp.asarray(index), axis=axis)
    return x


def pad_adjoint(dy: Array, padding: Pairs, size: Size, mode: str) -> Array:
    """Return every padded element's gradient to the element that was copied there: the adjoint of `pad`."""
    for axis, ((low, high), n) in reversed(list(enumerate(zip(padding, size, strict=True), start=2))):
        if low or high:
            before = (slice(None),) * axis
            dx = dy[(*before, slice(low, low + n))].copy()
            for position in (*range(-low, 0), *range(n, n + high)):
                dx[(*before, source_index(mode, position, n))] += dy[(*before, position + low)]
            dy = dx
    return dy
