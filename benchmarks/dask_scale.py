"""A virtual array larger than memory through `npconv.dask`, on a cluster of processes: time, memory, and how it scales.

``python -m benchmarks.dask_scale --gigabytes 20 --workers 1 2`` makes the array block by block while it is convolved,
keeps one number of every block of the result, and checks some places against a convolution of their surroundings. It
prints seconds, and the largest memory of all processes together: the client with the scheduler, and the workers.
``--write`` keeps the table in benchmarks/results/, from where the documentation takes it, and a picture of the measured
times, with what follows for more workers from the processor time of one worker and of the scheduler, of which there is
one: something between all of it at once and one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from benchmarks.tables import grid, machine, versions
from benchmarks.workers import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def pattern(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 76, so that sums are exact, which anybody can compute anywhere."""
    return np.add.outer((rows * 7 % 31).astype(np.float32), (columns * 13 % 47).astype(np.float32))


def block_of_pattern(block_info=None) -> np.ndarray:
    (_, _, (top, bottom), (left, right)) = block_info[None]["array-location"]
    return pattern(np.arange(top, bottom), np.arange(left, right))[None, None]


class Memory:
    """The largest sum, over this process and its children, of what they hold in memory while this is entered.

    Proportional set size (PSS): a page that several processes share is counted once. Looked at some times a second.
    """

    def __enter__(self) -> Memory:
        self.most = 0.0
        self.parts: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil  # distributed needs it

        this = psutil.Process()
        while not self._over.wait(0.25):
            parts = []
            for process in (this, *this.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                    parts.append(process.memory_full_info().pss / 1e9)
            if sum(parts) > self.most:
                self.most, self.parts = sum(parts), parts


class Run(NamedTuple):
    """Seconds that it took, and of processor time of the client with the scheduler and of all workers; then gigabytes.

    Those are of the array, and the most that all processes held in memory.
    """

    seconds: float
    scheduler: float
    workers: float
    array: float
    held: float


def run(gigabytes: float, side: int, workers: int) -> Run:
    import dask
    import dask.array as da
    from distributed import Client, LocalCluster

    import npconv as nc

    per_side = max(1, round((gigabytes * 1e9 / 4) ** 0.5 / side))
    size = per_side * side
    w = np.random.default_rng(0).integers(-2, 3, (8, 1, 5, 5)).astype(np.float32)
    x = da.map_blocks(
        block_of_pattern, chunks=((1,), (1,), (side,) * per_side, (side,) * per_side), dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )  # fmt: skip
    y = nc.dask.conv(x, w, stride=2, padding=2)
    largest = y.map_blocks(lambda b: b.max((2, 3), keepdims=True), chunks=(1, 8, 1, 1), dtype=np.float32).max((2, 3))
    places = [size // 4 + 1, side // 2 - 1, side // 2]  # the latter two lie on either side of a chunk's edge
    # No worker makes blocks that nobody asks for yet.
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(lambda: nc.set_num_threads(1))
        begun = time.perf_counter(), time.process_time(), sum(client.run(time.process_time).values())
        with Memory() as memory:
            found, *samples = dask.compute(largest, *(y[0, :, p, p] for p in places))
        ended = time.perf_counter(), time.process_time(), sum(client.run(time.process_time).values())
    took = Run(*(b - a for a, b in zip(begun, ended, strict=True)), 4 * size**2 / 1e9, memory.most)
    assert found.shape == (1, 8)
    for p, sample in zip(places, samples, strict=True):
        around = np.arange(2 * p - 2, 2 * p + 3)
        np.testing.assert_array_equal(sample, nc.conv(pattern(around, around)[None, None], w)[0, :, 0, 0])
    print(f"{took.array:.1f} GB, {workers} workers: {took.seconds:.1f} s, processor time of "
          f"scheduler {took.scheduler:.1f} s, of workers {took.workers:.1f} s, at most {memory.most:.2f} GB in all: "
          f"{', '.join(f'{part:.2f}' for part in memory.parts)}", flush=True)  # fmt: skip
    return took


def draw(path: Path, title: str, runs: dict[int, Run]) -> None:
    """Measured speed-ups over one worker, and what processor times leave for more of them."""
    from matplotlib.figure import Figure

    one, counts = runs[1], np.arange(1, 17)
    figure = Figure((5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(counts, counts, color="0.8", label="ideal")
    most = one.seconds / np.maximum(one.scheduler, one.seconds / counts)
    least = one.seconds / (one.scheduler + (one.seconds - one.scheduler) / counts)
    axes.fill_between(counts, least, most, alpha=0.3, label="modelled: scheduler waits, or works meanwhile")
    axes.plot(list(runs), [one.seconds / it.seconds for it in runs.values()], "o", label="measured")
    axes.set(xlabel="worker processes", ylabel="speed-up", title=title)
    axes.legend()
    figure.savefig(path, dpi=110)


HEAD = ["workers", "seconds", "speed-up", "processor time of the scheduler", "of the workers", "most memory in all"]


def table(runs: dict[int, Run], side: int) -> str:
    """What ``--write`` keeps."""
    one = next(iter(runs.values()))
    about = f"An {machine()}, {os.cpu_count()} cores; {versions(['npconv', 'dask', 'distributed', 'numpy'])}."
    what = f"{one.array:.1f} GB of float32 in chunks of {4e-6 * side**2:g} MB, 5x5, 1 to 8 channels, stride 2:"
    rows = (
        [str(workers), f"{it.seconds:.0f}", f"{one.seconds / it.seconds:.2f}", f"{it.scheduler:.0f} s",
         f"{it.workers:.0f} s", f"{it.held:.2f} GB"]
        for workers, it in runs.items()
    )  # fmt: skip
    return f"# Larger than memory\n\n{about} {what}\n\n{grid(HEAD, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--side", type=int, default=1000, help="of a chunk; 1000 are 4 MB")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--write", action="store_true", help="keep the table and the picture")
    arguments = parser.parse_args()
    if arguments.write and arguments.workers[0] != 1:
        parser.error("--write compares with one worker, the first: --workers 1 2")
    runs = {workers: run(arguments.gigabytes, arguments.side, workers) for workers in arguments.workers}
    if arguments.write:
        chunk = f"{4e-6 * arguments.side**2:g} MB"
        draw(RESULTS / "dask-scale.png", f"5x5, 1 to 8 channels, stride 2, chunks of {chunk}", runs)
        (RESULTS / "dask-scale.md").write_text(table(runs, arguments.side), encoding="utf-8")


if __name__ == "__main__":
    main()
