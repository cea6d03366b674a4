"""Choices that hold across calls: backend, number of threads, cache folder. The only reader of the environment.

Nothing is read at import. A process-wide setting wins over the environment; a `use_backend` block wins over both and
holds for the code that runs inside it, in this thread or asynchronous task alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from npconv.geometry import choice, integer

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = ("auto", "numpy", "numba", "cupy")
FLOAT32 = ("float32", "3xtf32", "tf32")
VARIABLES = {
    "NPCONV_BACKEND": "auto, numpy, numba or cupy",
    "NPCONV_NUM_THREADS": "a positive number; default: the CPUs this process may use",
    "NPCONV_CACHE_DIR": "a folder for compiled code and measurements, or off; default: the user's cache folder",
}

_MAX_THREADS = 1024
_ENCODED: dict[str, Any] = {name: getattr(os.environ, "encodekey", str)(name) for name in VARIABLES}

_lock = threading.Lock()
_process_backend: str | None = None
_process_threads: int | None = None
_block_backend: ContextVar[str | None] = ContextVar("npconv_backend", default=None)
_block_strict: ContextVar[bool] = ContextVar("npconv_strict", default=False)
_block_float32: ContextVar[str] = ContextVar("npconv_float32", default="float32")
_block_threads: ContextVar[int | None] = ContextVar("npconv_threads", default=None)


def get_backend() -> str:
    """Name of the backend that a call would use now: ``"auto"``, ``"numpy"``, ``"numba"`` or ``"cupy"``.

    The innermost `use_backend` block decides, then `set_backend`, then ``NPCONV_BACKEND``, then ``"auto"``.

    Raises
    ------
    ValueError
        If ``NPCONV_BACKEND`` holds an unknown name.

    Examples
    --------
    >>> import npconv as nc
    >>> with nc.use_backend("numpy"):
    ...     nc.get_backend()
    'numpy'
    """
    chosen = _block_backend.get() or _process_backend
    if chosen is None:
        chosen = _variable("NPCONV_BACKEND").strip() or "auto"
        choice("NPCONV_BACKEND", chosen, BACKENDS)
    return chosen


def set_backend(name: str | None) -> None:
    """Choose the backend for the whole process; None returns the choice to ``NPCONV_BACKEND``.

    Parameters
    ----------
    name : {"auto", "numpy", "numba", "cupy"} or None
        With ``"auto"`` the array's own device decides, and NumPy arrays go to numba (to numpy where Numba is missing).

    Raises
    ------
    ValueError
        If `name` is unknown.
    ImportError
        If the backend cannot run here; the message says what is missing.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.set_backend("numpy")
    >>> nc.get_backend()
    'numpy'
    >>> nc.set_backend(None)
    """
    global _process_backend
    _check_backend(name)
    with _lock:
        _process_backend = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend inside a ``with`` block, for this thread or asynchronous task alone.

    Parameters
    ----------
    name : {"auto", "numpy", "numba", "cupy"}

    Raises
    ------
    ValueError
        If `name` is unknown.
    ImportError
        If the backend cannot run here; the message says what is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> with nc.use_backend("numpy"):
    ...     nc.conv1d(np.arange(4.0).reshape(1, 4), np.ones((1, 1, 2)))
    array([[1., 3., 5.]])
    """
    _check_backend(name, optional=False)
    token = _block_backend.set(name)
    try:
        yield
    finally:
        _block_backend.reset(token)


def _check_backend(name: Any, optional: bool = True) -> None:
    if name is None and optional:
        return
    choice("backend", name, BACKENDS)
    from npconv import arrays

    arrays.require(name)


@contextmanager
def strict() -> Iterator[None]:
    """Compute nothing but sums of the definition's products inside a ``with`` block, in this thread or task alone.

    ``algorithm="auto"`` then never chooses ``"winograd"`` or ``"fft"``: they transform their operands, so that a result
    is rounded in another way than the sum that defines it (docs/accuracy.md says by how much). To ask for one of them
    by name inside the block is a `ValueError`. What was planned outside the block keeps its algorithm. `float32_as` has
    no effect inside the block.

    Examples
    --------
    >>> import npconv as nc
    >>> with nc.strict():
    ...     nc.plan((1, 64, 56, 56), (64, 64, 3, 3), padding=1).rejected["winograd"]
    'strict arithmetic was asked for'
    """
    token = _block_strict.set(True)
    try:
        yield
    finally:
        _block_strict.reset(token)


def is_strict() -> bool:
    """Whether the code that asks runs inside a `strict` block."""
    return _block_strict.get()


@contextmanager
def float32_as(name: str) -> Iterator[None]:
    """Choose how a GPU multiplies float32 inside a ``with`` block, for this thread or asynchronous task alone.

    It holds for the algorithms ``"direct"`` and ``"pointwise"`` and for gradients that are asked for inside the block,
    on GPUs from compute capability 8.0 on; everything else computes in float32 as ever, and so does all of it inside a
    `strict` block. Results stay float32. Not yet verified on a GPU.

    Parameters
    ----------
    name : {"float32", "3xtf32", "tf32"}
        ``"float32"``, the default: no tensor cores. ``"tf32"``: operands are rounded to 11 significant bits, so that a
        product may be off by one part in 1024. ``"3xtf32"``: operands are split into two such numbers, which is
        about as accurate as float32 but for numbers near its limits; docs/gpu.md has the bound.

    Raises
    ------
    ValueError
        If `name` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> with nc.float32_as("tf32"):  # a CPU takes no notice
    ...     nc.conv1d(np.ones((1, 4), np.float32), np.ones((1, 1, 2), np.float32))
    array([[2., 2., 2.]], dtype=float32)
    """
    choice("name", name, FLOAT32)
    token = _block_float32.set(name)
    try:
        yield
    finally:
        _block_float32.reset(token)


def float32_products() -> str:
    """How float32 may be multiplied where the code that asks runs: the innermost `float32_as`, unless it is strict."""
    return "float32" if _block_strict.get() else _block_float32.get()


def get_num_threads() -> int:
    """Number of threads that a convolution on the CPU may use.

    `set_num_threads` decides, then ``NPCONV_NUM_THREADS``, then the CPUs that this process may use.

    Raises
    ------
    ValueError
        If ``NPCONV_NUM_THREADS`` is not a positive number.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.get_num_threads() >= 1
    True
    """
    chosen = _block_threads.get() or _process_threads
    if chosen is not None:
        return chosen
    text = _variable("NPCONV_NUM_THREADS").strip()
    if not text:
        return available_cpus()
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_THREADS):
        raise ValueError(f"NPCONV_NUM_THREADS must be a number from 1 to {_MAX_THREADS}, got {text!r}")
    return int(text)


def set_num_threads(n: int | None) -> None:
    """Set the number of threads for the whole process; None returns the choice to the environment.

    Results do not depend on it, bit for bit.

    Parameters
    ----------
    n : int or None
        From 1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `n` is not such a number.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.set_num_threads(1)
    >>> nc.get_num_threads()
    1
    >>> nc.set_num_threads(None)
    """
    global _process_threads
    n = None if n is None else thread_count("n", n)
    with _lock:
        _process_threads = n


def thread_count(name: str, n: Any) -> int:
    """Return `n` as a number of threads, or raise an error that names `name`."""
    count = integer(name, n, 1)
    if count > _MAX_THREADS:
        raise ValueError(f"{name} must be at most {_MAX_THREADS}, got {count}")
    return count


@contextmanager
def limit_threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block, for this thread or asynchronous task alone."""
    token = _block_threads.set(n)
    try:
        yield
    finally:
        _block_threads.reset(token)


def settings() -> tuple[Any, ...]:
    """All that a call depends on beside its arguments, as it was set; the same as long as nothing was set otherwise."""
    return (
        _block_backend.get() or _process_backend or _variable("NPCONV_BACKEND"),
        _block_threads.get() or _process_threads or _variable("NPCONV_NUM_THREADS"),
        _block_strict.get(),
        _block_float32.get(),
    )


def _variable(name: str) -> str:
    """An environment variable, empty where it is not set; every call asks.

    `os.environ` takes 2 microseconds to say that something is missing, the dictionary behind it a tenth of one.
    """
    if _ENCODED[name] not in getattr(os.environ, "_data", (_ENCODED[name],)):
        return ""
    return os.environ.get(name, "")


def available_cpus() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def cache_dir() -> Path | None:
    """Folder for compiled code and measurements, which need not exist; None where ``NPCONV_CACHE_DIR`` is ``off``."""
    from pathlib import Path

    text = _variable("NPCONV_CACHE_DIR").strip()
    if text.lower() == "off":
        return None
    if text:
        return Path(text).expanduser()
    return _user_caches() / "npconv"


def _user_caches() -> Path:
    """Where this system keeps what a user's programs can compute again."""
    from pathlib import Path

    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
