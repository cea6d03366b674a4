"""Stacks of layers, and jobs of many samples on one machine or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from npconv.cost.layer import Cost, conv, counted, total, whole
from npconv.cost.tables import Row
from npconv.machine import LECTURE, Machine


def stack(layers: Iterable[Cost], name: str | None = None) -> Cost:
    """Cost of layers that run one after the other: the sum of everything.

    Parameters
    ----------
    layers : iterable of Cost
    name : str, optional
        Defaults to the number of layers.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError
        If something in `layers` is not a `Cost`.

    Examples
    --------
    >>> from npconv import cost
    >>> first = cost.conv((1, 28, 28), (6, 1, 5, 5), padding=2)
    >>> second = cost.conv((6, 14, 14), (16, 6, 5, 5))
    >>> print(cost.stack([first, second]))
    2 layers: 358 kMAC = 715 kFLOP, 2,550 parameters, 43.3 kB
    """
    try:
        items = tuple(layers)
    except TypeError:
        raise TypeError(f"layers must be a sequence of Cost, got {layers!r}") from None
    for i, item in enumerate(items):
        if not isinstance(item, Cost):
            raise TypeError(f"layers[{i}] must be a Cost, got {item!r}")
    return total(name or counted(len(items), "layer"), items)


def job(layer: Cost, layers: int = 10, samples: float = 1_000_000) -> Cost:
    """Cost of running equal layers on many samples.

    Parameters
    ----------
    layer : Cost
        One layer on one sample.
    layers, samples : int
        How many; ``1e6`` is welcome. The weights of a layer are counted once for the whole job.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> from npconv import cost
    >>> job = cost.job(cost.conv((100, 64, 64), (100, 100, 5, 5), padding="same"), layers=10, samples=1e6)
    >>> job.macs, round(job.seconds(0.15e12) / 3600, 2), round(job.seconds(12e12) / 60, 2)
    (10240000000000000, 18.96, 14.22)
    """
    if not isinstance(layer, Cost):
        raise TypeError(f"layer must be a Cost, got {layer!r}")
    n = whole("layers", layers)
    return replace(layer.times(n), name=counted(n, "layer")).samples(whole("samples", samples))


def lecture(*machines: Machine) -> tuple[Row, ...]:
    """Return the rows of the lecture's table: a layer, ten of them, and ten of them on a million samples.

    Parameters
    ----------
    *machines : Machine
        Machines besides the lecture's two, such as `npconv.machine.measured_rate`'s answer.

    Returns
    -------
    tuple of Row

    Raises
    ------
    TypeError
        If something in `machines` is not a `Machine`.

    References
    ----------
    A. Zhang, Z. Lipton, M. Li, A. Smola, *Dive into Deep Learning*, "Multiple Input and Multiple Output Channels",
    https://d2l.ai/chapter_convolutional-neural-networks/channels.html, and the lecture on it.

    Examples
    --------
    The rates are multiply-accumulates per second; counted in FLOPs they would be twice as high.

    >>> from npconv import cost
    >>> print(cost.table(cost.lecture()))
                                                                              lecture's CPU  lecture's GPU
                                       MACs       FLOPs  parameters    bytes    0.15 TMAC/s      12 TMAC/s
    conv 100 -> 100, 5x5          1.02 GMAC  2.05 GFLOP     250,000  4.28 MB       6.827 ms       85.33 µs
    10 layers                     10.2 GMAC  20.5 GFLOP   2,500,000  42.8 MB       68.27 ms       853.3 µs
    10 layers, 1,000,000 samples  10.2 PMAC  20.5 PFLOP   2,500,000  32.8 TB    18.96 hours  14.22 minutes
    """
    for i, machine in enumerate(machines):
        if not isinstance(machine, Machine):
            raise TypeError(f"machines[{i}] must be a Machine, got {machine!r}")
    layer = conv((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
    costs = (layer, replace(10 * layer, name="10 layers"), job(layer, layers=10, samples=1_000_000))
    return tuple(Row(cost, (*LECTURE, *machines)) for cost in costs)
