"""The one table of layers that every benchmark takes its cases from: convolutions as published networks have them.

A layer that several networks share stands under the first of them, so that a mean over the table counts it once.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution of one network.

    Attributes
    ----------
    name : str
        Unique in the table.
    size : tuple of int
        Of the input, without batch and channels.
    padding : int, optional
        On every side; left out, half of the kernel, which keeps the size at stride 1 where kernels are odd.
    network : str
        Where the layer comes from.
    """

    name: str
    batch: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    padding: int | None = None
    network: str = ""

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, ...]:
        reaches = (self.dilation * (k - 1) for k in self.kernel)
        spans = (n + 2 * p - reach for n, p, reach in zip(self.size, self.paddings, reaches, strict=True))
        return (self.batch, self.out_channels, *((span - 1) // self.stride + 1 for span in spans))

    @property
    def paddings(self) -> tuple[int, ...]:
        """Elements added on each side of each axis."""
        if self.padding is not None:
            return (self.padding,) * len(self.kernel)
        return tuple(self.dilation * (k // 2) for k in self.kernel)

    @property
    def options(self) -> dict[str, object]:
        """What a call takes besides arrays; npconv and PyTorch name it alike."""
        return {"stride": self.stride, "padding": self.paddings, "dilation": self.dilation, "groups": self.groups}

    @property
    def products(self) -> int:
        """Multiply-accumulates of one output."""
        return math.prod(self.w_shape[1:])

    @property
    def pixels(self) -> int:
        """Output positions of one image."""
        return math.prod(self.y_shape[2:])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct method, those on padding counted too."""
        return math.prod(self.y_shape) * self.products

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels > 1


def conv(
    network: str,
    in_channels: int,
    out_channels: int,
    size: int | tuple[int, ...],
    kernel: int | tuple[int, ...],
    *,
    batch: int = 1,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padding: int | None = None,
) -> Layer:
    """A layer named after what it is; one number for `size` or `kernel` stands for both axes of an image."""
    size = (size,) * 2 if isinstance(size, int) else size
    kernel = (kernel,) * 2 if isinstance(kernel, int) else kernel
    same = len(set(size)) == 1 and len(size) > 1
    features = (
        network,
        f"{batch}x" if batch > 1 else "",
        "x".join(map(str, kernel)) + (f"/{stride}" if stride > 1 else ""),
        f"d{dilation}" if dilation > 1 else "",
        f"dw {in_channels}" if groups == in_channels > 1 else f"{in_channels}>{out_channels}",
        f"g{groups}" if 1 < groups < in_channels else "",
        f"@{size[0] if same else 'x'.join(map(str, size))}",
    )
    name = " ".join(feature for feature in features if feature)
    return Layer(name, batch, in_channels, out_channels, size, kernel, stride, groups, dilation, padding, network)


def depthwise(
    network: str, channels: int, size: int | tuple[int, ...], kernel: int | tuple[int, ...] = 3, stride: int = 1
) -> Layer:
    return conv(network, channels, channels, size, kernel, stride=stride, groups=channels)


def lecture() -> Iterator[Layer]:
    """The layer whose cost the lecture counts: 100 to 100 channels, 5x5, 64x64 pixels."""
    for batch in (1, 8):
        yield conv("lecture", 100, 100, 64, 5, batch=batch)


def resnet50() -> Iterator[Layer]:
    """As it is trained today, with a stage's stride in its first 3x3 and not in the 1x1 before."""
    name, channels, size = "resnet50", 64, 56
    yield conv(name, 3, 64, 224, 7, stride=2)
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        out = size // stride
        yield conv(name, channels, width, size, 1)
        yield conv(name, width, width, size, 3, stride=stride)
        yield conv(name, width, 4 * width, out, 1)
        yield conv(name, channels, 4 * width, size, 1, stride=stride)
        yield conv(name, 4 * width, width, out, 1)
        yield conv(name, width, width, out, 3)
        channels, size = 4 * width, out


def vgg16() -> Iterator[Layer]:
    channels = 3
    for width, size in ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14)):
        yield conv("vgg16", channels, width, size, 3)
        yield conv("vgg16", width, width, size, 3)
        channels = width


def mobilenet_v1() -> Iterator[Layer]:
    name, channels, size = "mobilenet-v1", 32, 112
    yield conv(name, 3, 32, 224, 3, stride=2)
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (1024, 2), (1024, 1)):
        yield depthwise(name, channels, size, stride=stride)
        size //= stride
        yield conv(name, channels, width, size, 1)
        channels = width


def mobilenet_v2() -> Iterator[Layer]:
    """Blocks that widen by a factor, filter each channel, and narrow again."""
    name, channels, size = "mobilenet-v2", 32, 112
    yield conv(name, 3, 32, 224, 3, stride=2)
    for factor, width, repeats, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for stride in (first, *(1,) * (repeats - 1)):
            wide = factor * channels
            if factor > 1:
                yield conv(name, channels, wide, size, 1)
            yield depthwise(name, wide, size, stride=stride)
            size //= stride
            yield conv(name, wide, width, size, 1)
            channels = width
    yield conv(name, channels, 1280, size, 1)


def resnext50() -> Iterator[Layer]:
    """The 32 groups of "32x4d": 4 channels each at first, 32 at last."""
    for width, size in ((128, 56), (256, 28), (512, 14), (1024, 7)):
        yield conv("resnext50", width, width, size, 3, groups=32)
    yield conv("resnext50", 256, 256, 56, 3, stride=2, groups=32)


def unet() -> Iterator[Layer]:
    yield conv("unet", 1, 64, 256, 3)
    yield conv("unet", 256, 128, 128, 3)
    yield conv("unet", 1024, 512, 32, 3)
    yield conv("unet", 64, 2, 256, 1)


def inception() -> Iterator[Layer]:
    """The third version: kernels of one row or one column, odd sizes, strides without padding."""
    yield conv("inception", 3, 32, 299, 3, stride=2, padding=0)
    yield conv("inception", 48, 64, 35, 5)
    yield conv("inception", 288, 384, 35, 3, stride=2, padding=0)
    for width in (128, 192):
        yield conv("inception", width, width, 17, (1, 7))
        yield conv("inception", width, width, 17, (7, 1))
    yield conv("inception", 384, 384, 8, (1, 3))


def context() -> Iterator[Layer]:
    """Dilated networks for labelling each pixel."""
    yield conv("context", 21, 21, 64, 3, dilation=4)
    yield conv("context", 512, 512, 28, 3, dilation=2)
    yield conv("context", 256, 256, 33, 3, dilation=12)


def convnext() -> Iterator[Layer]:
    """The tiny one: patches that do not overlap, and depthwise 7x7."""
    yield conv("convnext", 3, 96, 224, 4, stride=4, padding=0)
    for width, size in ((96, 56), (192, 28), (384, 14), (768, 7)):
        yield depthwise("convnext", width, size, 7)
        if size > 7:
            yield conv("convnext", width, 2 * width, size, 2, stride=2, padding=0)


def srcnn() -> Iterator[Layer]:
    yield conv("srcnn", 1, 64, 256, 9)
    yield conv("srcnn", 64, 32, 256, 1)
    yield conv("srcnn", 32, 1, 256, 5)


def signals() -> Iterator[Layer]:
    """WaveNet, whose padding, all on one side, is already in the second of sound; and a batch of shorter signals."""
    for dilation in (1, 64, 512):
        yield conv("wavenet", 64, 128, (16000,), (2,), dilation=dilation, padding=0)
    yield conv("signal", 16, 32, (4096,), (9,), batch=4)


def volumes() -> Iterator[Layer]:
    """From networks on video and on scans."""
    yield conv("volume", 3, 64, (16, 112, 112), (3, 3, 3))
    yield conv("volume", 512, 512, (2, 7, 7), (3, 3, 3))
    yield conv("volume", 16, 16, (32, 32, 32), (3, 3, 3))
    yield depthwise("volume", 54, (16, 56, 56), (3, 3, 3))


def tiny() -> Iterator[Layer]:
    """Where a call costs more than its arithmetic."""
    yield conv("tiny", 2, 3, 3, 2, padding=0)
    yield conv("tiny", 8, 8, 16, 3)


def distinct(networks: Iterable[Iterator[Layer]]) -> tuple[Layer, ...]:
    """The layers of all networks, each convolution once."""
    found: dict[tuple[object, ...], Layer] = {}
    for network in networks:
        for layer in network:
            found.setdefault((layer.x_shape, layer.w_shape, *layer.options.values()), layer)
    return tuple(found.values())


LAYERS = distinct(
    (
        lecture(), resnet50(), vgg16(), mobilenet_v1(), mobilenet_v2(), resnext50(), unet(), inception(), context(),
        convnext(), srcnn(), signals(), volumes(),
    )
)  # fmt: skip
"""What means are taken over."""

TINY = distinct((tiny(),))
"""Asked for by name only: what is measured there is a call, not a convolution."""


def select(patterns: Iterable[str]) -> tuple[Layer, ...]:
    """Layers of the named networks, and those whose names match a pattern (``*`` and ``?``) or contain the text.

    Raises
    ------
    ValueError
        If one of the patterns selects nothing.
    """
    chosen: dict[str, Layer] = {}
    for pattern in patterns:
        table = (*LAYERS, *TINY)
        found = [layer for layer in table if layer.network == pattern]
        found = found or [layer for layer in table if fnmatch.fnmatchcase(layer.name, f"*{pattern}*")]
        if not found:
            networks = ", ".join(dict.fromkeys(layer.network for layer in table))
            raise ValueError(f"no layer is called {pattern!r}; the networks are {networks}")
        chosen.update((layer.name, layer) for layer in found)
    return tuple(chosen.values())
