"""Sums over positions, generated as LLVM instructions: what weight gradients are made of.

A weight gradient sums, over the positions of a block, products of a gradient with the staged image under a tap. There
are two forms, and a transposition between them and the arrays. Where many output channels share an image, a tile of
taps by output channels: the image is broadcast from where it was staged, the gradient streams as packed vectors over
output channels. Where few do, dots: both are vectors over positions, and every lane has a sum of its own.

Contract: positions are `height` rows of `width`. Tap t finds its element at ``offsets[t] + i * pitch + j`` elements
behind address `x`, with `offsets` a table of int64; whoever has fewer taps than the function repeats one of them.
Nothing is read but what is summed, and nothing is aligned beyond an element.
"""

from __future__ import annotations

from typing import Any

from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import INT64, Vectors, counted_loop, number, on_addresses

UNROLL = 2
"""Positions a pass of the tile's loop does."""


def taps_product(itemsize: int, tile: Tile) -> Any:
    """``product(height, width, x, pitch, offsets, b, c, accumulate)``: a tile of taps by output channels.

    ``C[t, o] := sum over (i, j) of X[t, i, j] * B[i * width + j, o]``, or ``C[t, o] +=`` the sum where `accumulate` is
    not 0. B and C have rows of ``tile.columns`` elements, one behind the other; there are ``tile.rows`` taps.
    """
    lanes = tile.lanes
    places = [(row, v) for row in range(tile.rows) for v in range(tile.vectors)]

    def product(
        vectors: Vectors, height: Any, width: Any, x: Any, pitch: Any, offsets: Any, b: Any, c: Any, accumulate: Any
    ) -> None:
        builder, packed, result = vectors.builder, vectors.pointer(b), vectors.pointer(c)
        rows = _pointers(vectors, x, offsets, tile.rows)

        def step(position: Any, line: Any, sums: list[Any]) -> list[Any]:
            held = [vectors.load(line, v * lanes) for v in range(tile.vectors)]
            factors = [vectors.broadcast(builder.load(builder.gep(row, [position]))) for row in rows]
            return [vectors.multiply_add(factors[row], held[v], sums[row * tile.vectors + v]) for row, v in places]

        def steps(first: Any, line: Any, count: int) -> Any:
            def body(index: Any, sums: list[Any]) -> list[Any]:
                for u in range(count):
                    j = builder.add(builder.mul(index, number(count)), number(u))
                    here = builder.gep(line, [builder.mul(j, number(tile.columns))])
                    sums = step(builder.add(first, j), here, sums)
                return sums

            return body

        def line_of_positions(i: Any, sums: list[Any]) -> list[Any]:
            first = builder.mul(i, pitch)
            line = builder.gep(packed, [builder.mul(builder.mul(i, width), number(tile.columns))])
            pairs, rest = builder.sdiv(width, number(UNROLL)), builder.srem(width, number(UNROLL))
            sums = counted_loop(builder, pairs, sums, steps(first, line, UNROLL))
            done = builder.mul(pairs, number(UNROLL))
            line = builder.gep(line, [builder.mul(done, number(tile.columns))])
            return counted_loop(builder, rest, sums, steps(builder.add(first, done), line, 1))

        sums = counted_loop(builder, height, [vectors.zeros] * len(places), line_of_positions)
        with builder.if_else(builder.icmp_signed("!=", accumulate, number(0))) as (add, overwrite):
            with add:
                held = [vectors.load(result, n * lanes) for n in range(len(places))]
                for n, (before, value) in enumerate(zip(held, sums, strict=True)):
                    vectors.store(builder.fadd(before, value), result, n * lanes)
            with overwrite:
                for n, value in enumerate(sums):
                    vectors.store(value, result, n * lanes)

    return on_addresses(product, itemsize, lanes)


def dots(itemsize: int, lanes: int, rows: int, taps: int) -> Any:
    """``dot(height, width, dy, distance, places, x, pitch, offsets, sums)``: dot products of gradients with taps.

    Row r of the gradient has position (i, j) at ``places[r] + i * distance + j`` elements behind address `dy`. To
    vector ``r * taps + t`` at address `sums` is added, in lane l, the sum over all (i, j) with j = l modulo `lanes`.
    """

    def dot(
        vectors: Vectors, height: Any, width: Any, dy: Any, distance: Any, places: Any, x: Any, pitch: Any,
        offsets: Any, sums: Any,
    ) -> None:  # fmt: skip
        builder, result = vectors.builder, vectors.pointer(sums)
        gradients, images = _pointers(vectors, dy, places, rows), _pointers(vectors, x, offsets, taps)
        whole = builder.sdiv(width, number(lanes))
        rest = builder.srem(width, number(lanes))
        mask = vectors.first_lanes(rest)

        def step(here: Any, there: Any, mask: Any, sums: list[Any]) -> list[Any]:
            def read(pointer: Any, position: Any) -> Any:
                if mask is None:
                    return vectors.load(pointer, position)
                return vectors.load_masked(pointer, mask, position)

            # What there is less of is held in registers, the rest streams.
            after = list(sums)
            outer, inner = (gradients, images) if rows <= taps else (images, gradients)
            first, second = (here, there) if rows <= taps else (there, here)
            held = [read(pointer, first) for pointer in outer]
            for m, pointer in enumerate(inner):
                value = read(pointer, second)
                for n, other in enumerate(held):
                    place = n * taps + m if rows <= taps else m * taps + n
                    after[place] = vectors.multiply_add(other, value, sums[place])
            return after

        def line(i: Any, sums: list[Any]) -> list[Any]:
            here, there = builder.mul(i, distance), builder.mul(i, pitch)

            def body(index: Any, sums: list[Any]) -> list[Any]:
                j = builder.mul(index, number(lanes))
                return step(builder.add(here, j), builder.add(there, j), None, sums)

            def last(_: Any, sums: list[Any]) -> list[Any]:
                j = builder.mul(whole, number(lanes))
                return step(builder.add(here, j), builder.add(there, j), mask, sums)

            sums = counted_loop(builder, whole, sums, body)
            return counted_loop(builder, _at_most_one(builder, rest), sums, last)

        found = counted_loop(builder, height, [vectors.zeros] * (rows * taps), line)
        for n, value in enumerate(found):
            vectors.store(builder.fadd(vectors.load(result, n * lanes), value), result, n * lanes)

    return on_addresses(dot, itemsize, lanes)


def totals(itemsize: int, lanes: int) -> Any:
    """``total(target, source)``: the sum of the `lanes` elements at `source`, halves first, always in one order."""

    def total(vectors: Vectors, target: Any, source: Any) -> None:
        builder, width = vectors.builder, lanes
        value = vectors.load(vectors.pointer(source))
        while width > 1:
            width //= 2
            low, high = (vectors.shuffle(value, value, list(range(at, at + width))) for at in (0, width))
            value = builder.fadd(low, high)
        builder.store(builder.extract_element(value, number(0)), vectors.pointer(target))

    return on_addresses(total, itemsize, lanes)


def turner(itemsize: int, lanes: int) -> Any:
    """``turn(target, target_pitch, source, source_pitch, rows, columns)``: transpose a block.

    ``target[j, i] = source[i, j]`` for i below `rows` and j below `columns`, both from 1 on; of either at most `lanes`
    are done. The pitches are the distances of rows in elements. Nothing else is read or written.
    """

    def turn(
        vectors: Vectors, target: Any, target_pitch: Any, source: Any, source_pitch: Any, rows: Any, columns: Any
    ) -> None:
        builder = vectors.builder
        first, result = vectors.pointer(source), vectors.pointer(target)
        enough = [builder.icmp_signed(">=", count, number(lanes)) for count in (rows, columns)]

        def places(base: Any, pitch: Any, count: Any) -> list[Any]:
            """Pointers to rows; what is too many is directed at the last one."""
            if count is None:
                return [builder.gep(base, [builder.mul(number(n), pitch)]) for n in range(lanes)]
            last = builder.sub(count, number(1))
            used = [builder.select(builder.icmp_signed("<", number(n), last), number(n), last) for n in range(lanes)]
            return [builder.gep(base, [builder.mul(n, pitch)]) for n in used]

        with builder.if_else(builder.and_(*enough)) as (whole, part):
            with whole:
                read = [vectors.load(place) for place in places(first, source_pitch, None)]
                for value, place in zip(
                    transpose(vectors, read, lanes), places(result, target_pitch, None), strict=True
                ):
                    vectors.store(value, place)
            with part:
                inside, outside = vectors.first_lanes(columns), vectors.first_lanes(rows)
                read = [vectors.load_masked(place, inside) for place in places(first, source_pitch, rows)]
                written = zip(transpose(vectors, read, lanes), places(result, target_pitch, columns), strict=True)
                # From the last to the first: the last row's own value comes after those directed at it.
                for value, place in reversed(list(written)):
                    vectors.store_masked(value, place, outside)

    return on_addresses(turn, itemsize, lanes)


def _pointers(vectors: Vectors, base: Any, offsets: Any, count: int) -> list[Any]:
    """Pointers to `count` places, whose offsets are a table."""
    builder = vectors.builder
    table, first = builder.inttoptr(offsets, INT64.as_pointer()), vectors.pointer(base)
    return [builder.gep(first, [builder.load(builder.gep(table, [number(n)]))]) for n in range(count)]


def _at_most_one(builder: Any, value: Any) -> Any:
    """1 where a number is positive, else 0: how often an optional step is done."""
    return builder.zext(builder.icmp_signed(">", value, number(0)), INT64)
