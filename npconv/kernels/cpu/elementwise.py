"""The sum of two arrays and an activation, in one pass over the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.operands import BOUNDS
from npconv.kernels.cpu.vectors import ADDRESS, Vectors, counted_loop, number, number_of, on_addresses

BLOCK = 2**14
"""Elements of a task."""


def add(x: Any, other: Any, activation: str | None, y: Any) -> None:
    """``y = activation(x + other)``, all of one float dtype, in C order and of one size; `y` may be either of them."""
    loop, bounds = adder(y.dtype), clamp(y.dtype, activation)
    threads.run(loop, -(-y.size // BLOCK), y.size, x, other, y, bounds, int(activation == "hardswish"), y.size)


@functools.lru_cache(maxsize=16)
def clamp(dtype: np.dtype[Any], activation: str | None) -> Any:
    """The bounds of an activation, in memory."""
    return np.array(BOUNDS.get(activation, BOUNDS[None]), dtype)


def summed(itemsize: int, lanes: int) -> Any:
    """``summed(x, other, y, count, bounds, bent)`` for compiled code: ``y := act(clamp(x + other))`` on addresses."""

    def write(vectors: Vectors, x: Any, other: Any, y: Any, count: Any, bounds: Any, bent: Any) -> None:
        builder = vectors.builder
        ends = vectors.pointer(bounds)
        low, high = (vectors.broadcast(builder.load(builder.gep(ends, [number(end)]))) for end in (0, 1))
        first, second, result = map(vectors.pointer, (x, other, y))

        def act(a: Any, b: Any) -> Any:
            found = [vectors.clamp(builder.fadd(a, b), low, high)]
            return vectors.where(bent, found, vectors.hardswish)[0]

        def body(index: Any, _: list[Any]) -> list[Any]:
            at = builder.mul(index, number(lanes))
            vectors.store(act(vectors.load(first, at), vectors.load(second, at)), result, at)
            return []

        whole = builder.sdiv(count, number(lanes))
        counted_loop(builder, whole, [], body)
        at = builder.mul(whole, number(lanes))
        mask = vectors.first_lanes(builder.sub(count, at))
        rest = act(vectors.load_masked(first, mask, at), vectors.load_masked(second, mask, at))
        vectors.store_masked(rest, result, mask, at)

    return on_addresses(write, itemsize, lanes)


@functools.lru_cache(maxsize=2)
def adder(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop of `add`."""
    size = dtype.itemsize
    run = summed(size, processor().register_bytes // size)

    @entry(types.int64, types.int64, *[ADDRESS] * 4, types.int64, types.int64)
    def adder_loop(start: int, stop: int, x: Any, other: Any, y: Any, bounds: Any, bent: int, count: int) -> None:
        """A task is `BLOCK` elements."""
        first = start * BLOCK
        run(
            number_of(x) + first * size, number_of(other) + first * size, number_of(y) + first * size,
            min(stop * BLOCK, count) - first, number_of(bounds), bent,
        )  # fmt: skip

    return adder_loop
