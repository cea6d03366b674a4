"""Blocks of layers that mobile networks are built of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from npconv.nn import init
from npconv.nn.activation import ReLU
from npconv.nn.arguments import Ints, positive
from npconv.nn.container import Container, Sequential
from npconv.nn.conv import Conv, Conv2d
from npconv.nn.module import Module
from npconv.nn.norm import BatchNorm, BatchNorm2d

Activation = Callable[[], Module] | None


class _Block(Sequential):
    """A network that is built from sizes instead of layers."""

    def _remade(self, layers: Iterable[Module], named: Mapping[str, Module]) -> Container:
        return Sequential(*layers, **named)


class ConvNorm(_Block):
    """A convolution, batch normalisation, and an activation.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or tuple of int
        One integer makes it a square on images; a tuple decides the number of dimensions.
    stride, dilation : int or tuple of int
    padding : int, tuple or str
        Any form that `npconv.conv` takes.
    groups : int
        Divides both numbers of channels.
    activation : callable or None
        What makes the activation, such as the class `ReLU6`; None leaves it out.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from: a seed, or a generator to share among layers.
    dtype : {"float32", "float64", "float16"}

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, in_channels, *spatial)`` to ``(N, out_channels, *out)``. Its layers are ``0``, the convolution without a
    bias, which the normalisation would take away, ``1`` and ``2``. A slice of them is a `Sequential`.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.nn.ConvNorm(3, 8, 3, stride=2, padding=1)
    ConvNorm(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=1, bias=False)
      (1): BatchNorm2d(8)
      (2): ReLU()
    )
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints = 3,
        stride: Ints = 1,
        padding: Any = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        activation: Activation = ReLU,
        rng: init.Rng = None,
        dtype: Any = "float32",
    ) -> None:
        window = (kernel_size, stride, padding, dilation, groups)
        super().__init__(*_unit(in_channels, out_channels, window, activation, rng, dtype))


class Depthwise(ConvNorm):
    """A convolution of each channel by itself, batch normalisation, and an activation.

    Parameters
    ----------
    channels : int
    kernel_size : int or tuple of int
        One integer makes it a square on images; a tuple decides the number of dimensions.
    stride, dilation : int or tuple of int
    padding : int, tuple or str
        Any form that `npconv.conv` takes.
    activation : callable or None
        What makes the activation, such as the class `ReLU6`; None leaves it out.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from: a seed, or a generator to share among layers.
    dtype : {"float32", "float64", "float16"}

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, channels, *spatial)`` to ``(N, channels, *out)``. Its layers are ``0``, the convolution without a bias,
    which the normalisation would take away, ``1`` and ``2``. A slice of them is a `Sequential`.

    References
    ----------
    A. Howard et al., *MobileNets*, arXiv:1704.04861.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> block = nc.nn.Depthwise(8, 3, stride=2, padding=1, rng=0)
    >>> block(np.ones((2, 8, 6, 6), "float32")).shape
    (2, 8, 3, 3)
    >>> block
    Depthwise(
      (0): Conv2d(8, 8, kernel_size=(3, 3), stride=(2, 2), padding=1, groups=8, bias=False)
      (1): BatchNorm2d(8)
      (2): ReLU()
    )
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Ints = 3,
        stride: Ints = 1,
        padding: Any = 1,
        dilation: Ints = 1,
        *,
        activation: Activation = ReLU,
        rng: init.Rng = None,
        dtype: Any = "float32",
    ) -> None:
        groups = positive("channels", channels)
        super().__init__(
            groups, groups, kernel_size, stride, padding, dilation, groups, activation=activation, rng=rng, dtype=dtype
        )


class DepthwiseSeparable(_Block):
    """A convolution of each channel by itself, then one of 1 x 1 that mixes them; each normalised and activated.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or tuple of int
        One integer makes it a square on images; a tuple decides the number of dimensions.
    stride, dilation : int or tuple of int
    padding : int, tuple or str
        Any form that `npconv.conv` takes.
    activation : callable or None
        What makes each activation, such as the class `ReLU6`; None leaves them out.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from: a seed, or a generator to share among layers.
    dtype : {"float32", "float64", "float16"}

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, in_channels, *spatial)`` to ``(N, out_channels, *out)``. The layers are numbered ``0`` to ``5``; a slice
    of them is a `Sequential`. It has ``in_channels * (kernel + out_channels)`` weights, where a convolution has
    ``in_channels * kernel * out_channels``.

    References
    ----------
    A. Howard et al., *MobileNets*, arXiv:1704.04861, figure 3.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> block = nc.nn.DepthwiseSeparable(32, 64, rng=0)
    >>> block(np.ones((1, 32, 6, 6), "float32")).shape
    (1, 64, 6, 6)
    >>> sum(p.value.size for p in block.parameters()) == 32 * (9 + 64) + 2 * (32 + 64)
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints = 3,
        stride: Ints = 1,
        padding: Any = 1,
        dilation: Ints = 1,
        *,
        activation: Activation = ReLU,
        rng: init.Rng = None,
        dtype: Any = "float32",
    ) -> None:
        groups = positive("in_channels", in_channels)
        rng = init.generator(rng)
        window = (kernel_size, stride, padding, dilation, groups)
        one = 1 if not isinstance(kernel_size, tuple | list) else (1,) * len(kernel_size)
        super().__init__(
            *_unit(groups, groups, window, activation, rng, dtype),
            *_unit(groups, out_channels, (one, 1, 0, 1, 1), activation, rng, dtype),
        )


def _unit(
    in_channels: int, out_channels: int, window: tuple[Any, ...], activation: Activation, rng: init.Rng, dtype: Any
) -> list[Module]:
    """A convolution without bias, batch normalisation, and the activation."""
    if activation is not None and not callable(activation):
        raise TypeError(f"activation must be None or make a Module, got {activation!r:.60}")
    kernel_size, stride, padding, dilation, groups = window
    images = not isinstance(kernel_size, tuple | list) or len(kernel_size) == 2
    conv, norm = (Conv2d, BatchNorm2d) if images else (Conv, BatchNorm)
    layers: list[Module] = [
        conv(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, rng=rng, dtype=dtype),
        norm(out_channels, dtype=dtype),
    ]
    return layers if activation is None else [*layers, activation()]
