"""Filters of long signals by Fourier transforms of blocks: overlap-save, each block a matrix of a few hundred columns.

A transform of ``rows * columns`` samples is one of all columns, a factor for every element, and one of all rows, after
which the frequencies stand transposed, the kernel's as well. Lines in vector lanes serve both: columns as they lie, and
rows turned in registers, so neither takes a stride through memory. The two halves of a complex block are two blocks of
one signal that follow each other.

D. H. Bailey, "FFTs in external or hierarchical memory", The Journal of Supercomputing 4 (1990), 23-35.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.geometry import Size
from npconv.kernels.cpu.compile import entry, inner
from npconv.kernels.cpu.fourier import movers, padded_reader, passes, radices, times, transformer
from npconv.kernels.cpu.operands import as_table
from npconv.kernels.cpu.stencil import signature
from npconv.kernels.cpu.vectors import (
    GRID,
    TABLE,
    Vectors,
    address_of,
    counted_loop,
    elements,
    number,
    number_of,
    on_addresses,
)


class Blocks(NamedTuple):
    """What `conv_signal` works from, all of int64.

    `shape` holds the samples of a signal, those of its result, rows and columns of a block, samples of the result that
    a block gives, blocks of a signal, elements of the padded signal before the first, and 1 where the kernel's spectrum
    is to be made. `sources` names the element of the signal that each of the padded one is, -1 for the constant; `plan`
    and `starts` are of `passes`.
    """

    shape: Any
    sources: Any
    plan: Any
    starts: Any


def frequencies(n: int) -> Any:
    """The frequency that a line's transform leaves in each place: the digits of its number reversed."""
    order, step = np.zeros(1, np.int64), 1
    for radix in radices(n):
        order = (order[:, None] + step * np.arange(radix)).ravel()
        step *= radix
    return order


@functools.lru_cache(maxsize=4)
def between(rows: int, columns: int, dtype: np.dtype[Any], lanes: int) -> Any:
    """The factors between the two transforms, as lines of so many columns at a time."""
    turns = np.outer(frequencies(rows), np.arange(columns)) / (rows * columns)
    turns = turns.reshape(rows, columns // lanes, lanes).transpose(1, 0, 2)
    factors = np.stack([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], 2)
    return np.ascontiguousarray(factors, dtype)


def _column_movers(itemsize: int, lanes: int) -> tuple[Any, ...]:
    """``take(line, first, second, step, count)`` makes a line of two columns, ``there(target, step, line, factors,
    count)`` and ``back(line, source, step, factors, count)`` move one between a line and the block, times the factors
    or their conjugates, and ``put(target, step, line, part, whole, left, seen)`` writes one part: `whole` vectors, the
    first `left` lanes of one more, and zero times each added to the vector `seen`. Steps are in elements.
    """
    element = 2 * lanes

    def take(vectors: Vectors, line: Any, first: Any, second: Any, step: Any, count: Any) -> None:
        builder, target = vectors.builder, vectors.pointer(line)
        sources = [vectors.pointer(first), vectors.pointer(second)]

        def one(i: Any, _: list[Any]) -> list[Any]:
            here, there = builder.mul(i, step), builder.mul(i, number(element))
            for part, source in enumerate(sources):
                vectors.store(vectors.load(source, here), target, builder.add(there, number(part * lanes)))
            return []

        counted_loop(builder, count, [], one)

    def moved(
        vectors: Vectors, target: Any, target_step: Any, source: Any, source_step: Any, factors: Any, count: Any,
        conjugate: bool,
    ) -> None:  # fmt: skip
        builder = vectors.builder
        there, here, table = vectors.pointer(target), vectors.pointer(source), vectors.pointer(factors)

        def pair(start: Any, i: Any, step: Any) -> tuple[Any, Any]:
            first = builder.mul(i, step)
            return vectors.load(start, first), vectors.load(start, builder.add(first, number(lanes)))

        def one(i: Any, _: list[Any]) -> list[Any]:
            value = times(vectors, pair(here, i, source_step), pair(table, i, number(element)), conjugate)
            for part in range(2):
                cell = builder.add(builder.mul(i, target_step), number(part * lanes))
                vectors.store(value[part], there, cell)
            return []

        counted_loop(builder, count, [], one)

    def there(vectors: Vectors, target: Any, step: Any, line: Any, factors: Any, count: Any) -> None:
        moved(vectors, target, step, line, number(element), factors, count, conjugate=False)

    def back(vectors: Vectors, line: Any, source: Any, step: Any, factors: Any, count: Any) -> None:
        moved(vectors, line, number(element), source, step, factors, count, conjugate=True)

    def put(vectors: Vectors, target: Any, step: Any, line: Any, whole: Any, left: Any, seen: Any) -> None:
        builder, start, source = vectors.builder, vectors.pointer(target), vectors.pointer(line)
        flags = vectors.pointer(seen)

        def one(i: Any, held: list[Any]) -> list[Any]:
            value = vectors.load(source, builder.mul(i, number(element)))
            vectors.store(value, start, builder.mul(i, step))
            return [vectors.multiply_add(value, vectors.zeros, held[0])]

        vectors.store(counted_loop(builder, whole, [vectors.load(flags)], one)[0], flags)
        with builder.if_then(builder.icmp_signed(">", left, number(0))):
            value = vectors.load(source, builder.mul(whole, number(element)))
            vectors.store_masked(value, start, vectors.first_lanes(left), builder.mul(whole, step))
            vectors.store(vectors.multiply_add(value, vectors.zeros, vectors.load(flags)), flags)

    return tuple(on_addresses(write, itemsize, lanes) for write in (take, there, back, put))


@functools.lru_cache(maxsize=8)
def conv_signal(dtype: np.dtype[Any], lanes: int) -> Callable[..., None]:
    """The driver for float32 or float64 and vectors of so many lanes."""
    size, kind, element = dtype.itemsize, dtype.type, 2 * lanes
    turn_in, turn_out, move, multiply = movers(size, lanes)
    take, there, back, put = _column_movers(size, lanes)
    transform, read_padded = transformer(size, lanes), padded_reader(dtype)

    @inner
    def read(target: int, x: int, first: int, count: int, shape: Any, sources: Any, outside: Any) -> int:
        """Where a block's samples lie: in the signal, or where they were gathered, because it reaches beyond."""
        samples, low = shape[0], shape[6]
        if first >= low and first - low + count <= samples:
            place: int = x + (first - low) * size
            return place
        read_padded(target, x, samples, first, count, low, sources, 0, sources.size, outside)
        return target

    @entry(*signature(dtype, 6, TABLE, TABLE, GRID, TABLE))
    def conv_signal_loop(
        start: int, stop: int, x: Any, spectrum: Any, factors: Any, middle: Any, bad: Any, y: Any, outside: Any,
        tables: Any,
    ) -> None:  # fmt: skip
        """Filter with the kernel whose spectrum is given, or make the spectrum of `x`, a block long.

        For the addresses of signals, of the factors of `passes` and of `between`, of one number that becomes NaN where
        a result is not finite, and of the result. A task is a pair of blocks of one signal.
        """
        x, spectrum, factors, middle = number_of(x), number_of(spectrum), number_of(factors), number_of(middle)
        y, flag = number_of(y), elements(number_of(bad), 1, kind)
        shape, sources, plan, starts = tables
        samples, out, height, width, kept, blocks = shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]
        making, pairs, count = shape[7], (blocks + 1) // 2, height * width
        pitch = width * 2 + element
        block, room = np.empty(height * pitch, kind), np.zeros(max(height, width) * element, kind)
        edges, seen, table = np.empty((2, count), kind), np.zeros(lanes, kind), np.empty(lanes, np.int64)
        tile, line, flags, dump = address_of(block), address_of(room), address_of(seen), np.zeros(lanes, kind)
        for task in range(start, stop):
            signal, result = x + task // pairs * samples * size, y + task // pairs * out * size
            first = task % pairs * 2 * kept
            # Where there is no second block, the first one is both.
            second = first + kept if first + kept < out else first
            a = read(address_of(edges), signal, first, count, shape, sources, outside)
            b = read(address_of(edges) + count * size, signal, second, count, shape, sources, outside)
            for g in range(width // lanes):
                take(line, a + g * lanes * size, b + g * lanes * size, width, height)
                if making == 1:
                    for q in range(height):
                        room[q * element + lanes : (q + 1) * element] = 0
                transform(line, plan, starts[0], starts[1], True, factors)
                there(tile + g * element * size, pitch, line, middle + g * height * element * size, height)
            for top in range(0, height, lanes):
                for r in range(lanes):
                    table[r] = tile + (top + r) * pitch * size
                for part in range(2):
                    turn_in(line + part * lanes * size, address_of(table), part * lanes, element, width // lanes)
                transform(line, plan, starts[1], starts[2], True, factors)
                here = spectrum + top * width * 2 * size
                if making == 1:
                    move(here, element, line, element, width)
                    continue
                multiply(line, here, width)
                transform(line, plan, starts[1], starts[2], False, factors)
                for part in range(2):
                    turn_out(
                        line + part * lanes * size, address_of(table), part * lanes, element, width, address_of(dump)
                    )
            if making == 1:
                continue
            seen[:] = 0
            for g in range(width // lanes):
                back(line, tile + g * element * size, pitch, middle + g * height * element * size, height)
                transform(line, plan, starts[0], starts[1], False, factors)
                for part in range(2):
                    begin = second if part == 1 else first
                    last = min(kept, out - begin) - g * lanes if part == 0 or second > first else 0
                    whole = (last - lanes) // width + 1 if last >= lanes else 0
                    put(
                        result + (begin + g * lanes) * size, width, line + part * lanes * size, whole,
                        min(lanes - 1, last - whole * width), flags,
                    )  # fmt: skip
            for r in range(lanes):
                if seen[r] != 0:
                    flag[0] = np.nan

    return conv_signal_loop


def blocks_for(
    samples: int, out: int, block: Size, sources: Any, low: int, dtype: np.dtype[Any], making: int = 0
) -> tuple[Blocks, Any]:
    """`Blocks` and the factors of a filter whose blocks are of `block` rows and columns."""
    kept = block[0] * block[1] - (len(sources) - out)
    plan, starts, factors = passes(block, dtype)
    shape = (samples, out, *block, kept, -(-out // kept), low, making)
    return Blocks(*(as_table(part) for part in (shape, sources, plan, starts))), factors
