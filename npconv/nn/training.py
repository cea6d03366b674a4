"""Training: batches, steps, validation, early stopping, and checkpoints from which it goes on to the same numbers."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from npconv.nn import init
from npconv.nn.arguments import Array, flag, namespace, positive
from npconv.nn.checkpoint import Checkpoint
from npconv.nn.data import Dataset, batches, dataset, evaluation_batches, fetched
from npconv.nn.losses import CrossEntropyLoss, Loss
from npconv.nn.module import Module
from npconv.nn.optim import Adam, Optimizer
from npconv.nn.schedule import LRScheduler


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

    def add(self, value: float, prediction: Array, y: Array) -> None:
        """Count a batch: its mean loss, and how many of its classes were right."""
        count = int(y.shape[0])
        self.samples += count
        self.loss += value * count
        classes = y.dtype.kind in "iu" and y.ndim == 1 and prediction.ndim == 2
        right = int((prediction.argmax(axis=1) == y).sum()) if classes else None
        self.correct = None if right is None or self.correct is None else self.correct + right

    @property
    def mean_loss(self) -> float:
        """Mean loss of a sample."""
        return self.loss / self.samples

    @property
    def accuracy(self) -> float | None:
        """Share of classes that were right; None if the targets are no classes."""
        return None if self.correct is None else self.correct / self.samples


def fit(
    model: Module,
    data: Any,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    schedule: LRScheduler | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    validation: Any = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool | None = None,
) -> History:
    """Train a network, and go on where an interrupted training stood.

    Parameters
    ----------
    model : Module
        Trained in place; at the end it is in evaluation mode, after an error or Ctrl-C in the mode it was in before.
    data : tuple of array, or Dataset
        Samples and targets, ``(x, y)``, or anything with ``len(data)`` and ``data.batch(indices, rng)``.
    loss : Loss, optional
        Defaults to `CrossEntropyLoss`.
    optimizer : Optimizer, optional
        Over parameters of `model`; defaults to `Adam` over all of them.
    schedule : LRScheduler, optional
        Of that optimiser; takes a step after every epoch.
    epochs : int
    batch_size : int
        The last batch of an epoch may be smaller; a single sample left over joins the batch before.
    seed : int
        Of the order of the samples, another in every epoch, and of `data`'s random changes.
    validation : tuple of array, or Dataset, optional
        What is looked at after every epoch and not trained on.
    patience : int, optional
        Stop after so many epochs without a lower loss on `validation`, or on `data` where there is none, and go back to
        the weights with the lowest.
    checkpoint : str or Path, optional
        A file, ``.npz`` or ``.safetensors``, that everything a training depends on is written to after every epoch: at
        once, so that a crash leaves the one before. If it is there at the start, the training goes on from it: to the
        numbers that it would have reached without the interruption.
    checkpoint_every : int, optional
        Write it after every so many batches as well.
    progress : bool, optional
        Whether a bar on standard error shows loss, accuracy and images per second; by default only where that is a
        terminal. A bar needs the extra ``train``.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it. Also if the checkpoint is damaged, or is of
        another training: nothing is changed then. And if samples are not finite, before the step that meets them.
    RuntimeError
        If the loss is no longer a finite number.
    ImportError
        If a bar is wanted but tqdm is missing.
    OSError
        If the checkpoint cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((60, 2))
    >>> y = (x[:, 0] > x[:, 1]).astype(int)
    >>> net = nc.nn.Sequential(nc.nn.Linear(2, 8, rng=0), nc.nn.ReLU(), nc.nn.Linear(8, 2, rng=1))
    >>> history = nc.nn.fit(net, (x, y), epochs=60, batch_size=10, progress=False)
    >>> history.epochs, history.accuracy[-1] > 0.95
    (60, True)
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    loss = CrossEntropyLoss() if loss is None else loss
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a Loss, such as CrossEntropyLoss(), got {loss!r:.60}")
    optimizer = Adam(model.parameters()) if optimizer is None else optimizer
    _check_optimizer(optimizer, model)
    if schedule is not None and (not isinstance(schedule, LRScheduler) or schedule.optimizer is not optimizer):
        raise ValueError("schedule must be an LRScheduler of the optimizer that is given")
    training = _Training(
        model,
        dataset("data", data),
        loss,
        optimizer,
        schedule,
        positive("batch_size", batch_size),
        positive("seed", seed, least=0),
        None if validation is None else dataset("validation", validation),
        None if patience is None else positive("patience", patience),
    )
    epochs = positive("epochs", epochs)
    every = None if checkpoint_every is None else positive("checkpoint_every", checkpoint_every)
    if checkpoint is None and every is not None:
        raise ValueError(f"checkpoint_every is {every}, but checkpoint names no file")
    bar = _bars() if _shows(progress) else None
    if checkpoint is not None:
        if not isinstance(checkpoint, str | Path):
            raise TypeError(f"checkpoint must be a string or a Path, got {type(checkpoint).__name__}")
        training.checkpoint = Checkpoint(Path(checkpoint), training.of_what(), model, optimizer, schedule)
        training.every = every
        training.resume()
    training.run(epochs, bar)
    return training.history


def predict(model: Module, data: Any, *, batch_size: int = 32) -> Array:
    """Run a network in evaluation mode over many samples.

    Parameters
    ----------
    model : Module
        Left in the mode it is in.
    data : array
        Samples along the first axis.
    batch_size : int

    Returns
    -------
    array
        The results, along the first axis.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here, or the samples do not fit the network.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.predict(nc.nn.Linear(3, 2, rng=0), np.zeros((100, 3))).shape
    (100, 2)
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    size = positive("batch_size", batch_size)
    xp = _device(model)
    if not getattr(data, "shape", None) and not (isinstance(data, list | tuple) and data):
        raise TypeError(f"data must be an array with samples along its first axis, got {data!r:.60}")
    with _evaluating(model):
        parts = [model(xp.asarray(data[start : start + size])) for start in range(0, max(len(data), 1), size)]
    return xp.concatenate(parts)


def gradients(model: Module, loss: Loss, x: Array, y: Array) -> tuple[float, Array]:
    """Leave a batch's gradients in the parameters; return its loss and the prediction.

    All that a step does before the optimiser: what is computed elsewhere where a batch is shared among machines.
    """
    model.zero_grad()
    prediction = model(x)
    value = loss(prediction, y)
    model.backward(loss.backward())
    return value, prediction


class _Training:
    """A training on its way: what it works on, and where it stands."""

    checkpoint: Checkpoint | None = None
    every: int | None = None

    def __init__(
        self,
        model: Module,
        data: Dataset,
        loss: Loss,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        batch_size: int,
        seed: int,
        validation: Dataset | None,
        patience: int | None,
    ) -> None:
        self.model, self.data, self.loss, self.optimizer, self.schedule = model, data, loss, optimizer, schedule
        self.batch_size, self.seed, self.validation, self.patience = batch_size, seed, validation, patience
        self.xp = _device(model)
        self.history = History()
        self.batch = 0
        self.tally = Tally()
        self.best: dict[str, Array] = {}

    def of_what(self) -> dict[str, Any]:
        """What must be the same for a training to be continued."""
        return {
            "samples": len(self.data),
            "validation samples": None if self.validation is None else len(self.validation),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "patience": self.patience,
            "loss": _settings(self.loss),
            "optimizer": _settings(self.optimizer),
            "lr": self.optimizer.lr if self.optimizer.initial_lr is None else self.optimizer.initial_lr,
            "schedule": None if self.schedule is None else _settings(self.schedule),
        }

    def resume(self) -> None:
        """Go where the checkpoint stands, if there is one."""
        assert self.checkpoint is not None
        found = self.checkpoint.read()
        if found is not None:
            state, self.best = found
            self.history = History(**state["history"])
            self.tally = Tally(**state["tally"])
            self.batch = state["batch"]

    def save(self) -> None:
        """Write the checkpoint, if one is wanted."""
        if self.checkpoint is not None:
            state = {"history": asdict(self.history), "tally": asdict(self.tally), "batch": self.batch}
            self.checkpoint.write(state, self.best)

    def run(self, epochs: int, bar: Any) -> None:
        """Train until so many epochs are done or nothing improves any more."""
        modes = _modes(self.model)
        try:
            while self.history.epochs < epochs and not self.history.stopped_early:
                with _shown(bar, self.history.epochs, epochs, self) as shown:
                    self._epoch(shown)
                    self._close_epoch(shown)
                self.save()
        except BaseException:
            _restore_modes(modes)
            raise
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def _epoch(self, shown: Any) -> None:
        """Take the steps of this epoch that are left."""
        epoch = self.history.epochs
        order = init.of_step(self.seed, epoch).permutation(len(self.data))
        self.model.train()
        for indices in batches(len(self.data), self.batch_size, order)[self.batch :]:
            start = time.perf_counter()
            x, y = fetched("data", self.data, indices, init.of_step(self.seed, epoch, self.batch), self.xp)
            if x.dtype.kind in "fc" and not self.xp.isfinite(x).all():
                # Before the forward pass: running statistics would never be rid of a NaN.
                raise ValueError(
                    f"data must be finite, got samples that are not, in epoch {epoch + 1}, batch {self.batch + 1}"
                )
            value, prediction = gradients(self.model, self.loss, x, y)
            if not math.isfinite(value):
                raise RuntimeError(
                    f"the loss is {value} in epoch {epoch + 1}, batch {self.batch + 1}: try a lower learning rate than "
                    f"{self.optimizer.lr:g}"
                )
            self.optimizer.step()
            self.tally.add(value, prediction, y)
            self.tally.seconds += time.perf_counter() - start
            self.batch += 1
            shown.update(len(indices))
            shown.set_postfix(_numbers("", self.tally), refresh=False)
            if self.every is not None and self.batch % self.every == 0:
                self.save()

    def _close_epoch(self, shown: Any) -> None:
        """Look at the validation samples, note the epoch, and see whether to stop."""
        history, tally = self.history, self.tally
        history.lr.append(self.optimizer.lr)
        history.loss.append(tally.mean_loss)
        history.images_per_second.append(tally.samples / max(tally.seconds, 1e-9))
        if tally.accuracy is not None:
            history.accuracy.append(tally.accuracy)
        watched = history.loss
        if self.validation is not None:
            checked = self._validate(self.validation)
            watched = history.validation_loss
            watched.append(checked.mean_loss)
            if checked.accuracy is not None:
                history.validation_accuracy.append(checked.accuracy)
            shown.set_postfix(_numbers("", tally) | _numbers("validation ", checked))
        self._note_best(watched)
        if self.schedule is not None:
            self.schedule.step()
        self.batch, self.tally = 0, Tally()

    def _validate(self, data: Dataset) -> Tally:
        tally = Tally()
        with _evaluating(self.model):
            for x, y in evaluation_batches("validation", data, self.batch_size, self.xp):
                prediction = self.model(x)
                tally.add(self.loss(prediction, y), prediction, y)
        return tally

    def _note_best(self, watched: list[float]) -> None:
        history, last = self.history, len(watched) - 1
        if history.best_epoch is None or watched[last] < watched[history.best_epoch]:
            history.best_epoch = last
            self.best = {} if self.patience is None else self.model.state_dict()
        history.stopped_early = self.patience is not None and last - history.best_epoch >= self.patience


def _check_optimizer(optimizer: Any, model: Module) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, such as Adam(model.parameters()), got {optimizer!r:.60}")
    known = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in known for parameter in optimizer.parameters):
        raise ValueError("optimizer must be over parameters of model; none of its parameters is one")


def _settings(part: Any) -> str:
    """The kind of an optimiser, a schedule or a loss, and its hyperparameters."""
    plain = {
        name: value
        for name, value in vars(part).items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | None)
    }
    for moving in ("initial_lr", "base_lr", "last_epoch"):
        plain.pop(moving, None)
    return f"{type(part).__name__}({', '.join(f'{name}={value}' for name, value in plain.items())})"


def _device(model: Module) -> ModuleType:
    """The module of the functions that take the network's arrays."""
    return namespace("parameter", next((p.value for p in model.parameters()), init.arange(1)))


@contextlib.contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode, and then for each layer the mode it was in."""
    modes = _modes(model)
    model.eval()
    try:
        yield
    finally:
        _restore_modes(modes)


def _modes(model: Module) -> list[tuple[Module, bool]]:
    return [(module, module.training) for _, module in model.named_modules()]


def _restore_modes(modes: list[tuple[Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode


# --------------------------------------------------------------------------------------------------------------------
# The bar
# --------------------------------------------------------------------------------------------------------------------


def _shows(progress: bool | None) -> bool:
    """Whether there is to be a bar: nobody looks at one in a file or a pipe."""
    if progress is None:
        return sys.stderr is not None and sys.stderr.isatty()
    return flag("progress", progress)


def _bars() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            f"a progress bar needs the extra 'train' ({error}): pip install 'npconv[train]', or say progress=False"
        ) from None
    return tqdm


class _NoBar:
    def update(self, count: int) -> None:
        """Show nothing."""

    def set_postfix(self, numbers: dict[str, str], refresh: bool = True) -> None:
        """Show nothing."""


@contextlib.contextmanager
def _shown(bar: Any, epoch: int, epochs: int, training: _Training) -> Iterator[Any]:
    """A bar over the samples of an epoch, or nothing."""
    if bar is None:
        yield _NoBar()
        return
    with bar(
        total=len(training.data), initial=training.tally.samples, desc=f"epoch {epoch + 1}/{epochs}", unit=" images"
    ) as shown:
        yield shown


def _numbers(prefix: str, tally: Tally) -> dict[str, str]:
    numbers = {f"{prefix}loss": f"{tally.mean_loss:.4f}"}
    return numbers if tally.accuracy is None else {**numbers, f"{prefix}accuracy": f"{tally.accuracy:.2%}"}
