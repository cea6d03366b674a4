"""The register tile of `microkernel.py` lying down, for weights that were laid out beforehand.

Its vectors run along output channels, its rows are positions. So the few positions of a small image fill tiles of five
or six rows where they would leave vectors half empty; the weights come in one stream, from beyond the caches too; and
an element of the image is broadcast from wherever it lies. The sums are turned in registers before they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.kernels.cpu.blocking import LINE, Tile, processor
from npconv.kernels.cpu.transforms import transpose
from npconv.kernels.cpu.vectors import INT64, Vectors, counted_loop, number, on_addresses

UNROLL = 4
"""Products a loop pass does."""

FETCHERS = 4
"""First tiles of a slice of weights, each of which has a part of the next slice fetched."""


class Panels(NamedTuple):
    """Weights for tiles lying down, in an order that their driver knows."""

    values: Any
    tile: Tile


def tile_for_positions(dtype: np.dtype[Any], positions: int) -> Tile:
    """The tile, of as many rows as there are registers for or a sixth less, that wastes least."""
    lanes, (rows, vectors) = processor().register_bytes // dtype.itemsize, processor().tiles[0]
    tiles = [Tile(r, vectors, lanes) for r in range(rows, rows - rows // 6 - 1, -1)]
    return min(tiles, key=lambda tile: -(-positions // tile.rows) * tile.rows)


def lying_product(itemsize: int, tile: Tile, listed: bool = False) -> Any:
    """A function ``product(depth, image, spots, offsets, weights, ahead, y, pitch, positions, outputs, ...)``.

    Sums over `depth` of an image times weights packed as (depth, tile.columns). The image is packed as (depth,
    tile.rows), and `spots` and `offsets` are not looked at; or it is `listed`: position r finds its element k at
    ``spots[r] + offsets[k]`` elements behind address `image`, by two tables of int64. Behind `ahead` a part of what
    weights take, one in `FETCHERS`, is fetched meanwhile, whosever it is.

    The rest are ``bias, bounds, bent, sums, first, last``. All but the `first` slice begin with the sums at address
    `sums`, all but the `last` leave theirs there. The last adds the bias, clamps to the two `bounds`, applies hardswish
    where `bent` is not 0, and stores: output channels `pitch` elements apart, of which `outputs` exist, positions side
    by side. Where as many of the `positions` are left, whole vectors are stored, over what the tiles of the next
    positions write after it.
    """
    lanes, rows, wide = tile.lanes, tile.rows, tile.vectors

    def product(
        vectors: Vectors, depth: Any, image: Any, spots: Any, offsets: Any, weights: Any, ahead: Any, y: Any,
        pitch: Any, positions: Any, outputs: Any, bias: Any, bounds: Any, bent: Any, sums: Any, first: Any, last: Any,
    ) -> None:  # fmt: skip
        builder, next_weights = vectors.builder, vectors.pointer(ahead)
        base, spot = vectors.pointer(image), builder.inttoptr(spots, INT64.as_pointer())
        if listed:
            cells = [builder.gep(base, [builder.load(builder.gep(spot, [number(row)]))]) for row in range(rows)]

        def elements(left: Any, k: int) -> list[Any]:
            if not listed:
                return [builder.gep(left, [number(k * rows + row)]) for row in range(rows)]
            place = builder.load(builder.gep(left, [number(k)]))
            return [builder.gep(cell, [place]) for cell in cells]

        def steps(count: int) -> Any:
            fetched = count * tile.columns // FETCHERS

            def body(index: Any, carried: list[Any]) -> list[Any]:
                here = builder.gep(next_weights, [builder.mul(index, number(fetched))])
                for offset in range(0, fetched, LINE // itemsize):
                    vectors.prefetch(builder.gep(here, [number(offset)]))
                left, right, *totals = carried
                for k in range(count):
                    held = [vectors.load(right, (k * wide + v) * lanes) for v in range(wide)]
                    totals = vectors.add_products(totals, elements(left, k), held)
                left = builder.gep(left, [number(count if listed else count * rows)])
                return [left, builder.gep(right, [number(count * wide * lanes)]), *totals]

            return body

        left = builder.inttoptr(offsets, INT64.as_pointer()) if listed else base
        carried = [left, vectors.pointer(weights), *[vectors.zeros] * (rows * wide)]
        carried = counted_loop(builder, builder.sdiv(depth, number(UNROLL)), carried, steps(UNROLL))
        totals = counted_loop(builder, builder.srem(depth, number(UNROLL)), carried, steps(1))[2:]

        def store(values: list[Any]) -> None:
            _store_turned(vectors, tile, values, y, pitch, positions, outputs)

        _finish(vectors, tile, totals, outputs, bias, bounds, bent, sums, first, last, store)

    return on_addresses(product, itemsize, lanes)


def runs_product(itemsize: int, tile: Tile) -> Any:
    """A function ``product(depth, runs, cells, shift, weights, ahead, y, pitch, positions, outputs, ...)``.

    The tile of `lying_product` over an image whose channels lie side by side. Its sums are over some `runs` of `depth`
    elements: position r finds run n at address ``cells[n * tile.rows + r]``, a table of int64, and `shift` bytes. The
    weights are packed as (runs, depth, tile.columns). The result has its output channels side by side, and positions
    `pitch` elements apart; rows behind the last of the `positions` must have its cells. The rest is as there.
    """
    lanes, rows, wide = tile.lanes, tile.rows, tile.vectors

    def product(
        vectors: Vectors, depth: Any, runs: Any, cells: Any, shift: Any, weights: Any, ahead: Any, y: Any, pitch: Any,
        positions: Any, outputs: Any, bias: Any, bounds: Any, bent: Any, sums: Any, first: Any, last: Any,
    ) -> None:  # fmt: skip
        builder, table = vectors.builder, vectors.builder.inttoptr(cells, INT64.as_pointer())

        def run(n: Any, carried: list[Any]) -> list[Any]:
            found = [builder.gep(table, [builder.add(builder.mul(n, number(rows)), number(r))]) for r in range(rows)]
            lines = [vectors.pointer(builder.add(builder.load(cell), shift)) for cell in found]

            def steps(count: int) -> Any:
                fetched = count * tile.columns // FETCHERS

                def body(_: Any, carried: list[Any]) -> list[Any]:
                    k, right, following, *totals = carried
                    for offset in range(0, fetched, LINE // itemsize):
                        vectors.prefetch(builder.gep(following, [number(offset)]))
                    for step in range(count):
                        held = [vectors.load(right, (step * wide + v) * lanes) for v in range(wide)]
                        place = builder.add(k, number(step))
                        totals = vectors.add_products(totals, [builder.gep(line, [place]) for line in lines], held)
                    right = builder.gep(right, [number(count * wide * lanes)])
                    return [
                        builder.add(k, number(count)), right, builder.gep(following, [number(fetched)]), *totals
                    ]  # fmt: skip

                return body

            carried = [number(0), *carried]
            carried = counted_loop(builder, builder.sdiv(depth, number(UNROLL)), carried, steps(UNROLL))
            return counted_loop(builder, builder.srem(depth, number(UNROLL)), carried, steps(1))[1:]

        carried = [vectors.pointer(weights), vectors.pointer(ahead), *[vectors.zeros] * (rows * wide)]
        totals = counted_loop(builder, runs, carried, run)[2:]

        def store(values: list[Any]) -> None:
            _store_rows(vectors, tile, values, y, pitch, positions, outputs)

        _finish(vectors, tile, totals, outputs, bias, bounds, bent, sums, first, last, store)

    return on_addresses(product, itemsize, lanes)


def _finish(
    vectors: Vectors, tile: Tile, totals: list[Any], outputs: Any, bias: Any, bounds: Any, bent: Any, sums: Any,
    first: Any, last: Any, store: Callable[[list[Any]], None],
) -> None:  # fmt: skip
    """Take the sums up that wait at address `sums`, and leave them there or make them results, which `store` takes."""
    builder, kept, lanes = vectors.builder, vectors.pointer(sums), tile.lanes
    waiting = iter(range(len(totals)))
    later = builder.sub(number(1), first)
    totals = vectors.where(later, totals, lambda t: builder.fadd(t, vectors.load(kept, next(waiting) * lanes)))
    with builder.if_else(builder.icmp_signed("!=", last, number(0))) as (finish, wait):
        with wait:
            for n, value in enumerate(totals):
                vectors.store(value, kept, n * lanes)
        with finish:
            limits, shift = vectors.pointer(bounds), vectors.pointer(bias)
            low, high = (vectors.broadcast(builder.load(builder.gep(limits, [number(n)]))) for n in range(2))
            shifts = _first_columns(vectors, tile, shift, outputs)
            done = [
                vectors.clamp(builder.fadd(total, shifts[n % tile.vectors]), low, high)
                for n, total in enumerate(totals)
            ]
            store(vectors.where(bent, done, vectors.hardswish))


def _first_columns(vectors: Vectors, tile: Tile, line: Any, count: Any) -> list[Any]:
    """A vector of a tile's columns after the other from a line that has only so many."""
    builder, found = vectors.builder, []
    with builder.if_else(builder.icmp_signed(">=", count, number(tile.columns))) as (whole, part):
        with whole:
            loaded, before = [vectors.load(line, v * tile.lanes) for v in range(tile.vectors)], builder.block
        with part:
            there = [vectors.first_lanes(builder.sub(count, number(v * tile.lanes))) for v in range(tile.vectors)]
            masked = [vectors.load_masked(line, mask, v * tile.lanes) for v, mask in enumerate(there)]
            other = builder.block
    for value, rest in zip(loaded, masked, strict=True):
        found.append(builder.phi(value.type))
        found[-1].add_incoming(value, before)
        found[-1].add_incoming(rest, other)
    return found


def _store_rows(
    vectors: Vectors, tile: Tile, values: list[Any], y: Any, pitch: Any, positions: Any, outputs: Any
) -> None:
    """Store a tile's sums as they are: positions too many first, at the last one's place."""
    builder, result, end = vectors.builder, vectors.pointer(y), vectors.builder.sub(positions, number(1))
    lines = []
    for row in map(number, range(tile.rows)):
        used = builder.select(builder.icmp_signed("<", row, end), row, end)
        lines.append(builder.gep(result, [builder.mul(used, pitch)]))
    for v in range(tile.vectors):
        part = [(lines[row], values[row * tile.vectors + v]) for row in reversed(range(tile.rows))]
        left = builder.sub(outputs, number(v * tile.lanes))
        with builder.if_else(builder.icmp_signed(">=", left, number(tile.lanes))) as (whole, cut):
            with whole:
                for line, value in part:
                    vectors.store(value, line, v * tile.lanes)
            with cut, builder.if_then(builder.icmp_signed(">", left, number(0))):
                _store_cut(vectors, part, v * tile.lanes, left)


def _store_cut(vectors: Vectors, part: list[tuple[Any, Any]], offset: int, count: Any) -> None:
    """Store the first `count` lanes of values at lines, fewer than a vector has, in pieces of powers of two.

    A masked store takes as long as a dozen of them.
    """
    builder, lanes, place = vectors.builder, vectors.lanes, number(offset)
    piece = lanes // 2
    while piece:
        small = Vectors(builder, vectors.itemsize, piece)
        has = builder.icmp_signed("!=", builder.and_(count, number(piece)), number(0))
        with builder.if_then(has):
            for line, value in part:
                small.store(vectors.shuffle(value, value, list(range(piece))), line, place)
        moved = [(piece + lane) % lanes for lane in range(lanes)]
        part = [(line, builder.select(has, vectors.shuffle(value, value, moved), value)) for line, value in part]
        place = builder.select(has, builder.add(place, number(piece)), place)
        piece //= 2


def _store_turned(
    vectors: Vectors, tile: Tile, values: list[Any], y: Any, pitch: Any, positions: Any, outputs: Any
) -> None:
    """Turn a tile's sums and store them: output channels too many first, at the last one's place."""
    builder, lanes, rows, wide = vectors.builder, tile.lanes, tile.rows, tile.vectors
    result, end = vectors.pointer(y), builder.sub(outputs, number(1))
    lines = []
    for o in map(number, range(tile.columns)):
        used = builder.select(builder.icmp_signed("<", o, end), o, end)
        lines.append(builder.gep(result, [builder.mul(used, pitch)]))
    stored = []  # (channel's line, its first position, as many positions as a vector has lanes)
    for begin in range(0, rows, lanes):
        turned: list[Any] = []
        for v in range(wide):
            block = [values[row * wide + v] if row < rows else vectors.zeros for row in range(begin, begin + lanes)]
            turned += transpose(vectors, block, lanes)
        stored += [(line, begin, value) for line, value in list(zip(lines, turned, strict=True))[::-1]]
    whole = -(-rows // lanes) * lanes
    with builder.if_else(builder.icmp_signed(">=", positions, number(whole))) as (over, rest):
        with over:
            for line, begin, value in stored:
                vectors.store(value, line, begin)
        with rest, builder.if_else(builder.icmp_signed(">=", positions, number(rows))) as (exact, cut):
            with exact:
                for line, begin, value in stored:
                    _store_first(vectors, value, min(lanes, rows - begin), line, begin)
            with cut:
                masks = [vectors.first_lanes(builder.sub(positions, number(b))) for b in range(0, rows, lanes)]
                for line, begin, value in stored:
                    vectors.store_masked(value, line, masks[begin // lanes], begin)


def _store_first(vectors: Vectors, value: Any, count: int, line: Any, offset: int) -> None:
    """Store the first `count` lanes in pieces of powers of two, which take fewer instructions than a mask."""
    begin = 0
    while begin < count:
        part = Vectors(vectors.builder, vectors.itemsize, 1 << ((count - begin).bit_length() - 1))
        part.store(vectors.shuffle(value, value, list(range(begin, begin + part.lanes))), line, offset + begin)
        begin += part.lanes
