"""A virtual array larger than memory through `npconv.dask`, on a cluster of processes: memory, time, and how it scales.

The array is made block by block while it is convolved; one number of every block of the result is kept, and some places
are checked against a convolution of their surroundings.

``python -m benchmarks.dask_scale memory --gigabytes 20`` runs once and records the largest memory of all processes
together: the client with the scheduler, and the workers. It may run beside anything else.

``python -m benchmarks.dask_scale times`` convolves short slices of such an array by one worker, by two, by one again,
and so on, so that whatever else the machine does meets all of them alike. It gives medians, the lowest and the highest,
and draws the measured speed-ups beside what follows for more workers from the processor time of the scheduler, of which
there is one: something between all of it at once with the workers' and one after the other.

``--write`` keeps a table, and the picture, in benchmarks/results/, from where the documentation takes them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

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


class Times(NamedTuple):
    """Seconds that a slice took, and of processor time: of the client with the scheduler, and of all workers."""

    seconds: float
    scheduler: float
    workers: float


@contextlib.contextmanager
def cluster_of(workers: int) -> Iterator[Any]:
    """The client of a cluster of processes on this machine, of one thread each."""
    import dask
    from distributed import Client, LocalCluster

    import npconv as nc

    # No worker makes blocks that nobody asks for yet.
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(lambda: nc.set_num_threads(1))
        yield client


def size_of(gigabytes: float, side: int) -> int:
    """The height and width of an array of about so many gigabytes, in whole chunks."""
    return max(1, round((gigabytes * 1e9 / 4) ** 0.5 / side)) * side


def convolve(client: Any, size: int, side: int, workers: list[str] | None = None) -> None:
    """Convolve the virtual array on some workers, all by default, and check some places of the result."""
    import dask.array as da

    import npconv as nc

    w = np.random.default_rng(0).integers(-2, 3, (8, 1, 5, 5)).astype(np.float32)
    chunks = ((1,), (1,), (side,) * (size // side), (side,) * (size // side))
    x = da.map_blocks(block_of_pattern, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, np.float32))
    y = nc.dask.conv(x, w, stride=2, padding=2)
    largest = y.map_blocks(lambda b: b.max((2, 3), keepdims=True), chunks=(1, 8, 1, 1), dtype=np.float32).max((2, 3))
    places = [size // 4 + 1, side // 2 - 1, side // 2]  # the latter two lie on either side of a chunk's edge
    asked = client.compute([largest, *(y[0, :, p, p] for p in places)], workers=workers)
    found, *samples = client.gather(asked)
    assert found.shape == (1, 8)
    for p, sample in zip(places, samples, strict=True):
        around = np.arange(2 * p - 2, 2 * p + 3)
        np.testing.assert_array_equal(sample, nc.conv(pattern(around, around)[None, None], w)[0, :, 0, 0])


def memory(gigabytes: float, side: int, workers: int) -> str:
    """Convolve once, and say how much memory it took."""
    size = size_of(gigabytes, side)
    with cluster_of(workers) as client, Memory() as held:
        convolve(client, size, side)
    parts = ", ".join(f"{part:.2f}" for part in held.parts)
    return (
        f"{_about()} {4e-9 * size**2:.1f} GB of float32 in chunks of {_chunk(side)}, {WHAT}, on {workers} workers of "
        f"one thread: at most **{held.most:.2f} GB** in all processes together ({parts})."
    )


def times(gigabytes: float, side: int, counts: list[int], repeats: int) -> dict[int, list[Times]]:
    """Convolve slices by one count of workers after the other, again and again."""
    size = size_of(gigabytes, side)
    found: dict[int, list[Times]] = {count: [] for count in counts}
    with cluster_of(max(counts)) as client:
        names = list(client.scheduler_info()["workers"])

        def clocks() -> tuple[float, float, float]:
            return time.perf_counter(), time.process_time(), sum(client.run(time.process_time).values())

        convolve(client, size, side)  # compiles, and fills what is filled once
        for _ in range(repeats):
            for count in counts:
                begun = clocks()
                convolve(client, size, side, names[:count])
                found[count].append(Times(*(b - a for a, b in zip(begun, clocks(), strict=True))))
    return found


def medians(runs: list[Times]) -> Times:
    """The median of each figure."""
    return Times(*(statistics.median(figures) for figures in zip(*runs, strict=True)))


def speed_ups(runs: dict[int, list[Times]], count: int) -> tuple[float, float, float]:
    """Of so many workers over one: the median over all rounds, the lowest and the highest."""
    each = [one.seconds / it.seconds for one, it in zip(runs[1], runs[count], strict=True)]
    return statistics.median(each), min(each), max(each)


def draw(path: Path, title: str, runs: dict[int, list[Times]]) -> None:
    """Measured speed-ups over one worker, and what processor times leave for more of them."""
    from matplotlib.figure import Figure

    one, counts = medians(runs[1]), np.arange(1, 17)
    figure = Figure((5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(counts, counts, color="0.8", label="ideal")
    most = one.seconds / np.maximum(one.scheduler, one.seconds / counts)
    least = one.seconds / (one.scheduler + (one.seconds - one.scheduler) / counts)
    axes.fill_between(counts, least, most, alpha=0.3, label="modelled: scheduler waits, or works meanwhile")
    middle, low, high = np.transpose([speed_ups(runs, count) for count in runs])
    axes.errorbar(
        list(runs), middle, [middle - low, high - middle], fmt="o", capsize=3, label="measured: median, lowest, highest"
    )
    axes.set(xlabel="worker processes", ylabel="speed-up", title=title)
    axes.legend()
    figure.savefig(path, dpi=110)


WHAT = "5x5, 1 to 8 channels, stride 2"
HEAD = ["workers", "seconds (lowest to highest)", "speed-up (lowest to highest)", "processor time of the scheduler",
        "of the workers"]  # fmt: skip


def table(runs: dict[int, list[Times]], gigabytes: float, side: int) -> str:
    """What ``times --write`` keeps."""
    rows = []
    for count, each in runs.items():
        middle, seconds = medians(each), [it.seconds for it in each]
        speed = "{:.2f} ({:.2f} to {:.2f})".format(*speed_ups(runs, count))
        took = f"{middle.seconds:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        rows.append([str(count), took, speed, f"{middle.scheduler:.1f} s", f"{middle.workers:.1f} s"])
    array = 4e-9 * size_of(gigabytes, side) ** 2
    return (
        f"# Larger than memory: how it scales\n\n{_about()} Slices of {array:.2f} GB of float32 in chunks of "
        f"{_chunk(side)}, {WHAT}; medians of {len(runs[1])} rounds.\n\n{grid(HEAD, rows)}\n"
    )


def _about() -> str:
    return f"An {machine()}, {os.cpu_count()} cores; {versions(['npconv', 'dask', 'distributed', 'numpy'])}."


def _chunk(side: int) -> str:
    return f"{4e-6 * side**2:g} MB"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dask_scale", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["memory", "times"])
    parser.add_argument("--gigabytes", type=float, help="of the array; 20, and 0.4 where it is timed")
    parser.add_argument("--side", type=int, default=1000, help="of a chunk; 1000 are 4 MB")
    parser.add_argument("--workers", type=int, nargs="+", help="processes; 2, and 1 2 where they are compared")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of times")
    parser.add_argument("--write", action="store_true", help="keep the table, and the picture")
    options = parser.parse_args(arguments)
    timed = options.what == "times"
    options.gigabytes = options.gigabytes or (0.4 if timed else 20.0)
    options.workers = options.workers or ([1, 2] if timed else [2])
    if timed and options.workers[0] != 1:
        parser.error("times are compared with those of one worker, the first: --workers 1 2")
    if not timed and len(options.workers) != 1:
        parser.error("memory takes one number of workers")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.what == "memory":
        text = (
            f"# Larger than memory: how much it takes\n\n{memory(options.gigabytes, options.side, *options.workers)}\n"
        )
        path = RESULTS / "dask-memory.md"
    else:
        runs = times(options.gigabytes, options.side, options.workers, options.repeat)
        text, path = table(runs, options.gigabytes, options.side), RESULTS / "dask-scale.md"
        if options.write:
            draw(path.with_suffix(".png"), f"{WHAT}, chunks of {_chunk(options.side)}", runs)
    print(text)
    if options.write:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
