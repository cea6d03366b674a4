"""npconv against PyTorch on every layer of the table: forward, float32, one core, medians of one run.

``python -m benchmarks.compare`` needs PyTorch and prints the ratio of the times: above 1, npconv is the faster one.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import npconv as nc
from benchmarks.layers import LAYERS, Layer


def milliseconds(job: Callable[[], object], seconds: float) -> float:
    """Median time of a job that has run once before."""
    job()
    times = []
    deadline = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < deadline:
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def compare(layer: Layer, seconds: float) -> tuple[float, float]:
    """Milliseconds of npconv, with its weights packed, and of PyTorch."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (layer.x_shape, layer.w_shape))
    packed = nc.plan(layer.x_shape, layer.w_shape, **layer.options, threads=1).pack(w)
    function = getattr(torch.nn.functional, f"conv{len(layer.size)}d")
    image, weights = torch.from_numpy(x), torch.from_numpy(w)
    with torch.inference_mode():
        theirs = milliseconds(lambda: function(image, weights, **layer.options), seconds)
    return milliseconds(lambda: packed(x), seconds), theirs


def main(seconds: float = 0.3) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    print(f"{'':<22}{'npconv':>10}{'PyTorch ' + torch.__version__:>18}{'ratio':>8}")
    ratios = []
    for layer in LAYERS:
        ours, theirs = compare(layer, seconds)
        ratios.append(theirs / ours)
        print(f"{layer.name:<22}{ours:>7.2f} ms{theirs:>15.2f} ms{theirs / ours:>8.2f}")
    print(f"{'geometric mean':<22}{statistics.geometric_mean(ratios):>36.2f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.3)
