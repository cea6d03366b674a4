"""The one table of layers that every benchmark takes its cases from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution as networks have them; `size` is that of the input."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def options(self) -> dict[str, object]:
        padding = tuple(self.dilation * (k // 2) for k in self.kernel)
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}


LAYERS = (
    Layer("lecture 5x5", 1, 100, 100, (64, 64), (5, 5)),
    Layer("stem 7x7/2", 1, 3, 64, (224, 224), (7, 7), stride=2),
    Layer("resnet 3x3 56", 1, 64, 64, (56, 56), (3, 3)),
    Layer("resnet 3x3 14", 1, 256, 256, (14, 14), (3, 3)),
    Layer("resnet 3x3/2 28", 1, 128, 128, (28, 28), (3, 3), stride=2),
    Layer("pointwise 56", 1, 256, 64, (56, 56), (1, 1)),
    Layer("pointwise 14", 1, 1024, 256, (14, 14), (1, 1)),
    Layer("depthwise 3x3 112", 1, 32, 32, (112, 112), (3, 3), groups=32),
    Layer("depthwise 3x3/2 112", 1, 64, 64, (112, 112), (3, 3), stride=2, groups=64),
    Layer("grouped 3x3 28", 1, 128, 128, (28, 28), (3, 3), groups=32),
    Layer("dilated 3x3 64", 1, 64, 64, (64, 64), (3, 3), dilation=2),
    Layer("signal 9", 4, 16, 32, (4096,), (9,)),
    Layer("volume 3x3x3", 1, 16, 16, (32, 32, 32), (3, 3, 3)),
)
