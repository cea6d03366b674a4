"""NVIDIA's run-time compiler from its PyPI package: compiles for any architecture, needs no GPU and no driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a multiprocessor, in registers a thread and in bytes."""

    registers: int
    stack: int
    spilled: int
    shared: int


@functools.cache
def library() -> ctypes.CDLL | None:
    """NVRTC, or None where none of the packages is installed."""
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                return ctypes.CDLL(str(Path(file.locate())))
    return None


def compiled(code: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """The machine code and the log; `RuntimeError` with the log where it does not compile."""
    nvrtc = library()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None)
    try:
        encoded = [option.encode() for option in options]
        failed = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if failed:
            raise RuntimeError(log)
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def usage(log: str, name: str) -> Usage:
    """What ptxas says that a kernel takes."""
    own = log[log.index(f"Compiling entry function '{name}'") :]

    def number(pattern: str) -> int:
        found = re.search(pattern, own)
        return int(found[1]) if found else 0

    return Usage(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        number(r"(\d+) bytes smem"),
    )


def _read(size_of, read, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw
