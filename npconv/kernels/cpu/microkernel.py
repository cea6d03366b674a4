"""The register tile: a small block of a matrix product, generated as LLVM instructions for this processor's vectors.

``C[i, j] := bias[i] + sum over k of A[i, k] * B[k, j]``, or ``C[i, j] +=`` the sum, then clamped. Written out, not left
to a vectoriser, because the whole speed is in keeping `rows` x `vectors` sums in registers while two streams pass by.

Contract: A has rows `lda` elements apart, each contiguous, so weights are read where they are; or it is "chunked": the
elements of all rows for `CHUNK` k follow each other, row by row, and so do the chunks, so that weights too large for a
cache arrive as one stream. B has rows of `columns` contiguous elements: one behind the other ("packed"), or each at an
offset of its own ("listed": a table of int64 element offsets, one per k), from where it may be packed on the way, for
the tiles that follow. C has rows `ldc` elements apart. Only
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

from llvmlite import ir
from numba import types

from npconv.kernels.cpu.blocking import LINE, Tile
from npconv.kernels.cpu.vectors import INT64, Vectors, counted_loop, number, on_addresses

UNROLL = 2
"""Products a loop pass does: one leaves a few percent to the loop's own instructions."""

CHUNK = 8
"""Depth of a chunk of A."""

AHEAD = 1024
"""Bytes of a chunked A that are fetched ahead."""


def tile_product(
    itemsize: int, tile: Tile, listed: bool = False, chunked: bool = False, dots: bool = False, pitch: int = 0
) -> Any:
    """Make the tile for float32 (`itemsize` 4) or float64 (8) as a function for compiled code.

    It is called with addresses and counts as
    ``product(depth, a, lda, b, offsets, c, ldc, used_rows, used_columns, bias, accumulate, low, high)``. Where B is
    packed, `offsets` is an address behind which `depth` elements are fetched into the cache, which need not be
    anybody's: what a tile after this one reads. It is the pitch of `dots`. `lda` and `offsets` are not looked at if
    `chunked`, nor is `bias` where it accumulates. Rows of a packed B may be `pitch` elements apart: in the panel of a
    wider tile, of which this one takes the first vectors.
    """

    def product(
        vectors: Vectors, depth: Any, a: Any, lda: Any, b: Any, offsets: Any, c: Any, ldc: Any, used_rows: Any,
        used_columns: Any, bias: Any, accumulate: Any, low: Any, high: Any,
    ) -> None:  # fmt: skip
        generator = _Generator(vectors, tile, listed, chunked, pitch=pitch)
        (generator.emit_dots if dots else generator.emit)(
            depth, a, lda, b, offsets, c, ldc, used_rows, used_columns, bias, accumulate, low, high
        )

    return on_addresses(product, itemsize, tile.lanes, _others(itemsize))


def fetching_product(itemsize: int, tile: Tile) -> Any:
    """The tile with a packed B, and a last argument: how far what it has fetched lies apart, in elements.

    It goes to the second level of the caches: somebody needs it soon, but not this tile.
    """

    def product(
        vectors: Vectors, depth: Any, a: Any, lda: Any, b: Any, offsets: Any, c: Any, ldc: Any, used_rows: Any,
        used_columns: Any, bias: Any, accumulate: Any, low: Any, high: Any, apart: Any,
    ) -> None:  # fmt: skip
        generator = _Generator(vectors, tile, False, False, apart=apart)
        generator.emit(depth, a, lda, b, offsets, c, ldc, used_rows, used_columns, bias, accumulate, low, high)

    return on_addresses(product, itemsize, tile.lanes, _others(itemsize))


def packing_product(itemsize: int, tile: Tile) -> Any:
    """The tile whose B is listed, and is packed while it is read: its last argument is the address of the panel.

    Of every row of B it has fetched what lies behind the columns, which need not be anybody's.
    """

    def product(
        vectors: Vectors, depth: Any, a: Any, lda: Any, b: Any, offsets: Any, c: Any, ldc: Any, used_rows: Any,
        used_columns: Any, bias: Any, accumulate: Any, low: Any, high: Any, packed: Any,
    ) -> None:  # fmt: skip
        generator = _Generator(vectors, tile, True, False, vectors.pointer(packed))
        generator.emit(depth, a, lda, b, offsets, c, ldc, used_rows, used_columns, bias, accumulate, low, high)

    return on_addresses(product, itemsize, tile.lanes, _others(itemsize))


def _others(itemsize: int) -> dict[str, Any]:
    scalar = types.float32 if itemsize == 4 else types.float64
    return {"accumulate": types.boolean, "low": scalar, "high": scalar}


class _Generator:
    """Writes the instructions of one tile at the builder's position."""

    def __init__(
        self, vectors: Vectors, tile: Tile, listed: bool, chunked: bool, packed: Any = None, pitch: int = 0,
        apart: Any = None,
    ) -> None:  # fmt: skip
        self.builder, self.vectors, self.pitch, self.apart = vectors.builder, vectors, pitch or tile.columns, apart
        self.tile, self.listed, self.chunked, self.packed = tile, listed, chunked, packed

    def emit(
        self, depth: Any, a: Any, lda: Any, b: Any, offsets: Any, c: Any, ldc: Any, used_rows: Any, used_columns: Any,
        bias: Any, accumulate: Any, low: Any, high: Any,
    ) -> None:  # fmt: skip
        builder, tile, vectors = self.builder, self.tile, self.vectors
        cells = self._rows(c, ldc, used_rows)
        if not self.listed or self.packed is not None:
            # The result is needed when the sums are there: from beyond L2 it comes meanwhile.
            for cell in cells:
                for column in (*range(0, tile.columns, LINE // vectors.itemsize), tile.columns - 1):
                    vectors.prefetch(builder.gep(cell, [number(column)]))
        sums = self._start(used_rows, bias, accumulate)
        if self.chunked:
            sums = self._chunks(depth, vectors.pointer(a), vectors.pointer(b), sums)
        else:
            sums = self._products(depth, self._rows(a, lda, used_rows), vectors.pointer(b), offsets, sums)
        full = builder.icmp_signed(">=", used_columns, number(tile.columns))
        with builder.if_else(full) as (whole, part):
            with whole:
                self._finish(sums, cells, accumulate, low, high, [None] * tile.vectors)
            with part:
                left = [builder.sub(used_columns, number(v * tile.lanes)) for v in range(tile.vectors)]
                masks = [vectors.first_lanes(count) for count in left]
                self._finish(sums, cells, accumulate, low, high, masks)

    def emit_dots(
        self, depth: Any, a: Any, lda: Any, b: Any, pitch: Any, c: Any, ldc: Any, used_rows: Any, used_columns: Any,
        bias: Any, accumulate: Any, low: Any, high: Any,
    ) -> None:  # fmt: skip
        builder, tile, vectors = self.builder, self.tile, self.vectors
        right = self._rows(b, pitch, used_columns, tile.vectors)
        sums = [vectors.zeros] * (tile.rows * tile.vectors)

        def step(left: list[Any], i: Any, k: Any, mask: Any, sums: list[Any]) -> list[Any]:
            """Vectors `i` elements into the rows of A and `k` into the columns of B."""

            def read(line: Any, place: Any) -> Any:
                return vectors.load(line, place) if mask is None else vectors.load_masked(line, mask, place)

            held = [read(line, k) for line in right]
            factors = [read(line, i) for line in left]
            parts = [(factor, part) for factor in factors for part in held]
            return [vectors.multiply_add(f, part, s) for (f, part), s in zip(parts, sums, strict=True)]

        if self.chunked:
            lines = self._rows(a, number(CHUNK), number(tile.rows))

            def chunk(n: Any, sums: list[Any]) -> list[Any]:
                for part in range(0, CHUNK, tile.lanes):
                    i, k = (
                        builder.add(builder.mul(n, number(size)), number(part)) for size in (tile.rows * CHUNK, CHUNK)
                    )
                    sums = step(lines, i, k, None, sums)
                return sums

            sums = counted_loop(builder, builder.sdiv(depth, number(CHUNK)), sums, chunk)
        else:
            left, lanes = self._rows(a, lda, used_rows), number(tile.lanes)
            whole, rest = builder.sdiv(depth, lanes), builder.srem(depth, lanes)
            mask = vectors.first_lanes(rest)

            def vector(n: Any, mask: Any, sums: list[Any]) -> list[Any]:
                place = builder.mul(n, lanes)
                return step(left, place, place, mask, sums)

            sums = counted_loop(builder, whole, sums, lambda n, sums: vector(n, None, sums))
            once = builder.zext(builder.icmp_signed(">", rest, number(0)), INT64)
            sums = counted_loop(builder, once, sums, lambda _, sums: vector(whole, mask, sums))
        values = vectors.totals(sums)
        lines = self._rows(c, ldc, used_rows)
        cells = [cell for line in lines for cell in self._from(line, number(1), used_columns, tile.vectors)]

        def finish(others: list[Any]) -> None:
            # From the last to the first, as in `_finish`.
            for cell, value, other in reversed(list(zip(cells, values, others, strict=True))):
                builder.store(vectors.clamp(builder.fadd(other, value), low, high), cell)

        with builder.if_else(accumulate) as (add, overwrite):
            with add:
                finish([builder.load(cell) for cell in cells])
            with overwrite:
                shifts = [builder.load(row) for row in self._rows(bias, number(1), used_rows)]
                finish([shift for shift in shifts for _ in range(tile.vectors)])

    def _rows(self, start: Any, step: Any, used: Any, count: int = 0) -> list[Any]:
        """The tile's rows `step` elements apart, or so many; those that are not below `used` are the last that is."""
        return self._from(self.vectors.pointer(start), step, used, count or self.tile.rows)

    def _from(self, first: Any, step: Any, used: Any, count: int) -> list[Any]:
        builder, last = self.builder, self.builder.sub(used, number(1))
        numbers = [builder.select(builder.icmp_signed("<", n, last), n, last) for n in map(number, range(count))]
        return [builder.gep(first, [builder.mul(n, step)]) for n in numbers]

    def _products(self, depth: Any, rows: list[Any], b: Any, offsets: Any, sums: list[Any]) -> list[Any]:
        """The loops over the depth, their sums in registers."""
        builder, tile = self.builder, self.tile
        table, ahead = builder.inttoptr(offsets, INT64.as_pointer()), self.vectors.pointer(offsets)

        def steps(count: int) -> Any:
            def body(index: Any, carried: list[Any]) -> list[Any]:
                k, sums = carried[0], carried[1:]
                if self.apart is None and not self.listed:
                    self.vectors.prefetch(builder.gep(ahead, [k]))
                for _ in range(count):
                    if self.apart is not None:
                        self.vectors.prefetch(builder.gep(ahead, [builder.mul(k, self.apart)]), level=2)
                    if self.listed:
                        image = builder.gep(b, [builder.load(builder.gep(table, [k]))])
                    else:
                        image = builder.gep(b, [builder.mul(k, number(self.pitch))])
                    sums = self._step(sums, [builder.gep(row, [k]) for row in rows], image)
                    if self.packed is not None:
                        self._pack(image, builder.gep(self.packed, [builder.mul(k, number(tile.columns))]))
                    k = builder.add(k, number(1))
                return [k, *sums]

            return body

        carried = counted_loop(builder, builder.sdiv(depth, number(UNROLL)), [number(0), *sums], steps(UNROLL))
        return counted_loop(builder, builder.srem(depth, number(UNROLL)), carried, steps(1))[1:]

    def _chunks(self, depth: Any, a: Any, b: Any, sums: list[Any]) -> list[Any]:
        """The loop over the chunks of a chunked A."""
        builder, tile, vectors = self.builder, self.tile, self.vectors
        elements = tile.rows * CHUNK

        def body(index: Any, sums: list[Any]) -> list[Any]:
            chunk = builder.gep(a, [builder.mul(index, number(elements))])
            image = builder.gep(b, [builder.mul(index, number(CHUNK * self.pitch))])
            for line in range(0, elements * vectors.itemsize, 64):
                vectors.prefetch(builder.gep(chunk, [number((AHEAD + line) // vectors.itemsize)]))
            for k in range(CHUNK):
                places = [number(row * CHUNK + k) for row in range(tile.rows)]
                weights = [builder.gep(chunk, [place]) for place in places]
                sums = self._step(sums, weights, builder.gep(image, [number(k * self.pitch)]))
            return sums

        return counted_loop(builder, builder.sdiv(depth, number(CHUNK)), sums, body)

    def _pack(self, image: Any, panel: Any) -> None:
        """Pack one row of B after its products, when it is in the first cache, and fetch what lies behind it."""
        for column in range(0, self.tile.columns, self.tile.lanes):
            self.vectors.store(self.vectors.load(image, column), panel, column)
            self.vectors.prefetch(self.builder.gep(image, [number(self.tile.columns + column)]))

    def _step(self, sums: list[Any], weights: list[Any], image: Any) -> list[Any]:
        """One k. What there is less of is held in registers, the rest streams."""
        tile, vectors = self.tile, self.vectors
        if tile.rows >= tile.vectors:
            held = [vectors.load(image, v * tile.lanes) for v in range(tile.vectors)]
            return vectors.add_products(sums, weights, held)
        held, after = [vectors.broadcast(self.builder.load(weight)) for weight in weights], list(sums)
        for v in range(tile.vectors):
            part = vectors.load(image, v * tile.lanes)
            done = [vectors.multiply_add(f, part, s) for f, s in zip(held, sums[v :: tile.vectors], strict=True)]
            after[v :: tile.vectors] = vectors.in_turn(done)
        return after

    def _start(self, used_rows: Any, bias: Any, accumulate: Any) -> list[Any]:
        """What the sums begin with: the bias, or nothing where they will be added to what C held."""
        builder, vectors, before = self.builder, self.vectors, self.builder.block
        with builder.if_then(builder.not_(accumulate)):
            shifts = [vectors.broadcast(builder.load(row)) for row in self._rows(bias, number(1), used_rows)]
            inside = builder.block
        sums = []
        for shift in shifts:
            begin = builder.phi(shift.type)
            begin.add_incoming(vectors.zeros, before)
            begin.add_incoming(shift, inside)
            sums += [begin] * self.tile.vectors
        return sums

    def _finish(self, sums: list[Any], cells: list[Any], accumulate: Any, low: Any, high: Any, masks: Any) -> None:
        """Add what C held, clamp where there is a limit, and store; all loads come before the first store."""
        builder, vectors, columns = self.builder, self.vectors, range(self.tile.vectors)
        places = iter([(cell, v) for cell in cells for v in columns])
        sums = vectors.where(
            builder.zext(accumulate, INT64), sums,
            lambda value: builder.fadd(self._read(*(place := next(places)), masks[place[1]]), value),
        )  # fmt: skip
        least, most = ir.Constant(vectors.scalar, float("-inf")), ir.Constant(vectors.scalar, float("inf"))
        limited = builder.or_(builder.fcmp_ordered("!=", low, least), builder.fcmp_ordered("!=", high, most))
        floor, ceiling = vectors.broadcast(low), vectors.broadcast(high)
        sums = vectors.where(builder.zext(limited, INT64), sums, lambda value: vectors.clamp(value, floor, ceiling))
        # From the last row to the first: rows too many were directed at the last used one, whose own value comes after.
        for value, (cell, v) in reversed(list(zip(sums, [(cell, v) for cell in cells for v in columns], strict=True))):
            if masks[v] is None:
                vectors.store(value, cell, v * self.tile.lanes)
            else:
                vectors.store_masked(value, cell, masks[v], v * self.tile.lanes)

    def _read(self, cell: Any, v: int, mask: Any) -> Any:
        if mask is None:
            return self.vectors.load(cell, v * self.tile.lanes)
        return self.vectors.load_masked(cell, mask, v * self.tile.lanes)
