"""What a core can do at most, as a contestant: npconv's own burst of register tiles."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case, Job
from npconv.kernels.cpu.burst import burst


def prepare(case: Case) -> Job:
    """The burst as a job whose layer does not matter; the result is the work of one run, in FLOP."""
    run, macs = burst(np.dtype(case.dtype), 1)
    return Job(run, lambda _: np.array(2.0 * macs))
