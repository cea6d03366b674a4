"""`autotune`: run every algorithm that can compute a convolution, and let the planner know how long each took."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.algorithms import OPERATIONS
from npconv.algorithms.base import image_shape, result_shape
from npconv.arrays import Array, Backend, compute_dtype, from_channels_first
from npconv.config import is_strict, limit_threads
from npconv.geometry import ConvSpec, choice
from npconv.planning import measurements
from npconv.planning.plan import Plan, measured_dtype
from npconv.planning.planner import AUTO_WORKSPACE, candidates, checked, plan_for

RUNS = 9
"""Timed rounds at most; the median counts."""

SECONDS = 0.5
"""Time after which a candidate has run often enough; each is timed once at least."""

SHORTEST = 1e-3
"""Seconds that a timed run should take; faster calls are repeated."""

HOPELESS = 20
"""How many times slower than the best a candidate must be predicted to be (or turn out) not to be run (again)."""

Label = tuple[str, str]
"""What is timed: (form, algorithm), where the form is ``"call"`` or ``"packed"``, as in `measurements.Entry`."""

_one_at_a_time = threading.Lock()

Ints = int | tuple[int, ...]


def autotune(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    op: str = "forward",
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    activation: str | None = None,
    dtype: Any = "float32",
    backend: str | None = None,
    threads: int | None = None,
    max_workspace: int | None = None,
) -> Plan:
    """Measure which algorithm is the fastest for a convolution on this machine, and remember it.

    Every algorithm that can compute it runs on random numbers, a few times in turn, about half a second each and the
    packing of weights once with and once without; those predicted to be 20 times slower than the best are left out.
    From then on ``algorithm="auto"`` chooses by these times, in this process and, unless ``NPCONV_CACHE_DIR`` is
    ``off``, in every later one: they are kept as JSON in the cache folder, in a file for each backend, machine and
    version. What is computed stays the same but for the algorithm, whatever the number of threads; inside
    `npconv.strict` the fastest of the algorithms that it allows is taken.

    Parameters
    ----------
    x_shape, w_shape, stride, padding, dilation, groups, padding_mode, layout, activation, dtype, backend
        As for `npconv.plan`.
    op : {"forward", "input_grad", "weight_grad"}
        The convolution, or the gradient in its input or its weights.
    threads : int, optional
        Number of threads to measure with, defaults to `npconv.get_num_threads`. The answer holds for every number.
    max_workspace : int, optional
        As for `npconv.plan`; algorithms that need more are not run. An answer decides only where every algorithm that
        may be chosen was considered when it was measured.

    Returns
    -------
    Plan
        What `npconv.plan` gives from now on; its `rejected` tells the times of the others. For a gradient it can be
        read, not called.

    Raises
    ------
    ValueError, TypeError
        As for `npconv.plan`.

    Warns
    -----
    RuntimeWarning
        If the file cannot be written, or one that is there cannot be understood.

    Examples
    --------
    >>> import npconv as nc
    >>> plan = nc.autotune((1, 3, 17, 19), (5, 3, 2, 3), stride=2, backend="numpy")
    >>> plan.rejected["pointwise"]
    'a pointwise convolution has a 1x1 kernel and no padding, here (2, 3) and ((0, 0), (0, 0))'
    >>> plan.measured_seconds > 0
    True
    """
    spec = ConvSpec.of(
        x_shape, w_shape, stride, padding, dilation, groups, padding_mode, layout, x_name="x_shape", w_name="w_shape"
    )
    choice("op", op, OPERATIONS)
    where, dtype, threads, max_workspace = checked(dtype, activation, backend, threads, max_workspace)
    with _one_at_a_time:  # two at once would measure each other
        entry = measure(spec, op, where, dtype, activation, threads, max_workspace)
        measurements.keep(where, spec, op, measured_dtype(where, dtype), entry)
    return plan_for(spec, op, where, dtype, "auto", activation, threads, max_workspace, reused=op == "forward")


def measure(
    spec: ConvSpec,
    op: str,
    backend: Backend,
    dtype: np.dtype[Any],
    activation: str | None,
    threads: int,
    max_workspace: int | None,
) -> measurements.Entry:
    """Times of all candidates that are allowed here and now."""
    forms: dict[str, measurements.Seconds] = {"call": {}, "packed": {}}
    jobs: dict[Label, Callable[[], Any]] = {}
    limit = AUTO_WORKSPACE if max_workspace is None else max_workspace
    whole = operands(spec, op, backend, compute_dtype(dtype))
    for form in ("call", "packed") if op == "forward" else ("call",):
        reused = form == "packed"
        possible, _ = candidates(spec, op, backend, dtype, limit, is_strict(), reused)
        best = min(candidate.seconds for candidate in possible.values())
        for name, candidate in possible.items():
            forms[form][name] = None
            if candidate.seconds <= HOPELESS * best:
                plan = plan_for(spec, op, backend, dtype, name, activation, threads, max_workspace, reused)
                a, b = (value.astype(plan.operand_dtype, copy=False) for value in whole)
                jobs[form, name] = job(plan, a, b)
    with limit_threads(threads):
        for (form, name), seconds in medians(jobs, synchronizer(backend)).items():
            forms[form][name] = float(f"{seconds:.4g}")
    return measurements.Entry(threads, **forms)


def operands(spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Random arrays for `Plan.run`, the weights of a forward convolution not packed yet."""
    rng = np.random.default_rng(0)
    shapes = {
        "forward": (image_shape(spec), spec.w_shape),
        "input_grad": (result_shape(spec), spec.w_shape),
        "weight_grad": (image_shape(spec), result_shape(spec)),
    }
    # Small whole numbers are numbers of every dtype, and what they are changes no algorithm's time.
    a, b = (backend.xp.asarray(rng.integers(-4, 5, shape).astype(dtype)) for shape in shapes[op])
    return a, b


def job(plan: Plan, a: Array, b: Array) -> Callable[[], Any]:
    """What is timed: the plan on these operands."""
    if plan.op != "forward":
        return lambda: plan.run(a, b)
    run = plan.run
    if plan.reads_channels_last:
        a, run = from_channels_first(plan.backend, a, "channels_last", plan.spec.batched), plan.run_last
    if plan.reused:
        packed = plan.packed(b)
        return lambda: run(a, packed)
    return lambda: run(a, plan.packed(b))


def synchronizer(backend: Backend) -> Callable[[], Any]:
    """What waits until the backend has done what it was told."""
    if backend.name == "cupy":
        wait: Callable[[], Any] = backend.xp.cuda.get_current_stream().synchronize
        return wait
    return lambda: None


def medians(jobs: dict[Label, Callable[[], Any]], wait: Callable[[], Any]) -> dict[Label, float]:
    """Median time of each job over interleaved runs, so that a disturbance meets all of them."""
    for run in jobs.values():  # compile, and fill caches
        run()
    wait()
    times = {label: [_seconds(run, 1, wait)] for label, run in jobs.items()}
    repeats = {label: max(1, int(SHORTEST / first)) for label, (first,) in times.items()}
    for _ in range(RUNS - 1):
        best = min(min(seconds) for seconds in times.values())
        for label, run in jobs.items():
            if sum(times[label]) * repeats[label] < SECONDS and min(times[label]) < HOPELESS * best:
                times[label].append(_seconds(run, repeats[label], wait))
    return {label: statistics.median(seconds) for label, seconds in times.items()}


def _seconds(run: Callable[[], Any], repeats: int, wait: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    # A clock may be too coarse for what does nothing, and no time is zero.
    return max(time.perf_counter() - start, 1e-9) / repeats
