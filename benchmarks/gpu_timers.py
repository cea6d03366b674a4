"""How long work takes on a GPU: with a cold L2 cache, and many calls in one graph where a call can be captured.

A call of a few microseconds takes longer to ask for than to do, and finds its operands in the cache that the call
before left. So calls are captured into a graph, each behind a write that empties the cache; the time of a graph of
these writes alone is subtracted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Protocol

Work = Callable[[], Any]

EMPTYING = 256 * 2**20
"""Bytes written to empty the cache: several times the largest L2."""

LONG = 2e-3
"""Seconds from which on a call is timed by itself: what asking for it costs no longer shows."""

ROUNDS = 7


class Timer(Protocol):
    """One library's stream, events and graphs."""

    def chill(self) -> None:
        """Empty the cache."""

    def elapsed(self, work: Work) -> float:
        """Seconds on the device between two events around the work, which is waited for."""

    def captured(self, work: Work) -> Work:
        """The work as a graph's launch; raises where it cannot be captured."""


class CupyTimer:
    """See `Timer`."""

    def __init__(self) -> None:
        import cupy

        # Every stream has memory of its own to use again; that of earlier contestants is of no more use.
        cupy.get_default_memory_pool().free_all_blocks()
        self.cuda, self.stream = cupy.cuda, cupy.cuda.Stream(non_blocking=True)
        self.waste = cupy.empty(EMPTYING, "uint8")
        cupy.cuda.runtime.deviceSynchronize()

    def chill(self) -> None:
        with self.stream:
            self.waste.fill(0)

    def elapsed(self, work: Work) -> float:
        first, last = self.cuda.Event(), self.cuda.Event()
        with self.stream:
            first.record()
            work()
            last.record()
        last.synchronize()
        return self.cuda.get_elapsed_time(first, last) / 1e3

    def captured(self, work: Work) -> Work:
        with self.stream:
            self.stream.begin_capture()
            try:
                work()
            finally:
                graph = self.stream.end_capture()
        return lambda: graph.launch(self.stream)


class TorchTimer:
    """See `Timer`."""

    def __init__(self) -> None:
        import torch

        torch.cuda.empty_cache()
        self.cuda, self.stream = torch.cuda, torch.cuda.Stream()
        self.waste = torch.empty(EMPTYING, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()

    def chill(self) -> None:
        with self.cuda.stream(self.stream):
            self.waste.zero_()

    def elapsed(self, work: Work) -> float:
        first, last = (self.cuda.Event(enable_timing=True) for _ in range(2))
        with self.cuda.stream(self.stream):
            first.record()
            work()
            last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def captured(self, work: Work) -> Work:
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph, stream=self.stream):
            work()
        return graph.replay


def seconds(timer: Timer, work: Work) -> tuple[float, str]:
    """The median time of a call, and how it was taken: in a "graph" or between "events", and then why."""
    for _ in range(3):
        timer.elapsed(work)
    once = _between_events(timer, work)
    if once >= LONG:
        return once, "events"
    try:
        return _in_graphs(timer, work, max(1, min(20, int(LONG / max(once, 1e-6))))), "graph"
    except Exception as error:  # each library has its own, and a call that waits for the device ends in one of them
        return once, f"events: {type(error).__name__} when captured"


def _between_events(timer: Timer, work: Work) -> float:
    def round_() -> float:
        timer.chill()
        return timer.elapsed(work)

    return statistics.median(round_() for _ in range(ROUNDS))


def _in_graphs(timer: Timer, work: Work, calls: int) -> float:
    def chilled() -> None:
        for _ in range(calls):
            timer.chill()
            work()

    def alone() -> None:
        for _ in range(calls):
            timer.chill()

    both, empty = timer.captured(chilled), timer.captured(alone)
    timer.elapsed(both)
    times = [timer.elapsed(both) - timer.elapsed(empty) for _ in range(ROUNDS)]
    return max(statistics.median(times), 1e-9) / calls
