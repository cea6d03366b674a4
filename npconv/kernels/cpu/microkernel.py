"""The register tile: a small block of a matrix product, generated as LLVM instructions for this processor's vectors.

``C[i, j] := sum over k of A[k, i] * B[k, j]``, or ``C[i, j] +=`` the same. Written out, not left to a vectoriser,
because the whole speed is in keeping `rows` x `vectors` sums in registers while two streams pass by.

Contract: A is packed ``(depth, rows)`` and B ``(depth, columns)``, both contiguous; C has rows `ldc` elements apart.
Only the first `used_rows` rows and `used_columns` columns of C are touched: columns by masked loads and stores, rows by
directing what is too many at the last used row, before its own value. "Overwrite" never reads C. Nothing is aligned
beyond an element.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npconv.kernels.cpu.blocking import Tile

INT32, INT64, BIT = ir.IntType(32), ir.IntType(64), ir.IntType(1)


def tile_product(itemsize: int, tile: Tile) -> Any:
    """Make the tile for float32 (`itemsize` 4) or float64 (8) as a function for compiled code.

    It is called as
    ``product(depth, a, a_start, b, b_start, c, c_start, ldc, used_rows, used_columns, accumulate)`` with C-ordered
    arrays `a`, `b`, `c` and flat positions in them.
    """

    @intrinsic
    def product(
        typing_context: Any, depth: Any, a: Any, a_start: Any, b: Any, b_start: Any, c: Any, c_start: Any, ldc: Any,
        used_rows: Any, used_columns: Any, accumulate: Any,
    ) -> Any:  # fmt: skip
        i64 = types.int64
        signature = types.void(i64, a, i64, b, i64, c, i64, i64, i64, i64, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            depth, a, a_start, b, b_start, c, c_start, ldc, used_rows, used_columns, accumulate = arguments
            starts = [
                builder.gep(context.make_array(kind)(context, builder, array).data, [start])
                for kind, array, start in zip(
                    signature.args[1:6:2], (a, b, c), (a_start, b_start, c_start), strict=True
                )
            ]
            generator = _Generator(builder, itemsize, tile)
            generator.emit(depth, starts[0], starts[1], starts[2], ldc, used_rows, used_columns, accumulate)
            return context.get_dummy_value()

        return signature, generate

    return product


class _Generator:
    """Writes the instructions of one tile at the builder's position."""

    def __init__(self, builder: Any, itemsize: int, tile: Tile) -> None:
        self.builder, self.itemsize, self.tile = builder, itemsize, tile
        scalar = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(scalar, tile.lanes)
        self.mask = ir.VectorType(BIT, tile.lanes)
        self.zeros = ir.Constant(self.vector, None)
        pointer, suffix = self.vector.as_pointer(), f"v{tile.lanes}f{8 * itemsize}"
        self.fma = self._declare(f"llvm.fma.{suffix}", self.vector, [self.vector] * 3)
        self.masked_load = self._declare(
            f"llvm.masked.load.{suffix}.p0", self.vector, [pointer, INT32, self.mask, self.vector]
        )
        self.masked_store = self._declare(
            f"llvm.masked.store.{suffix}.p0", ir.VoidType(), [self.vector, pointer, INT32, self.mask]
        )

    def emit(
        self, depth: Any, a: Any, b: Any, c: Any, ldc: Any, used_rows: Any, used_columns: Any, accumulate: Any
    ) -> None:
        sums = self._products(depth, a, b)
        builder = self.builder
        full = builder.icmp_signed(">=", used_columns, self._int(self.tile.columns))
        with builder.if_else(full) as (whole, part):
            with whole:
                self._finish(sums, c, ldc, used_rows, accumulate, None)
            with part:
                masks = [self._first_columns(used_columns, v) for v in range(self.tile.vectors)]
                self._finish(sums, c, ldc, used_rows, accumulate, masks)

    def _products(self, depth: Any, a: Any, b: Any) -> list[Any]:
        """The loop over the depth, its sums in registers."""
        builder, tile = self.builder, self.tile
        before = builder.block
        loop, after = (builder.function.append_basic_block(name) for name in ("depth", "done"))
        builder.cbranch(builder.icmp_signed(">", depth, self._int(0)), loop, after)
        builder.position_at_end(loop)
        step, left, right = (builder.phi(kind) for kind in (INT64, a.type, b.type))
        for phi, first in ((step, self._int(0)), (left, a), (right, b)):
            phi.add_incoming(first, before)
        sums = [builder.phi(self.vector) for _ in range(tile.rows * tile.vectors)]
        image = [self._load(right, v * tile.lanes) for v in range(tile.vectors)]
        results = []
        for row in range(tile.rows):
            weight = self._broadcast(builder.load(builder.gep(left, [self._int(row)])), self.vector)
            results += [
                builder.call(self.fma, [weight, image[v], sums[row * tile.vectors + v]]) for v in range(tile.vectors)
            ]
        following = builder.add(step, self._int(1))
        step.add_incoming(following, loop)
        left.add_incoming(builder.gep(left, [self._int(tile.rows)]), loop)
        right.add_incoming(builder.gep(right, [self._int(tile.columns)]), loop)
        for phi, result in zip(sums, results, strict=True):
            phi.add_incoming(self.zeros, before)
            phi.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        totals = [builder.phi(self.vector) for _ in results]
        for phi, result in zip(totals, results, strict=True):
            phi.add_incoming(self.zeros, before)
            phi.add_incoming(result, loop)
        return totals

    def _finish(self, sums: list[Any], c: Any, ldc: Any, used_rows: Any, accumulate: Any, masks: Any) -> None:
        """Add what C held, if asked to, and store; all loads come before the first store."""
        builder, tile = self.builder, self.tile
        last = builder.sub(used_rows, self._int(1))
        cells = []
        for row in range(tile.rows):
            number = self._int(row)
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            start = builder.gep(c, [builder.mul(number, ldc)])
            cells += [
                builder.bitcast(builder.gep(start, [self._int(v * tile.lanes)]), self.vector.as_pointer())
                for v in range(tile.vectors)
            ]
        with builder.if_else(accumulate) as (add, overwrite):
            with add:
                held = [self._read(cell, masks, i) for i, cell in enumerate(cells)]
                self._store([builder.fadd(h, s) for h, s in zip(held, sums, strict=True)], cells, masks)
            with overwrite:
                self._store(sums, cells, masks)

    def _read(self, cell: Any, masks: Any, number: int) -> Any:
        if masks is None:
            value = self.builder.load(cell)
            value.align = self.itemsize
            return value
        mask = masks[number % self.tile.vectors]
        return self.builder.call(self.masked_load, [cell, ir.Constant(INT32, self.itemsize), mask, self.zeros])

    def _store(self, values: list[Any], cells: list[Any], masks: Any) -> None:
        # From the last row to the first: rows too many were directed at the last used one, whose own value comes after.
        for number in reversed(range(len(cells))):
            if masks is None:
                self.builder.store(values[number], cells[number]).align = self.itemsize
            else:
                mask = masks[number % self.tile.vectors]
                arguments = [values[number], cells[number], ir.Constant(INT32, self.itemsize), mask]
                self.builder.call(self.masked_store, arguments)

    def _first_columns(self, used_columns: Any, v: int) -> Any:
        """The mask of a vector's lanes that lie among the used columns."""
        lanes = ir.VectorType(INT64, self.tile.lanes)
        limit = self._broadcast(self.builder.sub(used_columns, self._int(v * self.tile.lanes)), lanes)
        return self.builder.icmp_signed("<", ir.Constant(lanes, list(range(self.tile.lanes))), limit)

    def _load(self, start: Any, offset: int) -> Any:
        address = self.builder.gep(start, [self._int(offset)])
        value = self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()))
        value.align = self.itemsize
        return value

    def _broadcast(self, scalar: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, kind.count), None))

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        insert: Any = cgutils.get_or_insert_function
        return insert(self.builder.module, ir.FunctionType(result, arguments), name)

    @staticmethod
    def _int(value: int) -> Any:
        return ir.Constant(INT64, value)
