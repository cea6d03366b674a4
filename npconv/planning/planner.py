"""Candidates and choice: pure numbers and the machine, no arrays. Answers are remembered by spec.

What `npconv.autotune` has measured decides; where it has measured nothing, predictions do.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from npconv import config, epilogue
from npconv.algorithms import ALGORITHMS, TRANSFORMED
from npconv.algorithms.base import Work
from npconv.algorithms.last_times import last_seconds, transposed_seconds
from npconv.algorithms.rates import rates_of
from npconv.arrays import Backend, require, supported_dtype
from npconv.config import get_num_threads, is_strict
from npconv.geometry import ConvSpec, choice, integer
from npconv.planning import measurements
from npconv.planning.plan import Plan, measured_dtype, operand_dtype, reads_channels_last
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
    return _choose(
        spec, op, backend, dtype, algorithm, activation, threads, max_workspace, is_strict(), reused,
        measurements.generation(),
    )  # fmt: skip


def checked(
    dtype: Any, activation: str | None, backend: str | None, threads: int | None, max_workspace: int | None
) -> tuple[Backend, np.dtype[Any], int, int | None]:
    """Return the backend, dtype, threads and workspace that a caller without arrays asks for, or raise."""
    chosen = config.get_backend() if backend is None else choice("backend", backend, config.BACKENDS)
    dtype = supported_dtype("dtype", dtype, None if chosen != "cupy" else require(chosen))
    epilogue.check_activation(dtype, activation)
    threads = get_num_threads() if threads is None else config.thread_count("threads", threads)
    max_workspace = None if max_workspace is None else integer("max_workspace", max_workspace)
    return require(chosen), dtype, threads, max_workspace


class Candidate(NamedTuple):
    """An algorithm that may be chosen: predicted time, what does the work, and how much of it."""

    seconds: float
    kernel: str
    work: Work


def candidates(
    spec: ConvSpec,
    op: str,
    backend: Backend,
    dtype: np.dtype[Any],
    max_workspace: int | None,
    strict: bool,
    reused: bool,
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The algorithms that may be chosen, and why the others may not."""
    core = spec if spec.padding_mode == "zeros" else spec.without_padding()
    possible: dict[str, Candidate] = {}
    rejected: dict[str, str] = {}
    for name, algorithm in ALGORITHMS.items():
        wide = operand_dtype(name, spec, op, backend, dtype)
        work = algorithm.cost(core, op, wide.itemsize)
        reason = algorithm.supports(core, op, backend, wide)
        if reason is None and strict and name in TRANSFORMED:
            reason = "strict arithmetic was asked for"
        if reason is None and max_workspace is not None and work.workspace > max_workspace:
            reason = f"its workspace of {amount(work.workspace, 'B')} exceeds the {amount(max_workspace, 'B')} allowed"
        if reason is None:
            # For one thread: the choice, and with it the last bits of a result, must not depend on their number.
            seconds = _seconds(name, spec, core, op, backend, wide, reused)
            possible[name] = Candidate(seconds, algorithm.kernel(core, op, backend, wide), work)
        else:
            rejected[name] = reason
    return possible, rejected


def _seconds(
    name: str, spec: ConvSpec, core: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool
) -> float:
    """The time that an algorithm is predicted to take, with that of the layout it is given."""
    if backend.name != "numba" or spec.layout == "channels_first":
        return ALGORITHMS[name].seconds(core, op, backend, dtype, reused)
    if reads_channels_last(spec, op, backend, dtype, name):
        return last_seconds(rates_of(backend), spec, dtype.itemsize, reused)
    moved = math.prod(core.x_shape) * (op != "input_grad") + math.prod(core.y_shape) * (op != "weight_grad")
    return ALGORITHMS[name].seconds(core, op, backend, dtype, reused) + transposed_seconds(moved, dtype.itemsize)


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
    generation: int,  # noqa: ARG001 - so that no plan made from older measurements is found again
) -> Plan:
    if max_workspace is None and algorithm == "auto":
        max_workspace = AUTO_WORKSPACE
    possible, rejected = candidates(spec, op, backend, dtype, max_workspace, strict, reused)
    if algorithm in rejected:
        raise ValueError(f"algorithm {algorithm!r} cannot run this convolution: {rejected[algorithm]}")
    crew = threads if backend.name == "numba" else 1
    if algorithm == "auto":
        entry = _measured(spec, op, backend, dtype, reused, possible)
        chosen, reasons = _by_time(possible, entry.seconds(reused) if entry else {}, crew)
    else:
        entry, chosen, reasons = None, algorithm, dict.fromkeys(possible, f"{algorithm} was asked for")
    rejected |= {name: reason for name, reason in reasons.items() if name != chosen}
    seconds, kernel, work = possible[chosen]
    seconds /= crew
    return Plan(
        spec, op, backend, dtype, activation, threads, chosen, kernel, work, seconds, tuple(sorted(rejected.items())),
        reused, entry.seconds(reused)[chosen] if entry else None, entry.threads if entry else None,
    )  # fmt: skip


def _measured(
    spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], reused: bool, possible: dict[str, Candidate]
) -> measurements.Entry | None:
    """What was measured, if it was for all that may be chosen here: the best of some is not the best."""
    entry = measurements.find(backend, spec, op, measured_dtype(backend, dtype))
    if entry is None:
        return None
    seconds = entry.seconds(reused)
    complete = possible.keys() <= seconds.keys() and any(seconds[name] is not None for name in possible)
    return entry if complete else None


def _by_time(possible: dict[str, Candidate], measured: measurements.Seconds, crew: int) -> tuple[str, dict[str, str]]:
    """The fastest algorithm, by what was measured if anything was, and what to say of each to a crew of threads."""
    if not measured:
        best = min(possible, key=lambda name: possible[name].seconds)
        return best, {
            name: f"predicted {duration(candidate.seconds / crew)}, {_ratio(candidate.seconds, possible[best].seconds)}"
            for name, candidate in possible.items()
        }
    times = {name: seconds for name in possible if (seconds := measured[name]) is not None}
    best = min(times, key=lambda name: times[name])
    reasons = {
        name: f"measured {duration(times[name])}, {_ratio(times[name], times[best])}" if name in times
        else f"predicted {duration(candidate.seconds / crew)}, too slow to be measured"
        for name, candidate in possible.items()
    }  # fmt: skip
    return best, reasons


def _ratio(seconds: float, best: float) -> str:
    return "the same loops" if seconds == best else f"{seconds / best:.3g} times as long"
