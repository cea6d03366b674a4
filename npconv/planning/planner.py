"""Candidates and choice: pure numbers and the machine, no arrays. Answers are remembered by spec."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from npconv.algorithms import ALGORITHMS, TRANSFORMED
from npconv.algorithms.base import Work
from npconv.arrays import Backend, compute_dtype
from npconv.config import get_num_threads, is_strict
from npconv.geometry import ConvSpec, choice
from npconv.planning.plan import Plan
from npconv.units import amount, duration

AUTO_WORKSPACE = 2**30
"""Bytes that an algorithm may use beyond operands and result where nobody says; the direct form needs none."""


def plan_for(
    spec: ConvSpec,
    op: str,
    backend: Backend,
    dtype: np.dtype[Any],
    algorithm: str = "auto",
    activation: str | None = None,
    threads: int | None = None,
    max_workspace: int | None = None,
    reused: bool = False,
) -> Plan:
    """Choose how to run one operation; see `npconv.plan` for the parameters.

    With `reused` weights are packed once for many calls, so the time that this takes does not count.

    Raises
    ------
    ValueError
        If `algorithm` is unknown, cannot run this spec, or is not allowed inside `npconv.strict`, with the reason.
    """
    choice("algorithm", algorithm, ("auto", *ALGORITHMS))
    threads = get_num_threads() if threads is None else threads
    return _choose(spec, op, backend, dtype, algorithm, activation, threads, max_workspace, is_strict(), reused)


@functools.lru_cache(maxsize=1024)
def _choose(
    spec: ConvSpec,
    op: str,
    backend: Backend,
    dtype: np.dtype[Any],
    algorithm: str,
    activation: str | None,
    threads: int,
    max_workspace: int | None,
    strict: bool,
    reused: bool,
) -> Plan:
    core = spec if spec.padding_mode == "zeros" else spec.without_padding()
    wide = compute_dtype(dtype)
    if max_workspace is None and algorithm == "auto":
        max_workspace = AUTO_WORKSPACE
    possible: dict[str, tuple[float, str, Work]] = {}
    rejected: dict[str, str] = {}
    for name, candidate in ALGORITHMS.items():
        work = candidate.cost(core, op, wide.itemsize)
        reason = candidate.supports(core, op, backend, wide)
        if reason is None and strict and name in TRANSFORMED:
            reason = "strict arithmetic was asked for"
        if reason is None and max_workspace is not None and work.workspace > max_workspace:
            reason = f"its workspace of {amount(work.workspace, 'B')} exceeds the {amount(max_workspace, 'B')} allowed"
        if reason is None:
            # For one thread: the choice, and with it the last bits of a result, must not depend on their number.
            seconds = candidate.seconds(core, op, backend, wide, reused)
            possible[name] = seconds, candidate.kernel(core, op, backend, wide), work
        else:
            rejected[name] = reason
    if algorithm in rejected:
        raise ValueError(f"algorithm {algorithm!r} cannot run this convolution: {rejected[algorithm]}")
    chosen = min(possible, key=lambda name: possible[name][0]) if algorithm == "auto" else algorithm
    for name, (seconds, *_) in possible.items():
        if name != chosen:
            rejected[name] = f"predicted {duration(seconds)}" if algorithm == "auto" else f"{chosen} was asked for"
    seconds, kernel, work = possible[chosen]
    seconds /= threads if backend.name == "numba" else 1
    reasons = tuple(sorted(rejected.items()))
    return Plan(spec, op, backend, dtype, activation, threads, chosen, kernel, work, seconds, reasons, reused)
