"""A virtual array larger than memory through `npconv.dask`, on a cluster of processes: time, memory, and how it scales.

``python -m benchmarks.dask_scale --gigabytes 20 --workers 1 2`` makes the array block by block while it is convolved,
keeps one number of every block of the result, and checks some places against a convolution of their surroundings. It
prints seconds and the largest resident memory of each process, and with ``--picture`` draws the measured times and
Amdahl's law through the first two of them.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

SIDE = 1000
"""Of a chunk of the image: 4 MB of float32."""


def pattern(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 76, so that sums are exact, which anybody can compute anywhere."""
    return np.add.outer((rows * 7 % 31).astype(np.float32), (columns * 13 % 47).astype(np.float32))


def block_of_pattern(block_info=None) -> np.ndarray:
    (_, _, (top, bottom), (left, right)) = block_info[None]["array-location"]
    return pattern(np.arange(top, bottom), np.arange(left, right))[None, None]


def peak() -> float:
    """Largest resident memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run(gigabytes: float, workers: int) -> tuple[float, list[float]]:
    """Seconds that it took, and the peak memory of the client and of every worker in GB."""
    import dask
    import dask.array as da
    from distributed import Client, LocalCluster

    import npconv as nc

    per_side = max(1, round((gigabytes * 1e9 / 4) ** 0.5 / SIDE))
    size = per_side * SIDE
    w = np.random.default_rng(0).integers(-2, 3, (8, 1, 5, 5)).astype(np.float32)
    x = da.map_blocks(
        block_of_pattern, chunks=((1,), (1,), (SIDE,) * per_side, (SIDE,) * per_side), dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )  # fmt: skip
    y = nc.dask.conv(x, w, stride=2, padding=2)
    largest = y.map_blocks(lambda b: b.max((2, 3), keepdims=True), chunks=(1, 8, 1, 1), dtype=np.float32).max((2, 3))
    places = [size // 4 + 1, SIDE // 2 - 1, SIDE // 2]  # the latter two lie on either side of a chunk's edge
    # No worker makes blocks that nobody asks for yet.
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
        LocalCluster(workers, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(lambda: nc.set_num_threads(1))
        start = time.perf_counter()
        found = largest.compute()
        seconds = time.perf_counter() - start
        samples = [y[0, :, p, p].compute() for p in places]
        memory = [peak(), *client.run(peak).values()]
    assert found.shape == (1, 8)
    for p, sample in zip(places, samples, strict=True):
        around = np.arange(2 * p - 2, 2 * p + 3)
        np.testing.assert_array_equal(sample, nc.conv(pattern(around, around)[None, None], w)[0, :, 0, 0])
    print(f"{4 * size**2 / 1e9:.1f} GB, {workers} workers: {seconds:.1f} s, peak of client and workers in GB:",
          ", ".join(f"{m:.2f}" for m in memory), flush=True)  # fmt: skip
    return seconds, memory


def draw(path: Path, gigabytes: float, times: dict[int, float]) -> None:
    """Measured speed-ups, and what Amdahl's law makes of the first two."""
    from matplotlib.figure import Figure

    (one, first), (several, second), *_ = sorted(times.items())
    # first = serial + work / one, second = serial + work / several
    work = (first - second) / (1 / one - 1 / several)
    serial = max(0.0, first - work / one)
    figure = Figure((5, 3.4), layout="constrained")
    axes = figure.subplots()
    counts = np.arange(1, 17)
    alone = serial + work
    axes.plot(counts, counts, color="0.8", label="ideal")
    axes.plot(counts, alone / (serial + work / counts), "--", label=f"modelled: {100 * serial / alone:.0f} % serial")
    axes.plot(list(times), [alone / t for t in times.values()], "o", label="measured")
    axes.set(xlabel="worker processes", ylabel="speed-up", title=f"5x5, 1 to 8 channels, stride 2, {gigabytes:g} GB")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    times = {workers: run(arguments.gigabytes, workers)[0] for workers in arguments.workers}
    if arguments.picture is not None and len(times) > 1:
        draw(arguments.picture, arguments.gigabytes, times)


if __name__ == "__main__":
    main()
