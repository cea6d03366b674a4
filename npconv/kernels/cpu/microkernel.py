"""The register tile: a small block of a matrix product, generated as LLVM instructions for this processor's vectors.

``C[i, j] := bias[i] + sum over k of A[i, k] * B[k, j]``, or ``C[i, j] +=`` the sum, then clamped. Written out, not left
to a vectoriser, because the whole speed is in keeping `rows` x `vectors` sums in registers while two streams pass by.

Contract: A has rows `lda` elements apart, each contiguous, so weights are read where they are; or it is "chunked": the
elements of all rows for `CHUNK` k follow each other, row by row, and so do the chunks, so that weights too large for a
cache arrive as one stream. B has rows of `columns` contiguous elements: one behind the other ("packed"), or each at an
offset of its own ("listed": a table of int64 element offsets, one per k). C has rows `ldc` elements apart. Only
`used_rows` rows of A, bias and C and `used_columns` columns of C are touched: columns by masked loads and stores, rows
by directing what is too many at the last row in use, before its own value. (A chunked A has all rows.) All columns of B
are read. "Overwrite" never reads C. Nothing is aligned beyond an element.

A few columns fill no vector. For them there are "dots": the same tile with vectors along k, whose columns are as many
as it otherwise has vectors. Column j of B is contiguous, and columns are `pitch` elements apart. Neither A, B nor C is
touched outside the used rows and columns; here columns too many are directed at the last one as well. A may be chunked
for them too, where a vector has no more lanes than a chunk; then all its rows are read.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from npconv.kernels.cpu.blocking import Tile
from npconv.kernels.cpu.vectors import INT64, Vectors, counted_loop, number

UNROLL = 2
"""Products a loop pass does: one leaves a few percent to the loop's own instructions."""

CHUNK = 8
"""Depth of a chunk of A."""

AHEAD = 1024
"""Bytes of a chunked A that are fetched ahead."""


def tile_product(itemsize: int, tile: Tile, listed: bool = False, chunked: bool = False, dots: bool = False) -> Any:
    """Make the tile for float32 (`itemsize` 4) or float64 (8) as a function for compiled code.

    It is called with addresses and counts as
    ``product(depth, a, lda, b, offsets, c, ldc, used_rows, used_columns, bias, accumulate, low, high)``. Where B is
    packed, `offsets` is an address behind which `depth` elements are fetched into the cache, which need not be
    anybody's: what a tile after this one reads. It is the pitch of `dots`. `lda` and `offsets` are not looked at if
    `chunked`, nor is `bias` where it accumulates.
    """
    scalar = types.float32 if itemsize == 4 else types.float64

    @intrinsic
    def product(
        typing_context: Any, depth: Any, a: Any, lda: Any, b: Any, offsets: Any, c: Any, ldc: Any, used_rows: Any,
        used_columns: Any, bias: Any, accumulate: Any, low: Any, high: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(*[types.int64] * 10, types.boolean, scalar, scalar)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            generator = _Generator(builder, itemsize, tile, listed, chunked)
            (generator.emit_dots if dots else generator.emit)(*arguments)
            return context.get_dummy_value()

        return signature, generate

    return product


class _Generator:
    """Writes the instructions of one tile at the builder's position."""

    def __init__(self, builder: Any, itemsize: int, tile: Tile, listed: bool, chunked: bool) -> None:
        self.builder, self.tile, self.listed, self.chunked = builder, tile, listed, chunked
        self.vectors = Vectors(builder, itemsize, tile.lanes)

    def emit(
        self, depth: Any, a: Any, lda: Any, b: Any, offsets: Any, c: Any, ldc: Any, used_rows: Any, used_columns: Any,
        bias: Any, accumulate: Any, low: Any, high: Any,
    ) -> None:  # fmt: skip
        builder, tile, vectors = self.builder, self.tile, self.vectors
        used = self._used(tile.rows, used_rows)
        cells = self._rows(c, ldc, used)
        if not self.listed:
            # The result is needed when the sums are there: from beyond L2 it comes meanwhile.
            for cell in cells:
                vectors.prefetch(cell)
                vectors.prefetch(builder.gep(cell, [number(tile.columns - 1)]))
        if self.chunked:
            sums = self._chunks(depth, vectors.pointer(a), vectors.pointer(b))
        else:
            sums = self._products(depth, self._rows(a, lda, used), vectors.pointer(b), offsets)
        limits = vectors.broadcast(low), vectors.broadcast(high)
        full = builder.icmp_signed(">=", used_columns, number(tile.columns))
        with builder.if_else(full) as (whole, part):
            with whole:
                self._finish(sums, cells, used, bias, accumulate, limits, [None] * tile.vectors)
            with part:
                left = [builder.sub(used_columns, number(v * tile.lanes)) for v in range(tile.vectors)]
                masks = [vectors.first_lanes(count) for count in left]
                self._finish(sums, cells, used, bias, accumulate, limits, masks)

    def emit_dots(
        self, depth: Any, a: Any, lda: Any, b: Any, pitch: Any, c: Any, ldc: Any, used_rows: Any, used_columns: Any,
        bias: Any, accumulate: Any, low: Any, high: Any,
    ) -> None:  # fmt: skip
        builder, tile, vectors = self.builder, self.tile, self.vectors
        rows, columns = self._used(tile.rows, used_rows), self._used(tile.vectors, used_columns)
        right, sums = self._rows(b, pitch, columns), [vectors.zeros] * (tile.rows * tile.vectors)

        def step(left: list[Any], i: Any, k: Any, mask: Any, sums: list[Any]) -> list[Any]:
            """Vectors `i` elements into the rows of A and `k` into the columns of B."""

            def read(line: Any, place: Any) -> Any:
                return vectors.load(line, place) if mask is None else vectors.load_masked(line, mask, place)

            held = [read(line, k) for line in right]
            factors = [read(line, i) for line in left]
            parts = [(factor, part) for factor in factors for part in held]
            return [vectors.multiply_add(f, part, s) for (f, part), s in zip(parts, sums, strict=True)]

        if self.chunked:
            lines = self._rows(a, number(CHUNK), [number(row) for row in range(tile.rows)])

            def chunk(n: Any, sums: list[Any]) -> list[Any]:
                for part in range(0, CHUNK, tile.lanes):
                    i, k = (
                        builder.add(builder.mul(n, number(size)), number(part)) for size in (tile.rows * CHUNK, CHUNK)
                    )
                    sums = step(lines, i, k, None, sums)
                return sums

            sums = counted_loop(builder, builder.sdiv(depth, number(CHUNK)), sums, chunk)
        else:
            left, lanes = self._rows(a, lda, rows), number(tile.lanes)
            whole, rest = builder.sdiv(depth, lanes), builder.srem(depth, lanes)
            mask = vectors.first_lanes(rest)

            def vector(n: Any, mask: Any, sums: list[Any]) -> list[Any]:
                place = builder.mul(n, lanes)
                return step(left, place, place, mask, sums)

            sums = counted_loop(builder, whole, sums, lambda n, sums: vector(n, None, sums))
            once = builder.zext(builder.icmp_signed(">", rest, number(0)), INT64)
            sums = counted_loop(builder, once, sums, lambda _, sums: vector(whole, mask, sums))
        values = vectors.totals(sums)
        cells = [builder.gep(row, [column]) for row in self._rows(c, ldc, rows) for column in columns]

        def finish(others: list[Any]) -> None:
            # From the last to the first, as in `_store`.
            for cell, value, other in reversed(list(zip(cells, values, others, strict=True))):
                builder.store(vectors.clamp(builder.fadd(other, value), low, high), cell)

        with builder.if_else(accumulate) as (add, overwrite):
            with add:
                finish([builder.load(cell) for cell in cells])
            with overwrite:
                first = vectors.pointer(bias)
                finish([shift for row in rows for shift in [builder.load(builder.gep(first, [row]))] * tile.vectors])

    def _used(self, count: int, used: Any) -> list[Any]:
        """The numbers below `count`, and for those that are not below `used` the last that is."""
        last = self.builder.sub(used, number(1))
        return [self.builder.select(self.builder.icmp_signed("<", n, last), n, last) for n in map(number, range(count))]

    def _rows(self, start: Any, step: Any, used: list[Any]) -> list[Any]:
        first = self.vectors.pointer(start)
        return [self.builder.gep(first, [self.builder.mul(row, step)]) for row in used]

    def _products(self, depth: Any, rows: list[Any], b: Any, offsets: Any) -> list[Any]:
        """The loops over the depth, their sums in registers."""
        builder, tile = self.builder, self.tile
        table, ahead = builder.inttoptr(offsets, INT64.as_pointer()), self.vectors.pointer(offsets)

        def steps(count: int) -> Any:
            def body(index: Any, carried: list[Any]) -> list[Any]:
                k, sums = carried[0], carried[1:]
                if not self.listed:
                    self.vectors.prefetch(builder.gep(ahead, [k]))
                for _ in range(count):
                    if self.listed:
                        image = builder.gep(b, [builder.load(builder.gep(table, [k]))])
                    else:
                        image = builder.gep(b, [builder.mul(k, number(tile.columns))])
                    sums = self._step(sums, [builder.load(builder.gep(row, [k])) for row in rows], image)
                    k = builder.add(k, number(1))
                return [k, *sums]

            return body

        carried = [number(0), *[self.vectors.zeros] * (tile.rows * tile.vectors)]
        carried = counted_loop(builder, builder.sdiv(depth, number(UNROLL)), carried, steps(UNROLL))
        return counted_loop(builder, builder.srem(depth, number(UNROLL)), carried, steps(1))[1:]

    def _chunks(self, depth: Any, a: Any, b: Any) -> list[Any]:
        """The loop over the chunks of a chunked A."""
        builder, tile, vectors = self.builder, self.tile, self.vectors
        elements = tile.rows * CHUNK

        def body(index: Any, sums: list[Any]) -> list[Any]:
            chunk = builder.gep(a, [builder.mul(index, number(elements))])
            image = builder.gep(b, [builder.mul(index, number(CHUNK * tile.columns))])
            for line in range(0, elements * vectors.itemsize, 64):
                vectors.prefetch(builder.gep(chunk, [number((AHEAD + line) // vectors.itemsize)]))
            for k in range(CHUNK):
                places = [number(row * CHUNK + k) for row in range(tile.rows)]
                weights = [builder.load(builder.gep(chunk, [place])) for place in places]
                sums = self._step(sums, weights, builder.gep(image, [number(k * tile.columns)]))
            return sums

        zeros = [vectors.zeros] * (tile.rows * tile.vectors)
        return counted_loop(builder, builder.sdiv(depth, number(CHUNK)), zeros, body)

    def _step(self, sums: list[Any], weights: list[Any], image: Any) -> list[Any]:
        """One k. What there is less of is held in registers, the rest streams."""
        tile, vectors = self.tile, self.vectors
        after = list(sums)
        if tile.rows >= tile.vectors:
            held = [vectors.load(image, v * tile.lanes) for v in range(tile.vectors)]
            for row, weight in enumerate(weights):
                factor = vectors.broadcast(weight)
                for v, part in enumerate(held):
                    after[row * tile.vectors + v] = vectors.multiply_add(factor, part, sums[row * tile.vectors + v])
        else:
            held = [vectors.broadcast(weight) for weight in weights]
            for v in range(tile.vectors):
                part = vectors.load(image, v * tile.lanes)
                for row, factor in enumerate(held):
                    after[row * tile.vectors + v] = vectors.multiply_add(factor, part, sums[row * tile.vectors + v])
        return after

    def _finish(
        self, sums: list[Any], cells: list[Any], used: list[Any], bias: Any, accumulate: Any, limits: Any, masks: Any
    ) -> None:
        """Add what C held or the bias, clamp and store; all loads come before the first store."""
        builder, tile, vectors = self.builder, self.tile, self.vectors
        places = [(row, v) for row in range(tile.rows) for v in range(tile.vectors)]
        with builder.if_else(accumulate) as (add, overwrite):
            with add:
                held = [self._read(cells[row], v, masks[v]) for row, v in places]
                self._store([builder.fadd(h, s) for h, s in zip(held, sums, strict=True)], cells, limits, masks)
            with overwrite:
                first = vectors.pointer(bias)
                shifts = [vectors.broadcast(builder.load(builder.gep(first, [row]))) for row in used]
                shifted = [builder.fadd(s, shifts[row]) for s, (row, _) in zip(sums, places, strict=True)]
                self._store(shifted, cells, limits, masks)

    def _read(self, cell: Any, v: int, mask: Any) -> Any:
        if mask is None:
            return self.vectors.load(cell, v * self.tile.lanes)
        return self.vectors.load_masked(cell, mask, v * self.tile.lanes)

    def _store(self, values: list[Any], cells: list[Any], limits: Any, masks: Any) -> None:
        # From the last row to the first: rows too many were directed at the last used one, whose own value comes after.
        for place in reversed(range(len(values))):
            row, v = divmod(place, self.tile.vectors)
            value = self.vectors.clamp(values[place], *limits)
            if masks[v] is None:
                self.vectors.store(value, cells[row], v * self.tile.lanes)
            else:
                self.vectors.store_masked(value, cells[row], masks[v], v * self.tile.lanes)
