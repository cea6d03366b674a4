"""What a network costs: it runs once, and every layer's shapes are counted."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from npconv.cost.layer import Cost, itemsize_of
from npconv.geometry import shape


def model(network: Any, x_shape: Any, *, dtype: Any = "float32") -> tuple[Cost, ...]:
    """Costs of a network's layers, in the order in which they run; `stack` sums them up.

    A copy of the network runs once on zeros, so that branches, and shapes that depend on others, are what they are.
    Convolutions, transposed convolutions and dense layers have multiply-accumulates; whatever else runs has only the
    bytes that it reads and writes, and its parameters.

    Parameters
    ----------
    network : npconv.nn.Module
    x_shape : tuple of int
        Of the input, with the batch.
    dtype : str or numpy.dtype
        Of the input, and what an element is stored as.

    Returns
    -------
    tuple of Cost

    Raises
    ------
    TypeError
        If `network` is no module.
    ValueError
        If the network does not take an input of that shape.

    Examples
    --------
    >>> import npconv as nc
    >>> nn, cost = nc.nn, nc.cost
    >>> lenet = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2, rng=0), nn.ReLU(), nn.Flatten(), nn.Linear(4704, 10, rng=0))
    >>> print(cost.table([*cost.model(lenet, (1, 1, 28, 28)), cost.stack(cost.model(lenet, (1, 1, 28, 28)), "all")]))
                    MACs      FLOPs  parameters    bytes
    0: Conv2d   118 kMAC   235 kFLOP         156  22.6 kB
    1: ReLU       0 MAC      0 FLOP           0  37.6 kB
    3: Linear    47 kMAC  94.1 kFLOP      47,050   207 kB
    all         165 kMAC   329 kFLOP      47,206   267 kB
    """
    from npconv import nn

    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be an npconv.nn.Module, got {network!r}")
    itemsize_of(dtype)
    sizes = shape("x_shape", x_shape)
    own = copy.deepcopy(network).eval()
    found: list[Cost] = []
    for name, layer in own.named_modules():
        if not isinstance(layer, nn.Container) and not any(True for _ in layer.named_children()):
            _watch(name, layer, found, dtype)
    own(np.zeros(sizes, dtype))
    return tuple(found)


def _watch(name: str, layer: Any, found: list[Cost], dtype: Any) -> None:
    """Have a layer of the copy write down its cost when it runs."""
    run = layer.forward

    def forward(x: Any) -> Any:
        y = run(x)
        label = f"{name}: {type(layer).__name__}" if name else type(layer).__name__
        cost = _cost(label, layer, x.shape, y.shape, dtype)
        if cost.macs or cost.bytes:
            found.append(cost)
        return y

    layer.forward = forward


def _cost(name: str, layer: Any, x: tuple[int, ...], y: tuple[int, ...], dtype: Any) -> Cost:
    from npconv import nn

    itemsize = itemsize_of(dtype)
    parameters = sum(parameter.value.size for parameter in layer.parameters())
    moved = 0 if isinstance(layer, nn.Flatten | nn.Dropout) else itemsize * (math.prod(x) + math.prod(y))
    return Cost(name, _macs(layer, x, y), parameters, itemsize * parameters, moved)


def _macs(layer: Any, x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """A product of every element of the smaller side with the weights that it meets."""
    from npconv import nn

    if isinstance(layer, nn.Linear):
        return math.prod(y) * x[-1]
    if isinstance(layer, nn.Conv):
        return int(math.prod(y) * math.prod(layer.weight.value.shape[1:]))
    if isinstance(layer, nn.ConvTranspose):
        return int(math.prod(x) * math.prod(layer.weight.value.shape[1:]))
    return 0
