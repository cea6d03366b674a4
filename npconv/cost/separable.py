"""What it saves to split a convolution into a depthwise and a 1x1 convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from npconv.cost.layer import Cost, itemsize_of, times, total
from npconv.geometry import ConvSpec, integer, per_axis, shape


@dataclass(frozen=True)
class Separable:
    """A depthwise convolution and a 1x1 convolution after it, beside the dense convolution that they stand in for.

    Attributes
    ----------
    depthwise, pointwise, dense : Cost
    intermediate_bytes : int
        The array between the two, which the dense form does not have: it is written, stored and read again, so
        `pair.bytes` contains it twice.

    Examples
    --------
    >>> from npconv import cost
    >>> layer = cost.separable(64, 128, 3, (56, 56), stride=2)
    >>> layer.dense.macs, layer.depthwise.macs, layer.pointwise.macs, layer.intermediate_bytes
    (57802752, 451584, 6422528, 200704)
    """

    depthwise: Cost
    pointwise: Cost
    dense: Cost
    intermediate_bytes: int

    @property
    def pair(self) -> Cost:
        """Both together."""
        return total(f"separable {self.dense.name.removeprefix('conv ')}", (self.depthwise, self.pointwise))

    @property
    def ratio(self) -> float:
        """MACs of the pair over MACs of the dense layer: ``1 / C_out + 1 / taps``, whatever the size and the stride."""
        return self.pair.macs / self.dense.macs

    def backward(self) -> Separable:
        """Both, and the dense form, backward: each twice what it is forward, so the ratio stays."""
        return Separable(
            self.depthwise.backward(), self.pointwise.backward(), self.dense.backward(), 2 * self.intermediate_bytes
        )

    def training(self) -> Separable:
        """A training step of both, and of the dense form."""
        return Separable(
            self.depthwise.training(), self.pointwise.training(), self.dense.training(), 3 * self.intermediate_bytes
        )


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
    depthwise = Cost.of(deep, bias=bias, dtype=dtype, name=f"depthwise {c_in}, {times(kernel)}")
    return Separable(
        depthwise,
        Cost.of(point, bias=bias, dtype=dtype),
        Cost.of(dense, bias=bias, dtype=dtype, name=f"conv {c_in} -> {c_out}, {times(kernel)}"),
        itemsize_of(dtype) * math.prod(deep.y_shape),
    )
