"""Candidates and choice: pure numbers and the machine, no arrays. Answers are remembered by spec."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from npconv.algorithms import ALGORITHMS
from npconv.algorithms.base import Cost
from npconv.arrays import Backend, compute_dtype
from npconv.config import get_num_threads
from npconv.geometry import ConvSpec, choice
from npconv.machine import predicted_seconds
from npconv.planning.plan import Plan
from npconv.units import amount, duration


def plan_for(
    spec: ConvSpec,
    op: str,
    backend: Backend,
    dtype: np.dtype[Any],
    algorithm: str = "auto",
    activation: str | None = None,
    threads: int | None = None,
    max_workspace: int | None = None,
) -> Plan:
    """Choose how to run one operation; see `npconv.plan` for the parameters.

    Raises
    ------
    ValueError
        If `algorithm` is unknown or cannot run this spec, with the reason.
    """
    choice("algorithm", algorithm, ("auto", *ALGORITHMS))
    threads = get_num_threads() if threads is None else threads
    return _choose(spec, op, backend, dtype, algorithm, activation, threads, max_workspace)


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
) -> Plan:
    core = spec if spec.padding_mode == "zeros" else spec.without_padding()
    itemsize = compute_dtype(dtype).itemsize
    possible: dict[str, tuple[float, Cost]] = {}
    rejected: dict[str, str] = {}
    for name, candidate in ALGORITHMS.items():
        cost = candidate.cost(core, op, itemsize)
        reason = candidate.supports(core, op, backend)
        if reason is None and max_workspace is not None and cost.workspace > max_workspace:
            reason = f"its workspace of {amount(cost.workspace, 'B')} exceeds the {amount(max_workspace, 'B')} allowed"
        if reason is None:
            possible[name] = predicted_seconds(backend.name, name, cost.flops, cost.bytes, threads), cost
        else:
            rejected[name] = reason
    if algorithm in rejected:
        raise ValueError(f"algorithm {algorithm!r} cannot run this convolution: {rejected[algorithm]}")
    chosen = min(possible, key=lambda name: possible[name][0]) if algorithm == "auto" else algorithm
    for name, (seconds, _) in possible.items():
        if name != chosen:
            rejected[name] = f"predicted {duration(seconds)}" if algorithm == "auto" else f"{chosen} was asked for"
    seconds, cost = possible[chosen]
    kernel = ALGORITHMS[chosen].kernel(op, backend)
    return Plan(
        spec, op, backend, dtype, activation, threads, chosen, kernel, cost, seconds, tuple(sorted(rejected.items()))
    )
