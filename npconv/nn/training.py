"""Training: batches, steps, validation, early stopping, and checkpoints from which it goes on to the same numbers."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from npconv.nn import init
from npconv.nn.adaptive import Adam
from npconv.nn.arguments import Array, check_unmasked, namespace, positive
from npconv.nn.checkpoint import Checkpoint
from npconv.nn.data import Dataset, batches, dataset, evaluation_batches, fetched
from npconv.nn.gradients import Cluster, Outcome, gradients
from npconv.nn.history import History, Tally, right_classes
from npconv.nn.losses import CrossEntropyLoss, Loss
from npconv.nn.module import Module
from npconv.nn.optim import Optimizer
from npconv.nn.progress import bars, numbers, shown, shows
from npconv.nn.schedule import LRScheduler


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
    client: Any = None,
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
    client : dask.distributed.Client, optional
        Gradients are computed by the workers of its cluster, each of a share of every batch, and averaged in a fixed
        order; the rest stays here. Needs the extra ``dask``. See Notes.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it. Also if the checkpoint is damaged, or is of
        another training: nothing is changed then. And if samples or targets are not finite, before the step that meets
        them.
    RuntimeError
        If the loss is no longer a finite number.
    ImportError
        If a bar is wanted but tqdm is missing, or a client is given but distributed is.
    OSError
        If the checkpoint cannot be written.

    Notes
    -----
    With a `client`, losses and weights are those of one process to rounding, dropout included, if the loss is a mean
    over samples, or a sum and says so in an attribute ``reduction="sum"``. Batch normalisation takes a share for the
    batch, as PyTorch's `DistributedDataParallel` does, and its running statistics become the mean over the shares. A
    batch has as many shares as the cluster has workers at the start, or, after a checkpoint, as it had then; fewer if
    they would have less than two samples. A share whose worker is lost is computed by another one, to the same bits if
    they are machines alike.

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
    bar = bars() if shows(progress) else None
    if client is not None:
        training.gradients = Cluster(client)
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
    check_unmasked("data", data)
    xp = _device(model)
    if not getattr(data, "shape", None) and not (isinstance(data, list | tuple) and data):
        raise TypeError(f"data must be an array with samples along its first axis, got {data!r:.60}")
    with _evaluating(model):
        parts = [model(xp.asarray(data[start : start + size])) for start in range(0, max(len(data), 1), size)]
    return xp.concatenate(parts)


class _Training:
    """A training on its way: what it works on, and where it stands."""

    checkpoint: Checkpoint | None = None
    every: int | None = None
    gradients: Callable[[Module, Loss, Array, Array], Outcome] = staticmethod(gradients)

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
            if isinstance(self.gradients, Cluster):
                self.gradients.shares = state.get("shares", self.gradients.shares)

    def save(self) -> None:
        """Write the checkpoint, if one is wanted."""
        if self.checkpoint is not None:
            state = {"history": asdict(self.history), "tally": asdict(self.tally), "batch": self.batch}
            if isinstance(self.gradients, Cluster):
                state["shares"] = self.gradients.shares
            self.checkpoint.write(state, self.best)

    def run(self, epochs: int, bar: Any) -> None:
        """Train until so many epochs are done or nothing improves any more."""
        modes = _modes(self.model)
        try:
            self._try_validation()
            while self.history.epochs < epochs and not self.history.stopped_early:
                with shown(bar, self.history.epochs, epochs, len(self.data), self.tally.samples) as bar_of_epoch:
                    self._epoch(bar_of_epoch)
                    self._close_epoch(bar_of_epoch)
                self.save()
        except BaseException:
            _restore_modes(modes)
            raise
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def _epoch(self, bar: Any) -> None:
        """Take the steps of this epoch that are left."""
        epoch = self.history.epochs
        order = init.of_step(self.seed, epoch).permutation(len(self.data))
        self.model.train()
        for indices in batches(len(self.data), self.batch_size, order)[self.batch :]:
            start = time.perf_counter()
            rng, when = init.of_step(self.seed, epoch, self.batch), f" in epoch {epoch + 1}, batch {self.batch + 1}"
            x, y = fetched("data", self.data, indices, rng, self.xp, f",{when}")
            outcome = self.gradients(self.model, self.loss, x, y)
            if not math.isfinite(outcome.loss):
                raise RuntimeError(
                    f"the loss is {outcome.loss}{when}: try a lower learning rate than {self.optimizer.lr:g}"
                )
            self.optimizer.step()
            self.tally.add(len(y), outcome.loss, outcome.right)
            self.tally.seconds += time.perf_counter() - start
            self.batch += 1
            bar.update(len(indices))
            bar.set_postfix(numbers("", self.tally), refresh=False)
            if self.every is not None and self.batch % self.every == 0:
                self.save()

    def _close_epoch(self, bar: Any) -> None:
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
            bar.set_postfix(numbers("", tally) | numbers("validation ", checked))
        self._note_best(watched)
        if self.schedule is not None:
            self.schedule.step()
        self.batch, self.tally = 0, Tally()

    def _try_validation(self) -> None:
        """Look at the first validation samples, so that what does not fit is known before an epoch is spent."""
        if self.validation is None:
            return
        try:
            self._validate(self.validation, most=1)
        except (ValueError, TypeError) as error:
            if str(error).startswith("validation"):
                raise
            raise type(error)(f"validation does not fit the network or the loss: {error}") from error

    def _validate(self, data: Dataset, most: int | None = None) -> Tally:
        """Loss and accuracy of the validation samples, or of so many batches of them."""
        tally = Tally()
        with _evaluating(self.model):
            for x, y in itertools.islice(evaluation_batches("validation", data, self.batch_size, self.xp), most):
                prediction = self.model(x)
                tally.add(len(y), self.loss(prediction, y), right_classes(prediction, y))
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
