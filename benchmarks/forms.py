"""How fast each form runs on each backend: GFLOP/s (2 per multiply-accumulate) of one core, float32, forward.

``python -m benchmarks.forms`` prints a row a layer and the median a form; `npconv.machine.SUSTAINED` follows them.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

import npconv as nc
from benchmarks.layers import LAYERS, Layer

FORMS = [(b, a) for b in ("numpy", "numba") for a in ("pointwise", "depthwise", "direct", "im2col")]


def rate(layer: Layer, backend: str, algorithm: str, seconds: float) -> float | None:
    """Median GFLOP/s, or None where the form cannot run the layer."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (layer.x_shape, layer.w_shape))
    try:
        plan = nc.plan(layer.x_shape, layer.w_shape, **layer.options, backend=backend, algorithm=algorithm, threads=1)
    except ValueError:
        return None
    packed = plan.pack(w)
    packed(x)
    times = []
    deadline = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        packed(x)
        times.append(time.perf_counter() - start)
    return plan.flops / statistics.median(times) / 1e9


@threadpool_limits.wrap(limits=1)  # NumPy's matrix product too
def main(seconds: float = 0.3) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'GFLOP/s, one core':<36}" + "".join(f"{b + ' ' + a:>17}" for b, a in FORMS))
    rates: dict[tuple[str, str], list[float]] = {form: [] for form in FORMS}
    for layer in LAYERS:
        row = {form: rate(layer, *form, seconds) for form in FORMS}
        for form, value in row.items():
            rates[form] += [value] if value is not None else []
        print(f"{layer.name:<36}" + "".join(f"{'-' if v is None else f'{v:.1f}':>17}" for v in row.values()))
    print(f"{'median':<36}" + "".join(f"{statistics.median(rates[form]):17.1f}" for form in FORMS))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.3)
