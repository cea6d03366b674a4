"""LeNet-5, the network that read handwritten digits."""

from __future__ import annotations

from typing import Any

from npconv import nn
from npconv.models.scaling import whole


def lenet5(
    classes: int = 10, channels: int = 1, size: int = 28, *, rng: nn.init.Rng = None, dtype: Any = "float32"
) -> nn.Sequential:
    """Build LeNet-5: two convolutions of 5x5, each with a pooling, and three fully connected layers.

    Parameters
    ----------
    classes : int
        Outputs.
    channels : int
        Of the pictures.
    size : int
        Side of the pictures, which are square, at least 4. The convolutions of the paper take 32; from 28 on the first
        is padded to that, below 28 both keep the size.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from.
    dtype : {"float32", "float64", "float16"}

    Returns
    -------
    Sequential
        Maps ``(N, channels, size, size)`` to logits ``(N, classes)``. Parameters are named ``conv1``, ``conv2``,
        ``fc1``, ``fc2`` and ``fc3``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    As it is built today: rectifiers where the paper has ``tanh``, the largest element where it has a scaled mean, every
    map of the second convolution connected to all of the first, and a linear layer at the end. That is 61,706
    parameters where the paper has about 60,000.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, *Gradient-based learning applied to document recognition*, Proceedings
    of the IEEE 86, 1998.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> net = nc.models.lenet5()
    >>> net(np.zeros((1, 1, 28, 28), "float32")).shape
    (1, 10)
    >>> sum(parameter.value.size for parameter in net.parameters())
    61706
    """
    classes, channels = whole("classes", classes), whole("channels", channels)
    if whole("size", size) < 4:
        raise ValueError(f"size must be at least 4, got {size}")
    first, second = (0, 0) if size >= 32 else (2, 0) if size >= 28 else (2, 2)
    halved = (size + 2 * first - 4) // 2
    side = (halved + 2 * second - 4) // 2
    rng = nn.init.generator(rng)
    made: dict[str, Any] = {"rng": rng, "dtype": dtype}
    return nn.Sequential(
        conv1=nn.Conv2d(channels, 6, 5, padding=first, **made), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5, padding=second, **made), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(16 * side * side, 120, **made), relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84, **made), relu4=nn.ReLU(),
        fc3=nn.Linear(84, classes, **made),
    )  # fmt: skip
