"""Contestants in processes of their own, of which one at a time has something to do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent
# Threads of some libraries wait for the next call by running in circles, for up to this long.
COOL_DOWN = 0.25


def pin(threads: int) -> None:
    """Bind this process and all that it starts to as many cores as it will use threads.

    Raises
    ------
    ValueError
        If there are fewer cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if len(cores) < threads:
        raise ValueError(f"{threads} threads need as many cores, and this process may use {len(cores)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(cores[:threads]))


def environment(threads: int) -> dict[str, str]:
    """What libraries read when they start: the number of threads, each under its own name."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    return {**os.environ, **dict.fromkeys(names, str(threads)), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


class Failed(Exception):  # noqa: N818
    """A contestant could not do what it was asked; the message is its own."""


class Worker:
    """One contestant; its process starts with the first question, and anew after it has died."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, verb: str, value: Any) -> Any:
        """The contestant's answer.

        Raises
        ------
        Failed
            If it has none.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((verb, value), process.stdin)
            process.stdin.flush()
            done, reply = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            code = process.wait()
            self.close()
            raise Failed(f"its process ended with status {code}") from error
        if self.threads > 1:
            time.sleep(COOL_DOWN)
        if not done:
            raise Failed(reply)
        return reply

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.peers", self.name]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, env=environment(self.threads))
        return self._process
