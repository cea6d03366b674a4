"""Vector instructions written down: what the generators of kernels share, and small operations on raw addresses.

Everything here works on addresses, integers that `address_of` takes from an array, so a kernel reads or writes exactly
what its contract says and nothing keeps it from more. No address need be aligned beyond an element.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import NativeValue, intrinsic, models, register_model, unbox
from numba.np.arrayobj import populate_array

from npconv.kernels.cpu.blocking import features

# For `Vectors.in_turn`.
binding.initialize_native_asmparser()

INT32, INT64, BIT = ir.IntType(32), ir.IntType(64), ir.IntType(1)


class Address(types.Type):
    """An array handed to a `compile.entry`, which sees the address of its first element.

    Nothing else of the array is looked at, so one compiled variant serves all shapes, and it takes a few nanoseconds
    where an array takes a hundred. The caller vouches for dtype, C order and size.
    """


_make_address: Any = Address
ADDRESS = _make_address(name="npconv.Address")
TABLE, GRID = types.Array(types.int64, 1, "C", readonly=True), types.Array(types.int64, 2, "C", readonly=True)
"""The types of an entry's arguments: addresses, and read-only tables of integers with one and with two axes."""


def _address_model(manager: Any, kind: Any) -> Any:
    model: Any = models.PrimitiveModel
    return model(manager, kind, INT64)


def _unbox_address(_: Any, array: Any, context: Any) -> Any:
    # NumPy's binary interface: behind the head that all objects have, an array begins with the pointer to its data.
    start = context.builder.ptrtoint(array, INT64)
    place = context.builder.add(start, number(object.__basicsize__))
    return _native(context.builder.load(context.builder.inttoptr(place, INT64.as_pointer())))


# Numba carries no types for these.
_native: Any = NativeValue
_populate: Any = populate_array
_register_model: Any = register_model
_register_unbox: Any = unbox
_register_model(Address)(_address_model)
_register_unbox(Address)(_unbox_address)


# Intrinsics rather than compiled functions: they are in every loop, once for each type, and need no compiling.


def _number_of(_: Any, address: Any) -> Any:
    return types.int64(address), lambda _context, _builder, _signature, arguments: arguments[0]


def _address_of(_: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, arguments[0]).data, INT64)

    return types.int64(array), generate


def _elements(_: Any, address: Any, count: Any, scalar: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.return_type)(context, builder)
        data = builder.inttoptr(arguments[0], array.data.type)
        size = context.get_constant(types.intp, scalar.dtype.bitwidth // 8)
        _populate(array, data, [arguments[1]], [size], size, None)
        return array._getvalue()

    return types.Array(scalar.dtype, 1, "C")(address, count, scalar), generate


number_of: Any = intrinsic(_number_of)
"""``number_of(address)``: an `Address` as a number, to reckon with."""

address_of: Any = intrinsic(_address_of)
"""``address_of(array)``: the address of an array's first element."""

elements: Any = intrinsic(_elements)
"""``elements(address, count, numpy.float32)``: the memory behind an address as an array, which does not own it."""


def number(value: int) -> Any:
    """A 64-bit integer constant."""
    return ir.Constant(INT64, value)


class Vectors:
    """Instructions on vectors of `lanes` floats of `itemsize` bytes, at a builder's position."""

    def __init__(self, builder: Any, itemsize: int, lanes: int) -> None:
        self.builder, self.itemsize, self.lanes = builder, itemsize, lanes
        self.scalar = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, lanes)
        self.zeros = ir.Constant(self.vector, None)
        self._suffix = f"v{lanes}f{8 * itemsize}"

    def pointer(self, address: Any) -> Any:
        """A pointer to scalars from an integer."""
        return self.builder.inttoptr(address, self.scalar.as_pointer())

    def constant(self, value: float) -> Any:
        """The same number in every lane."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def load(self, pointer: Any, offset: Any = 0) -> Any:
        """`lanes` elements from `offset` elements behind a scalar pointer."""
        value = self.builder.load(self._cell(pointer, offset))
        value.align = self.itemsize
        return value

    def store(self, value: Any, pointer: Any, offset: Any = 0) -> None:
        """Store all lanes at `offset` elements behind a scalar pointer."""
        self.builder.store(value, self._cell(pointer, offset)).align = self.itemsize

    def load_masked(self, pointer: Any, mask: Any, offset: Any = 0) -> Any:
        """The lanes in the mask; zeros elsewhere, where memory is not touched."""
        kinds = [self.vector.as_pointer(), INT32, ir.VectorType(BIT, self.lanes), self.vector]
        function = self._declare(f"llvm.masked.load.{self._suffix}.p0", self.vector, kinds)
        return self.builder.call(function, [self._cell(pointer, offset), self._alignment, mask, self.zeros])

    def store_masked(self, value: Any, pointer: Any, mask: Any, offset: Any = 0) -> None:
        """The lanes in the mask; memory elsewhere is not touched."""
        kinds = [self.vector, self.vector.as_pointer(), INT32, ir.VectorType(BIT, self.lanes)]
        function = self._declare(f"llvm.masked.store.{self._suffix}.p0", ir.VoidType(), kinds)
        self.builder.call(function, [value, self._cell(pointer, offset), self._alignment, mask])

    def load_mask(self, address: Any, index: int) -> Any:
        """Vector `index` of a table of integers as wide as the floats, as a mask of its negative lanes."""
        kind = ir.VectorType(ir.IntType(8 * self.itemsize), self.lanes)
        value = self.builder.load(self.builder.gep(self.builder.inttoptr(address, kind.as_pointer()), [number(index)]))
        value.align = self.itemsize
        return self.builder.icmp_signed("<", value, ir.Constant(kind, None))

    def load_strided(self, pointer: Any, offset: Any, step: int, mask: Any, last: Any) -> Any:
        """Elements `offset`, ``offset + step``, ... of a row that ends with element `last`.

        With a mask, zeros in the lanes that it leaves out; their memory is not touched.
        """
        value = self.zeros
        for lane in range(self.lanes):
            place = self.builder.add(offset, number(lane * step))
            if mask is not None:
                for bound, order in ((number(0), "<"), (last, ">")):
                    place = self.builder.select(self.builder.icmp_signed(order, place, bound), bound, place)
            element = self.builder.load(self.builder.gep(pointer, [place]))
            value = self.builder.insert_element(value, element, ir.Constant(INT32, lane))
        return value if mask is None else self.builder.select(mask, value, self.zeros)

    def first_lanes(self, count: Any) -> Any:
        """The mask of the first `count` lanes, a 64-bit integer of any size."""
        lanes = ir.VectorType(INT64, self.lanes)
        return self.builder.icmp_signed("<", ir.Constant(lanes, list(range(self.lanes))), self.broadcast(count, lanes))

    def broadcast(self, scalar: Any, kind: Any = None) -> Any:
        """A scalar in every lane."""
        kind = self.vector if kind is None else kind
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, kind.count), None))

    def shuffle(self, low: Any, high: Any, chosen: list[int]) -> Any:
        """The `chosen` lanes of two vectors, numbered through."""
        numbers = ir.Constant(ir.VectorType(INT32, len(chosen)), chosen)
        return self.builder.shuffle_vector(low, high, numbers)

    def half(self, low: Any, high: Any, first: int) -> Any:
        """Every second lane of two vectors, from lane `first`, in an order of its own; see `in_order`.

        Within 16 bytes lanes are exchanged in one step, across them not.
        """
        return self.shuffle(low, high, [first + lane for lane in halves(self.itemsize, self.lanes)])

    def in_order(self, value: Any) -> Any:
        """What came from `half` in the order of the lanes it came from."""
        order = halves(self.itemsize, self.lanes)
        return self.shuffle(value, value, [order.index(2 * lane) for lane in range(self.lanes)])

    def out_of_order(self, value: Any) -> Any:
        """Lanes in the order that `half` gives them."""
        return self.shuffle(value, value, [lane // 2 for lane in halves(self.itemsize, self.lanes)])

    def woven(self, values: list[Any]) -> list[Any]:
        """Two vectors lane by lane in turn, as two vectors; a single one as it is."""
        if len(values) == 1:
            return values
        turns = [
            lane for pair in zip(range(self.lanes), range(self.lanes, 2 * self.lanes), strict=True) for lane in pair
        ]
        return [self.shuffle(values[0], values[1], chosen) for chosen in (turns[: self.lanes], turns[self.lanes :])]

    def in_turn(self, values: list[Any]) -> list[Any]:
        """The same values; but the compiler makes them before anything that is written after this, and loads nothing
        of that earlier.

        In loops that use every register: to have the next operands ready early would cost some of the sums theirs. At
        run time it is nothing.
        """
        kinds, count = [value.type for value in values], len(values)
        register = "w" if "neon" in features() else "v"
        ties = ",".join([f"={register}"] * count + [str(n) for n in range(count)] + ["~{memory}"])
        kind = kinds[0] if count == 1 else ir.LiteralStructType(kinds)
        after = self.builder.call(ir.InlineAsm(ir.FunctionType(kind, kinds), "", ties, side_effect=True), values)
        return [after] if count == 1 else [self.builder.extract_value(after, n) for n in range(count)]

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """``a * b + c``, rounded once where the processor can."""
        function = self._declare(f"llvm.fmuladd.{self._suffix}", self.vector, [self.vector] * 3)
        return self.builder.call(function, [a, b, c])

    def add_products(self, sums: list[Any], cells: list[Any], held: list[Any]) -> list[Any]:
        """A row of sums for each of the cells: the number there times each of the vectors `held`, a row at a time."""
        after = []
        for row, cell in enumerate(cells):
            factor, mine = self.broadcast(self.builder.load(cell)), sums[row * len(held) : (row + 1) * len(held)]
            after += self.in_turn([self.multiply_add(factor, h, s) for h, s in zip(held, mine, strict=True)])
        return after

    def totals(self, values: list[Any]) -> list[Any]:
        """The sum of the lanes of each of some vectors, as scalars: always in one order, halves first.

        Pairs of vectors become one whose lanes belong to either half and half, until each lane is a sum of its own.
        What stands in 16 bytes stays there where it can, because most processors shuffle only within them.
        """
        labels = [[n] * self.lanes for n in range(len(values))]
        width = self.lanes
        while width > 1:
            if len(values) % 2:
                values, labels = [*values, self.zeros], [*labels, [-1] * self.lanes]
            block = max(width, 16 // self.itemsize)
            both = [
                start + lane
                for base in range(0, self.lanes, block)
                for start in (base, self.lanes + base)
                for group in range(0, block, width)
                for lane in range(group, group + width // 2)
            ]
            values = [
                self.builder.fadd(self.shuffle(a, b, both), self.shuffle(a, b, [n + width // 2 for n in both]))
                for a, b in zip(values[::2], values[1::2], strict=True)
            ]
            labels = [[(a + b)[n] for n in both] for a, b in zip(labels[::2], labels[1::2], strict=True)]
            width //= 2
        places = {label: (v, lane) for v, names in enumerate(labels) for lane, label in enumerate(names)}
        return [
            self.builder.extract_element(values[v], number(lane))
            for v, lane in (places[label] for label in sorted(places) if label >= 0)
        ]

    def clamp(self, value: Any, low: Any, high: Any) -> Any:
        """`value` between two vectors, or scalars; NaN stays NaN."""
        value = self.builder.select(self.builder.fcmp_ordered("<", value, low), low, value)
        return self.builder.select(self.builder.fcmp_ordered(">", value, high), high, value)

    def hardswish(self, value: Any) -> Any:
        """``value * clamp(value + 3, 0, 6) / 6``, to the bit what `loops.hardswish` makes of it."""
        three, six = self.constant(3), self.constant(6)
        bent = self.builder.fmul(value, self.builder.fdiv(self.builder.fadd(value, three), six))
        bent = self.builder.select(self.builder.fcmp_ordered("<=", value, self.constant(-3)), self.zeros, bent)
        return self.builder.select(self.builder.fcmp_ordered("<", value, three), bent, value)

    def where(self, condition: Any, values: list[Any], function: Callable[[Any], Any]) -> list[Any]:
        """`values`, or what a function makes of them where a number is not 0."""
        before = self.builder.block
        with self.builder.if_then(self.builder.icmp_signed("!=", condition, number(0))):
            changed = [function(value) for value in values]
            inside = self.builder.block
        found = []
        for value, other in zip(values, changed, strict=True):
            found.append(self.builder.phi(value.type))
            found[-1].add_incoming(value, before)
            found[-1].add_incoming(other, inside)
        return found

    def prefetch(self, pointer: Any, level: int = 1) -> None:
        """Ask for the cache line at a pointer, which need not point to anything, into the first or second level."""
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), INT32, INT32, INT32])
        insert: Any = cgutils.get_or_insert_function
        function = insert(self.builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(INT32, hint) for hint in (0, 4 - level, 1)]  # read, where to, data
        self.builder.call(function, [self.builder.bitcast(pointer, ir.IntType(8).as_pointer()), *hints])

    @property
    def _alignment(self) -> Any:
        return ir.Constant(INT32, self.itemsize)

    def _cell(self, pointer: Any, offset: Any) -> Any:
        offset = number(offset) if isinstance(offset, int) else offset
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.vector.as_pointer())

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        # llvmlite's own `declare_intrinsic` does not take vector types.
        insert: Any = cgutils.get_or_insert_function
        return insert(self.builder.module, ir.FunctionType(result, arguments), name)


def halves(itemsize: int, lanes: int) -> list[int]:
    """Every second lane of two vectors, in the order that takes one instruction: 16 bytes of both in turn."""
    block = max(1, min(lanes, 16 // itemsize))
    starts = [start for first in range(0, lanes, block) for start in (first, lanes + first)]
    return [start + lane for start in starts for lane in range(0, block, 2)]


def counted_loop(
    builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """A loop from 0 to `count` with values carried in registers: ``carried = body(index, carried)``."""
    before = builder.block
    loop, after = (builder.function.append_basic_block(name) for name in ("loop", "done"))
    builder.cbranch(builder.icmp_signed(">", count, number(0)), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(INT64)
    index.add_incoming(number(0), before)
    held = []
    for value in carried:
        held.append(builder.phi(value.type))
        held[-1].add_incoming(value, before)
    results = body(index, list(held))
    following, end = builder.add(index, number(1)), builder.block
    index.add_incoming(following, end)
    for phi, result in zip(held, results, strict=True):
        phi.add_incoming(result, end)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    finals = []
    for value, result in zip(carried, results, strict=True):
        final = builder.phi(value.type)
        final.add_incoming(value, before)
        final.add_incoming(result, end)
        finals.append(final)
    return finals


def on_addresses(write: Callable[..., None], itemsize: int, lanes: int, others: dict[str, Any] | None = None) -> Any:
    """A function for compiled code, whose instructions ``write(vectors, *arguments)`` writes.

    Its arguments are int64 numbers, but those that have a type among the `others`.
    """
    names = list(inspect.signature(write).parameters)[1:]
    argument_types = [(others or {}).get(name, types.int64) for name in names]

    def define(*_: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
            write(Vectors(builder, itemsize, lanes), *values)
            return context.get_dummy_value()

        return types.void(*argument_types), generate

    # Numba asks an intrinsic for the names of its arguments.
    kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("typing_context", *names)]
    define.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
    define.__name__ = write.__name__
    return intrinsic(define)


def copiers(itemsize: int, lanes: int) -> tuple[Any, Any, Any, Any]:
    """Functions for compiled code that move a vector of `lanes` elements between addresses.

    Returns
    -------
    copy : ``copy(target, source)``
    clear : ``clear(target)`` stores zeros.
    every_second : ``every_second(target, source)`` takes elements 0, 2, 4, ... and reads none behind the last of them.
    join : ``join(target, source, count, other, total)``
        The first `count` elements from `source`, those up to `total` from the same lanes behind `other`, and zeros;
        reads nothing else.
    """

    def copy(vectors: Vectors, target: Any, source: Any) -> None:
        vectors.store(vectors.load(vectors.pointer(source)), vectors.pointer(target))

    def clear(vectors: Vectors, target: Any) -> None:
        vectors.store(vectors.zeros, vectors.pointer(target))

    def every_second(vectors: Vectors, target: Any, source: Any) -> None:
        start = vectors.pointer(source)
        # The second vector begins one element early, so that it ends with the last element wanted.
        low, high = vectors.load(start), vectors.load(start, lanes - 1)
        chosen = [2 * lane if 2 * lane < lanes else 2 * lane + 1 for lane in range(lanes)]
        vectors.store(vectors.shuffle(low, high, chosen), vectors.pointer(target))

    def join(vectors: Vectors, target: Any, source: Any, count: Any, other: Any, total: Any) -> None:
        builder = vectors.builder
        inside = vectors.first_lanes(total)
        first = builder.and_(vectors.first_lanes(count), inside)
        second = builder.and_(inside, builder.not_(first))
        left = vectors.load_masked(vectors.pointer(source), first)
        right = vectors.load_masked(vectors.pointer(other), second)
        vectors.store(builder.select(first, left, right), vectors.pointer(target))

    return (
        on_addresses(copy, itemsize, lanes), on_addresses(clear, itemsize, lanes),
        on_addresses(every_second, itemsize, lanes), on_addresses(join, itemsize, lanes),
    )  # fmt: skip


def _prefetch(vectors: Vectors, address: Any) -> None:
    vectors.prefetch(vectors.pointer(address))


prefetch = on_addresses(_prefetch, 4, 1)
"""``prefetch(address)`` asks for the cache line at an address, which need not be anybody's."""
