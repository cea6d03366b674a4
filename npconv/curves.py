"""Pictures of a training: loss and accuracy, and which class was taken for which. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def figure(rows: int, columns: int, row_height: float, width: float = 12) -> tuple[Any, Any]:
    """Return a figure of its own and its axes, drawn without a screen and without touching matplotlib's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, rows * row_height), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns)


def draw_history(axis: Any, history: Any) -> None:
    """Draw the losses of a `npconv.nn.History` and, on a scale of their own, its accuracies."""
    epochs = np.arange(1, history.epochs + 1)
    axis.plot(epochs, history.loss, color="#0072b2", label="training")
    if history.validation_loss:
        axis.plot(epochs, history.validation_loss, color="#0072b2", linestyle="--", label="held back")
        axis.legend(frameon=False, fontsize=8, loc="center right")
    axis.set_xlabel("epoch")
    axis.set_ylabel("loss", color="#0072b2")
    axis.xaxis.get_major_locator().set_params(integer=True)
    shown = history.validation_accuracy or history.accuracy
    if shown:
        share = axis.twinx()
        share.plot(epochs, [100 * value for value in shown], color="#d55e00")
        share.set_ylabel("recognised (%)", color="#d55e00")
        share.set_ylim(min(90.0, 100 * min(shown)), 100.5)
        which = "held back" if history.validation_accuracy else "trained on"
        axis.set_title(f"loss, and accuracy on samples {which}: {shown[-1]:.1%}", fontsize=9)


def confusion(labels: Any, guesses: Any, classes: int) -> Any:
    """Count how often each class, a row, was taken for which, a column."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, guesses), 1)
    return counts


def draw_confusion(axis: Any, counts: Any, names: Sequence[str]) -> None:
    """Draw what `confusion` counted; numbers are written into it as long as they fit."""
    axis.imshow(np.sqrt(counts), cmap="Blues")
    if len(names) <= 20:
        for true, guess in np.argwhere(counts):
            count = counts[true, guess]
            color = "white" if count > counts.max() / 3 else "black"
            axis.text(guess, true, count, ha="center", va="center", fontsize=7, color=color)
    if len(names) <= 40:
        short = all(len(name) <= 2 for name in names)
        axis.set_xticks(range(len(names)), names, rotation=0 if short else 90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("recognised as")
    axis.set_ylabel("class")
