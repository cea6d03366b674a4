"""The steps of a program that can run channels-last as well, and what they are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from npconv.inference.graph import Node, own_name
from npconv.inference.operators import Step, Value, axis_of, channels_last

Known = Mapping[str, Value]

RANKS = (3, 4, 5)
"""Axes of an image: batch, channels, and one to three of space."""


@dataclass(frozen=True)
class Part:
    """Steps that run in either layout, together: one, or the three of a channel shuffle.

    Attributes
    ----------
    places : tuple of int
        Of the steps.
    images : tuple of str
        What is read in the part's layout, constants excluded.
    output : str
    nodes : tuple of Node
        The part in channels-last form, in which its images have the names that `last` gives them.
    constants : dict of str to (str, shape)
        Constants that `nodes` read channels-last, under names of their own: of which one, and the channels-first shape
        in which it stands for an image.
    makes_image : bool
        Whether the result is in the part's layout, too; otherwise it is the same in both.
    """

    places: tuple[int, ...]
    images: tuple[str, ...]
    output: str
    nodes: tuple[Node, ...]
    constants: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    makes_image: bool = True


def last(name: str) -> str:
    """What a value is called when its channels come last."""
    return own_name(name, "channels_last")


def find_parts(steps: Sequence[Step], values: Known, outputs: Sequence[str]) -> list[Part]:
    """All steps that can run channels-last."""
    uses = Counter([name for step in steps for name in step.node.inputs] + list(outputs))
    makers = {name: place for place, step in enumerate(steps) for name in step.node.outputs}
    parts: list[Part] = []
    for place, step in enumerate(steps):
        form = FORMS.get(step.node.op)
        known = step.bound.results is not None and len(step.results) == 1
        part = None
        if form is not None and known:
            part = form(place, step, values)
        elif step.node.op == "reshape" and known:
            part = _shuffle(place, steps, values, uses, makers) or _unchanged(place, step, values)
        if part is not None:
            parts.append(part)
    return parts


def _window(place: int, step: Step, values: Known) -> Part | None:
    """One image in, one image out, and any weights: the operator knows both layouts."""
    node, x = step.node, step.node.inputs[0]
    if not _is_image(x, values) or len(_shape(step)) != len(values[x].shape):
        return None
    inputs = (last(x), *node.inputs[1:])
    attributes = {**node.attributes, "layout": "channels_last"}
    return _part(place, step, (x,), Node(node.op, inputs, (last(node.outputs[0]),), attributes, node.name))


def _mean(place: int, step: Step, values: Known) -> Part | None:
    """Over all of space: with the axes kept or not, the result has one pixel."""
    node, x = step.node, step.node.inputs[0]
    if not _is_image(x, values) or values[x].dtype.kind != "f":
        return None
    given, ndim = node.attributes.get("axes"), len(values[x].shape)
    if given is not None and sorted(axis_of(axis, ndim) for axis in given) != list(range(2, ndim)):
        return None
    kept = {name: value for name, value in node.attributes.items() if name != "axes"}
    keeps = kept.get("keepdims", True)
    output = last(node.outputs[0]) if keeps else node.outputs[0]
    made = Node("mean", (last(x),), (output,), {**kept, "layout": "channels_last"}, node.name)
    return replace(_part(place, step, (x,), made), makes_image=keeps)


def _elementwise(place: int, step: Step, values: Known) -> Part | None:
    """Images of one rank, and constants of any smaller one, which broadcast."""
    node, ndim = step.node, len(_shape(step))
    images, constants, inputs = [], {}, []
    for name in node.inputs:
        value = values.get(name)
        if value is not None and value.constant is not None and len(value.shape) <= ndim and ndim in RANKS:
            alias = own_name(name, f"channels_last of {ndim}")
            constants[alias] = (name, (1,) * (ndim - len(value.shape)) + value.shape)
            inputs.append(alias)
        elif _is_image(name, values) and len(values[name].shape) == ndim:
            images.append(name)
            inputs.append(last(name))
        else:
            return None
    attributes = dict(node.attributes)
    if node.op == "concat":
        axis = axis_of(attributes["axis"], ndim)
        attributes["axis"] = (0, ndim - 1, *range(1, ndim - 1))[axis]
    made = Node(node.op, tuple(inputs), (last(node.outputs[0]),), attributes, node.name)
    return replace(_part(place, step, tuple(images), made), constants=constants) if images else None


def _unchanged(place: int, step: Step, values: Known) -> Part | None:
    """A view in the same shape, as of dropout."""
    node, x = step.node, step.node.inputs[0]
    if not step.bound.view or not _is_image(x, values) or _shape(step) != values[x].shape:
        return None
    return _part(place, step, (x,), _reshaped(last(x), last(node.outputs[0]), channels_last(_shape(step)), node.name))


def _shuffle(
    place: int, steps: Sequence[Step], values: Known, uses: Mapping[str, int], makers: Mapping[str, int]
) -> Part | None:
    """A channel shuffle: channels as a table, that transposed, and one axis again; found at its last step.

    References
    ----------
    X. Zhang et al., *ShuffleNet*, arXiv:1707.01083, section 3.1.
    """
    back = steps[place].node
    middle = makers.get(back.inputs[0], -1)
    turn = steps[middle].node
    start = makers.get(turn.inputs[0], -1) if middle >= 0 and turn.op == "transpose" else -1
    if start < 0 or steps[start].node.op != "reshape":
        return None
    x, y = steps[start].node.inputs[0], back.outputs[0]
    if not all(steps[p].bound.view for p in (start, place)) or not _is_image(x, values):
        return None
    shape, ndim, table = values[x].shape, len(values[x].shape), values[turn.inputs[0]].shape
    order = tuple(turn.attributes["axes"] or ())
    if any(uses[name] != 1 for name in (turn.inputs[0], back.inputs[0])):
        return None
    if (table[:1], table[3:], values[y].shape) != (shape[:1], shape[2:], shape) or order != (
        0,
        2,
        1,
        *range(3, ndim + 1),
    ):
        return None
    space = (shape[0], *shape[2:])
    made = (
        _reshaped(last(x), last(turn.inputs[0]), (*space, *table[1:3]), steps[start].node.name),
        Node(
            "transpose", (last(turn.inputs[0]),), (last(back.inputs[0]),),
            {"axes": (*range(ndim - 1), ndim, ndim - 1)}, turn.name,
        ),
        _reshaped(last(back.inputs[0]), last(y), channels_last(shape), back.name),
    )  # fmt: skip
    return Part((start, middle, place), (x,), y, made)


def _part(place: int, step: Step, images: tuple[str, ...], node: Node) -> Part:
    return Part((place,), images, step.node.outputs[0], (node,))


def _reshaped(x: str, y: str, shape: tuple[int, ...], name: str) -> Node:
    return Node("reshape", (x,), (y,), {"shape": lambda _: shape}, name)


def _shape(step: Step) -> tuple[int, ...]:
    (result,) = step.results
    assert result is not None
    return result.shape


def _is_image(name: str, values: Known) -> bool:
    return name in values and values[name].constant is None and len(values[name].shape) in RANKS


FORMS: dict[str, Callable[[int, Step, Known], Part | None]] = {
    "activation": _window,
    "add": _elementwise,
    "affine": _window,
    "avg_pool": _window,
    "batch_norm": _window,
    "concat": _elementwise,
    "conv": _window,
    "global_max_pool": _window,
    "max_pool": _window,
    "mean": _mean,
    "mul": _elementwise,
}
"""How a step runs channels-last, by its operation; None where its operands do not allow it."""
