"""Launch plans executed on the CPU: a kernel's source, compiled by g++ behind `emulation.hpp`, one fiber a CUDA thread.

`RawModule` takes the place of CuPy's; so the very text, definitions, grids and arguments that a GPU would get are what
runs here. See docs/gpu.md for what this proves and what it cannot.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent
COMPILER = shutil.which("g++")
FLAGS = (
    "-std=c++17", "-O0", "-fPIC", "-w", "-fno-strict-aliasing", "-fsanitize=undefined,bounds-strict",
    "-fsanitize-undefined-trap-on-error", "-fno-sanitize=vptr",
)  # fmt: skip

ORDERS = {"random": 0, "ascending": 1, "descending": 2}


class KernelError(RuntimeError):
    """A kernel did on the CPU what it must not do on a GPU."""


class schedule:  # noqa: N801 - a context manager, used like a function
    """In which order the threads run inside a ``with`` block."""

    current = ("random", 0)

    def __init__(self, order: str = "random", seed: int = 0) -> None:
        self.wanted = (order, seed)

    def __enter__(self) -> None:
        self.before, schedule.current = schedule.current, self.wanted

    def __exit__(self, *_: object) -> None:
        schedule.current = self.before


class _Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class _Argument(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("is_array", ctypes.c_int)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", _Dim3), ("block", _Dim3), ("dynamic_bytes", ctypes.c_size_t), ("static_limit", ctypes.c_size_t),
        ("seed", ctypes.c_uint64), ("order", ctypes.c_int), ("count", ctypes.c_int),
        ("arguments", ctypes.POINTER(_Argument)), ("message", ctypes.c_char * 512),
    ]  # fmt: skip


class RawModule:
    """CuPy's class of that name, as far as npconv uses it."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str):
        return _Function(_compiled(self.code, self.options, name), name)


class _Function:
    def __init__(self, entry, name: str) -> None:
        self.entry, self.name = entry, name

    def __call__(self, grid, block, arguments, *, shared_mem: int = 0) -> None:
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        order, seed = schedule.current
        packed = (_Argument * len(arguments))()
        kept = [_argument(value) for value in arguments]
        for slot, (data, size, is_array) in zip(packed, kept, strict=True):
            slot.data, slot.bytes, slot.is_array = data.ctypes.data, size, is_array
        launch = _Launch(
            _Dim3(*grid), _Dim3(*block), shared_mem, 48 * 1024, seed, ORDERS[order], len(arguments), packed
        )
        if self.entry(ctypes.byref(launch)):
            raise KernelError(f"{self.name}: {launch.message.decode()}")


def _argument(value) -> tuple[np.ndarray, int, int]:
    """Memory, its size, and whether it is an array of the device; CuPy's rules for what may be passed."""
    if value is None:
        return np.zeros(1, np.int64), 8, 0
    if type(value).__module__ == "cupy":
        return value._value, value.nbytes, 1
    if isinstance(value, np.ndarray):
        assert value.size == 1, "CuPy passes arrays of one element by value, and no others"
        return value, value.nbytes, 0
    assert isinstance(value, np.generic), f"CuPy would guess what C++ type {value!r} has"
    scalar = np.array([value])
    return scalar, scalar.nbytes, 0


@functools.cache
def build_folder() -> Path:
    """Where this session's libraries are, removed at its end, beside the header in its compiled form."""
    folder = Path(tempfile.mkdtemp(prefix="npconv-cuda-on-cpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copy(FOLDER / "emulation.hpp", folder)
    _run_compiler("-x", "c++-header", str(folder / "emulation.hpp"))
    return folder


@functools.cache
def _compiled(code: str, options: tuple[str, ...], name: str):
    """A library's function that executes one kernel; every variant is compiled once a session."""
    # The compiled header takes no definitions from the command line.
    defines = (option.removeprefix("-D").split("=", 1) for option in options if option.startswith("-D"))
    text = "\n".join(
        (
            '#include "emulation.hpp"',
            *(f"#define {macro} {value}" for macro, value in defines),
            code,
            'extern "C" int launch(emulation::Launch* launch) {',
            f"  return emulation::Kernel<decltype(&{name})>::run(&{name}, launch);",
            "}\n",
        )
    )
    library = build_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    file = library.with_suffix(".cpp")
    file.write_text(text, encoding="utf-8")
    _run_compiler("-shared", str(file), "-o", str(library))
    entry = ctypes.CDLL(str(library)).launch
    entry.argtypes = [ctypes.POINTER(_Launch)]
    return entry


def _run_compiler(*arguments: str) -> None:
    done = subprocess.run([COMPILER, *FLAGS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


def require_compiler() -> None:
    """Skip the test where there is no g++, or no Linux; in CI on Linux, where there must be one, fail."""
    if platform.system() != "Linux":
        pytest.skip("the emulation of CUDA is written for Linux")
    if COMPILER is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("g++ is needed to execute the CUDA kernels on the CPU, and CI must have it")
        pytest.skip("g++ is needed to execute the CUDA kernels on the CPU")
