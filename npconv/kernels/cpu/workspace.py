"""Scratch memory: on lines of the caches, and used again where it is large.

A vector that spans two lines is read twice. Pages that are new to a process cost more than what is written to them:
the C library returns arrays above 32 MiB to the system when they are freed. To get 38 MB back page by page takes 12 ms
on the machine of docs/measurements-log.md, four times as long as to write transformed weights into them.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from npconv.kernels.cpu.blocking import LINE
from npconv.kernels.cpu.compile import inner
from npconv.kernels.cpu.vectors import address_of

SMALLEST, MOST_HELD = 2**20, 128 * 2**20
"""Bytes from which on memory is lent, and bytes that are kept at most when nobody uses them."""

# Smaller scratch belongs to compiled code. glibc gives that back after every call as well, until it has once seen a
# larger array come and go: its thresholds follow, up to 32 MiB. Nothing here is touched.
np.empty(2**25 - 2**16, np.uint8)

_held: list[Any] = []
_lock = threading.RLock()  # a garbage collection may give memory back while this very thread takes some


class _Loan:
    """Memory that goes back when the last array on it is gone."""

    def __init__(self, memory: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._memory = memory
        address = memory.__array_interface__["data"]
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": address, "version": 3}

    def __del__(self) -> None:
        with _lock:
            if sum(memory.nbytes for memory in _held) + self._memory.nbytes <= MOST_HELD:
                _held.append(self._memory)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An array that holds anything, like `numpy.empty`, on lines, in memory used before where there is some."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < SMALLEST:
        return aligned(shape, dtype)
    with _lock:
        # The smallest that is large enough, and not so large that the rest would be missed.
        fitting = [memory for memory in _held if nbytes <= memory.nbytes <= 2 * nbytes]
        memory = min(fitting, key=lambda memory: int(memory.nbytes), default=None)
        if memory is None:
            memory = _fresh(nbytes)
        else:
            _held[:] = [other for other in _held if other is not memory]
    return np.asarray(_Loan(memory, shape, dtype))


def free() -> None:
    """Give what nobody uses back to the system."""
    with _lock:
        _held.clear()


def _fresh(nbytes: int) -> Any:
    byte = np.dtype(np.uint8)
    try:
        return aligned((nbytes,), byte)
    except MemoryError:
        free()
        return aligned((nbytes,), byte)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An array that holds anything, like `numpy.empty`, and begins with a line."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % LINE
    return memory[start : start + nbytes].view(dtype).reshape(shape)


@inner
def on_lines(count: int, kind: Any) -> Any:
    """The same for compiled code: `count` elements of a type such as ``numpy.float32``."""
    memory = np.empty(count + LINE, kind)
    start = -address_of(memory) % LINE // memory.itemsize
    return memory[start : start + count]
