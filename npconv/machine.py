"""What a machine can do: this one, as far as a plan needs it, and the named ones that jobs are compared on.

The rates of `SUSTAINED` are typical figures that order the algorithms, not measurements of this machine;
`measured_rate` measures one, and `npconv.this_machine` the roofs that no algorithm can pass.
"""

from __future__ import annotations

import functools
import itertools
import math
import numbers
import platform
import time
from dataclasses import dataclass

import numpy as np

from npconv.geometry import integer


@dataclass(frozen=True)
class Machine:
    """What a machine does at most.

    Attributes
    ----------
    name : str
    macs_per_second : float
        Multiply-accumulates; a data sheet's FLOP/s are twice as many.
    bytes_per_second : float
        To and from memory; infinite where nobody says.

    Raises
    ------
    ValueError, TypeError
        If a rate is not above zero, or no number.

    Examples
    --------
    >>> from npconv.machine import Machine
    >>> mine = Machine("mine", macs_per_second=50e9, bytes_per_second=20e9)
    >>> mine.flops_per_second, mine.ridge, mine.times(4).macs_per_second
    (100000000000.0, 5.0, 200000000000.0)
    """

    name: str
    macs_per_second: float
    bytes_per_second: float = math.inf

    def __post_init__(self) -> None:
        for name in ("macs_per_second", "bytes_per_second"):
            rate = getattr(self, name)
            if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
                raise TypeError(f"{name} must be a number, got {rate!r}")
            if not float(rate) > 0:
                raise ValueError(f"{name} must be above zero, got {rate!r}")

    @property
    def flops_per_second(self) -> float:
        """Floating-point operations: two per multiply-accumulate."""
        return 2 * self.macs_per_second

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on the arithmetic is what limits; zero where the bandwidth is unknown."""
        return self.flops_per_second / self.bytes_per_second

    def times(self, n: int) -> Machine:
        """`n` such machines that share a job evenly and do not talk to each other.

        Raises
        ------
        ValueError, TypeError
            If `n` is not a positive number of machines.
        """
        count = integer("n", n, 1)
        return Machine(f"{count} x {self.name}", count * self.macs_per_second, count * self.bytes_per_second)


LECTURE = (Machine("lecture's CPU", 0.15e12), Machine("lecture's GPU", 12e12))
"""The lecture counts a multiply-accumulate as one operation: its 0.15 and 12 T/s are MACs per second."""

# Data sheets: NVIDIA A100 80GB SXM (2021), NVIDIA H100 SXM (2023); tensor cores without sparsity.
NAMED = {
    "lecture-cpu": LECTURE[0],
    "lecture-gpu": LECTURE[1],
    "a100": Machine("A100, float32", 19.5e12 / 2, 2.039e12),
    "a100-fp16": Machine("A100, float16", 312e12 / 2, 2.039e12),
    "h100": Machine("H100, float32", 67e12 / 2, 3.35e12),
    "h100-fp16": Machine("H100, float16", 989.4e12 / 2, 3.35e12),
}
"""Machines by the name that the command line takes, with the peaks that their makers give: what is reached is less."""

# FLOP/s that one core sustains (a GPU: all of it) with each kernel, and bytes/s from memory: typical of
# `python -m benchmarks.forms`, float32, on one core of an AMD EPYC (Zen 3). Only their order decides anything. Those
# for CuPy have not been measured; they keep the same order at a GPU's scale, and know no tensor cores.
SUSTAINED = {
    ("numpy", "matmul"): 80e9,
    ("numpy", "unfold_matmul"): 55e9,
    ("numpy", "matmul_per_tap"): 45e9,
    ("numpy", "scale_per_tap"): 2.5e9,
    ("numpy", "narrow_matmul"): 2e9,
    ("numpy", "winograd_matmul"): 25e9,
    ("numba", "tiles"): 75e9,
    ("numba", "unfold_tiles"): 33e9,
    ("numba", "unfold_rows"): 4e9,
    ("numba", "rows"): 6e9,
    ("numba", "winograd_matmul"): 10e9,
    ("cupy", "tiles"): 30e12,
    ("cupy", "tensor_tiles"): 200e12,
    ("cupy", "unfold_tiles"): 20e12,
    ("cupy", "winograd_matmul"): 0.5e12,
}

# How much faster than one core a GPU is held to be where an algorithm estimates its time on a core. Not measured.
GPU_SPEEDUP = {"cupy": 100}
BANDWIDTH = {"numpy": 10e9, "numba": 10e9, "cupy": 2.5e12}
# Of a form that is steps on arrays, such as im2col, which takes this long on 1x7x7; one compiled call takes 5 µs.
LAUNCH = {"numpy": 20e-6, "numba": 35e-6, "cupy": 20e-6}


def predicted_seconds(backend: str, kernel: str, flops: float, nbytes: float) -> float:
    """Time that arithmetic or memory traffic takes on one core, whichever is longer, and the launch."""
    return max(flops / SUSTAINED[backend, kernel], nbytes / BANDWIDTH[backend]) + LAUNCH[backend]


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name as its maker writes it, or at least its kind."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no module more
            # The first of possibly hundreds of equal processors says it; Arm's say it by numbers.
            facts = dict(_fact(line) for line in itertools.islice(file, 40))
    except OSError:
        return platform.processor() or platform.machine()
    numbers = [facts[name] for name in ("CPU implementer", "CPU part") if name in facts]
    return facts.get("model name") or " ".join(numbers) or platform.machine()


def _fact(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def measured_rate(seconds: float = 1.0) -> Machine:
    """Measure the rate of this machine on the lecture's layer (100 to 100 channels, 5x5, 64x64 outputs).

    Parameters
    ----------
    seconds : float
        How long to measure, after one untimed run; at least one run is timed.

    Returns
    -------
    Machine
        With the median rate over the runs, in float32, on the current backend and number of threads.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.machine.measured_rate(seconds=0.1).macs_per_second > 1e8
    True
    """
    from npconv.config import get_num_threads
    from npconv.conv import conv

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 100, 64, 64), np.float32)
    w = rng.standard_normal((100, 100, 5, 5), np.float32)
    conv(x, w, padding="same")
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        conv(x, w, padding="same")
        times.append(time.perf_counter() - start)
    threads = get_num_threads()
    name = f"this machine, measured, {threads} thread{'s' if threads > 1 else ''}"
    return Machine(name, 100 * 100 * 25 * 64 * 64 / float(np.median(times)))
