"""Fourier transforms of lines in vector lanes, and filters of one channel by their products.

A *line* is ``n`` complex elements of so many lanes each, real parts before imaginary ones; every lane is transformed by
itself, in place, so no element is ever moved between lanes and no pass reorders anything: frequencies come out in the
order of reversed digits, the kernel's as well, and the way back takes them so.

Two tiles of an image are the real and the imaginary part of one complex tile. The kernel is real, so the parts of the
product belong to the two tiles again, and no transform of real numbers is needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.compile import entry, inner
from npconv.kernels.cpu.operands import as_table
from npconv.kernels.cpu.staging import row_movers
from npconv.kernels.cpu.stencil import signature
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import (
    GRID,
    INT64,
    TABLE,
    Vectors,
    address_of,
    counted_loop,
    elements,
    number,
    number_of,
    on_addresses,
)

Parts = list[tuple[Any, Any]]


def radices(n: int) -> list[int]:
    """The radices of a transform, the odd ones first; ValueError where there are others than 2, 3 and 4."""
    found: list[int] = []
    fours = 0
    while n % 3 == 0:
        found, n = [*found, 3], n // 3
    while n % 4 == 0:
        fours, n = fours + 1, n // 4
    if n not in (1, 2):
        raise ValueError(f"a transform's length is a product of 2 and 3, got a factor {n}")
    return [*([2] if n == 2 else []), *found, *[4] * fours]


def passes(lengths: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any, Any]:
    """For all axes ``(radix, blocks, m, first factor)`` of each pass, where an axis's passes begin, and the factors."""
    rows, starts, factors, at = [], [0], [], 0
    for length in lengths:
        blocks, n = 1, length
        for radix in radices(length):
            m = n // radix
            rows.append((radix, blocks, m, at))
            angle = -2 * np.pi / n * np.outer(np.arange(m), np.arange(1, radix)).ravel()
            factors.append(np.stack([np.cos(angle), np.sin(angle)], 1).ravel())
            at, blocks, n = at + 2 * angle.size, blocks * radix, m
        starts.append(len(rows))
    return np.array(rows), np.array(starts), np.concatenate(factors).astype(dtype)


def _dft(vectors: Vectors, radix: int, z: Parts) -> Parts:
    """The discrete Fourier transform of 2, 3 or 4 elements."""
    add, sub = vectors.builder.fadd, vectors.builder.fsub

    def both(op: Any, a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        return op(a[0], b[0]), op(a[1], b[1])

    if radix == 2:
        return [both(add, z[0], z[1]), both(sub, z[0], z[1])]
    if radix == 3:
        total, apart = both(add, z[1], z[2]), both(sub, z[1], z[2])
        half, root = vectors.constant(-0.5), math.sqrt(0.75)
        middle = tuple(vectors.multiply_add(half, t, s) for t, s in zip(total, z[0], strict=True))
        plus, minus = vectors.constant(root), vectors.constant(-root)
        return [
            both(add, z[0], total),
            (vectors.multiply_add(plus, apart[1], middle[0]), vectors.multiply_add(minus, apart[0], middle[1])),
            (vectors.multiply_add(minus, apart[1], middle[0]), vectors.multiply_add(plus, apart[0], middle[1])),
        ]
    even, odd = both(add, z[0], z[2]), both(add, z[1], z[3])
    left, right = both(sub, z[0], z[2]), both(sub, z[1], z[3])
    return [
        both(add, even, odd), (add(left[0], right[1]), sub(left[1], right[0])),
        both(sub, even, odd), (sub(left[0], right[1]), add(left[1], right[0])),
    ]  # fmt: skip


def times(vectors: Vectors, a: tuple[Any, Any], b: tuple[Any, Any], conjugate: bool = False) -> tuple[Any, Any]:
    """``a * b``, or ``a * conj(b)``."""
    mul, minus = vectors.builder.fmul, vectors.builder.fneg
    turned = b[1] if conjugate else minus(b[1])
    return (
        vectors.multiply_add(a[0], b[0], mul(a[1], turned)),
        vectors.multiply_add(a[1], b[0], mul(a[0], minus(turned))),
    )


def _pass(itemsize: int, lanes: int, radix: int, forward: bool) -> Any:
    """``run(line, blocks, m, factors)``: one pass over a line, there or back (which leaves out the division)."""

    def run(vectors: Vectors, line: Any, blocks: Any, m: Any, factors: Any) -> None:
        builder, start, table = vectors.builder, vectors.pointer(line), vectors.pointer(factors)

        def column(j: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(j, number(2 * (radix - 1)))
            w = [
                tuple(
                    vectors.broadcast(builder.load(builder.gep(table, [builder.add(first, number(2 * q + part))])))
                    for part in range(2)
                )
                for q in range(radix - 1)
            ]

            def block(b: Any, _: list[Any]) -> list[Any]:
                base = builder.add(builder.mul(b, builder.mul(m, number(radix))), j)
                cells = [
                    builder.mul(builder.add(base, builder.mul(m, number(q))), number(2 * lanes)) for q in range(radix)
                ]
                z = [(vectors.load(start, c), vectors.load(start, builder.add(c, number(lanes)))) for c in cells]
                if forward:
                    z = _dft(vectors, radix, z)
                    z = [z[0], *(times(vectors, a, b) for a, b in zip(z[1:], w, strict=True))]
                else:
                    # Parts exchanged, the way back is the way there.
                    z = [(im, re) for re, im in z]
                    z = [z[0], *(times(vectors, a, b) for a, b in zip(z[1:], w, strict=True))]
                    z = [(im, re) for re, im in _dft(vectors, radix, z)]
                for c, (re, im) in zip(cells, z, strict=True):
                    vectors.store(re, start, c)
                    vectors.store(im, start, builder.add(c, number(lanes)))
                return []

            counted_loop(builder, blocks, [], block)
            return []

        counted_loop(builder, m, [], column)

    run.__name__ = f"pass_{radix}_{'there' if forward else 'back'}"
    return on_addresses(run, itemsize, lanes)


def movers(itemsize: int, lanes: int) -> tuple[Any, ...]:
    """``turn_in(line, rows, offset, step, groups)`` takes one part of a line from as many rows as there are lanes,
    ``turn_out(line, rows, offset, step, count, seen)`` takes `count` elements of it back and adds zero times each to
    the vector `seen`; ``move(target, target_step, source, source_step, count)`` copies complex elements; and
    ``multiply(line, spectrum, count)`` multiplies by the conjugate. Steps are in elements.
    """
    element = 2 * lanes

    def pointers(vectors: Vectors, rows: Any, offset: Any) -> list[Any]:
        builder, table = vectors.builder, vectors.builder.inttoptr(rows, INT64.as_pointer())
        return [
            builder.gep(vectors.pointer(builder.load(builder.gep(table, [number(n)]))), [offset]) for n in range(lanes)
        ]

    def turn_in(vectors: Vectors, line: Any, rows: Any, offset: Any, step: Any, groups: Any) -> None:
        builder, target = vectors.builder, vectors.pointer(line)
        starts = pointers(vectors, rows, offset)

        def group(g: Any, _: list[Any]) -> list[Any]:
            here = builder.mul(g, step)
            columns = transpose(vectors, [vectors.load(start, here) for start in starts], lanes)
            for i, column in enumerate(columns):
                vectors.store(column, target, builder.add(builder.mul(g, number(lanes * element)), number(i * element)))
            return []

        counted_loop(builder, groups, [], group)

    def turn_out(vectors: Vectors, line: Any, rows: Any, offset: Any, step: Any, count: Any, seen: Any) -> None:
        builder, source, flags = vectors.builder, vectors.pointer(line), vectors.pointer(seen)
        starts = pointers(vectors, rows, offset)
        groups = builder.sdiv(builder.add(count, number(lanes - 1)), number(lanes))

        def group(g: Any, held: list[Any]) -> list[Any]:
            first = builder.mul(g, number(lanes * element))
            columns = [vectors.load(source, builder.add(first, number(i * element))) for i in range(lanes)]
            here, left = builder.mul(g, step), builder.sub(count, builder.mul(g, number(lanes)))
            turned = transpose(vectors, columns, lanes)
            with builder.if_else(builder.icmp_signed(">=", left, number(lanes))) as (whole, part):
                with whole:
                    for start, row in zip(starts, turned, strict=True):
                        vectors.store(row, start, here)
                with part:
                    mask = vectors.first_lanes(left)
                    for start, row in zip(starts, turned, strict=True):
                        vectors.store_masked(row, start, mask, here)
            total = held[0]
            for column in columns:
                total = vectors.multiply_add(column, vectors.zeros, total)
            return [total]

        vectors.store(counted_loop(builder, groups, [vectors.load(flags)], group)[0], flags)

    def move(vectors: Vectors, target: Any, target_step: Any, source: Any, source_step: Any, count: Any) -> None:
        builder, there, here = vectors.builder, vectors.pointer(target), vectors.pointer(source)

        def one(i: Any, _: list[Any]) -> list[Any]:
            for part in range(2):
                value = vectors.load(here, builder.add(builder.mul(i, source_step), number(part * lanes)))
                vectors.store(value, there, builder.add(builder.mul(i, target_step), number(part * lanes)))
            return []

        counted_loop(builder, count, [], one)

    def multiply(vectors: Vectors, line: Any, spectrum: Any, count: Any) -> None:
        builder, start, factors = vectors.builder, vectors.pointer(line), vectors.pointer(spectrum)

        def one(i: Any, _: list[Any]) -> list[Any]:
            cells = [builder.add(builder.mul(i, number(element)), number(part * lanes)) for part in range(2)]
            a, b = ((vectors.load(p, cells[0]), vectors.load(p, cells[1])) for p in (start, factors))
            for value, cell in zip(times(vectors, a, b, conjugate=True), cells, strict=True):
                vectors.store(value, start, cell)
            return []

        counted_loop(builder, count, [], one)

    return tuple(on_addresses(write, itemsize, lanes) for write in (turn_in, turn_out, move, multiply))


@functools.lru_cache(maxsize=8)
def transformer(itemsize: int, lanes: int) -> Callable[..., None]:
    """``transform(line, plan, first, last, forward, factors)``: the passes from `first` to `last` of a plan."""
    there2, there3, there4 = (_pass(itemsize, lanes, radix, True) for radix in (2, 3, 4))
    back2, back3, back4 = (_pass(itemsize, lanes, radix, False) for radix in (2, 3, 4))

    @inner
    def transform(line: int, plan: Any, first: int, last: int, forward: bool, factors: int) -> None:
        for i in range(last - first):
            p = first + i if forward else last - 1 - i
            radix, blocks, m, table = plan[p, 0], plan[p, 1], plan[p, 2], factors + plan[p, 3] * itemsize
            if forward:
                if radix == 4:
                    there4(line, blocks, m, table)
                elif radix == 2:
                    there2(line, blocks, m, table)
                else:
                    there3(line, blocks, m, table)
            elif radix == 4:
                back4(line, blocks, m, table)
            elif radix == 2:
                back2(line, blocks, m, table)
            else:
                back3(line, blocks, m, table)

    return transform


@functools.lru_cache(maxsize=4)
def padded_reader(dtype: np.dtype[Any]) -> Callable[..., None]:
    """``read(target, row, width, first, count, low, sources, at, length, outside)``: a part of a padded row.

    From element `first` of the padded row on, `count` are written to `target`. Element `low` of it is the first of the
    `width` at `row`; what each of its `length` elements is stands in `sources` from `at` on, -1 for the constant, and
    what lies beyond is as the last one.
    """
    size, kind = dtype.itemsize, dtype.type
    _, copy_row, _ = row_movers(size, processor().register_bytes // size)

    @inner
    def read(
        target: int, row: int, width: int, first: int, count: int, low: int, sources: Any, at: int, length: int,
        outside: Any,
    ) -> None:  # fmt: skip
        image, result = elements(row, width, kind), elements(target, count, kind)
        begin = min(count, max(0, low - first))
        end = min(count, max(begin, low + width - first))
        for q in range(begin):
            c = sources[at + min(first + q, length - 1)]
            result[q] = image[c] if c >= 0 else outside
        copy_row(target + begin * size, row + (first + begin - low) * size, end - begin)
        for q in range(end, count):
            c = sources[at + min(first + q, length - 1)]
            result[q] = image[c] if c >= 0 else outside

    return read


class Tiles(NamedTuple):
    """What `conv_fourier` works from, all of int64.

    `axes` holds for every axis the image's size, the result's, a tile's, what is kept of it, the number of tiles, and
    where the axis's elements begin in `sources`, which names the element of the image that each of the padded image is,
    -1 for the constant. `plan` and `starts` are of `passes`. `how` holds the elements before the image's first column,
    and on how many places of the first axis there is anything, where the tile is a kernel whose spectrum is to be made.
    """

    axes: Any
    sources: Any
    plan: Any
    starts: Any
    how: Any


@functools.lru_cache(maxsize=8)
def conv_fourier(dtype: np.dtype[Any], lanes: int) -> Callable[..., None]:
    """The driver for float32 or float64 and vectors of so many lanes."""
    size, kind = dtype.itemsize, dtype.type
    turn_in, turn_out, move, multiply = movers(size, lanes)
    transform, read = transformer(size, lanes), padded_reader(dtype)
    element = 2 * lanes

    @inner
    def along(
        tile: int, pitch: int, line: int, axes: Any, axis: int, plan: Any, starts: Any, factors: int, forward: bool,
        spectrum: int, mode: int, planes: int,
    ) -> None:  # fmt: skip
        """Lines along an axis but the last: one way; there, for the spectrum (1); there, times it, and back (2)."""
        d, rows, stride = axes.shape[0], 1, 1
        for a in range(d - 1):
            rows *= axes[a, 2]
        for a in range(axis + 1, d - 1):
            stride *= axes[a, 2]
        n, groups = axes[axis, 2], axes[d - 1, 2] // lanes
        for h in range(rows // n):
            row = h // stride * (stride * n) + h % stride
            if row * axes[0, 2] // rows >= planes:
                continue
            for g in range(groups):
                start = tile + (row * pitch + g * element) * size
                kept = spectrum + (h * groups + g) * n * element * size
                move(line, element, start, stride * pitch, n)
                transform(line, plan, starts[axis], starts[axis + 1], forward, factors)
                if mode == 1:
                    move(kept, element, line, element, n)
                    continue
                if mode == 2:
                    multiply(line, kept, n)
                    transform(line, plan, starts[axis], starts[axis + 1], False, factors)
                move(start, stride * pitch, line, element, n)

    @inner
    def place(
        task: int, part: int, x: int, beyond: int, y: int, axes: Any, sources: Any, reads: Any, writes: Any,
    ) -> int:  # fmt: skip
        """Where a tile's rows are read and written, of the first or second tile of a pair; its number, or -1."""
        d, tiles = axes.shape[0], 1
        for a in range(d):
            tiles *= axes[a, 4]
        pairs = (tiles + 1) // 2
        n, number_of_tile = task // pairs, task % pairs * 2 + part
        real = number_of_tile < tiles
        number_of_tile = min(number_of_tile, tiles - 1)
        for r in range(reads.shape[0]):
            rest, cells, row, line, inside, kept = number_of_tile // axes[d - 1, 4], r, 0, 0, True, real
            image, result = 1, 1
            for a in range(d - 2, -1, -1):
                i, cells = cells % axes[a, 2], cells // axes[a, 2]
                first, rest = rest % axes[a, 4] * axes[a, 3], rest // axes[a, 4]
                padded = min(first + i, axes[a, 6] - 1)
                source = sources[axes[a, 5] + padded]
                inside = inside and source >= 0
                kept = kept and i < axes[a, 3] and first + i < axes[a, 1]
                row, image = row + source * image, image * axes[a, 0]
                line, result = line + (first + i) * result, result * axes[a, 1]
            reads[r] = x + (n * image + row) * axes[d - 1, 0] * size if inside else beyond
            writes[r] = y + (n * result + line) * axes[d - 1, 1] * size if kept else 0
        first_column: int = number_of_tile % axes[d - 1, 4] * axes[d - 1, 3]
        return first_column

    @entry(*signature(dtype, 6, GRID, TABLE, GRID, TABLE, TABLE))
    def conv_fourier_loop(
        start: int, stop: int, x: Any, beyond: Any, spectrum: Any, factors: Any, bad: Any, y: Any, outside: Any,
        tables: Any,
    ) -> None:  # fmt: skip
        """Filter with the kernel whose spectrum is given, or make the spectrum of the tile `x` if ``how[1]`` says so.

        For the addresses of images, of a row as wide that holds nothing but `outside`, of the factors of `passes`, of
        one number that becomes NaN where a result is not finite, and of the result. A task is a pair of tiles.
        """
        x, beyond, spectrum, factors = number_of(x), number_of(beyond), number_of(spectrum), number_of(factors)
        y, flag = number_of(y), elements(number_of(bad), 1, kind)
        axes, sources, plan, starts, how = tables
        d, rows = axes.shape[0], 1
        width, longest = axes[d - 1, 2], axes[d - 1, 2]
        for a in range(d - 1):
            rows *= axes[a, 2]
            longest = max(longest, axes[a, 2])
        pitch, low, making = width * 2 + element, how[0], how[1] > 0
        # Of a kernel's tile the rest is zeros, whose transforms are zeros.
        planes = how[1] if making else axes[0, 2]
        tile, room = np.empty(rows * pitch, kind), np.zeros(longest * element, kind)
        line, corner, seen = address_of(room), np.empty(lanes * width, kind), np.zeros(lanes, kind)
        dump = np.empty(axes[d - 1, 1] + width, kind)
        reads, writes, firsts = np.empty((2, rows), np.int64), np.empty((2, rows), np.int64), np.zeros(2, np.int64)
        table = np.empty(lanes, np.int64)
        for task in range(start, stop):
            for part in range(2):
                firsts[part] = place(task, part, x, beyond, y, axes, sources, reads[part], writes[part])
            filled = -(-rows // axes[0, 2] * planes // lanes) * lanes
            for q in range(filled * pitch, rows * pitch):
                tile[q] = 0
            for top in range(0, filled, lanes):
                for part in range(2):
                    target, first = line + part * lanes * size, firsts[part]
                    if first >= low and first - low + width <= axes[d - 1, 0]:
                        for r in range(lanes):
                            table[r] = reads[part, top + r] + (first - low) * size
                    else:
                        for r in range(lanes):
                            table[r] = address_of(corner) + r * width * size
                            read(
                                table[r], reads[part, top + r], axes[d - 1, 0], first, width, low, sources,
                                axes[d - 1, 5], axes[d - 1, 6], outside,
                            )  # fmt: skip
                    turn_in(target, address_of(table), 0, lanes, width // lanes)
                if making:
                    for q in range(width):
                        room[q * element + lanes : (q + 1) * element] = 0
                transform(line, plan, starts[d - 1], starts[d], True, factors)
                for r in range(lanes):
                    table[r] = address_of(tile) + (top + r) * pitch * size
                for part in range(2):
                    turn_out(
                        line + part * lanes * size, address_of(table), part * lanes, element, width, address_of(seen)
                    )
            for axis in range(d - 2, 0, -1):
                along(address_of(tile), pitch, line, axes, axis, plan, starts, factors, True, spectrum, 0, planes)
            mode = 1 if making else 2
            along(address_of(tile), pitch, line, axes, 0, plan, starts, factors, True, spectrum, mode, axes[0, 2])
            if making:
                continue
            for axis in range(1, d - 1):
                along(address_of(tile), pitch, line, axes, axis, plan, starts, factors, False, spectrum, 0, axes[0, 3])
            seen[:] = 0
            for top in range(0, rows, lanes):
                wanted = False
                for r in range(lanes):
                    wanted = wanted or writes[0, top + r] != 0
                    wanted = wanted or writes[1, top + r] != 0
                if not wanted:
                    continue
                for r in range(lanes):
                    table[r] = address_of(tile) + (top + r) * pitch * size
                for part in range(2):
                    turn_in(line + part * lanes * size, address_of(table), part * lanes, element, width // lanes)
                transform(line, plan, starts[d - 1], starts[d], False, factors)
                for part in range(2):
                    first = firsts[part]
                    for r in range(lanes):
                        to = writes[part, top + r]
                        table[r] = to + first * size if to != 0 else address_of(dump)
                    turn_out(
                        line + part * lanes * size, address_of(table), 0, lanes,
                        min(axes[d - 1, 3], axes[d - 1, 1] - first), address_of(seen),
                    )  # fmt: skip
            for r in range(lanes):
                if seen[r] != 0:
                    flag[0] = np.nan

    return conv_fourier_loop


def tables_for(size: Any, out: Any, lengths: Any, sources: Any, low: int, dtype: np.dtype[Any], making: int = 0) -> Any:
    """`Tiles` and the factors of a filter whose tiles are of `lengths`; `sources` name the elements of each axis."""
    reach = [len(s) - o for s, o in zip(sources, out, strict=True)]
    rows, at = [], 0
    for n, o, length, r, s in zip(size, out, lengths, reach, sources, strict=True):
        rows.append((n, o, length, length - r, -(-o // (length - r)), at, len(s)))
        at += len(s)
    plan, starts, factors = passes(tuple(lengths), dtype)
    parts = (rows, np.concatenate(sources), plan, starts, (low, making))
    return Tiles(*(as_table(part) for part in parts)), factors
