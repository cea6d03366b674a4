"""Winograd's transforms as vector instructions: one lane a tile (or a channel), matrices as constants.

``gather`` reads small patches, one for each lane and anywhere in memory, and writes their transformed points, each a
vector; ``scatter`` is the way back. Both apply a matrix to the rows and one to the columns of every patch. Rows are
read as vectors and turned into one vector per column by a transposition in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npconv.kernels.cpu.vectors import INT64, Vectors, counted_loop, number, on_addresses

Rows = tuple[tuple[float, ...], ...]
"""A matrix as a tuple of rows."""


def row_width(columns: int) -> int:
    """Elements that are read or written as one row of a patch: the next power of two."""
    return 1 << (columns - 1).bit_length()


def gatherer(itemsize: int, lanes: int, down: Rows, across: Rows, neighbours: bool = False) -> Any:
    """``gather(base, offsets, pitch, scratch, target, distance)``: points = down @ patch @ across.T in every lane.

    Lane l's patch has its rows `pitch` elements apart from element ``offsets[l]`` behind address `base` on; of each
    `row_width` elements are read. Point (i, j) is stored `distance` elements behind the one before. `scratch` has room
    for ``len(down[0]) * len(across)`` vectors.
    """
    height, width = len(down[0]), len(across[0])

    def gather(vectors: Vectors, base: Any, offsets: Any, pitch: Any, scratch: Any, target: Any, distance: Any) -> None:
        builder = vectors.builder
        held, out = vectors.pointer(scratch), vectors.pointer(target)
        starts = _starts(vectors, base, offsets, 1 if neighbours else lanes)

        def rows(i: Any, _: list[Any]) -> list[Any]:
            here = [builder.gep(start, [builder.mul(i, pitch)]) for start in starts]
            columns = [vectors.load(here[0])] if neighbours else _read_columns(vectors, here, row_width(width))[:width]
            first = builder.mul(i, number(len(across) * lanes))
            for j, value in enumerate(combine(vectors, across, columns)):
                vectors.store(value, held, builder.add(first, number(j * lanes)))
            return []

        def columns(j: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(j, number(lanes))
            column = [vectors.load(held, builder.add(first, number(i * len(across) * lanes))) for i in range(height)]
            for i, value in enumerate(combine(vectors, down, column)):
                point = builder.add(j, number(i * len(across)))
                vectors.store(value, out, builder.mul(point, distance))
            return []

        counted_loop(builder, number(height), [], rows)
        counted_loop(builder, number(len(across)), [], columns)

    return on_addresses(gather, itemsize, lanes)


def kernel_transformer(itemsize: int, lanes: int, down: Rows, across: Rows) -> Any:
    """``transform(base, offsets, target, distance, turned)``: `gatherer` for kernels, whose rows follow each other.

    Where `turned` is not 0 their taps are taken in the opposite order.
    A kernel is small enough for registers: a column of its points, or two that share sums, is made and stored at once,
    and nothing waits in memory in between.
    """
    height, width = len(down[0]), len(across[0])

    def transform(vectors: Vectors, base: Any, offsets: Any, target: Any, distance: Any, turned: Any) -> None:
        builder = vectors.builder
        out, starts = vectors.pointer(target), _starts(vectors, base, offsets, lanes)
        taps = []
        # Kernels are read in short runs, which the processor does not foresee: those of the call after the next one.
        for start in starts:
            vectors.prefetch(builder.gep(start, [number(2 * lanes * height * width)]))
        for i in range(height):
            here = [builder.gep(start, [number(i * width)]) for start in starts]
            taps.append(_read_columns(vectors, here, row_width(width))[:width])
        is_turned = builder.icmp_signed("!=", turned, number(0))
        taps = [
            [builder.select(is_turned, taps[-1 - i][-1 - j], value) for j, value in enumerate(row)]
            for i, row in enumerate(taps)
        ]
        for group in pairs(across):
            some = tuple(across[j] for j in group)
            for j, column in zip(group, zip(*(combine(vectors, some, row) for row in taps), strict=True), strict=True):
                for i, value in enumerate(combine(vectors, down, list(column))):
                    vectors.store(value, out, builder.mul(number(i * len(across) + j), distance))

    return on_addresses(transform, itemsize, lanes)


def scatterer(itemsize: int, lanes: int, down: Rows, across: Rows, neighbours: bool = False) -> Any:
    """``scatter(source, distance, scratch, base, offsets, pitch, shift, limits)``: the way back.

    Patch = clamp(shift + down @ points @ across.T), with `shift` the address of one number and `limits` that of two.
    Exactly ``len(down)`` rows of ``len(across)`` elements of every lane are written. `neighbours` are as in `gatherer`.
    """
    height, width = len(down), len(across)

    def scatter(
        vectors: Vectors, source: Any, distance: Any, scratch: Any, base: Any, offsets: Any, pitch: Any, shift: Any,
        limits: Any,
    ) -> None:  # fmt: skip
        builder = vectors.builder
        held, points = vectors.pointer(scratch), vectors.pointer(source)
        starts = _starts(vectors, base, offsets, 1 if neighbours else lanes)
        bound = vectors.pointer(limits)
        low, high = (vectors.broadcast(builder.load(builder.gep(bound, [number(i)]))) for i in range(2))
        bias = vectors.broadcast(builder.load(vectors.pointer(shift)))
        wide = len(across[0])

        def columns(j: Any, _: list[Any]) -> list[Any]:
            numbers = [builder.add(j, number(i * wide)) for i in range(len(down[0]))]
            column = [vectors.load(points, builder.mul(point, distance)) for point in numbers]
            first = builder.mul(j, number(lanes))
            for i, value in enumerate(combine(vectors, down, column)):
                vectors.store(value, held, builder.add(first, number(i * wide * lanes)))
            return []

        def rows(i: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(i, number(wide * lanes))
            row = [vectors.load(held, builder.add(first, number(j * lanes))) for j in range(wide)]
            values = [vectors.clamp(builder.fadd(v, bias), low, high) for v in combine(vectors, across, row)]
            here = [builder.gep(start, [builder.mul(i, pitch)]) for start in starts]
            if neighbours:
                vectors.store(values[0], here[0])
            else:
                _write_columns(vectors, here, values, row_width(width))
            return []

        counted_loop(builder, number(wide), [], columns)
        counted_loop(builder, number(height), [], rows)

    return on_addresses(scatter, itemsize, lanes)


def combine(vectors: Vectors, matrix: Rows, values: list[Any]) -> list[Any]:
    """The matrix times a column of vectors.

    Points come in pairs p and -p, whose rows agree up to the signs of some columns: the part that agrees and the part
    that changes sign are summed once for both.
    """
    results: list[Any] = [None] * len(matrix)
    for i, *rest in pairs(matrix):
        row = matrix[i]
        if not rest:
            results[i] = _weighted_sum(vectors, list(enumerate(row)), values)
            continue
        other = matrix[rest[0]]
        same = _weighted_sum(vectors, [(k, v) for k, v in enumerate(row) if v == other[k]], values)
        changed = _weighted_sum(vectors, [(k, v) for k, v in enumerate(row) if v != other[k]], values)
        results[i] = vectors.builder.fadd(same, changed)
        results[rest[0]] = vectors.builder.fsub(same, changed)
    return results


def pairs(matrix: Rows) -> list[tuple[int, ...]]:
    """The rows of a matrix, those of a point and its opposite together."""
    found: list[tuple[int, ...]] = []
    left = list(range(len(matrix)))
    while left:
        i = left.pop(0)
        partner = next((j for j in left if _are_pair(matrix[i], matrix[j])), None)
        if partner is not None:
            left.remove(partner)
        found.append((i,) if partner is None else (i, partner))
    return found


def _are_pair(row: tuple[float, ...], other: tuple[float, ...]) -> bool:
    signs = {a == b for a, b in zip(row, other, strict=True) if a or b}
    return [abs(a) for a in row] == [abs(b) for b in other] and signs == {True, False}


def _weighted_sum(vectors: Vectors, terms: list[tuple[int, float]], values: list[Any]) -> Any:
    builder, total = vectors.builder, None
    for k, factor in terms:
        if factor == 0:
            continue
        if total is None:
            total = values[k] if factor == 1 else builder.fmul(values[k], vectors.constant(factor))
        elif factor == 1:
            total = builder.fadd(total, values[k])
        elif factor == -1:
            total = builder.fsub(total, values[k])
        else:
            total = vectors.multiply_add(values[k], vectors.constant(factor), total)
    return vectors.zeros if total is None else total


def _starts(vectors: Vectors, base: Any, offsets: Any, count: int) -> list[Any]:
    """Pointers to the patches of the first `count` lanes."""
    builder = vectors.builder
    table = builder.inttoptr(offsets, INT64.as_pointer())
    first = vectors.pointer(base)
    return [builder.gep(first, [builder.load(builder.gep(table, [number(lane)]))]) for lane in range(count)]


def _read_columns(vectors: Vectors, starts: list[Any], width: int) -> list[Any]:
    """`width` elements from every lane's pointer, as one vector for each of them."""
    lanes = vectors.lanes
    if lanes <= width:
        return [
            column
            for first in range(0, width, lanes)
            for column in transpose(vectors, [_part(vectors, start, first, lanes) for start in starts], lanes)
        ]
    rows = []
    for r in range(width):
        parts = [_part(vectors, start, 0, width) for start in starts[r::width]]
        while len(parts) > 1:
            both = list(range(2 * parts[0].type.count))
            parts = [vectors.shuffle(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        rows.append(parts[0])
    return transpose(vectors, rows, width)


def _write_columns(vectors: Vectors, starts: list[Any], columns: list[Any], width: int) -> None:
    """The way back: the first elements of every lane's row, one from each vector."""
    lanes, count = vectors.lanes, len(columns)
    columns = columns + [vectors.zeros] * (width - count)
    if lanes <= width:
        for first in range(0, count, lanes):
            rows = transpose(vectors, columns[first : first + lanes], lanes)
            for start, row in zip(starts, rows, strict=True):
                _store_part(vectors, row, 0, min(lanes, count - first), start, first)
        return
    for r, row in enumerate(transpose(vectors, columns, width)):
        for group, start in enumerate(starts[r::width]):
            _store_part(vectors, row, group * width, count, start, 0)


def transpose(vectors: Vectors, rows: list[Any], size: int) -> list[Any]:
    """Transpose blocks of `size` x `size`: as many vectors, each holding one row of every block.

    In log2(size) steps, each of which exchanges the off-diagonal halves of smaller blocks.
    """
    rows, lanes, step = list(rows), vectors.lanes, 1
    while step < size:
        for i in range(size):
            if i & step:
                continue
            low = [k if not k & step else lanes + k - step for k in range(lanes)]
            high = [k + step if not k & step else lanes + k for k in range(lanes)]
            rows[i], rows[i + step] = (
                vectors.shuffle(rows[i], rows[i + step], low), vectors.shuffle(rows[i], rows[i + step], high)
            )  # fmt: skip
        step *= 2
    return rows


def _part(vectors: Vectors, start: Any, offset: int, count: int) -> Any:
    """`count` elements as a vector."""
    kind = ir.VectorType(vectors.scalar, count)
    cell = vectors.builder.gep(start, [number(offset)])
    value = vectors.builder.load(vectors.builder.bitcast(cell, kind.as_pointer()))
    value.align = vectors.itemsize
    return value


def _store_part(vectors: Vectors, row: Any, first: int, count: int, start: Any, offset: int) -> None:
    """`count` lanes from `first` on, stored `offset` elements behind a pointer."""
    part = vectors.shuffle(row, row, list(range(first, first + count)))
    cell = vectors.builder.gep(start, [number(offset)])
    pointer = vectors.builder.bitcast(cell, part.type.as_pointer())
    vectors.builder.store(part, pointer).align = vectors.itemsize
