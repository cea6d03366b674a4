"""How training went: curves, and what was taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from npconv.nn import History
from npconv.plot.axes import COLORS, MARKS, axes_for, host

MOST_NUMBERS = 20
MOST_NAMES = 40
"""With more classes their counts, and then their names, would run into each other."""


def training_curves(curves: History | Mapping[str, Sequence[float]], *, log: bool = False, ax: Any = None) -> Any:
    """Draw one or more figures of merit over the epochs.

    Parameters
    ----------
    curves : npconv.nn.History, or mapping of str to sequence of float
        What `npconv.nn.fit` returned: its losses are drawn, and its accuracy on a second scale, at the right. Or such
        as ``{"loss": [...], "held-back loss": [...]}``; all are drawn on one scale.
    log : bool
        Whether the scale of what is drawn at the left is logarithmic.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        If there is no curve, or one is not a sequence of numbers.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import npconv as nc
    >>> ax = nc.plot.training_curves({"training": [2.3, 1.1, 0.6], "held back": [2.2, 1.3, 0.9]})
    >>> [line.get_label() for line in ax.lines]
    ['training', 'held back']
    """
    history = curves if isinstance(curves, History) else None
    if isinstance(curves, History):
        curves = {"training": curves.loss, **({"held back": curves.validation_loss} if curves.validation_loss else {})}
    if not isinstance(curves, Mapping) or not curves:
        raise ValueError(f"curves must name at least one curve, got {curves!r}")
    drawn = {name: host(f"curves[{name!r}]", values, (1,)) for name, values in curves.items()}
    ax = axes_for(ax)
    for number, (name, values) in enumerate(drawn.items()):
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKS[number % len(MARKS)], "markersize": 3}
        ax.plot(np.arange(1, len(values) + 1), values, label=name, **style)
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    if log:
        ax.set_yscale("log")
    ax.legend(frameon=False)
    if history is not None:
        ax.set_ylabel("loss")
        _draw_accuracy(ax, history)
    return ax


def _draw_accuracy(ax: Any, history: History) -> None:
    """Draw how many samples were recognised, on a scale of their own; nothing where there is no such number."""
    shown = history.validation_accuracy or history.accuracy
    if not shown:
        return
    which = "held back" if history.validation_accuracy else "trained on"
    share = ax.twinx()
    share.plot(np.arange(1, len(shown) + 1), [100 * value for value in shown], color=COLORS[2], linestyle="--")
    share.set_ylabel("recognised (%)", color=COLORS[2])
    lowest = min(90.0, 100 * min(shown))
    share.set_ylim(lowest - (100 - lowest) / 20, 100 + (100 - lowest) / 20)
    ax.set_title(f"loss, and accuracy on samples {which}: {shown[-1]:.1%}", fontsize="medium")
    ax.get_legend().set_loc("center right")  # where neither a falling loss nor a rising accuracy is


def confusion_matrix(matrix: Any, labels: Sequence[str] | None = None, *, ax: Any = None) -> Any:
    """Draw how often each class (rows) was taken for each (columns).

    Parameters
    ----------
    matrix : array of int, shape (classes, classes)
    labels : sequence of str, optional
        Names of the classes. With many classes the counts are left out, and then the names.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        If `matrix` is not square, holds negative numbers, or `labels` are not as many.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import npconv as nc
    >>> ax = nc.plot.confusion_matrix([[9, 1], [0, 10]], ["cat", "dog"])
    >>> [text.get_text() for text in ax.texts]
    ['9', '1', '10']
    """
    counts = host("matrix", matrix, (2,))
    if counts.shape[0] != counts.shape[1] or counts.min() < 0:
        raise ValueError(f"matrix must be square and not negative, got shape {counts.shape}")
    names = [str(number) for number in range(len(counts))] if labels is None else list(labels)
    if len(names) != len(counts):
        raise ValueError(f"labels must be {len(counts)}, got {len(names)}")
    ax = axes_for(ax)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    for true, taken in np.argwhere(counts) if len(names) <= MOST_NUMBERS else ():
        # On the light end of the colours the writing is dark.
        color = "black" if share[true, taken] > 0.5 else "white"
        ax.text(taken, true, f"{counts[true, taken]:g}", ha="center", va="center", color=color, fontsize="small")
    if len(names) <= MOST_NAMES:
        short = len(names) <= 4 or all(len(str(name)) <= 2 for name in names)
        size = "medium" if len(names) <= MOST_NUMBERS else "x-small"
        ax.set_xticks(range(len(names)), names, rotation=0 if short else 90, fontsize=size)
        ax.set_yticks(range(len(names)), names, fontsize=size)
    ax.set_xlabel("taken for")
    ax.set_ylabel("is")
    right = float(np.trace(counts) / max(counts.sum(), 1))
    ax.set_title(f"{right:.1%} right")
    return ax
