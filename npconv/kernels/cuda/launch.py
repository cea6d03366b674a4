"""Launch plans: everything that a kernel's launch is made of, as data, worked out and checked before it happens.

A plan is what CuPy is handed, and what the tests hand to a C++ compiler's version of the same source: so the arithmetic
of grids, limits and arguments is covered without a GPU.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.arrays import Array
from npconv.geometry import Window

THREADS = 128
"""Threads of a block, where nothing else decides."""

MOST_BLOCKS = 2**31 - 1
MOST_THREADS = 1024
MOST_SHARED = 48 * 1024
"""Bytes of shared memory that a block may have on every architecture without being asked for."""

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "hardswish": 3}
"""Codes of ``epilogue.cuh``."""

ELEMENTS = {
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "float32": ("float", "float32"),
    "float64": ("double", "float64"),
    "int64": ("int64", "uint64"),
    "uint64": ("uint64", "uint64"),
    "complex64": ("complex64", "complex64"),
    "complex128": ("complex128", "complex128"),
}
"""Per dtype: its name in ``scalars.cuh``, and the dtype of sums."""

# Offsets one beyond the largest extent are formed, by at most a block's worth of elements.
_MOST_INT = 2**31 - 2**20


@dataclass(frozen=True)
class Kernel:
    """One compiled variant: a source, the function in it, and the definitions that it is compiled with."""

    source: str
    name: str
    defines: tuple[tuple[str, str | int], ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The definitions as a compiler takes them."""
        return tuple(f"-D{name}={value}" for name, value in self.defines)


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel, its grid and block of one axis each, its bytes of dynamic shared memory, and its arguments.

    Arguments are arrays on the device, None for a null pointer, NumPy scalars, and NumPy arrays of one structure, which
    are passed by value.

    Raises
    ------
    ValueError
        If it is beyond what every GPU can do.
    """

    kernel: Kernel
    blocks: int
    threads: int
    arguments: tuple[Any, ...]
    shared: int = 0

    def __post_init__(self) -> None:
        name = self.kernel.name
        if not 0 < self.blocks <= MOST_BLOCKS:
            raise ValueError(f"{name} would need {self.blocks} blocks; a GPU takes 1 to {MOST_BLOCKS}")
        if not (0 < self.threads <= MOST_THREADS and self.threads % 32 == 0):
            raise ValueError(f"{name} would need blocks of {self.threads} threads; a GPU takes whole warps up to 1024")
        if self.shared > MOST_SHARED:
            raise ValueError(f"{name} would need {self.shared} bytes of shared memory; a block has {MOST_SHARED}")


def element_name(value: Array, element: str | None = None) -> str:
    """The dtype of an array's elements by name; `element` says it where NumPy has no such dtype (bfloat16)."""
    name = element or value.dtype.name
    if name not in ELEMENTS:
        raise TypeError(f"no CUDA kernel computes in {name}; they do in {', '.join(ELEMENTS)}")
    return name


def sum_dtype(element: str) -> np.dtype[Any]:
    """What elements are summed in."""
    return np.dtype(ELEMENTS[element][1])


def checked(element: str, **arrays: Array | None) -> None:
    """Raise unless every array is in C order, aligned, and of elements of the size that is meant."""
    itemsize = 2 if element in ("float16", "bfloat16") else np.dtype(element).itemsize
    for name, value in arrays.items():
        if value is None:
            continue
        if value.dtype.itemsize != itemsize:
            raise TypeError(f"{name} has dtype {value.dtype}, the kernel computes in {element}")
        if not value.flags.c_contiguous:
            raise ValueError(f"{name} must be in C order, got strides {value.strides}")
        if address(value) % itemsize:
            raise ValueError(f"{name} is not aligned to its elements of {itemsize} bytes")


def address(value: Array) -> int:
    """Where an array's elements begin in the device's memory."""
    return int(value.data.ptr)


def index_type(*extents: int) -> str:
    """The type of offsets: 32 bits where no extent needs more."""
    return "int" if max(extents) <= _MOST_INT else "int64"


def span(window: Window) -> int:
    """A bound for every offset that is formed within a plane, also for places outside it."""
    axes = zip(window.size, window.out, window.stride, window.reach, window.padding, strict=True)
    return math.prod(max(n, o * s + r) + abs(lo) + abs(hi) for n, o, s, r, (lo, hi) in axes)


def vector_width(value: Array, row: int) -> int:
    """Elements of an array that may be read or written at once: 16 bytes of them where every row begins aligned."""
    width = max(1, 16 // value.dtype.itemsize)
    return width if row % width == 0 and address(value) % 16 == 0 else 1


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


@functools.lru_cache(maxsize=512)
def planar(window: Window) -> Window:
    """The window over at least two axes: a signal is an image of one row."""
    if window.ndim > 1:
        return window
    parts = (window.size, window.kernel, window.stride, window.padding, window.dilation)
    size, kernel, stride, padding, dilation = parts
    return Window((1, *size), (1, *kernel), (1, *stride), ((0, 0), *padding), (1, *dilation))


def structure(index: str, *values: int) -> Any:
    """A structure of offsets, as a kernel takes it by value: a NumPy array of one element."""
    fields = np.array(values, np.int32 if index == "int" else np.int64)
    return fields.view(f"V{fields.nbytes}")


def window_structure(index: str, window: Window) -> Any:
    """``Window`` of ``window.cuh``."""
    low = tuple(low for low, _ in window.padding)
    parts = (window.size, window.kernel, window.stride, window.dilation, low, window.out)
    return structure(index, *itertools.chain.from_iterable(parts))


def steps_structure(index: str, window: Window) -> Any:
    """``Steps`` of ``window.cuh``: how far apart the taps lie that an element meets."""
    return structure(index, *tap_steps(window))


def tap_steps(window: Window) -> tuple[int, ...]:
    """Per axis, how far apart the taps lie that an element of the image meets."""
    return tuple(s // math.gcd(s, d) for s, d in zip(window.stride, window.dilation, strict=True))


def offset(index: str, value: int) -> Any:
    """A single offset, as a kernel takes it."""
    return np.int32(value) if index == "int" else np.int64(value)
