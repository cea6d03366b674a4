"""Arrays between guard bytes or pages, processors that this one can stand in for: what tests of kernels share."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys

import numpy as np

GUARD = 64


class Guarded:
    """Arrays inside larger buffers: what lies before and after must be as it was, and an input must never show it."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def array(self, shape, rng=None, dtype=np.float32):
        """An array of small whole numbers, or of nothing but poison where no `rng` is given."""
        count = int(np.prod(shape))
        # A read outside turns the result into NaN, or an integer into a huge number.
        poison = np.nan if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max // 3
        buffer = np.full(count + 2 * GUARD, poison, dtype)
        self._buffers.append(buffer)
        inside = buffer[GUARD : GUARD + count]
        if rng is not None:
            inside[:] = rng.integers(-3, 4, count)
        return inside.reshape(shape)

    def check(self) -> None:
        for buffer in self._buffers:
            outside = np.concatenate([buffer[:GUARD], buffer[-GUARD:]])
            assert np.isnan(outside).all() if buffer.dtype.kind == "f" else (outside == outside[0]).all()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter's answer."""
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


OTHER_PROCESSORS = {
    "SSE": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"},
    "AVX": {"NUMBA_CPU_NAME": "sandybridge", "NUMBA_CPU_FEATURES": "+avx,+sse2,+sse4.1,+sse4.2"},
    "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse2,+bmi,+bmi2"},
}
AVX512 = {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": OTHER_PROCESSORS["AVX2"]["NUMBA_CPU_FEATURES"]
    + ",+sse4.1,+sse4.2,+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd",
}


class PageGuarded:
    """Arrays whose memory ends, or begins, where no page may be touched: whoever reads or writes outside dies of it.

    Inside the ``with`` block `numpy.empty` and `numpy.zeros` give such arrays too, so results and scratch memory that
    NumPy allocates are guarded. What is called there must have been compiled before.
    """

    def __init__(self, at_end: bool) -> None:
        self._at_end = at_end
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def empty(self, shape, dtype=float, order="C"):
        dtype, page = np.dtype(dtype), mmap.PAGESIZE
        sizes = tuple(int(n) for n in shape) if np.iterable(shape) else (int(shape),)
        count = math.prod(sizes)
        inside = -(-count * dtype.itemsize // page) * page
        memory = mmap.mmap(-1, inside + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for edge in (address, address + page + inside):
            assert self._protect(edge, page, 0) == 0
        offset = page + inside - count * dtype.itemsize if self._at_end else page
        array = np.frombuffer(memory, dtype, count, offset)
        # What is read before it was written must show.
        array[...] = np.nan if dtype.kind in "fc" else 113
        return array.reshape(sizes, order=order)

    def zeros(self, shape, dtype=float, order="C"):
        array = self.empty(shape, dtype, order)
        array[...] = 0
        return array

    def copy(self, value):
        array = self.empty(value.shape, value.dtype)
        array[...] = value
        return array

    def __enter__(self):
        self._real = np.empty, np.zeros
        np.empty, np.zeros = self.empty, self.zeros
        return self

    def __exit__(self, *_):
        np.empty, np.zeros = self._real
