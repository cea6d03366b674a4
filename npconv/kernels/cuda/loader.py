"""From a source's name to a function that can be launched: sources as one text, compiled by CuPy once per device.

A source and what it includes become one text, so that CuPy's cache on disk, which knows a program by its text and
options, notices every change, and so that no folder of headers has to be found at run time. Nothing is included from
the CUDA toolkit.
"""

from __future__ import annotations

import functools
import importlib
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from npconv.kernels.cuda.launch import Kernel, Launch

FOLDER = Path(__file__).parent
OPTIONS = ("-std=c++17",)
"""What every variant is compiled with, before its definitions; CuPy adds the architecture and ``-ftz=true``."""

MOST = 512
"""Compiled variants that are held at once; the one that was not used for longest makes room."""

_functions: OrderedDict[tuple[Kernel, int], Any] = OrderedDict()
_lock = threading.Lock()


class CompileError(RuntimeError):
    """A kernel could not be compiled or loaded; the message says which, for what, and what to do about it."""


@functools.lru_cache(maxsize=32)
def source(name: str) -> str:
    """A source with everything that it includes, as one text whose line numbers are those of the files."""
    return _flattened(name, set())


def _flattened(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((FOLDER / name).read_text(encoding="utf-8").splitlines(), 1):
        included = re.fullmatch(r'#include "(.+)"', line)
        if included:
            lines += [_flattened(included[1], seen), f'#line {number + 1} "{name}"']
        elif line != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


def run(*launches: Launch) -> None:
    """Launch one after the other on the current device and stream.

    Raises
    ------
    ValueError
        If an array lives on another device than the current one, whose memory a kernel may not be able to reach.
    CompileError
        If a kernel cannot be made ready.
    """
    current = int(importlib.import_module("cupy").cuda.runtime.getDevice())
    for launch in launches:
        for value in launch.arguments:
            device = getattr(getattr(value, "device", None), "id", current)
            if device != current:
                raise ValueError(
                    f"an array lives on GPU {device}, but GPU {current} is the current one; "
                    f"make the call inside `with cupy.cuda.Device({device}):`"
                )
        function(launch.kernel)((launch.blocks,), (launch.threads,), launch.arguments, shared_mem=launch.shared)


def function(kernel: Kernel) -> Any:
    """The variant, compiled and loaded for the current device.

    Raises
    ------
    CompileError
        If that fails.
    """
    cupy = importlib.import_module("cupy")
    key = kernel, int(cupy.cuda.runtime.getDevice())
    with _lock:
        if key in _functions:
            _functions.move_to_end(key)
            return _functions[key]
    # Compiled without the lock, which would make every other kernel wait; twice at worst.
    compiled = _compiled(cupy, kernel)
    with _lock:
        _functions[key] = compiled
        while len(_functions) > MOST:
            _functions.popitem(last=False)
    return compiled


def architecture() -> int:
    """The current device's: 80 for compute capability 8.0."""
    return _architecture(int(importlib.import_module("cupy").cuda.runtime.getDevice()))


@functools.cache
def _architecture(device: int) -> int:
    return int(importlib.import_module("cupy").cuda.Device(device).compute_capability)


def forget() -> None:
    """Let go of all compiled variants."""
    _architecture.cache_clear()
    with _lock:
        _functions.clear()


def _compiled(cupy: Any, kernel: Kernel) -> Any:
    try:
        module = cupy.RawModule(code=source(kernel.source), options=(*OPTIONS, *kernel.options))
        return module.get_function(kernel.name)
    except Exception as error:
        # CuPy's error is of a class of its own and holds the compiler's whole log; the cause stays attached.
        log = [line for line in str(error).splitlines() if line.strip()]
        shown = "\n".join(line for line in log if "error" in line.lower()) or "\n".join(log[:3])
        raise CompileError(
            f"the CUDA kernel {kernel.name} ({' '.join(kernel.options)}) could not be made ready: {shown}\n"
            f"{_advice(shown)}"
        ) from error


def _advice(log: str) -> str:
    if "could not open source file" in log or "libnvrtc" in log:
        return (
            "a part of the CUDA toolkit is missing; install CuPy together with it: pip install 'npconv[cuda13]' "
            "(or 'npconv[cuda12]' for a driver older than 580)"
        )
    return "this is a fault of npconv or of the toolkit's version; please report it with this message"
