"""What a training has come to: a number for each epoch, and sums over the samples of one."""

from __future__ import annotations

from dataclasses import dataclass, field

from npconv.nn.arguments import Array


@dataclass
class History:
    """What a training has left behind, a number for each epoch.

    Attributes
    ----------
    loss, accuracy : list of float
        Mean over the training samples as they were met. Accuracies are there if the targets are classes.
    validation_loss, validation_accuracy : list of float
        Over the validation samples, after the epoch; empty without such samples.
    lr : list of float
        Learning rate of the epoch.
    images_per_second : list of float
        The only numbers that differ from run to run.
    best_epoch : int or None
        Counted from 0: where the loss that early stopping watches was lowest.
    stopped_early : bool

    Examples
    --------
    >>> import npconv as nc
    >>> nc.nn.History().epochs
    0
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.loss)


@dataclass
class Tally:
    """Sums over the samples met so far."""

    samples: int = 0
    loss: float = 0.0
    correct: int | None = 0
    seconds: float = 0.0

    def add(self, count: int, loss: float, right: int | None) -> None:
        """Count a batch: its mean loss, and how many of its classes were right."""
        self.samples += count
        self.loss += loss * count
        self.correct = None if right is None or self.correct is None else self.correct + right

    @property
    def mean_loss(self) -> float:
        """Mean loss of a sample."""
        return self.loss / self.samples

    @property
    def accuracy(self) -> float | None:
        """Share of classes that were right; None if the targets are no classes."""
        return None if self.correct is None else self.correct / self.samples


def right_classes(prediction: Array, y: Array) -> int | None:
    """How many classes were right; None if the targets are no classes."""
    if y.dtype.kind not in "iu" or y.ndim != 1 or prediction.ndim != 2:
        return None
    return int((prediction.argmax(axis=1) == y).sum())
