"""What was measured on this machine: times of algorithms by convolution, in memory and as JSON in the cache folder.

One file per backend, machine and versions, one entry a line, so that a person can read it and delete what they like. An
entry holds the times of all candidates, not only the winner: under `npconv.strict` or with less memory another one
wins. Files are replaced as a whole; a broken or foreign one is ignored with one warning and written anew.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npconv import disk
from npconv.arrays import Backend
from npconv.config import cache_dir
from npconv.geometry import ConvSpec
from npconv.machine import processor
from npconv.planning import recent

FORMAT = 1
"""Of the file; another number is a foreign file."""

MOST = 1000
"""Entries that are kept; the oldest go first. A file has some 600 bytes for each."""

LARGEST = 16 * 2**20
"""Bytes beyond which a file is not ours."""

PATIENCE = 5.0
"""Seconds after which a lock counts as left behind by a process that ended."""

Seconds = dict[str, "float | None"]
"""Time of each candidate; None for one that was predicted to be too slow to be measured."""


@dataclass(frozen=True)
class Entry:
    """The answer for one operation of one convolution.

    `call` holds the times with the weights packed anew in every call, `packed` those with weights packed before; only
    a forward convolution has the latter. The number of `threads` is no part of the question: the choice, and with it
    the last bits of a result, must not depend on it.
    """

    threads: int
    call: Seconds
    packed: Seconds

    def seconds(self, reused: bool) -> Seconds:
        """The times that count for weights packed once, or anew."""
        return self.packed if reused else self.call

    def over(self, older: Entry | None) -> Entry:
        """Add what only an `older` entry of as many threads knows: it may have been allowed more memory."""
        if older is None or older.threads != self.threads:
            return self
        return Entry(self.threads, older.call | self.call, older.packed | self.packed)


_lock = threading.RLock()
_tables: dict[tuple[Path | None, str], dict[str, Entry]] = {}
_generation = 0


def generation() -> int:
    """A number that changes whenever an answer does, for those who remember what they concluded from answers."""
    return _generation


def _changed() -> None:
    """Whoever concluded something from answers must ask again."""
    global _generation
    _generation += 1
    recent.forget()


def find(backend: Backend, spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> Entry | None:
    """What was measured for an operation computed in `dtype`."""
    with _lock:
        return _table(_path(backend), backend).get(_key(_case(backend, spec, op, dtype)))


def keep(backend: Backend, spec: ConvSpec, op: str, dtype: np.dtype[Any], entry: Entry) -> None:
    """Remember what was measured, here and on disk, beside what other processes wrote meanwhile."""
    key = _key(_case(backend, spec, op, dtype))
    with _lock:
        path = _path(backend)
        table = _table(path, backend)
        _changed()
        if path is None:
            _add(table, {key: entry.over(table.get(key))})
            return
        try:
            with _alone(path):
                _add(table, _read(path, backend, quiet=True))
                _add(table, {key: entry.over(table.get(key))})
                _write(path, backend, table)
        except OSError as error:
            _add(table, {key: entry.over(table.get(key))})
            disk.warn_once(
                "keeping measurements",
                f"measurements cannot be kept in {path} ({error}), so they hold for this process only; "
                "set NPCONV_CACHE_DIR to a writeable folder, or to off",
                stacklevel=3,
            )


def forget() -> None:
    """Drop what this process remembers; files stay and are read again."""
    with _lock:
        _tables.clear()
        _changed()


def _add(table: dict[str, Entry], entries: dict[str, Entry]) -> None:
    """Put entries behind all others, and drop the first ones where there are too many."""
    for key, entry in entries.items():
        table.pop(key, None)
        table[key] = entry
    for key in list(table)[: max(0, len(table) - MOST)]:
        del table[key]


def _table(path: Path | None, backend: Backend) -> dict[str, Entry]:
    """The answers for a backend, read when they are first asked for."""
    key = path, backend.name
    if key not in _tables:
        _tables[key] = {}  # first, so that a warning that somebody made an error comes once too
        if path is not None:
            _tables[key] = _read(path, backend)
    return _tables[key]


def _case(backend: Backend, spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> dict[str, Any]:
    """The question as plain values. Layout and a missing batch axis change nothing that is measured."""
    window = spec.window
    return {
        "op": op,
        "x_shape": [spec.batch, spec.in_channels, *window.size],
        "w_shape": list(spec.w_shape),
        "stride": list(window.stride),
        "padding": [list(pair) for pair in window.padding],
        "dilation": list(window.dilation),
        "groups": spec.groups,
        "padding_mode": spec.padding_mode,
        "dtype": str(dtype),
        "backend": backend.name,
    }


def _key(case: dict[str, Any]) -> str:
    return json.dumps(case)


# --------------------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------------------


def folder() -> Path | None:
    """Where the files are, or None where nothing is kept on disk."""
    root = cache_dir()
    return None if root is None else root / "autotune"


def _path(backend: Backend) -> Path | None:
    """The file for a backend, which need not be there."""
    home = folder()
    return None if home is None else home / f"{backend.name}-{_digest(backend)}.json"


@functools.lru_cache(maxsize=8)
def _digest(backend: Backend) -> str:
    return hashlib.sha256(json.dumps(_machine(backend)).encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=8)
def _machine(backend: Backend) -> dict[str, str]:
    """What measurements depend on besides the question."""
    import npconv

    facts = {
        "backend": backend.name,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "npconv": npconv.__version__,
        "numpy": np.__version__,
    }
    if backend.name == "numba":
        facts["numba"] = importlib.import_module("numba").__version__
    if backend.name == "cupy":
        runtime = backend.xp.cuda.runtime
        facts["cupy"] = backend.xp.__version__
        facts["device"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return facts


def _read(path: Path, backend: Backend, quiet: bool = False) -> dict[str, Entry]:
    """The entries of a file; none, with a warning, where it cannot be trusted."""
    try:
        data = json.loads(disk.read(path, LARGEST))
        if data["format"] != FORMAT or data["machine"] != _machine(backend):
            raise ValueError("it was written elsewhere, or by another version")
        table: dict[str, Entry] = {}
        _add(table, dict(_parsed(backend, item) for item in data["entries"]))
        return table
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if not quiet:
            warnings.warn(
                f"the measurements in {path} are ignored, and replaced by the next npconv.autotune: {error!r}",
                RuntimeWarning,
                stacklevel=3,
            )
        return {}


def _parsed(backend: Backend, item: dict[str, Any]) -> tuple[str, Entry]:
    """A line of the file. Whatever is not as `_line` writes it raises."""
    case = {name: item[name] for name in _NAMES}
    threads, forms = item["threads"], item["seconds"]
    if case["backend"] != backend.name or type(threads) is not int:
        raise ValueError(f"not an entry of this backend: {item!r:.80}")
    for seconds in (forms["call"], forms["packed"]):
        for name, value in seconds.items():
            if value is not None and not (type(value) is float and 0 < value < math.inf):
                raise ValueError(f"{value!r} is no time for {name!r}")
    return _key(case), Entry(threads, forms["call"], forms["packed"])


_NAMES = ("op", "x_shape", "w_shape", "stride", "padding", "dilation", "groups", "padding_mode", "dtype", "backend")


def _line(key: str, entry: Entry) -> str:
    forms = {"call": entry.call, "packed": entry.packed}
    # For the reader's eye alone: what is allowed, and so the choice, may differ from call to call.
    fastest = {form: fastest_of(seconds) for form, seconds in forms.items() if fastest_of(seconds)}
    case = json.loads(key) | {"threads": entry.threads, "algorithm": fastest, "seconds": forms}
    return json.dumps(case)


def fastest_of(seconds: Seconds) -> str | None:
    """The algorithm of the shortest time, or None where none was measured."""
    times = {name: value for name, value in seconds.items() if value is not None}
    return min(times, key=lambda name: times[name]) if times else None


def _write(path: Path, backend: Backend, table: dict[str, Entry]) -> None:
    """Replace the file in one step: a reader sees the old one or the new one."""
    lines = ",\n".join(_line(key, entry) for key, entry in table.items())
    machine = json.dumps(_machine(backend))
    text = f'{{"format": {FORMAT},\n"machine": {machine},\n"entries": [\n{lines}\n]}}\n'
    disk.write(path, text.encode())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from changing the file between being read and being replaced."""
    disk.make(path.parent)
    lock, deadline = path.with_suffix(".lock"), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            lock.touch(0o600, exist_ok=False)
            break
        except FileExistsError:
            time.sleep(0.01)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()


def _renew() -> None:
    """A forked child may have inherited a locked lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
