"""What a network costs, layer by layer."""

from __future__ import annotations

import math
from typing import Any

from npconv.cost.layer import Cost, itemsize_of
from npconv.geometry import shape


def model(network: Any, x_shape: Any, *, dtype: Any = "float32") -> tuple[Cost, ...]:
    """Costs of a network's layers, in the order in which they run; `stack` sums them up.

    From `npconv.nn.Module.summary`: a copy of the network runs once on zeros. Convolutions, transposed convolutions and
    dense layers have multiply-accumulates; whatever else runs has only the bytes that it reads and writes, and its
    parameters.

    Parameters
    ----------
    network : npconv.nn.Module
    x_shape : tuple of int
        Of the input, with the batch.
    dtype : str or numpy.dtype
        What an element is stored as.

    Returns
    -------
    tuple of Cost

    Raises
    ------
    TypeError
        If `network` is no module.
    ValueError
        If the network does not take an input of that shape, or has a layer whose work is not known.

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
    itemsize = itemsize_of(dtype)
    batch, *sample = shape("x_shape", x_shape)
    return tuple(
        _cost(row, batch, itemsize) for row in network.summary(tuple(sample)) if row.kind not in ("Flatten", "Dropout")
    )


def _cost(row: Any, batch: int, itemsize: int) -> Cost:
    name = f"{row.name}: {row.kind}" if row.name else row.kind
    if row.macs is None:
        raise ValueError(f"network must be made of layers whose work is known, which is not so of {name}")
    moved = batch * itemsize * (math.prod(row.input_shape) + math.prod(row.shape))
    return Cost(name, batch * row.macs, row.parameters, itemsize * row.parameters, moved)
