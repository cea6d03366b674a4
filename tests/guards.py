"""Arrays between guard bytes, and processors that this machine can stand in for: what tests of kernels share."""

from __future__ import annotations

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
