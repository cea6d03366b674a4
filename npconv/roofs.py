"""The roofs of this machine: most multiply-accumulates and bytes from memory a second, measured once and remembered."""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npconv import config, disk
from npconv.arrays import available_backends, compute_dtype, supported_dtype
from npconv.machine import Machine, processor

ARRAY = 64 * 2**20
"""Bytes of the array that is copied: more than caches hold."""

SECONDS = 0.4
"""How long each of the two roofs is looked for."""

FORMAT, LARGEST = 1, 2**20
"""Of the file: its form, and bytes beyond which it is not ours."""

_lock = threading.Lock()
_remembered: dict[str, Machine] = {}


def this_machine(dtype: Any = "float32", threads: int | None = None, *, fresh: bool = False) -> Machine:
    """Measure what this machine can do at most, or recall it.

    The arithmetic is npconv's register tile on operands in the first-level cache (a matrix product where Numba is
    missing), the bandwidth that of a copy too large for caches; of either the fastest run counts. It takes about a
    second, besides compiling the tile once, and the answer is kept in the cache folder.

    Parameters
    ----------
    dtype : str or numpy.dtype
        float32 or float64; float16 is computed in float32 and has its arithmetic.
    threads : int, optional
        How many work at once; defaults to `npconv.get_num_threads`.
    fresh : bool
        Measure again, whatever is remembered.

    Returns
    -------
    npconv.machine.Machine

    Raises
    ------
    TypeError
        If the dtype is no real floating type.
    ValueError
        If `threads` is not a number of threads.

    Examples
    --------
    >>> import npconv as nc
    >>> here = nc.this_machine()
    >>> here.macs_per_second > 1e8, here.bytes_per_second > 1e8
    (True, True)
    """
    wide, threads = _checked(dtype, threads)
    with _lock:  # two at once would measure each other
        found = None if fresh else _recall(_key(wide, threads))
        if found is None:
            found = _measure(wide, threads)
            _keep(_key(wide, threads), found)
    return found


def remembered(dtype: Any, threads: int) -> Machine | None:
    """What `this_machine` measured before, here or in an earlier process; None where it has not, or cannot."""
    wide = compute_dtype(np.dtype(dtype))
    if wide.kind != "f":
        return None
    with _lock:
        return _recall(_key(wide, threads))


def _checked(dtype: Any, threads: int | None) -> tuple[np.dtype[Any], int]:
    wide = compute_dtype(supported_dtype("dtype", dtype))
    if wide.kind != "f":
        raise TypeError(f"dtype must be a real floating type, whose peak can be measured, got {dtype!r}")
    return wide, config.get_num_threads() if threads is None else config.thread_count("threads", threads)


def _measure(dtype: np.dtype[Any], threads: int) -> Machine:
    run: Callable[[], Any]
    if "numba" in available_backends():
        from npconv.kernels.cpu.burst import burst

        run, macs = burst(dtype, threads)
    else:
        side = 512
        a, c = np.ones((side, side), dtype), np.empty((side, side), dtype)
        run, macs = functools.partial(np.matmul, a, a, out=c), side**3
    name = f"this machine, {dtype}, {threads} thread{'s' if threads > 1 else ''}"
    return Machine(name, _figures(macs / _fastest(run)), _figures(_bandwidth(threads)))


def _figures(rate: float) -> float:
    return float(f"{rate:.4g}")


def _bandwidth(threads: int) -> float:
    """Bytes a second of copying an array, a part a thread; each byte is read and written."""
    from concurrent.futures import ThreadPoolExecutor

    source, target = np.ones(ARRAY // 8), np.zeros(ARRAY // 8)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return 2 * ARRAY / _fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))


def _fastest(run: Callable[[], Any]) -> float:
    """Time of the fastest of the runs that fit in `SECONDS`, after one that does not count."""
    run()
    best, deadline = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < deadline or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


# --------------------------------------------------------------------------------------------------------------------
# What is remembered
# --------------------------------------------------------------------------------------------------------------------


def _key(dtype: np.dtype[Any], threads: int) -> str:
    import npconv

    how = "numba" if "numba" in available_backends() else "numpy"
    return f"{processor()}, {how}, npconv {npconv.__version__}, {dtype}, {threads}"


def _path() -> Path | None:
    folder = config.cache_dir()
    return None if folder is None else folder / "roofs.json"


def _recall(key: str) -> Machine | None:
    if key not in _remembered:
        entry = _read(_path()).get(key)
        if entry is not None:
            _remembered[key] = Machine(*entry)
    return _remembered.get(key)


def _read(path: Path | None) -> dict[str, tuple[str, float, float]]:
    """The entries of the file; none where there is no file, or one that this cannot have written."""
    if path is None:
        return {}
    try:
        data = json.loads(disk.read(path, LARGEST))
        if data["format"] != FORMAT:
            raise ValueError("it was written by another version")
        found = {key: (str(name), float(macs), float(moved)) for key, (name, macs, moved) in data["machines"].items()}
        if not all(0 < rate < math.inf for _, *rates in found.values() for rate in rates):
            raise ValueError("a rate is no positive number")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        disk.warn_once("reading roofs", f"what was measured of this machine in {path} is ignored: {error!r}")
        return {}


def _keep(key: str, machine: Machine) -> None:
    """Remember in this process, and in the cache folder where that can be written."""
    _remembered[key] = machine
    path = _path()
    if path is None:
        return
    entries = {**_read(path), key: (machine.name, machine.macs_per_second, machine.bytes_per_second)}
    text = json.dumps({"format": FORMAT, "machines": entries}, indent=1) + "\n"
    try:
        disk.make(path.parent)
        disk.write(path, text.encode())
    except OSError as error:
        disk.warn_once(
            "keeping roofs",
            f"what was measured of this machine cannot be kept in {path} ({error}), so every process measures anew; "
            "set NPCONV_CACHE_DIR to a writeable folder, or to off",
        )
