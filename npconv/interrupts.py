"""What Ctrl-C must not cut off half-way: a library that is half imported, or a function half compiled, stays broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def to_the_end(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function that no signal interrupts.

    Signals reach the main thread alone, so from there another thread calls. An interrupt comes through at once, and
    what was begun goes on by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)
    from concurrent.futures import ThreadPoolExecutor

    other = ThreadPoolExecutor(1)
    try:
        future = other.submit(function, *arguments)
    except RuntimeError:
        # The interpreter is shutting down and starts no more threads.
        return function(*arguments)
    try:
        return future.result()
    finally:
        other.shutdown(wait=False)
