"""What one convolution costs, forward and backward: multiply-accumulates, operations, parameters and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npconv.geometry import ConvSpec, integer
from npconv.machine import Machine
from npconv.units import amount


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
            object.__setattr__(self, field, whole(field, getattr(self, field)))

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
        itemsize = itemsize_of(dtype)
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
        return total(f"{self.name} + {other.name}", (self, other))

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
        n = whole("layers", layers)
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
        n = whole("samples", samples)
        name = f"{self.name}, {counted(n, 'sample')}"
        return replace(self, name=name, macs=n * self.macs, activation_bytes=n * self.activation_bytes)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOPs for each byte that has to be moved; zero where nothing is computed."""
        return self.flops / self.bytes if self.flops else 0.0

    def backward(self, *, input_grad: bool = True) -> Cost:
        """Cost of the gradients: of the weights, and of the input unless it is nobody's output.

        Each is the same convolution with its operands exchanged, whatever the stride and the groups: as many
        multiply-accumulates, and as many bytes, as the forward pass. The parameters are the same ones.

        Parameters
        ----------
        input_grad : bool
            False for the first layer of a network.
        """
        return self._passes(f"{self.name}, backward", 1 + input_grad)

    def training(self, *, input_grad: bool = True) -> Cost:
        """Cost of a training step: forward and backward, three times the forward pass; the optimiser is not in it.

        Parameters
        ----------
        input_grad : bool
            False for the first layer of a network.
        """
        return self._passes(f"{self.name}, training step", 2 + input_grad)

    def _passes(self, name: str, count: int) -> Cost:
        return Cost(name, count * self.macs, self.parameters, count * self.weight_bytes, count * self.activation_bytes)

    def seconds(self, machine: Machine | float) -> float:
        """Time at a machine's roofs: of the arithmetic or of the bytes, whichever takes longer.

        Parameters
        ----------
        machine : Machine or float
            A machine, or a rate in multiply-accumulates (not FLOPs) per second; waiting for memory is then not in it,
            nor where the machine's bandwidth is unknown.

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
        waiting = self.bytes / machine.bytes_per_second if isinstance(machine, Machine) else 0.0
        return max(self.macs / float(rate), waiting)

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


def total(name: str, costs: tuple[Cost, ...]) -> Cost:
    """The sum of costs, under a name of its own."""
    return Cost(
        name,
        sum(cost.macs for cost in costs),
        sum(cost.parameters for cost in costs),
        sum(cost.weight_bytes for cost in costs),
        sum(cost.activation_bytes for cost in costs),
    )


_MOST = 10**300
"""Of anything that is counted; what a float cannot hold has no time on any machine."""


def whole(name: str, value: Any) -> int:
    """A count of zero or more. Work may pass 64 bits, and people write a million as 1e6."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and value > _MOST:
        raise ValueError(f"{name} must be at most 1e300")
    return value if type(value) is int and value > 0 else integer(name, value)


def itemsize_of(dtype: Any) -> int:
    """Bytes of an element of a numeric dtype."""
    try:
        known = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a dtype such as float32, got {dtype!r}") from None
    if dtype is None or known.kind not in "iufc":
        raise TypeError(f"dtype must be an integer, floating or complex type, got {dtype!r}")
    return int(known.itemsize)


def counted(n: int, noun: str) -> str:
    """A number and what it counts, in the plural where it has to be."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _describe(spec: ConvSpec) -> str:
    ends = f"{spec.in_channels} -> {spec.out_channels}"
    if spec.groups == 1 and spec.is_pointwise:
        return f"pointwise {ends}"
    groups = f", {spec.groups} groups" if spec.groups > 1 else ""
    return f"conv {ends}, {times(spec.window.kernel)}{groups}"


def times(sizes: tuple[int, ...]) -> str:
    """Sizes as people write them, ``3x3``."""
    return "x".join(map(str, sizes))
