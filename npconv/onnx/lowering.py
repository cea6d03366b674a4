"""ONNX's operators as npconv's nodes. A lowering returns None for what npconv leaves to the evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from npconv.inference import Node, own_name
from npconv.onnx.window import check_kernel, pool, transposed, window

Array = Any
Lowered = list[Node] | None


@dataclass(frozen=True)
class Source:
    """A node of an ONNX graph, and what is known when it is met."""

    node: Any
    wanted: list[str]
    attributes: Mapping[str, Any]
    opset: int
    constants: dict[str, Array]
    name: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, without those left out at the end."""
        names = list(self.node.input)
        while names and not names[-1]:
            names.pop()
        return tuple(names)

    def constant(self, place: int) -> Array | None:
        """The input at a place, if it is there and constant."""
        return self.constants.get(self.inputs[place]) if place < len(self.inputs) else None

    def given(self, place: int) -> bool:
        """Whether there is an input at a place."""
        return place < len(self.inputs) and bool(self.inputs[place])

    def one(self, op: str, inputs: tuple[str, ...] | None = None, /, **attributes: Any) -> list[Node]:
        """A single node that makes the first output."""
        names = self.inputs if inputs is None else inputs
        return [Node(op, names, (self.node.output[0],), attributes, self.name)]

    def new(self, suffix: str, value: Array) -> str:
        """A constant of the node's own."""
        name = own_name(self.node.output[0], suffix)
        self.constants[name] = value
        return name

    @property
    def single(self) -> bool:
        """Whether nothing but the first output is wanted."""
        return not any(self.wanted[1:])


def _conv(source: Source) -> Lowered:
    w = source.constant(1)
    if w is None or w.ndim < 3:
        return None
    check_kernel(source.attributes, w.shape[2:])
    geometry = window(source.attributes, w.ndim - 2)
    return source.one("conv", **geometry, groups=int(source.attributes.get("group", 1)))


def _conv_transpose(source: Source) -> Lowered:
    w, attributes = source.constant(1), source.attributes
    plain = not attributes.get("output_shape") and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if w is None or w.ndim < 3 or not plain:
        return None
    check_kernel(attributes, w.shape[2:])
    geometry = transposed(attributes, (), w.shape[2:])
    most = [max(s, d) for s, d in zip(geometry["stride"], geometry["dilation"], strict=True)]
    if any(e >= m for e, m in zip(geometry["output_padding"], most, strict=True)):
        return None
    return source.one("conv_transpose", **geometry, groups=int(attributes.get("group", 1)))


def _max_pool(source: Source) -> Lowered:
    return source.one("max_pool", **pool(source.attributes)) if source.single else None


def _average_pool(source: Source) -> Lowered:
    counts = bool(source.attributes.get("count_include_pad", 0))
    return source.one("avg_pool", **pool(source.attributes), count_include_pad=counts)


def _global_average_pool(source: Source) -> Lowered:
    return source.one("mean")


def _global_max_pool(source: Source) -> Lowered:
    return source.one("global_max_pool")


def _reduce_mean(source: Source) -> Lowered:
    axes = _axes(source)
    if not axes:
        return None
    return source.one("mean", source.inputs[:1], axes=axes, keepdims=bool(source.attributes.get("keepdims", 1)))


def _batch_normalization(source: Source) -> Lowered:
    attributes = source.attributes
    trains = attributes.get("training_mode") or (source.opset < 7 and not attributes.get("is_test"))
    if trains or not source.single or not attributes.get("spatial", 1):
        return None
    return source.one("batch_norm", eps=float(attributes.get("epsilon", 1e-5)))


def _lrn(source: Source) -> Lowered:
    attributes, defaults = source.attributes, {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    if attributes["size"] < 1:
        raise ValueError(f"size must be positive, got {attributes['size']}")
    numbers = {name: float(attributes.get(name, value)) for name, value in defaults.items()}
    return source.one("lrn", size=int(attributes["size"]), **numbers)


def _gemm(source: Source) -> Lowered:
    attributes, w = source.attributes, source.constant(1)
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
    bias = source.constant(2)
    if w is None or attributes.get("transA", 0) or (source.given(2) and bias is None) or source.opset < 7:
        return None
    if w.dtype.kind != "f" and (alpha, beta) != (1, 1):
        return None  # integers are scaled after the product
    # Kept as it is and multiplied as its transpose: no copy, and rows in one stretch for a single vector.
    matrix = w.T if attributes.get("transB", 0) else w
    names = [source.inputs[0], source.new("w", matrix if alpha == 1 else (matrix * alpha).astype(w.dtype))]
    if bias is not None:
        names.append(source.new("b", bias if beta == 1 else (bias * beta).astype(bias.dtype)))
    return source.one("linear", tuple(names))


def _matmul(source: Source) -> Lowered:
    return source.one("linear")


def _elementwise(op: str) -> Callable[[Source], Lowered]:
    def lower(source: Source) -> Lowered:
        _check_all_given(source)
        legacy = source.opset < 7 and source.attributes.get("broadcast")
        return None if legacy else source.one(op)

    return lower


def _check_all_given(source: Source) -> None:
    """Any number of inputs, but none left out, which `onnx` does not check."""
    if not all(source.node.input):
        raise ValueError(f"input {list(source.node.input).index('')} has no name")


def _activation(name: str, **defaults: float) -> Callable[[Source], Lowered]:
    """An activation whose parameters are attributes."""

    def lower(source: Source) -> Lowered:
        numbers = [float(source.attributes.get(key, value)) for key, value in defaults.items()]
        return source.one("activation", activation=(name, *numbers))

    return lower


def _clip(source: Source) -> Lowered:
    """Limits are attributes up to operator set 10, and inputs from then on."""
    if source.opset < 11:
        limits = [source.attributes.get("min"), source.attributes.get("max")]
    else:
        if any(source.given(place) and source.constant(place) is None for place in (1, 2)):
            return None
        found = [source.constant(place) for place in (1, 2)]
        if any(value is not None and (value.size != 1 or value.dtype.kind not in "biuf") for value in found):
            return None
        limits = [None if value is None else value.reshape(-1)[0].item() for value in found]
    low, high = limits
    if low is None and high is None:
        return _identity(source)
    if (low, high) == (0, None):
        return source.one("activation", source.inputs[:1], activation=("relu",))
    if (low, high) == (0, 6):
        return source.one("activation", source.inputs[:1], activation=("relu6",))
    if low is not None and high is not None and low > high:
        return None  # what ONNX gives then depends on its version
    return source.one("activation", source.inputs[:1], activation=("clip", low, high))


def _softmax(source: Source) -> Lowered:
    """Up to operator set 12 over all axes from `axis` on, as if they were one."""
    flat = source.opset < 13
    return source.one("softmax", axis=int(source.attributes.get("axis", 1 if flat else -1)), flat=flat)


def _concat(source: Source) -> Lowered:
    _check_all_given(source)
    return source.one("concat", axis=int(source.attributes.get("axis", 1)))


def _identity(source: Source) -> Lowered:
    return source.one("reshape", source.inputs[:1], shape=_same)


def _same(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def _dropout(source: Source) -> Lowered:
    """Nothing happens outside of training."""
    trains = source.given(2) and not (source.constant(2) is not None and not source.constants[source.inputs[2]].any())
    if trains or not source.single or (source.opset < 7 and not source.attributes.get("is_test", 0)):
        return None
    return _identity(source)


def _reshape(source: Source) -> Lowered:
    """To a shape that is an attribute up to operator set 4, and an input from then on."""
    zeros = bool(source.attributes.get("allowzero", 0))
    if source.opset < 5:
        wanted = source.attributes["shape"]
        return source.one("reshape", source.inputs[:1], shape=lambda shape: _resolved(shape, wanted, zeros))
    return source.one("reshape", shape=lambda shape, wanted: _resolved(shape, wanted.tolist(), zeros))


def _resolved(shape: tuple[int, ...], wanted: list[int], zeros: bool) -> tuple[int, ...]:
    """A shape with 0 standing for an axis of the old one, unless `zeros` are zeros, and -1 for what is left over."""
    if not isinstance(wanted, list) or not all(isinstance(n, int) for n in wanted):
        raise ValueError(f"a shape must be integers in one axis, got {wanted}")
    if sum(n == -1 for n in wanted) > 1 or any(n < -1 for n in wanted):
        raise ValueError(f"the shape {tuple(wanted)} is none")
    if not zeros and any(n == 0 and place >= len(shape) for place, n in enumerate(wanted)):
        raise ValueError(f"the shape {tuple(wanted)} copies an axis that an array of shape {shape} has not")
    new = [shape[place] if n == 0 and not zeros else int(n) for place, n in enumerate(wanted)]
    if -1 in new:
        known = math.prod(n for n in new if n != -1)
        if not known or math.prod(shape) % known:
            raise ValueError(f"an array of shape {shape} cannot take the shape {tuple(wanted)}")
        new[new.index(-1)] = math.prod(shape) // known
    return tuple(new)


def _flatten(source: Source) -> Lowered:
    axis = int(source.attributes.get("axis", 1))

    def flat(shape: tuple[int, ...]) -> tuple[int, ...]:
        if not -len(shape) <= axis <= len(shape):
            raise ValueError(f"axis {axis} is none of an array of shape {shape}")
        cut = axis + len(shape) if axis < 0 else axis
        return math.prod(shape[:cut]), math.prod(shape[cut:])

    return source.one("reshape", source.inputs[:1], shape=flat)


def _axes(source: Source) -> list[int] | None:
    """Attribute up to operator set 12, input from then on; None where they are not known."""
    if source.given(1):
        constant = source.constant(1)
        return None if constant is None else [int(n) for n in constant.reshape(-1)]
    return source.attributes.get("axes")


def _squeeze(source: Source) -> Lowered:
    axes = _axes(source)
    if axes is None and source.given(1):
        return None

    def without(shape: tuple[int, ...]) -> tuple[int, ...]:
        gone = [n for n, size in enumerate(shape) if size == 1] if axes is None else axes
        if any(not -len(shape) <= n < len(shape) for n in gone):
            raise ValueError(f"axes {axes} are not all those of an array of shape {shape}")
        places = {n % len(shape) for n in gone}
        if any(shape[n] != 1 for n in places):
            raise ValueError(f"axes {axes} of an array of shape {shape} are not all of length 1")
        return tuple(n for place, n in enumerate(shape) if place not in places)

    return source.one("reshape", source.inputs[:1], shape=without)


def _unsqueeze(source: Source) -> Lowered:
    axes = _axes(source)
    if axes is None:
        return None

    def widened(shape: tuple[int, ...]) -> tuple[int, ...]:
        ndim = len(shape) + len(axes)
        ones = {n % ndim for n in axes}
        if len(ones) != len(axes) or any(not -ndim <= n < ndim for n in axes):
            raise ValueError(f"axes {axes} cannot be added to an array of shape {shape}")
        rest = iter(shape)
        return tuple(1 if place in ones else next(rest) for place in range(ndim))

    return source.one("reshape", source.inputs[:1], shape=widened)


def _transpose(source: Source) -> Lowered:
    return source.one("transpose", axes=source.attributes.get("perm"))


def _shape(source: Source) -> Lowered:
    return source.one("shape", start=source.attributes.get("start", 0), stop=source.attributes.get("end"))


LOWERINGS: dict[str, Callable[[Source], Lowered]] = {
    "Add": _elementwise("add"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "HardSigmoid": _activation("hardsigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _activation("hardswish"),
    "Identity": _identity,
    "LRN": _lrn,
    "LeakyRelu": _activation("leaky_relu", alpha=0.01),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _elementwise("mul"),
    "ReduceMean": _reduce_mean,
    "Relu": _activation("relu"),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _activation("sigmoid"),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sum": _elementwise("add"),
    "Tanh": _activation("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Lowerings by the names of ONNX's operators."""
