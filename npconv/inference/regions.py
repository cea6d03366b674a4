"""Which steps of a program run channels-last, and those steps in that layout.

Values are channels-first, ``(N, C, *spatial)``, unless a region of steps that can do either is faster the other way.
Where such a region begins or ends a step more turns the image; images of one pixel are the same memory in both layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npconv.inference.cut import FIRST, Cut
from npconv.inference.graph import Array, Node
from npconv.inference.operators import Step, Value, Where, bind
from npconv.inference.parts import Part, find_parts, last
from npconv.inference.prices import back, is_free, price, to_last

LAYOUTS = ("auto", "channels_first", "channels_last")
"""What a caller may ask for; the last stands for all steps that can."""


@dataclass(frozen=True)
class Arrangement:
    """Steps some of which run channels-last, and the constants that these read."""

    steps: list[Step]
    constants: dict[str, Array]


def arrange(
    steps: Sequence[Step], known: Mapping[str, Value], outputs: Sequence[str], where: Where, layout: str
) -> Arrangement | None:
    """Steps with the same results, of which those that are faster channels-last are.

    Parameters
    ----------
    steps : sequence of Step
        All channels-first.
    known : mapping of str to Value
        Inputs and constants.
    outputs : sequence of str
    where : Where
    layout : {"auto", "channels_first", "channels_last"}

    Returns
    -------
    Arrangement, or None if nothing changes

    Raises
    ------
    LimitError
        If weights packed anew take more memory than there is.
    """
    if layout == "channels_first" or where.xp is not np:
        return None
    values = dict(known)
    for step in steps:
        values |= {name: value for name, value in zip(step.node.outputs, step.results, strict=False) if value}
    parts = find_parts(steps, values, outputs)
    if layout == "auto":
        parts = faster(parts, steps, values, outputs, where)
    return _Arranging(steps, values, outputs, where).made(parts) if parts else None


def faster(
    parts: Sequence[Part], steps: Sequence[Step], values: Mapping[str, Value], outputs: Sequence[str], where: Where
) -> list[Part]:
    """The parts that run channels-last in the fastest program, as far as its time can be predicted.

    A part costs its time in the layout that it runs in, and a value that is made in one layout and read in the other
    costs the time to turn it, once. The cheapest choice of all is a minimum cut.
    """
    cut = Cut()
    own = {place for part in parts for place in part.places}
    elsewhere = {name for place, step in enumerate(steps) if place not in own for name in step.node.inputs}
    maker = {part.output: number for number, part in enumerate(parts) if part.makes_image}
    readers: dict[str, list[Any]] = {name: [] for name in maker}
    for number, part in enumerate(parts):
        cut.place(number, *price(part, steps, values, where))
        for name in part.images:
            readers.setdefault(name, []).append(number)
    for name, numbers in readers.items():
        made_by = maker.get(name, FIRST)
        cut.separate(made_by, ("turned", name), to_last(values[name]))
        cut.separate(("turned back", name), made_by, back(values[name]))
        for number in numbers:
            cut.separate(("turned", name), number, NEVER)
            cut.separate(number, ("turned back", name), NEVER)
        if name in elsewhere or name in outputs:
            cut.separate(FIRST, ("turned back", name), NEVER)
    chosen = cut.second_side()
    return [part for number, part in enumerate(parts) if number in chosen]


NEVER = 10**15
"""The cost of what must not be."""


class _Arranging:
    """Steps in the order in which they run, each value turned before the first that reads it the other way."""

    def __init__(self, steps: Sequence[Step], values: dict[str, Value], outputs: Sequence[str], where: Where) -> None:
        self._before, self._values, self._outputs, self._where = steps, dict(values), outputs, where
        self._to_be_made = {name for step in steps for name in step.node.outputs}
        self._there: set[str] = set()
        self._steps: list[Step] = []
        self._constants: dict[str, Array] = {}

    def made(self, parts: Sequence[Part]) -> Arrangement:
        """The arrangement in which `parts` run channels-last."""
        starts = {place: part for part in parts for place in part.places}
        for place, step in enumerate(self._before):
            part = starts.get(place)
            if part is None:
                for name in step.node.inputs:
                    self._need(name)
                self._steps.append(step)
                self._there.update(step.node.outputs)
            elif place == part.places[-1]:
                self._add(part)
        for name in self._outputs:
            self._need(name)
        return Arrangement(self._steps, self._constants)

    def _add(self, part: Part) -> None:
        """The steps of a part, channels-last, after what they read."""
        for image in part.images:
            self._need_last(image)
        for name, (constant, shape) in part.constants.items():
            self._turn_constant(name, self._values[constant].constant, shape)
        for node in part.nodes:
            for name in node.inputs:
                self._need(name)
            self._run(node)

    def _need(self, name: str) -> None:
        """See to it that a value is there; what has been made channels-last is turned back."""
        if name in self._to_be_made and name not in self._there:
            ndim = len(self._values[name].shape)
            self._turn(name, last(name), name, (0, ndim - 1, *range(1, ndim - 1)))

    def _need_last(self, name: str) -> None:
        """See to it that an image is there with its channels last."""
        if last(name) not in self._there:
            ndim = len(self._values[name].shape)
            self._turn(name, name, last(name), (0, *range(2, ndim), 1))

    def _turn(self, name: str, source: str, target: str, axes: tuple[int, ...]) -> None:
        """Move the channels of an image."""
        shape = tuple(self._values[source].shape[axis] for axis in axes)
        who = f"layout of {name.lstrip(chr(0))}"
        if is_free(self._values[name]):
            self._run(Node("reshape", (source,), (target,), {"shape": lambda _: shape}, who))
        else:
            self._run(Node("transpose", (source,), (target,), {"axes": axes}, who))

    def _turn_constant(self, name: str, value: Array, shape: tuple[int, ...]) -> None:
        """A constant of that channels-first shape with its channels last."""
        if name not in self._there:
            self._where.budget.take(value.nbytes, "a constant in another layout")
            turned = np.ascontiguousarray(np.moveaxis(value.reshape(shape), 1, -1))
            self._constants[name], self._values[name] = turned, Value.of(turned, True)
            self._there.add(name)

    def _run(self, node: Node) -> None:
        """Add a step that runs a node."""
        bound = bind(node, [self._values.get(name) for name in node.inputs], self._where)
        assert bound.results is not None
        self._where.budget.take(bound.held, f"node {node}, for its packed weights,")
        self._steps.append(Step(node, bound, bound.results))
        self._values |= dict(zip(node.outputs, bound.results, strict=True))
        self._there.update(node.outputs)
