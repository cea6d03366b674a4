"""How a loop is spread over cores: serial compiled kernels, each on a range of independent tasks, in a pool of threads.

A kernel takes ``(start, stop, *arguments)``, runs the tasks in between without the interpreter's lock, and no two tasks
write the same byte. So any division of the tasks gives the same bits. Plain threads rather than a parallel loop inside
compiled code: nothing here aborts when two Python threads call at once, or when a process forks, as some of Numba's
threading layers do; every kernel compiles once and serially. The caller asks for helpers and begins at once; they join
when they have been woken, some 20 to 50 microseconds later, so small work stays in the calling thread.

Python looks at signals between two of its own instructions only, and compiled code has none. So a long run is cut into
slices of a fraction of a second, and a kernel whose tasks may themselves be long looks at a flag that the waiting main
thread sets. Ctrl-C, or whatever a signal's handler raises, comes through soon, and never while a worker still writes.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from npconv.config import get_num_threads

# Multiply-adds (or elements moved) below which a second thread does not pay for being woken.
WORTH_A_THREAD = 200_000

# Multiply-adds that are done without looking up: a millisecond of the fastest loops, half a second of the slowest.
SLICE_OF_WORK = 2**25

# The same for loops on register tiles, which do them in some ten milliseconds: every slice lays out anew the part of
# the image that it begins in.
TILE_SLICE = 2**28

# Seconds below which the next slice is made twice as long.
SHORT_SLICE = 0.05

_lock = threading.RLock()  # a signal's handler, or a collected object, may convolve while this very thread holds it
_asked: SimpleQueue[_Shares] = SimpleQueue()
_helpers = 0  # threads that wait for what is asked


def most_parts(work: int) -> int:
    """Number of threads above which so many multiply-adds do not pay."""
    return max(1, work // WORTH_A_THREAD)


def run(
    kernel: Callable[..., None],
    tasks: int,
    work: int,
    *arguments: Any,
    limit: int | None = None,
    stoppable: bool = False,
    at_once: int = SLICE_OF_WORK,
) -> None:
    """Run `kernel` over all tasks.

    Parameters
    ----------
    kernel : compiled function
        Called as ``kernel(start, stop, *arguments)``.
    tasks : int
        Number of independent tasks.
    work : int
        About how many multiply-adds there are in all.
    limit : int, optional
        Number of threads; by default what `npconv.get_num_threads` says.
    stoppable : bool
        The kernel takes one more argument, a table of one integer, and returns early once that is not 0: for kernels
        of which a single task may take long.
    at_once : int
        Multiply-adds that are done without looking up.
    """
    limit = get_num_threads() if limit is None else limit
    parts = max(1, min(limit, tasks, most_parts(work)))
    if parts == 1 and work <= at_once:
        kernel(0, tasks, *arguments, *((_NEVER,) if stoppable else ()))
        return
    shares = _Shares(kernel, tasks, parts, max(1, tasks * at_once // max(1, work)), arguments, stoppable)
    if hasattr(kernel, "overloads"):
        shares.compile()
    # Signals come to the main thread alone, which must not be inside a long task then.
    waits = stoppable and work > at_once * tasks and threading.current_thread() is threading.main_thread()
    wanted = parts if waits else parts - 1
    try:
        if _ask(shares, wanted) < wanted or not waits:
            shares.work()
        shares.wait()
    except BaseException:
        shares.give_up()
        raise
    finally:
        error = shares.close()
    if error is not None:
        try:
            raise error
        finally:
            del error  # which holds this frame, and so the arrays


def prepared(
    kernel: Callable[..., None],
    tasks: int,
    work: int,
    limit: int | None = None,
    stoppable: bool = False,
    at_once: int = SLICE_OF_WORK,
) -> Callable[..., None]:
    """`run` for many calls: what takes the arguments of `kernel` that come after the tasks."""
    if work <= at_once and (tasks == 1 or limit == 1 or most_parts(work) == 1):
        if stoppable:
            return lambda *arguments: kernel(0, tasks, *arguments, _NEVER)
        return functools.partial(kernel, 0, tasks)
    return functools.partial(run, kernel, tasks, work, limit=limit, stoppable=stoppable, at_once=at_once)


class _Shares:
    """The tasks of a run in equal shares, each done slice by slice, until none is left or somebody says stop.

    Whoever works takes the next share. So a helper that could not be started leaves nothing undone, and one that comes
    late, after the result was handed over, finds nothing to do.
    """

    def __init__(
        self,
        kernel: Callable[..., None],
        tasks: int,
        count: int,
        step: int,
        arguments: tuple[Any, ...],
        stoppable: bool,
    ) -> None:
        self._kernel, self._step = kernel, step
        self._left = deque(itertools.pairwise(tasks * part // count for part in range(count + 1)))
        self._stopped = np.zeros(1, np.int64)
        self._arguments = (*arguments, _read_only(self._stopped)) if stoppable else arguments
        self._lock, self._helping, self._left_alone = threading.Lock(), 0, SimpleQueue[None]()
        self._error: BaseException | None = None

    def compile(self) -> None:
        """Have a kernel that is compiled when first called compiled now: nobody can be interrupted who waits for it."""
        self._kernel(0, 0, *self._arguments)

    def stop(self) -> None:
        """Begin no more slices."""
        self._left.clear()
        self._stopped[0] = 1

    def work(self) -> None:
        """Do one share after the other."""
        while self._left:
            try:
                first, last = self._left.popleft()
            except IndexError:  # somebody was faster
                return
            step = self._step
            while first < last and not self._stopped[0]:
                end, begun = min(last, first + step), time.perf_counter()
                self._kernel(first, end, *self._arguments)
                if time.perf_counter() - begun < SHORT_SLICE:
                    step *= 2
                first = end

    def help(self) -> None:
        """Work in another thread than the caller's. Who helps is counted before a share is taken: see `wait`."""
        with self._lock:
            self._helping += 1
        try:
            self.work()
        except BaseException as error:
            self._error = error
            self.stop()
        with self._lock:
            self._helping -= 1
            if not self._helping:
                self._left_alone.put(None)

    def wait(self) -> None:
        """Until no share is left, and nobody helps any more."""
        while self._left or self._helping:
            self._left_alone.get()

    def give_up(self) -> None:
        """Stop and wait, also when interrupted again: nobody may go on while a helper still writes into the arrays."""
        while True:
            try:
                self.stop()
                return self.wait()
            except BaseException:  # the first one is on its way already
                continue

    def close(self) -> BaseException | None:
        """Let go of the arrays, for helpers who are busy elsewhere hear of this run later; returns what one raised."""
        self._arguments = ()
        error, self._error = self._error, None
        return error


def _ask(shares: _Shares, count: int) -> int:
    """Ask so many helpers, who are started when they are first needed; returns how many there are to hear it."""
    global _helpers
    if sys.is_finalizing():
        return 0  # no other thread runs any more, and to start one would wait for ever
    if _helpers < count:
        with _lock:
            try:
                while _helpers < count:
                    threading.Thread(target=_help, args=(_asked,), name="npconv", daemon=True).start()
                    _helpers += 1
            except (RuntimeError, MemoryError):
                # No more threads can be started: the interpreter is about to end, or a limit is reached.
                count = _helpers
    for _ in range(count):
        _asked.put(shares)
    return count


def _help(asked: SimpleQueue[_Shares]) -> None:
    """What a helper does all its life."""
    while True:
        asked.get().help()  # without a name, which would keep its arrays until somebody asks again


def _read_only(table: Any) -> Any:
    view = table.view()
    view.flags.writeable = False
    return view


_NEVER = _read_only(np.zeros(1, np.int64))
"""What a kernel looks at that nobody stops."""


def _forget() -> None:
    """A forked child has none of its parent's threads, and may have inherited a locked lock."""
    global _lock, _asked, _helpers
    _lock, _asked, _helpers = threading.RLock(), SimpleQueue(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
