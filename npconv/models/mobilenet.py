"""MobileNet v1 and v2: depthwise convolutions, and convolutions of 1x1 that mix the channels."""

from __future__ import annotations

from typing import Any

from npconv import nn
from npconv.models.scaling import scaled, strides, whole

# Channels of each block of v1, and whether it halves the picture. (The paper's table says the last one does, too; its
# sizes and its 569 M multiply-accumulates say that it does not.)
_V1 = ((64, False), (128, True), (128, False), (256, True), (256, False), (512, True), *((512, False),) * 5,
       (1024, True), (1024, False))  # fmt: skip

# Of each group of blocks of v2: expansion, channels, blocks, and whether the first one halves the picture.
_V2 = ((1, 16, 1, False), (6, 24, 2, True), (6, 32, 3, True), (6, 64, 4, True), (6, 96, 3, False), (6, 160, 3, True),
       (6, 320, 1, False))  # fmt: skip


def mobilenet_v1(
    classes: int = 1000,
    channels: int = 3,
    size: int = 224,
    *,
    width: float = 1.0,
    dropout: float = 0.001,
    rng: nn.init.Rng = None,
    dtype: Any = "float32",
) -> nn.Sequential:
    """Build MobileNet v1: a convolution, thirteen depthwise separable blocks, a mean over the picture, a linear layer.

    Parameters
    ----------
    classes : int
        Outputs.
    channels : int
        Of the pictures.
    size : int
        Shorter side of the pictures, roughly: below 64 the first layers keep the size, so that 2 pixels are left at the
        end. The network takes pictures of any size; the paper's resolution multiplier is the size of the pictures.
    width : float
        The paper's width multiplier: so many times the channels, rounded to a multiple of 8.
    dropout : float
        Before the linear layer.
    rng : int, numpy.random.Generator or None
        Where the initial weights, and the choice of dropout, come from.
    dtype : {"float32", "float64", "float16"}

    Returns
    -------
    Sequential
        Maps ``(N, channels, H, W)`` to logits ``(N, classes)``. Its parts are ``features``, ``avgpool``, ``flatten``
        and ``classifier``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    References
    ----------
    A. Howard et al., *MobileNets: efficient convolutional neural networks for mobile vision applications*,
    arXiv:1704.04861.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> net = nc.models.mobilenet_v1(10, channels=1, size=8, width=0.25)
    >>> net(np.zeros((2, 1, 8, 8), "float32")).shape
    (2, 10)
    >>> sum(parameter.value.size for parameter in nc.models.mobilenet_v1().parameters())
    4231976
    """
    classes, channels = whole("classes", classes), whole("channels", channels)
    rng = nn.init.generator(rng)
    stem, *halving = strides(size)
    ins = scaled(32, width)
    features: list[nn.Module] = [nn.ConvNorm(channels, ins, 3, stem, 1, rng=rng, dtype=dtype)]
    for base, halves in _V1:
        outs = scaled(base, width)
        stride = halving.pop(0) if halves else 1
        features.append(nn.DepthwiseSeparable(ins, outs, 3, stride, rng=rng, dtype=dtype))
        ins = outs
    return _network(features, ins, classes, dropout, rng, dtype)


def mobilenet_v2(
    classes: int = 1000,
    channels: int = 3,
    size: int = 224,
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    rng: nn.init.Rng = None,
    dtype: Any = "float32",
) -> nn.Sequential:
    """Build MobileNet v2: inverted residuals, which widen, convolve depthwise, and narrow without an activation.

    Parameters
    ----------
    classes, channels, size, width, dropout, rng, dtype
        As for `mobilenet_v1`.

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
    M. Sandler et al., *MobileNetV2: inverted residuals and linear bottlenecks*, arXiv:1801.04381.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> net = nc.models.mobilenet_v2(10, channels=1, size=8, width=0.25)
    >>> net(np.zeros((2, 1, 8, 8), "float32")).shape
    (2, 10)
    >>> sum(parameter.value.size for parameter in nc.models.mobilenet_v2().parameters())
    3504872
    """
    classes, channels = whole("classes", classes), whole("channels", channels)
    rng = nn.init.generator(rng)
    stem, *halving = strides(size)
    made: dict[str, Any] = {"rng": rng, "dtype": dtype}
    ins = scaled(32, width)
    features: list[nn.Module] = [nn.ConvNorm(channels, ins, 3, stem, 1, activation=nn.ReLU6, **made)]
    for expansion, base, blocks, halves in _V2:
        outs = scaled(base, width)
        first = halving.pop(0) if halves else 1
        for stride in (first, *(1,) * (blocks - 1)):
            features.append(_inverted_residual(ins, outs, stride, expansion, made))
            ins = outs
    last = scaled(1280, max(1.0, width))
    features.append(nn.ConvNorm(ins, last, 1, activation=nn.ReLU6, **made))
    return _network(features, last, classes, dropout, rng, dtype)


def _inverted_residual(ins: int, outs: int, stride: int, expansion: int, made: dict[str, Any]) -> nn.Module:
    """A block of v2: to `expansion` times the channels, a depthwise convolution, back; its input added if it fits."""
    hidden = ins * expansion
    widen = [nn.ConvNorm(ins, hidden, 1, activation=nn.ReLU6, **made)] if expansion > 1 else []
    conv = nn.Sequential(
        *widen,
        nn.Depthwise(hidden, 3, stride, activation=nn.ReLU6, **made),
        nn.Conv2d(hidden, outs, 1, bias=False, **made),
        nn.BatchNorm2d(outs, dtype=made["dtype"]),
    )
    same = stride == 1 and ins == outs
    return nn.Add(conv=conv, identity=nn.Sequential()) if same else nn.Sequential(conv=conv)


def _network(
    features: list[nn.Module], ins: int, classes: int, dropout: float, rng: nn.init.Rng, dtype: Any
) -> nn.Sequential:
    """Both networks end alike."""
    try:
        drop = nn.Dropout(dropout, rng=rng)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("p", "dropout", 1)) from None
    return nn.Sequential(
        features=nn.Sequential(*features),
        avgpool=nn.GlobalAvgPool(),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(drop, nn.Linear(ins, classes, rng=rng, dtype=dtype)),
    )
