"""``npconv bench``: how fast npconv is here, in a few layers that everybody knows."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands.arguments import add_backend, add_json, describe, seconds
from npconv.units import amount, duration

EXAMPLES = """
npconv bench                                    half a minute at most
npconv bench --seconds 0.1 --json               shorter, for a program
npconv bench --backend numpy                    without compiled loops
"""

# Name, input, weights and what else the convolution is told: from the lecture, ResNet-50 and MobileNet.
LAYERS: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ("lecture 5x5, 100 to 100", (1, 100, 64, 64), (100, 100, 5, 5), {"padding": 2}),
    ("3x3, 64 to 64", (1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ("3x3 at stride 2, 128 to 128", (1, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}),
    ("1x1, 256 to 256", (1, 256, 28, 28), (256, 256, 1, 1), {}),
    ("depthwise 3x3, 256", (1, 256, 28, 28), (256, 1, 3, 3), {"padding": 1, "groups": 256}),
)


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "bench", run, "how fast npconv is here", EXAMPLES)
    add_backend(parser)
    parser.add_argument(
        "--seconds", type=seconds, default=0.5, metavar="S", help="for each layer (default: %(default)s)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure this machine's peak and bandwidth anew, and some layers, forward and backward, in float32."""
    machine = nc.this_machine("float32", fresh=True)
    results = [_measure(layer, options) for layer in LAYERS]
    if options.json:
        roofs = {"flops_per_second": machine.flops_per_second, "bytes_per_second": machine.bytes_per_second}
        print(json.dumps({"machine": {"name": machine.name, **roofs}, "layers": results}, indent=2))
        return
    print(f"{machine.name}: {amount(machine.flops_per_second, 'FLOP/s')}, {amount(machine.bytes_per_second, 'B/s')}")
    print(f"{'':<30}{'algorithm':<11}{'forward':>11}{'of peak':>9}{'backward':>11}")
    for result in results:
        share = 2 * result["macs"] / result["forward_seconds"] / machine.flops_per_second
        times = f"{duration(result['forward_seconds']):>11}{share:>9.0%}{duration(result['backward_seconds']):>11}"
        print(f"{result['layer']:<30}{result['algorithm']:<11}{times}")
    print("Shares count the direct method's operations; Winograd needs fewer, and may pass the peak.")


def _measure(layer: tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], options: Any) -> dict[str, Any]:
    name, x_shape, w_shape, arguments = layer
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    plan = nc.plan(x_shape, w_shape, **arguments, backend=options.backend)
    y, pullback = nc.conv_vjp(x, w, **arguments, backend=options.backend)
    forward = _median(lambda: nc.conv(x, w, **arguments, backend=options.backend), options.seconds / 2)
    backward = _median(lambda: pullback(y), options.seconds / 2)
    return {
        "layer": name,
        "algorithm": plan.algorithm,
        "macs": plan.macs,
        "forward_seconds": forward,
        "backward_seconds": backward,
    }


def _median(job: Any, budget: float) -> float:
    job()
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
