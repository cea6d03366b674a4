"""Integers as floating-point numbers, and whole ones of these as integers, each in one pass over the memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.kernels.cpu import threads
from npconv.kernels.cpu.compile import compiled

BLOCK = 2**14
"""Elements of a task."""


def to_floats(x: Any, image: Any) -> int:
    """``image = x``; returns the largest magnitude in `x`, up to which the caller knows what is exact.

    Parameters
    ----------
    x : array of integers
        In C order, of at least one element.
    image : array of float32 or float64
        Of the same shape. What is in float32 is right where magnitudes are below 2**31 and float32 holds them.
    """
    tasks = -(-x.size // BLOCK)
    ends = np.empty((tasks, 2), x.dtype)
    threads.run(to_floats_loop, tasks, x.size, x.reshape(-1), image.reshape(-1), ends)
    return max(abs(int(ends.min())), abs(int(ends.max())))


def to_integers(y: Any, result: Any) -> None:
    """``result = y`` for arrays in C order and of one shape, modulo what `result` holds.

    `y` are whole numbers, in float32 below 2**31 and in float64 below 2**63.
    """
    threads.run(to_integers_loop, -(-y.size // BLOCK), y.size, y.reshape(-1), result.reshape(-1))


@compiled
def to_floats_loop(start: int, stop: int, x: Any, image: Any, ends: Any) -> None:
    """A task is `BLOCK` elements, and leaves the least and the largest of them."""
    for task in range(start, stop):
        first, last = np.uintp(task * BLOCK), np.uintp(min((task + 1) * BLOCK, x.size))
        low = high = x[first]
        for i in range(first, last):
            value = x[i]
            low, high = min(low, value), max(high, value)
            # There are vector instructions for 32 bits where there are none for 64.
            image[i] = np.int32(value) if image.itemsize == 4 else value
        ends[task, 0], ends[task, 1] = low, high


@compiled
def to_integers_loop(start: int, stop: int, y: Any, result: Any) -> None:
    """A task is `BLOCK` elements."""
    for i in range(np.uintp(start * BLOCK), np.uintp(min(stop * BLOCK, y.size))):
        result[i] = np.int32(y[i]) if y.itemsize == 4 else np.int64(y[i])
