"""``npconv plan``: how a convolution would run, and why; with ``--measure`` how long it really takes."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands.arguments import add_backend, add_geometry, add_json, describe, geometry
from npconv.units import duration

EXAMPLES = """
npconv plan 1x64x56x56 64x64x3x3 --padding 1              3x3, 64 to 64 channels, an image of 56x56
npconv plan 1x64x56x56 64x64x3x3 --padding 1 --measure    with measured times beside the predicted ones
npconv plan 1x32x28x28 32x1x3x3 --groups 32 --json        depthwise, for a program
"""

SECONDS = 0.3
"""How long each algorithm is measured, about."""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "plan", run, "how a convolution would run, and why", EXAMPLES)
    add_geometry(parser)
    add_backend(parser)
    parser.add_argument("--algorithm", default="auto", help="default: %(default)s")
    parser.add_argument("--measure", action="store_true", help="run every algorithm that can, and keep nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print how a convolution would run: algorithm, tiles, work, memory, predicted time, and why the others lost."""
    plan = _plan(options, options.algorithm)
    if plan.backend.name != "cupy" and plan.dtype.kind == "f":
        nc.this_machine(plan.dtype)
    measured = _measure(options, plan) if options.measure else {}
    if options.json:
        print(json.dumps(values(plan, {name: seconds for name, (seconds, _) in measured.items()}), indent=2))
        return
    print(plan)
    if measured:
        _print_measured(measured)


def _print_measured(measured: dict[str, tuple[float, float]]) -> None:
    best = min(seconds for seconds, _ in measured.values())
    print(f"\n  {'measured':>12}{'predicted':>12}{'as long':>10}")
    for name, (seconds, predicted) in sorted(measured.items(), key=lambda item: item[1]):
        print(f"  {duration(seconds):>12}{duration(predicted):>12}{seconds / best:>10.3g}  {name}")


def _plan(options: argparse.Namespace, algorithm: str) -> Any:
    return nc.plan(options.x, options.w, **geometry(options), backend=options.backend, algorithm=algorithm)


def _measure(options: argparse.Namespace, plan: Any) -> dict[str, tuple[float, float]]:
    """Median and predicted seconds of a call by each algorithm that can compute it, but the hopeless ones."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, shape).astype(plan.dtype) for shape in (plan.spec.x_shape, plan.spec.w_shape))
    found: dict[str, tuple[float, float]] = {}
    for name in sorted({plan.algorithm, *plan.rejected}):
        try:
            other = _plan(options, name)
        except ValueError:
            continue  # it cannot run this one; the plan says why
        if other.predicted_seconds < 100 * max(plan.predicted_seconds, 1e-4):
            other(x, w)
            found[name] = _median(other, x, w), other.predicted_seconds
    return found


def _median(plan: Any, x: Any, w: Any) -> float:
    times: list[float] = []
    deadline = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        plan(x, w)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def values(plan: Any, measured: dict[str, float]) -> dict[str, Any]:
    """What a plan says, for a program."""
    return {
        "x_shape": plan.spec.x_shape,
        "w_shape": plan.spec.w_shape,
        "y_shape": plan.spec.y_shape,
        "stride": plan.spec.window.stride,
        "padding": plan.spec.window.padding,
        "dilation": plan.spec.window.dilation,
        "groups": plan.spec.groups,
        "backend": plan.backend.name,
        "dtype": str(plan.dtype),
        "threads": plan.threads,
        "algorithm": plan.algorithm,
        "kernel": plan.kernel,
        "macs": plan.macs,
        "flops": plan.flops,
        "bytes": plan.bytes,
        "workspace": plan.workspace,
        "predicted_seconds": plan.predicted_seconds,
        "rejected": plan.rejected,
        **({"measured_seconds": measured} if measured else {}),
    }
