"""A graph made ready for inputs of certain shapes: every node is planned once, and values share one arena of memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from npconv.inference.graph import Array, Graph, Node
from npconv.inference.memory import ALIGNMENT, Block, LimitError, layout
from npconv.inference.operators import Bound, Step, Value, Where, bind, named
from npconv.inference.regions import Arrangement, arrange

FAILURES = (ValueError, TypeError, ArithmeticError, LookupError, MemoryError, RuntimeError)


_SETTLED = object()
"""In place of what results look like: the step takes no arguments, because it knows the arrays."""


class ShapesChangedError(Exception):
    """A node whose results nobody knows beforehand gave others than in the run that the program was made from."""


class Program:
    """Made by a first run, in which every value has memory of its own; that run's results are in `first`.

    Parameters
    ----------
    graph : Graph
    feeds : mapping of str to array
        The inputs, of the shapes that the program is for.
    where : Where
    layout : {"auto", "channels_first", "channels_last"}
        Of images between the steps, where those can do either.
    """

    def __init__(self, graph: Graph, feeds: Mapping[str, Array], where: Where, layout: str = "auto") -> None:
        self._where = where
        self._outputs = graph.outputs
        self._fixed: dict[str, Array] = {**graph.constants, "": None}
        self._lock = threading.Lock()
        self._steps: list[tuple[Callable[..., Any], Any, list[int], list[int]]] = []
        steps, values = first_run(graph, feeds, where, self._fixed)
        self.first = {name: _own(values[name]) for name in graph.outputs}
        del values
        turned = self._rearranged(steps, feeds, layout)
        if turned is None:
            self._settle(steps, feeds, 0)
            return
        where.budget.give(sum(step.bound.held for step in steps))
        self._settle(turned.steps, feeds, sum(value.nbytes for value in turned.constants.values()))
        with contextlib.suppress(ShapesChangedError):  # else later results differ from the first one by rounding
            self.first = self.run(feeds)

    def _rearranged(self, steps: Sequence[Step], feeds: Mapping[str, Array], layout: str) -> Arrangement | None:
        """Steps some of which run channels-last; None where nothing is won, or memory does not suffice for it."""
        held = self._where.budget.held
        known = {name: Value.of(value) for name, value in feeds.items()}
        known |= {name: Value.of(value, True) for name, value in self._fixed.items() if hasattr(value, "shape")}
        try:
            turned = arrange(steps, known, self._outputs, self._where, layout)
            if turned is not None:
                memory = self._memory(turned.steps, {**feeds, **turned.constants})
                self._where.budget.check(memory.nbytes, "the arena")
                self._fixed |= turned.constants
            return turned
        except LimitError:
            self._where.budget.held = held
            return None

    def _memory(self, steps: Sequence[Step], given: Mapping[str, Array]) -> Memory:
        return Memory(steps, set(self._outputs), set(given) | set(self._fixed))

    def _settle(self, steps: Sequence[Step], feeds: Mapping[str, Array], constants: int) -> None:
        """Take memory for steps; `constants` bytes are held beside their weights."""
        memory = self._memory(steps, feeds)
        self._where.budget.take(memory.nbytes, "the arena")
        self.nbytes = memory.nbytes + constants + sum(step.bound.held for step in steps)
        self._arena = _aligned(self._where, memory.nbytes)
        self._prepare(steps, memory, feeds)

    def _prepare(self, steps: Sequence[Step], memory: Memory, feeds: Mapping[str, Array]) -> None:
        """Number all values, and put those that have a place in the arena there."""
        names = [*self._fixed, *feeds, *(name for step in steps for name in step.node.outputs)]
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        slots: list[Array] = [None] * len(number)
        for name, value in self._fixed.items():
            slots[number[name]] = value
        fresh = []
        for step in steps:
            for name, value in zip(step.node.outputs, step.results, strict=True):
                place = memory.place(name)
                if place is not None and value is not None:
                    part = self._arena[place : place + value.nbytes]
                    slots[number[name]] = part.view(value.dtype).reshape(value.shape)
                elif step.bound.results is not None and not step.bound.view and value is not None:
                    fresh.append((number[name], value.shape, value.dtype))
            if step.bound.view and slots[number[step.node.outputs[0]]] is not None:
                continue
            if memory.joins(step):
                continue
            ins = [number[name] for name in step.node.inputs]
            outs = [number[name] for name in step.node.outputs]
            settled = _settled(step, [slots[place] for place in (*ins, *outs)])
            self._steps.append((*(_runner(step) if settled is None else (settled, _SETTLED)), ins, outs))
        self._number, self._slots, self._fresh = number, slots, fresh

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on inputs of the shapes that the program is for, one caller at a time."""
        xp, number = self._where.xp, self._number
        with self._lock:
            slots = self._slots.copy()
            for name, value in feeds.items():
                slots[number[name]] = value
            for place, shape, dtype in self._fresh:
                slots[place] = xp.empty(shape, dtype)
            for run, expected, ins, outs in self._steps:
                if expected is _SETTLED:
                    run()
                    continue
                if expected is None:
                    run(*[slots[i] for i in ins], *[slots[o] for o in outs])
                    continue
                results = run(*[slots[i] for i in ins])
                if _signature(results) != expected:
                    raise ShapesChangedError
                for place, value in zip(outs, results, strict=True):
                    slots[place] = self._safe(value)
            fresh = {place for place, _, _ in self._fresh}
            found = {name: slots[number[name]] for name in self._outputs}
            return {name: y if number[name] in fresh else _own(y) for name, y in found.items()}

    def _safe(self, value: Array) -> Array:
        """What a foreign function returned, copied if it lies in the arena, where it would be overwritten."""
        if isinstance(value, np.ndarray) and np.may_share_memory(value, self._arena):
            return value.copy()
        return value


def first_run(
    graph: Graph, feeds: Mapping[str, Array], where: Where, fixed: dict[str, Array]
) -> tuple[list[Step], dict[str, Array]]:
    """Bind and run every node. What depends on shapes alone is added to `fixed` and makes no step."""
    values: dict[str, Array] = {**fixed, **feeds}
    uses, steps = graph.uses(), []
    root = {name: name for name in values}
    held: dict[str, int] = {}
    for node in graph.nodes:
        inputs = [_known(values[name], name in fixed) for name in node.inputs]
        bound = bind(node, inputs, where)
        results = _results(node, bound, [values[name] for name in node.inputs], where)
        pure = bound.results is not None or node.attributes.get("pure", False)
        known = bound.results is not None and all(value.constant is not None for value in bound.results)
        if known or (pure and all(name in fixed for name in node.inputs)):
            fixed |= {name: value for name, value in zip(node.outputs, results, strict=False) if name}
        else:
            steps.append(Step(node, bound, tuple(_known(value, False) for value in results)))
            where.budget.take(bound.held, f"node {node}, for its packed weights,")
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                values[name] = value
                root[name] = root[node.inputs[0]] if bound.view else name
                held[name] = 0 if bound.view or name in fixed else getattr(value, "nbytes", 0)
                where.budget.take(held[name], f"node {node}")
                uses[root[name]] += uses[name] if bound.view else 0
        for name in filter(None, node.inputs):
            uses[root[name]] -= 1
            if uses[root[name]] == 0:
                where.budget.give(held.pop(root[name], 0))
            if uses[root[name]] == 0 and name not in fixed and name not in graph.outputs:
                values.pop(name, None)
    where.budget.give(sum(held.values()))
    return steps, values


def _known(value: Array, constant: bool) -> Value | None:
    return Value.of(value, constant) if hasattr(value, "shape") else None


def _results(node: Node, bound: Bound, arrays: Sequence[Array], where: Where) -> tuple[Array, ...]:
    """Run a node into memory of its own."""
    try:
        if bound.results is None:
            return tuple(bound.run(*arrays))
        if bound.view:
            return (arrays[0].reshape(bound.results[0].shape),)
        results = tuple(where.xp.empty(v.shape, v.dtype) if v.constant is None else v.constant for v in bound.results)
        bound.run(*arrays, *results)
        return results
    except FAILURES as error:
        raise named(node, error) from error


def _runner(step: Step) -> tuple[Callable[..., Any], Any]:
    """The function of a step, and what its results must look like; None where it writes into given memory."""
    if step.bound.view:
        assert step.results[0] is not None
        shape = step.results[0].shape
        return lambda x, *_: (x.reshape(shape),), ((shape, step.results[0].dtype),)
    if step.bound.results is not None:
        return step.bound.run, None
    return step.bound.run, tuple(None if value is None else (value.shape, value.dtype) for value in step.results)


def _settled(step: Step, arrays: Sequence[Array]) -> Callable[[], Any] | None:
    """A step for arrays that it finds in the same place in every run; None where it has to look for them."""
    if step.bound.on_arrays is None or any(array is None for array in arrays):
        return None
    return step.bound.on_arrays(*arrays)


def _signature(results: Sequence[Array]) -> tuple[Any, ...]:
    return tuple((tuple(y.shape), y.dtype) if hasattr(y, "shape") else None for y in results)


def _own(value: Array) -> Array:
    """A result that the caller may keep and change."""
    return value.copy() if hasattr(value, "copy") and not isinstance(value, np.generic) else value


def _aligned(where: Where, nbytes: int) -> Array:
    """Memory that starts at the border of a cache line."""
    memory = where.xp.empty(nbytes + ALIGNMENT, np.uint8)
    start = 0 if where.xp is not np else -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]


class Memory:
    """Where every value of a program lies in the arena.

    A value lies inside another one if it is a view of it, if it is a part of a concatenation, or if it may overwrite
    it. So a tree of values shares the memory of its root, and the roots are laid out by when they live.

    Parameters
    ----------
    steps : sequence of Step
    outputs : set of str
        They get memory of their own in every run.
    given : set of str
        Constants and inputs, which have memory already.
    """

    def __init__(self, steps: Sequence[Step], outputs: set[str], given: set[str]) -> None:
        self._inside: dict[str, tuple[str, int]] = {}
        self._size: dict[str, int] = {}
        self._foreign = set(given)
        for step in steps:
            for name, value in zip(step.node.outputs, step.results, strict=False):
                self._size[name] = 0 if value is None else value.nbytes
                if step.bound.results is None or (name in outputs and not step.bound.view):
                    self._foreign.add(name)
            if step.bound.view:
                self._inside[step.node.outputs[0]] = (step.node.inputs[0], 0)
            elif step.node.op == "concat":
                self._place_parts(step)
        life = self._lives(steps, outputs)
        for place, step in enumerate(steps):
            if step.bound.in_place:
                self._overwrite(place, step, life)
        blocks = {name: Block(self._size[name], *life[name]) for name in life if name not in self._inside}
        self._offsets, self.nbytes = layout(blocks)

    def place(self, name: str) -> int | None:
        """Where a value starts in the arena; None if it is not there."""
        root, offset = self._find(name)
        return None if root in self._foreign or not name else self._offsets[root] + offset

    def joins(self, step: Step) -> bool:
        """Whether a step is a concatenation all of whose parts are made where they belong: nothing is left to do."""
        whole = step.results[0]
        if step.node.op != "concat" or whole is None or step.node.outputs[0] in self._foreign:
            return False
        root, place = self._find(step.node.outputs[0])
        for part in step.node.inputs:
            if self._find(part) != (root, place) or part not in self._size:
                return False
            place += self._size[part]
        return all(n == 1 for n in whole.shape[: step.node.attributes["axis"] % len(whole.shape)])

    def _find(self, name: str) -> tuple[str, int]:
        """The root of a value and where in it the value starts."""
        offset = 0
        while name in self._inside:
            name, further = self._inside[name]
            offset += further
        return name, offset

    def _place_parts(self, step: Step) -> None:
        """Let the parts of a concatenation be made where they belong, if each is one stretch of memory there."""
        whole, result = step.node.outputs[0], step.results[0]
        if result is None or whole in self._foreign:
            return
        axis = step.node.attributes["axis"] % len(result.shape)
        if any(n != 1 for n in result.shape[:axis]):
            return
        start = 0
        for part in step.node.inputs:
            root, _ = self._find(part)
            size = self._size.get(part)
            if size is None:  # a constant or an input: its size is what is left when all others are known
                return
            if root not in self._foreign and root != whole and self._size[root] == size:
                self._inside[root] = (whole, start)
            start += size

    def _lives(self, steps: Sequence[Step], outputs: set[str]) -> dict[str, tuple[int, int]]:
        """The first and the last step that touches each root in the arena; outputs are read after all steps."""
        life: dict[str, tuple[int, int]] = {}
        for place, step in enumerate(steps):
            for name in (*step.node.inputs, *step.node.outputs):
                root, _ = self._find(name)
                if root and root not in self._foreign:
                    life[root] = (life.get(root, (place, place))[0], place)
        for root, _ in map(self._find, outputs):
            if root in life:
                life[root] = (life[root][0], len(steps))
        return life

    def _overwrite(self, place: int, step: Step, life: dict[str, tuple[int, int]]) -> None:
        """Let a result take the place of the first input, if this is the last that is heard of that."""
        x, y = step.node.inputs[0], step.node.outputs[0]
        (root, offset), (own, _) = self._find(x), self._find(y)
        others = {self._find(name)[0] for name in step.node.inputs[1:]}
        if own != y or y in self._foreign or root in self._foreign or root in others:
            return
        if life[root][1] == place and self._size.get(x) == self._size[y]:
            self._inside[y] = (root, offset)
            life[root] = (life[root][0], life.pop(y)[1])
