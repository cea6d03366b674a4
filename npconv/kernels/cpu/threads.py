"""How a loop is spread over cores: serial compiled kernels, each on a range of independent tasks, in a pool of threads.

A kernel takes ``(start, stop, *arguments)``, runs the tasks in between without the interpreter's lock, and no two tasks
write the same byte. So any division of the tasks gives the same bits. Plain threads rather than a parallel loop inside
compiled code: nothing here aborts when two Python threads call at once, or when a process forks, as some of Numba's
threading layers do; every kernel compiles once and serially. The price is some 30 microseconds a launch, so small
work stays in the calling thread.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from npconv.config import get_num_threads

# Multiply-adds (or elements moved) below which a second thread does not pay for being woken.
WORTH_A_THREAD = 200_000

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def most_parts(work: int) -> int:
    """Number of threads above which so many multiply-adds do not pay."""
    return max(1, work // WORTH_A_THREAD)


def run(kernel: Callable[..., None], tasks: int, work: int, *arguments: Any, limit: int | None = None) -> None:
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
    """
    limit = get_num_threads() if limit is None else limit
    parts = max(1, min(limit, tasks, most_parts(work)))
    bounds = [tasks * part // parts for part in range(parts + 1)]
    futures: list[Future[None]] = []
    try:
        for first, last in itertools.pairwise(bounds[1:]):
            futures.append(_workers(parts - 1).submit(kernel, first, last, *arguments))
    except RuntimeError:
        # The interpreter is shutting down and starts no more threads: what is left is done here.
        kernel(bounds[1 + len(futures)], tasks, *arguments)
    try:
        kernel(bounds[0], bounds[1], *arguments)
    finally:
        # Also when interrupted: nobody may go on while a worker still writes into the arrays.
        for future in futures:
            future.result()


def _workers(count: int) -> ThreadPoolExecutor:
    """The process's pool, grown to `count` threads where it has fewer."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="npconv"), count
        return _pool


def _forget() -> None:
    """A forked child has none of its parent's threads, and may have inherited a locked lock."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
