"""ResNet-18: convolutions whose results are added to what went into them."""

from __future__ import annotations

from typing import Any

from npconv import nn
from npconv.models.scaling import strides, whole


def resnet18(
    classes: int = 1000, channels: int = 3, size: int = 224, *, rng: nn.init.Rng = None, dtype: Any = "float32"
) -> nn.Sequential:
    """Build ResNet-18: a convolution, eight residual blocks of two each, a mean over the picture, a linear layer.

    Parameters
    ----------
    classes : int
        Outputs.
    channels : int
        Of the pictures.
    size : int
        Shorter side of the pictures, roughly. From 64 on it is the paper's network. Below, the first layers keep the
        size, so that 2 pixels are left at the end: the first convolution is then 3x3, and the pooling after it is left
        out below 32.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from.
    dtype : {"float32", "float64", "float16"}

    Returns
    -------
    Sequential
        Maps ``(N, channels, H, W)`` to logits ``(N, classes)``. Names of parameters are torchvision's.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, *Deep residual learning for image recognition*, arXiv:1512.03385, with the variant
    for small pictures of its section 4.2.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> net = nc.models.resnet18(10, channels=1, size=8)
    >>> net(np.zeros((2, 1, 8, 8), "float32")).shape
    (2, 10)
    >>> sum(parameter.value.size for parameter in nc.models.resnet18().parameters())
    11689512
    """
    classes, channels = whole("classes", classes), whole("channels", channels)
    made: dict[str, Any] = {"rng": nn.init.generator(rng), "dtype": dtype}
    stem, pool, *halving = strides(size)
    kernel = 7 if stem == 2 else 3
    layers = []
    ins = 64
    for outs, stride in zip((64, 128, 256, 512), (1, *halving), strict=True):
        layers.append(nn.Sequential(_basic_block(ins, outs, stride, made), _basic_block(outs, outs, 1, made)))
        ins = outs
    return nn.Sequential(
        conv1=nn.Conv2d(channels, 64, kernel, stem, kernel // 2, bias=False, **made),
        bn1=nn.BatchNorm2d(64, dtype=dtype),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1) if pool == 2 else nn.Sequential(),
        **{f"layer{number}": layer for number, layer in enumerate(layers, 1)},
        avgpool=nn.GlobalAvgPool(),
        flatten=nn.Flatten(),
        fc=nn.Linear(ins, classes, **made),
    )


def _basic_block(ins: int, outs: int, stride: int, made: dict[str, Any]) -> nn.Sequential:
    """Two convolutions of 3x3 and what went in, added; where the shape changes, that goes through one of 1x1."""
    body = nn.Sequential(
        conv1=nn.Conv2d(ins, outs, 3, stride, 1, bias=False, **made),
        bn1=nn.BatchNorm2d(outs, dtype=made["dtype"]),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(outs, outs, 3, 1, 1, bias=False, **made),
        bn2=nn.BatchNorm2d(outs, dtype=made["dtype"]),
    )
    same = stride == 1 and ins == outs
    downsample = nn.Sequential() if same else nn.ConvNorm(ins, outs, 1, stride, activation=None, **made)
    # Without names of their own, body and sum leave the names that torchvision's block has: conv1, ..., downsample.0.
    return nn.Sequential(**{"": nn.Add(**{"": body, "downsample": downsample}), "relu": nn.ReLU()})
