"""What limits a layer, and which algorithm wins where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import npconv as nc
from npconv.plot.axes import COLORS, MARKS, axes_for, writing_on


def roofline(
    costs: Iterable[nc.cost.Cost], *machines: Any, seconds: Sequence[float] | None = None, ax: Any = None
) -> Any:
    """Draw the roofs of machines, and layers under them at their arithmetic intensity.

    Parameters
    ----------
    costs : iterable of npconv.cost.Cost
    *machines : npconv.machine.Machine
        With a bandwidth; by default this one, which is measured if it has not been.
    seconds : sequence of float, optional
        Measured times of the layers, which are then drawn at the rate that they reach; by default they are drawn on the
        roof of the first machine.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        If a machine's bandwidth is unknown, there are not as many times as layers, or one of them is something else.
    ImportError
        If matplotlib is missing.

    References
    ----------
    S. Williams, A. Waterman, D. Patterson, *Roofline: An Insightful Visual Performance Model for Multicore
    Architectures*, Communications of the ACM 52 (2009).

    Examples
    --------
    >>> import npconv as nc
    >>> layer = nc.cost.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> ax = nc.plot.roofline([layer], nc.machine.NAMED["h100"])
    >>> ax.get_xlabel()
    'arithmetic intensity (FLOP/B)'
    """
    layers = list(costs)
    roofs = machines or (nc.this_machine(),)
    for number, layer in enumerate(layers):
        if not isinstance(layer, nc.cost.Cost):
            raise TypeError(f"costs[{number}] must be a Cost, got {layer!r}")
    for roof in roofs:
        if not isinstance(roof, nc.machine.Machine):
            raise TypeError(f"machines must be of npconv.machine.Machine, such as its NAMED['h100'], got {roof!r}")
        if not np.isfinite(roof.bytes_per_second):
            raise ValueError(f"machines must have a bandwidth, and {roof.name} has none")
    if seconds is not None and len(seconds) != len(layers):
        raise ValueError(f"seconds must be {len(layers)}, one for each cost, got {len(seconds)}")
    ax = axes_for(ax)
    from matplotlib.ticker import NullFormatter

    intensities = [layer.intensity for layer in layers]
    ends = [*(x for x in intensities if x > 0), *(roof.ridge for roof in roofs)]
    span = np.geomspace(min(ends) / 4, max(ends) * 4, 200)
    for number, roof in enumerate(roofs):
        rates = np.minimum(span * roof.bytes_per_second, roof.flops_per_second)
        ax.plot(span, rates, color=COLORS[number % len(COLORS)], label=roof.name)
    for number, (layer, intensity) in enumerate(zip(layers, intensities, strict=True)):
        time = layer.seconds(roofs[0]) if seconds is None else seconds[number]
        if intensity > 0:
            mark = MARKS[number % len(MARKS)]
            ax.plot(
                intensity, layer.flops / time, mark, color=COLORS[(number + len(roofs)) % len(COLORS)], label=layer.name
            )
    ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/B)", ylabel="FLOP/s")
    bottom, top = (np.log10(rate) for rate in ax.get_ylim())
    ax.set_ylim(10 ** np.floor(bottom), max(10**top, 10 ** (np.floor(bottom) + 1)))  # a decade or more has labels
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False, fontsize="small")
    return ax


def algorithm_map(
    channels: Sequence[int] = (1, 4, 16, 64, 256, 512),
    sizes: Sequence[int] = (7, 14, 28, 56, 112, 224),
    *,
    kernel: int = 3,
    stride: int = 1,
    dtype: Any = "float32",
    backend: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw which algorithm the planner chooses, over the number of channels and the size of the image.

    Parameters
    ----------
    channels : sequence of int
        Of input and output alike.
    sizes : sequence of int
        Height and width of the image.
    kernel, stride : int
    dtype : str or numpy.dtype
    backend : str, optional
        As for `npconv.plan`.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        As for `npconv.plan`, or if there are no channels or sizes.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import npconv as nc
    >>> ax = nc.plot.algorithm_map((1, 64), (14, 56))
    >>> len(ax.texts)
    4
    """
    for name, values in (("channels", channels), ("sizes", sizes)):
        if not len(values):
            raise ValueError(f"{name} must not be empty, got {values!r}")
    chosen = [
        [
            nc.plan((1, c, n, n), (c, c, kernel, kernel), stride, kernel // 2, dtype=dtype, backend=backend).algorithm
            for c in channels
        ]
        for n in sizes
    ]
    names = list(dict.fromkeys(name for row in chosen for name in row))
    ax = axes_for(ax)
    from matplotlib.colors import ListedColormap

    numbers = [[names.index(name) for name in row] for row in chosen]
    palette = [COLORS[number % len(COLORS)] for number in range(len(names))]
    ax.imshow(numbers, cmap=ListedColormap(palette), vmin=-0.5, vmax=len(names) - 0.5, aspect="auto")
    for y, row in enumerate(chosen):
        for x, name in enumerate(row):
            ax.text(x, y, name, ha="center", va="center", fontsize="small", color=writing_on(palette[numbers[y][x]]))
    ax.set_xticks(range(len(channels)), [str(c) for c in channels])
    ax.set_yticks(range(len(sizes)), [f"{n}×{n}" for n in sizes])
    ax.set_xlabel("channels in and out")
    ax.set_ylabel("image")
    ax.set_title(f"{kernel}×{kernel} at stride {stride}, {np.dtype(dtype)}")
    return ax
