"""What a network costs, layer by layer: one that is trained or made for inference, or one from an ONNX file."""

from __future__ import annotations

import math
from typing import Any

from npconv.cost.layer import Cost, itemsize_of
from npconv.geometry import shape

STEPS = ("forward", "backward", "training")


def model(network: Any, x_shape: Any = None, *, dtype: Any = None, step: str = "forward") -> tuple[Cost, ...]:
    """Costs of a network's layers, in the order in which they run; `stack` sums them up.

    A copy of the network runs once on zeros, by `npconv.nn.Module.summary` or `npconv.inference.Model.summary`.
    Convolutions, transposed convolutions and dense layers have multiply-accumulates; whatever else runs has only the
    bytes that it reads and writes, and its parameters.

    Parameters
    ----------
    network : npconv.nn.Module or npconv.inference.Model
        The second is what `npconv.nn.compile` and `npconv.onnx.load` make: its rows are the steps that run, in which
        batch normalisation and activations may be parts of a convolution.
    x_shape : tuple of int, optional
        Of the input, with the batch. A model made for inference may declare it: then by default it is the declared
        one, with a batch of 1 where that is left open.
    dtype : str or numpy.dtype, optional
        What an element of a `npconv.nn.Module` is stored as, float32 by default. A model made for inference has dtypes.
    step : {"forward", "backward", "training"}
        What is done with the network: the gradients for ``"backward"``, both for ``"training"``. A layer without
        parameters has only an input's gradient, and up to the first layer with parameters nobody needs even that.

    Returns
    -------
    tuple of Cost

    Raises
    ------
    TypeError
        If `network` is neither.
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

    A training step is less than three times that, because nobody needs the gradient of the picture:

    >>> print(cost.stack(cost.model(lenet, (1, 1, 28, 28), step="training"), "a training step"))
    a training step: 376 kMAC = 753 kFLOP, 47,206 parameters, 742 kB
    """
    if step not in STEPS:
        raise ValueError(f"step must be one of {', '.join(STEPS)}, got {step!r}")
    costs = _forward(network, x_shape, dtype)
    if step == "forward":
        return costs
    learned = [cost.parameters > 0 for cost in costs]
    first = learned.index(True) if True in learned else len(costs)
    return tuple(
        _repeated(cost, (step == "training") + learned[place] + (place > first)) for place, cost in enumerate(costs)
    )


def _forward(network: Any, x_shape: Any, dtype: Any) -> tuple[Cost, ...]:
    from npconv import inference, nn

    if isinstance(network, inference.Model):
        if dtype is not None:
            raise ValueError(f"dtype must be left out for a model made for inference, which has its own; got {dtype!r}")
        shapes = () if x_shape is None else (shape("x_shape", x_shape),)
        return tuple(_step_cost(row) for row in network.summary(*shapes))
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be an npconv.nn.Module or an npconv.inference.Model, got {network!r}")
    if x_shape is None:
        raise TypeError("x_shape must be given for an npconv.nn.Module, which takes more than one")
    itemsize = itemsize_of("float32" if dtype is None else dtype)
    batch, *sample = shape("x_shape", x_shape)
    return tuple(
        _layer_cost(row, batch, itemsize) for row in network.summary(tuple(sample)) if row.kind not in _NAMES_ONLY
    )


_NAMES_ONLY = ("Flatten", "Dropout")
"""Layers that neither compute nor move anything when the network is used."""


def _layer_cost(row: Any, batch: int, itemsize: int) -> Cost:
    name = f"{row.name}: {row.kind}" if row.name else row.kind
    moved = batch * itemsize * (math.prod(row.input_shape) + math.prod(row.shape))
    macs = batch * _known(row.macs, name)
    return Cost(name, macs, row.parameters, itemsize * row.parameters, moved)


def _step_cost(row: Any) -> Cost:
    name = row.name if row.kind.lower() in row.name.lower() else f"{row.name}: {row.kind}"
    return Cost(name, _known(row.macs, name), row.parameters, row.weight_bytes, row.activation_bytes)


def _known(macs: int | None, name: str) -> int:
    if macs is None:
        raise ValueError(f"network must be made of layers whose work is known, which is not so of {name}")
    return macs


def _repeated(cost: Cost, passes: int) -> Cost:
    return Cost(
        cost.name, passes * cost.macs, cost.parameters, passes * cost.weight_bytes, passes * cost.activation_bytes
    )
