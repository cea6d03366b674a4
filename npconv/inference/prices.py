"""What a step would take in either layout, in nanoseconds: predicted, to choose between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from npconv.inference.graph import Node
from npconv.inference.operators import Step, Value, Where, channels_last, conv_plan, depthwise, windows
from npconv.inference.parts import Part

TO_LAST, BACK, COPY, SHUFFLE = 0.15, 0.45, 0.1, 0.25
"""Nanoseconds a byte of an image that NumPy turns one way or the other, copies into a part of a larger one, or whose
interleaved channels it exchanges; on one core of an AMD EPYC (Zen 3), images of 0.1 to 1.6 MB."""

JOINED = 25_000
"""Nanoseconds more that a concatenation takes which is no view."""


def is_free(image: Value) -> bool:
    """Whether a channels-first image is the same memory channels-last: it has one pixel, or one channel."""
    return image.shape[1] == 1 or math.prod(image.shape[2:]) == 1


def to_last(image: Value) -> int:
    """Time to turn a channels-first image."""
    return 0 if is_free(image) else math.ceil(TO_LAST * image.nbytes)


def back(image: Value) -> int:
    """Time to turn it back."""
    return 0 if is_free(image) else math.ceil(BACK * image.nbytes)


def price(part: Part, steps: Sequence[Step], values: Mapping[str, Value], where: Where) -> tuple[int, int]:
    """Time of a part channels-first and channels-last; what is the same in both may be left out."""
    node, y = steps[part.places[0]].node, values[part.output]
    match node.op:
        case "avg_pool" if is_free(y):
            return 0, 0
        case "conv" | "affine" | "avg_pool":
            return _predicted(node, values, where), _predicted(part.nodes[0], _turned(part, values), where)
        case "concat":
            joined = all(n == 1 for n in y.shape[: node.attributes["axis"] % len(y.shape)])
            copied = math.ceil(COPY * y.nbytes) + JOINED
            return (0 if joined else copied), copied
        case "reshape" if len(part.places) > 1:
            return math.ceil(COPY * y.nbytes), math.ceil(SHUFFLE * y.nbytes)
    return 0, 0


def _turned(part: Part, values: Mapping[str, Value]) -> dict[str, Value]:
    """What the channels-last form of a part reads."""
    (node,) = part.nodes
    images = {
        name: Value(channels_last(values[image].shape), values[image].dtype)
        for name, image in zip(node.inputs, part.images, strict=False)
    }
    return {**values, **images}


def _predicted(node: Node, values: Mapping[str, Value], where: Where) -> int:
    """Time of a convolution, or of what runs as one, by its plan."""
    inputs: Sequence[Value | None] = [values.get(name) for name in node.inputs]
    if node.op == "affine":
        node, inputs = depthwise(node, inputs)
    elif node.op == "avg_pool":
        assert inputs[0] is not None
        node, inputs, _ = windows(node, inputs[0])
    plan = conv_plan(node, inputs, where)
    seconds: float = plan.predicted_seconds
    if plan.spec.layout == "channels_last" and plan.backend.name == "numpy":  # whose predictions say nothing of it
        x, y = (math.prod(shape) * plan.dtype.itemsize for shape in (plan.spec.x_shape, plan.spec.y_shape))
        seconds += (BACK * x + TO_LAST * y) / 1e9
    return math.ceil(seconds * 1e9)
