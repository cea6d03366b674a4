"""Planes divided into phases, and put together: element (i, j) of phase (p, q) is (i * rows + p, j * columns + q).

`above` rows and `left` columns lie before the first element of a plane, fewer than there are phases: they are the first
elements of their phases, zeros when a plane is divided and left out when it is put together. What is missing at the end
is treated alike.
"""

from __future__ import annotations

from typing import Any

from npconv.kernels.cpu.compile import compiled


@compiled
def divide(start: int, stop: int, planes: Any, above: int, left: int, parts: Any) -> None:
    """``(P, height, width)`` into ``(P, rows, columns, part_height, part_width)``; a task is a plane."""
    _, height, width = planes.shape
    _, rows, columns, part_height, part_width = parts.shape
    for plane in range(start, stop):
        for p in range(rows):
            for q in range(columns):
                first = 1 if q < left else 0
                last = max(first, min(part_width, (width + left - q + columns - 1) // columns))
                for i in range(part_height):
                    row, part = i * rows + p - above, parts[plane, p, q, i]
                    if row < 0 or row >= height:
                        part[:] = 0
                        continue
                    part[:first] = 0
                    source = planes[plane, row]
                    for j in range(first, last):
                        part[j] = source[j * columns + q - left]
                    part[last:] = 0


@compiled
def join(start: int, stop: int, parts: Any, above: int, left: int, planes: Any) -> None:
    """The way back: every element of `planes` is written; a task is a plane."""
    _, height, width = planes.shape
    _, rows, columns, _, _ = parts.shape
    for plane in range(start, stop):
        for row in range(height):
            target = planes[plane, row]
            for q in range(columns):
                part, j = parts[plane, (row + above) % rows, q, (row + above) // rows], 1 if q < left else 0
                for column in range(j * columns + q - left, width, columns):
                    target[column] = part[j]
                    j += 1
