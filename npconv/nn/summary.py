"""What a network is, layer by layer: shapes, receptive fields, parameters, multiply-accumulates."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from npconv.nn import init
from npconv.nn.activation import Hardswish, ReLU, ReLU6, Sigmoid, SiLU
from npconv.nn.arguments import Array, namespace, per_axis, positive
from npconv.nn.container import Branches, Sequential
from npconv.nn.conv import Conv, ConvTranspose
from npconv.nn.dropout import Dropout
from npconv.nn.linear import Linear
from npconv.nn.module import Module, joined_name
from npconv.nn.norm import BatchNorm
from npconv.nn.pooling import AvgPool, MaxPool
from npconv.nn.resample import AdaptiveAvgPool, Upsample
from npconv.nn.shape import Flatten


@dataclass(frozen=True)
class Row:
    """A layer in a network.

    Attributes
    ----------
    name : str
        Dotted, as in ``state_dict``.
    kind : str
        The layer's class.
    shape : tuple of int
        Of the result for one sample.
    receptive_field : tuple of int or None
        How many elements of the input, along each axis, an element of the result depends on, those in the padding
        included; None where that is not known, as behind a layer of one's own.
    parameters : int
        Learned numbers.
    macs : int or None
        Multiply-accumulates for one sample. Convolutions and linear layers have them; other layers count as 0, as in
        the papers. None if it is not known: a layer of one's own with parameters.
    input_shape : tuple of int
        Of what goes in, for one sample.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    receptive_field: tuple[int, ...] | None
    parameters: int
    macs: int | None
    input_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A network's layers in the order in which they run; prints as a table. `Module.summary` makes it.

    Attributes
    ----------
    input_shape : tuple of int
        Of one sample.
    rows : tuple of Row
    parameters : int
        Of the whole network, shared ones counted once.

    Examples
    --------
    >>> import npconv as nc
    >>> summary = nc.models.lenet5().summary((1, 28, 28))
    >>> summary.parameters, summary.macs, len(summary)
    (61706, 416520, 12)
    >>> [(row.name, row.receptive_field) for row in summary if row.name.startswith("pool")]
    [('pool1', (6, 6)), ('pool2', (16, 16))]
    """

    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample, of all layers where they are known."""
        return sum(row.macs or 0 for row in self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        known = "" if all(row.macs is not None for row in self.rows) else " and more"
        lines = [("layer", "kind", "result", "receptive field", "parameters", "MACs")]
        lines += [
            (r.name, r.kind, _times(r.shape), _times(r.receptive_field), _number(r.parameters), _number(r.macs))
            for r in self.rows
        ]
        lines += [("total", "", "", "", f"{self.parameters:,}", f"{self.macs:,}{known}")]
        sides = zip("<<<>>>", zip(*lines, strict=True), strict=True)
        formats = [f"{side}{max(map(len, cells))}" for side, cells in sides]
        return "\n".join("  ".join(map(format, line, formats)).rstrip() for line in lines)


def _times(sizes: tuple[int, ...] | None) -> str:
    return "?" if sizes is None else "x".join(map(str, sizes))


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


@dataclass(frozen=True)
class Field:
    """What an element of a layer's result sees of the network's input, along each axis.

    `size` elements, and neighbours see what lies `jump` elements apart; `extent` neighbours there are.
    """

    size: tuple[Fraction, ...]
    jump: tuple[Fraction, ...]
    extent: tuple[int, ...]

    def through(self, kernel: Any, stride: Any, extent: tuple[int, ...]) -> Field:
        """Return the field after a window of so many elements, moved by so many, which may be fractions."""
        return Field(
            tuple(size + (k - 1) * jump for size, k, jump in zip(self.size, kernel, self.jump, strict=True)),
            tuple(jump * s for jump, s in zip(self.jump, stride, strict=True)),
            extent,
        )


def summarize(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Run a copy of `model` on zeros and note every layer; see `Module.summary`."""
    if not isinstance(input_shape, tuple | list) or not input_shape:
        raise TypeError(f"input_shape must be a tuple, (C, *spatial) of one sample, got {input_shape!r:.60}")
    shape = tuple(positive(f"input_shape[{axis}]", size) for axis, size in enumerate(input_shape))
    spatial = shape[1:]
    ones = (Fraction(1),) * len(spatial)
    rows: list[Row] = []
    # A copy, so that neither the mode nor what is kept for a backward pass changes.
    _walk("", copy.deepcopy(model).eval(), _zeros(model, shape), Field(ones, ones, spatial), rows)
    return Summary(shape, tuple(rows), sum(parameter.value.size for parameter in model.parameters()))


def _zeros(model: Module, shape: tuple[int, ...]) -> Array:
    for parameter in model.parameters():
        return namespace("parameter", parameter.value).zeros((1, *shape), parameter.value.dtype)
    return init.constant((1, *shape), 0)


def _walk(name: str, module: Module, x: Array, field: Field | None, rows: list[Row]) -> tuple[Array, Field | None]:
    """Run `module`, note its layers, and return its result and what an element of that sees."""
    children = [(joined_name(name, child), layer) for child, layer in module.named_children()]
    if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
        for child, layer in children:
            x, field = _walk(child, layer, x, field, rows)
        return x, field
    if isinstance(module, Branches) and len(children) == len(module):
        results = [_walk(child, layer, x, field, rows) for child, layer in children]
        y = module.joined([result for result, _ in results])
        field = _widest([seen for _, seen in results])
        rows.append(Row(name, type(module).__name__, tuple(y.shape[1:]), _pixels(field), 0, 0, tuple(x.shape[1:])))
        return y, field
    y = module(x)
    field = None if field is None else _seen(module, x, y, field)
    count = sum(parameter.value.size for parameter in module.parameters())
    macs, kind = _macs(module, x, y, count), type(module).__name__
    rows.append(Row(name, kind, tuple(y.shape[1:]), _pixels(field), count, macs, tuple(x.shape[1:])))
    return y, field


def _pixels(field: Field | None) -> tuple[int, ...] | None:
    return None if field is None else tuple(math.ceil(size) for size in field.size)


def _widest(fields: list[Field | None]) -> Field | None:
    """What is seen through any of several branches; None if they do not lie on each other."""
    known = [field for field in fields if field is not None]
    if len(known) < len(fields) or len({(field.jump, field.extent) for field in known}) > 1:
        return None
    return Field(tuple(map(max, zip(*(f.size for f in known), strict=True))), known[0].jump, known[0].extent)


def _macs(layer: Module, x: Array, y: Array, count: int) -> int | None:
    match layer:
        case Conv():
            return int(math.prod(y.shape) * math.prod(layer.weight.value.shape[1:]))
        case ConvTranspose():
            return int(math.prod(x.shape) * math.prod(layer.weight.value.shape[1:]))
        case Linear():
            return int(math.prod(y.shape) * layer.in_features)
        case BatchNorm():
            return 0
        case _:
            return None if count else 0


def _seen(layer: Module, x: Array, y: Array, field: Field) -> Field | None:
    """The field after `layer`, or None where it is not known."""
    extent = tuple(y.shape[2:])
    dims = len(extent)
    same = (1,) * dims
    match layer:
        case Conv():
            return field.through(_span(layer), layer.stride, extent)
        case ConvTranspose():
            # A window over its input holds every stride-th element of the kernel.
            spans = zip(_span(layer), layer.stride, strict=True)
            return field.through([-(-k // s) for k, s in spans], [Fraction(1, s) for s in layer.stride], extent)
        case MaxPool() | AvgPool():
            kernel = per_axis("kernel_size", layer.kernel_size, dims)
            stride = kernel if layer.stride is None else per_axis("stride", layer.stride, dims)
            dilation = per_axis("dilation", getattr(layer, "dilation", 1), dims)
            return field.through([(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)], stride, extent)
        case AdaptiveAvgPool():
            ratio = [Fraction(n, out) for n, out in zip(x.shape[2:], extent, strict=True)]
            return field.through([math.ceil(r) for r in ratio], ratio, extent)
        case Upsample():
            ratio = [Fraction(n, out) for n, out in zip(x.shape[2:], extent, strict=True)]
            return field.through(same if layer.mode == "nearest" else (2,) * dims, ratio, extent)
        case Linear() if x.ndim == 2:
            everywhere = (1,) * len(field.extent)
            return field.through(field.extent, everywhere, everywhere)
        case Flatten() | BatchNorm() | Dropout() | ReLU() | ReLU6() | Sigmoid() | SiLU() | Hardswish():
            return field
        case _:
            return None


def _span(layer: Conv | ConvTranspose) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
