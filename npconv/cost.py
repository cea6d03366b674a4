"""What a convolution costs: multiply-accumulates, floating-point operations, parameters and bytes. Numbers, no arrays.

A multiply-accumulate (MAC) is one multiplication and one addition, so FLOPs are always twice the MACs, and a machine's
rate has to say which of the two it counts: `npconv.machine.Machine` counts MACs. Taps that fall into the padding are
counted, as everybody does; the additions of a bias and an activation are not, being one per output.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npconv.geometry import ConvSpec, integer, per_axis, shape
from npconv.machine import LECTURE, Machine
from npconv.units import amount, duration


@dataclass(frozen=True)
class Cost:
    """What a layer, a stack of layers or a whole job costs.

    Costs add up with ``+``; ``cost * 10`` is ten layers like it, one after the other.

    Parameters
    ----------
    name : str
        What tables call it.
    macs : int
        Multiply-accumulates.
    parameters : int
        Weights and biases.
    weight_bytes : int
        Bytes that they take.
    activation_bytes : int
        Bytes read as inputs and written as outputs. What one layer writes and the next one reads counts twice.

    Raises
    ------
    TypeError, ValueError
        If a count is not an integer, or negative.

    Examples
    --------
    >>> layer = conv((1, 3, 32, 32), (16, 3, 3, 3), padding=1)
    >>> print(layer)
    conv 3 -> 16, 3x3: 442 kMAC = 885 kFLOP, 432 parameters, 79.6 kB
    >>> (layer * 2).parameters, layer.samples(8).parameters
    (864, 432)
    """

    name: str
    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int

    def __post_init__(self) -> None:
        for field in ("macs", "parameters", "weight_bytes", "activation_bytes"):
            object.__setattr__(self, field, _whole(field, getattr(self, field)))

    @classmethod
    def of(cls, spec: ConvSpec, *, bias: bool = False, dtype: Any = "float32", name: str | None = None) -> Cost:
        """Cost of the forward convolution that a spec describes.

        Parameters
        ----------
        spec : ConvSpec
        bias, dtype, name
            As for `conv`.
        """
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {bias!r}")
        itemsize = _itemsize(dtype)
        parameters = spec.parameters + (spec.out_channels if bias else 0)
        activations = math.prod(spec.x_shape) + math.prod(spec.y_shape)
        return cls(name or _describe(spec), spec.macs, parameters, itemsize * parameters, itemsize * activations)

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-accumulate."""
        return 2 * self.macs

    @property
    def bytes(self) -> int:
        """Bytes of every layer's input, weights, bias and output, each once: the least that a layer by itself moves."""
        return self.weight_bytes + self.activation_bytes

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return _total(f"{self.name} + {other.name}", (self, other))

    def __mul__(self, layers: int) -> Cost:
        return self.times(layers)

    __rmul__ = __mul__

    def times(self, layers: int) -> Cost:
        """Cost of that many equal layers: everything is multiplied, the parameters as well.

        Parameters
        ----------
        layers : int
            Zero or more.
        """
        n = _whole("layers", layers)
        return Cost(
            f"{n:,} x {self.name}",
            n * self.macs,
            n * self.parameters,
            n * self.weight_bytes,
            n * self.activation_bytes,
        )

    def samples(self, samples: int) -> Cost:
        """Cost of running the same layers on that many samples: the parameters stay, and are read once.

        Parameters
        ----------
        samples : int
            Zero or more; ``1e6`` is welcome.
        """
        n = _whole("samples", samples)
        name = f"{self.name}, {_count(n, 'sample')}"
        return replace(self, name=name, macs=n * self.macs, activation_bytes=n * self.activation_bytes)

    def seconds(self, machine: Machine | float) -> float:
        """Time that the arithmetic takes at a machine's rate; waiting for memory is not in it.

        Parameters
        ----------
        machine : Machine or float
            A machine, or a rate in multiply-accumulates (not FLOPs) per second.

        Raises
        ------
        TypeError, ValueError
            If the rate is not a positive, finite number.
        """
        rate = machine.macs_per_second if isinstance(machine, Machine) else machine
        if isinstance(rate, bool) or not isinstance(rate, int | float | np.integer | np.floating):
            raise TypeError(f"machine must be a Machine or a rate in MACs per second, got {machine!r}")
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"machine must have a positive, finite rate in MACs per second, got {machine!r}")
        return self.macs / float(rate)

    def __str__(self) -> str:
        return (
            f"{self.name}: {amount(self.macs, 'MAC')} = {amount(self.flops, 'FLOP')}, "
            f"{self.parameters:,} parameters, {amount(self.bytes, 'B')}"
        )


def conv(
    x_shape: Any,
    w_shape: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *,
    layout: str = "channels_first",
    bias: bool = False,
    dtype: Any = "float32",
    name: str | None = None,
) -> Cost:
    """Cost of one convolution, from the shapes that `npconv.conv` would get.

    Parameters
    ----------
    x_shape : tuple of int
        ``(N, C, *spatial)``, or ``(C, *spatial)`` for one sample.
    w_shape : tuple of int
        ``(C_out, C / groups, *kernel)``.
    stride, padding, dilation, groups, layout
        As for `npconv.conv`.
    bias : bool
        Whether there is one; it adds ``C_out`` parameters and no MACs.
    dtype : str or numpy.dtype
        What an element is stored as.
    name : str, optional
        Defaults to a short description.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError, TypeError
        If the shapes do not fit together or a parameter is not what is described here; the message names it.

    References
    ----------
    A. Zhang, Z. Lipton, M. Li, A. Smola, *Dive into Deep Learning*, "Multiple Input and Multiple Output Channels",
    https://d2l.ai/chapter_convolutional-neural-networks/channels.html.

    Examples
    --------
    The lecture's layer:

    >>> from npconv import cost
    >>> layer = cost.conv((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
    >>> layer.macs, layer.flops, layer.parameters, layer.bytes
    (1024000000, 2048000000, 250000, 4276800)
    """
    spec = ConvSpec.of(
        x_shape, w_shape, stride, padding, dilation, groups, "zeros", layout, x_name="x_shape", w_name="w_shape"
    )
    return Cost.of(spec, bias=bias, dtype=dtype, name=name)


# --------------------------------------------------------------------------------------------------------------------
# Depthwise-separable convolutions
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separable:
    """A depthwise convolution and a 1x1 convolution after it, beside the dense convolution that they stand in for.

    Attributes
    ----------
    depthwise, pointwise, dense : Cost
    intermediate_bytes : int
        The array between the two, which the dense form does not have: it is written, stored and read again, so
        `pair.bytes` contains it twice.
    """

    depthwise: Cost
    pointwise: Cost
    dense: Cost
    intermediate_bytes: int

    @property
    def pair(self) -> Cost:
        """Both together."""
        return _total(f"separable {self.dense.name.removeprefix('conv ')}", (self.depthwise, self.pointwise))

    @property
    def ratio(self) -> float:
        """MACs of the pair over MACs of the dense layer: ``1 / C_out + 1 / taps``, whatever the size and the stride."""
        return self.pair.macs / self.dense.macs


def separable(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, ...],
    size: tuple[int, ...],
    stride: Any = 1,
    padding: Any = "same",
    dilation: Any = 1,
    *,
    bias: bool = False,
    dtype: Any = "float32",
) -> Separable:
    """Cost of a depthwise-separable convolution, and of the dense one with the same input and output, for one sample.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or tuple of int
        Of the depthwise part: one for all dimensions or one each.
    size : tuple of int
        Spatial size of the input; its length is the number of dimensions.
    stride, padding, dilation
        Of the depthwise part, as for `npconv.conv`; here the default padding is ``"same"``.
    bias : bool
        Whether both parts (and the dense layer) have one.
    dtype : str or numpy.dtype
        What an element is stored as.

    Returns
    -------
    Separable

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    References
    ----------
    A. Howard et al., *MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications*,
    arXiv:1704.04861, section 3.1: the ratio is ``1 / C_out + 1 / K**2`` for a ``K x K`` kernel.

    Examples
    --------
    >>> from npconv import cost
    >>> layer = cost.separable(512, 512, 3, (14, 14))
    >>> layer.dense.macs, layer.pair.macs, round(layer.ratio, 4), round(1 / 512 + 1 / 9, 4)
    (462422016, 52283392, 0.1131, 0.1131)
    >>> print(layer.pair)
    separable 512 -> 512, 3x3: 52.3 MMAC = 105 MFLOP, 266,752 parameters, 2.67 MB
    """
    c_in, c_out = integer("in_channels", in_channels, 1), integer("out_channels", out_channels, 1)
    sizes = shape("size", size)
    if not sizes or 0 in sizes:
        raise ValueError(f"size must have one positive number for each dimension, got {size!r}")
    kernel = per_axis("kernel_size", kernel_size, len(sizes))
    x_shape = (1, c_in, *sizes)
    deep = ConvSpec.of(x_shape, (c_in, 1, *kernel), stride, padding, dilation, c_in)
    point = ConvSpec.of(deep.y_shape, (c_out, c_in, *(1 for _ in sizes)))
    dense = ConvSpec.of(x_shape, (c_out, c_in, *kernel), stride, padding, dilation)
    depthwise = Cost.of(deep, bias=bias, dtype=dtype, name=f"depthwise {c_in}, {_times(kernel)}")
    return Separable(
        depthwise,
        Cost.of(point, bias=bias, dtype=dtype),
        Cost.of(dense, bias=bias, dtype=dtype, name=f"conv {c_in} -> {c_out}, {_times(kernel)}"),
        _itemsize(dtype) * math.prod(deep.y_shape),
    )


# --------------------------------------------------------------------------------------------------------------------
# Stacks and jobs
# --------------------------------------------------------------------------------------------------------------------


def stack(layers: Iterable[Cost], name: str | None = None) -> Cost:
    """Cost of layers that run one after the other: the sum of everything.

    Parameters
    ----------
    layers : iterable of Cost
    name : str, optional
        Defaults to the number of layers.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError
        If something in `layers` is not a `Cost`.

    Examples
    --------
    >>> from npconv import cost
    >>> first = cost.conv((1, 28, 28), (6, 1, 5, 5), padding=2)
    >>> second = cost.conv((6, 14, 14), (16, 6, 5, 5))
    >>> print(cost.stack([first, second]))
    2 layers: 358 kMAC = 715 kFLOP, 2,550 parameters, 43.3 kB
    """
    try:
        items = tuple(layers)
    except TypeError:
        raise TypeError(f"layers must be a sequence of Cost, got {layers!r}") from None
    for i, item in enumerate(items):
        if not isinstance(item, Cost):
            raise TypeError(f"layers[{i}] must be a Cost, got {item!r}")
    return _total(name or _count(len(items), "layer"), items)


def job(layer: Cost, layers: int = 10, samples: float = 1_000_000) -> Cost:
    """Cost of running equal layers on many samples.

    Parameters
    ----------
    layer : Cost
        One layer on one sample.
    layers, samples : int
        How many; ``1e6`` is welcome. The weights of a layer are counted once for the whole job.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> from npconv import cost
    >>> job = cost.job(cost.conv((100, 64, 64), (100, 100, 5, 5), padding="same"), layers=10, samples=1e6)
    >>> job.macs, round(job.seconds(0.15e12) / 3600, 2), round(job.seconds(12e12) / 60, 2)
    (10240000000000000, 18.96, 14.22)
    """
    if not isinstance(layer, Cost):
        raise TypeError(f"layer must be a Cost, got {layer!r}")
    n = _whole("layers", layers)
    return replace(layer.times(n), name=_count(n, "layer")).samples(_whole("samples", samples))


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of a table: a cost, and the machines on which its time is of interest."""

    cost: Cost
    machines: tuple[Machine, ...] = ()

    @property
    def seconds(self) -> tuple[float, ...]:
        """Time on each machine."""
        return tuple(self.cost.seconds(machine) for machine in self.machines)


def lecture(*machines: Machine) -> tuple[Row, ...]:
    """Return the rows of the lecture's table: a layer, ten of them, and ten of them on a million samples.

    Parameters
    ----------
    *machines : Machine
        Machines besides the lecture's two, such as `npconv.machine.measured_rate`'s answer.

    Returns
    -------
    tuple of Row

    Raises
    ------
    TypeError
        If something in `machines` is not a `Machine`.

    References
    ----------
    A. Zhang, Z. Lipton, M. Li, A. Smola, *Dive into Deep Learning*, "Multiple Input and Multiple Output Channels",
    https://d2l.ai/chapter_convolutional-neural-networks/channels.html, and the lecture on it.

    Examples
    --------
    The rates are multiply-accumulates per second; counted in FLOPs they would be twice as high.

    >>> from npconv import cost
    >>> print(cost.table(cost.lecture()))
                                                                              lecture's CPU  lecture's GPU
                                       MACs       FLOPs  parameters    bytes    0.15 TMAC/s      12 TMAC/s
    conv 100 -> 100, 5x5          1.02 GMAC  2.05 GFLOP     250,000  4.28 MB       6.827 ms       85.33 µs
    10 layers                     10.2 GMAC  20.5 GFLOP   2,500,000  42.8 MB       68.27 ms       853.3 µs
    10 layers, 1,000,000 samples  10.2 PMAC  20.5 PFLOP   2,500,000  32.8 TB    18.96 hours  14.22 minutes
    """
    for i, machine in enumerate(machines):
        if not isinstance(machine, Machine):
            raise TypeError(f"machines[{i}] must be a Machine, got {machine!r}")
    layer = conv((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
    costs = (layer, replace(10 * layer, name="10 layers"), job(layer, layers=10, samples=1_000_000))
    return tuple(Row(cost, (*LECTURE, *machines)) for cost in costs)


def table(rows: Iterable[Row | Cost]) -> str:
    """Write costs as aligned text, one line each.

    Parameters
    ----------
    rows : iterable of Row or Cost
        A `Row` adds a column with the time for each of its machines, headed by the machine's name and rate.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If something in `rows` is neither.

    Examples
    --------
    >>> from npconv import cost
    >>> layer = cost.separable(100, 100, 5, (64, 64))
    >>> print(cost.table([layer.dense, layer.depthwise, layer.pointwise, layer.pair]))
                                    MACs       FLOPs  parameters    bytes
    conv 100 -> 100, 5x5       1.02 GMAC  2.05 GFLOP     250,000  4.28 MB
    depthwise 100, 5x5         10.2 MMAC  20.5 MFLOP       2,500  3.29 MB
    pointwise 100 -> 100         41 MMAC  81.9 MFLOP      10,000  3.32 MB
    separable 100 -> 100, 5x5  51.2 MMAC   102 MFLOP      12,500   6.6 MB
    """
    items: list[Row] = []
    for i, row in enumerate(rows):
        if not isinstance(row, Row | Cost):
            raise TypeError(f"rows[{i}] must be a Row or a Cost, got {row!r}")
        items.append(Row(row) if isinstance(row, Cost) else row)
    machines = tuple(dict.fromkeys(machine for item in items for machine in item.machines))
    columns = [["", *(item.cost.name for item in items)]]
    columns += [[title, *(text(item.cost) for item in items)] for title, text in _COLUMNS.items()]
    columns += [[_heading(machine), *(_time(item, machine) for item in items)] for machine in machines]
    return "\n".join(_align(columns))


_COLUMNS: dict[str, Callable[[Cost], str]] = {
    "MACs": lambda cost: amount(cost.macs, "MAC"),
    "FLOPs": lambda cost: amount(cost.flops, "FLOP"),
    "parameters": lambda cost: f"{cost.parameters:,}",
    "bytes": lambda cost: amount(cost.bytes, "B"),
}


def _heading(machine: Machine) -> str:
    # One unit for all rates, so that machines compare at a glance, and the lecture's own figures are recognised.
    return "\n".join([*textwrap.wrap(machine.name, 16), f"{machine.macs_per_second / 1e12:.3g} TMAC/s"])


def _time(row: Row, machine: Machine) -> str:
    return duration(row.cost.seconds(machine)) if machine in row.machines else ""


def _align(columns: list[list[str]]) -> list[str]:
    """Lines of text from columns of a heading and cells; the first column is flush left, the others are flush right."""
    height = max(column[0].count("\n") + 1 for column in columns)
    padded = []
    for number, (heading, *cells) in enumerate(columns):
        lines = [*([""] * (height - heading.count("\n") - 1)), *heading.split("\n"), *cells]
        width = max(map(len, lines))
        padded.append([line.rjust(width) if number else line.ljust(width) for line in lines])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


# --------------------------------------------------------------------------------------------------------------------
# Small parts
# --------------------------------------------------------------------------------------------------------------------


def _total(name: str, costs: tuple[Cost, ...]) -> Cost:
    return Cost(
        name,
        sum(cost.macs for cost in costs),
        sum(cost.parameters for cost in costs),
        sum(cost.weight_bytes for cost in costs),
        sum(cost.activation_bytes for cost in costs),
    )


def _whole(name: str, value: Any) -> int:
    """A count of zero or more. Work may pass 64 bits, and people write a million as 1e6."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else integer(name, value)


def _itemsize(dtype: Any) -> int:
    try:
        known = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a dtype, got {dtype!r}") from None
    if dtype is None or known.kind not in "iufc":
        raise TypeError(f"dtype must be an integer, floating or complex type, got {dtype!r}")
    return int(known.itemsize)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _describe(spec: ConvSpec) -> str:
    ends = f"{spec.in_channels} -> {spec.out_channels}"
    if spec.groups == 1 and spec.is_pointwise:
        return f"pointwise {ends}"
    groups = f", {spec.groups} groups" if spec.groups > 1 else ""
    return f"conv {ends}, {_times(spec.window.kernel)}{groups}"


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
