"""Schedules: how the learning rate changes from step to step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from npconv.nn import init
from npconv.nn.arguments import Array, converted, positive, rate
from npconv.nn.optim import Optimizer


class LRScheduler:
    """A learning rate as a function of the number of steps, or epochs, taken. A subclass defines `at`.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rate is set now, and at every `step`.

    Attributes
    ----------
    base_lr : float
        The optimiser's learning rate before any schedule changed it.
    last_epoch : int
        Steps taken.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> class InverseRoot(nc.nn.LRScheduler):
    ...     def at(self, epoch):
    ...         return self.base_lr / (1 + epoch) ** 0.5
    >>> sgd = nc.nn.SGD([nc.nn.Parameter(np.ones(1))], lr=1.0)
    >>> schedule = InverseRoot(sgd)
    >>> for _ in range(3):
    ...     schedule.step()
    >>> sgd.lr
    0.5
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        if optimizer.initial_lr is None:
            optimizer.initial_lr = optimizer.lr
        self.optimizer = optimizer
        self.base_lr = optimizer.initial_lr
        self.last_epoch = 0
        optimizer.lr = self.at(0)

    def at(self, epoch: int) -> float:
        """Return the learning rate after so many steps.

        Parameters
        ----------
        epoch : int

        Returns
        -------
        float
        """
        raise NotImplementedError(f"{type(self).__name__} must define at(epoch)")

    def step(self) -> None:
        """Go one step on and set the optimiser's learning rate."""
        self.last_epoch += 1
        self.optimizer.lr = self.at(self.last_epoch)

    def state_dict(self) -> dict[str, Array]:
        """Return where the schedule stands.

        Returns
        -------
        dict of str to array
            ``"last_epoch"`` and ``"base_lr"``.
        """
        return {
            "last_epoch": init.constant((), self.last_epoch, dtype="int64"),
            "base_lr": init.constant((), self.base_lr, dtype="float64"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another schedule stood and set the optimiser's learning rate; a state that does not fit is refused.

        Parameters
        ----------
        state : mapping of str to array
            As `state_dict` returns it.

        Raises
        ------
        ValueError, TypeError
            If names, shapes or kinds of numbers do not fit; nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"state must have the names {sorted(own)}, got {sorted(map(str, state))}")
        values = {name: converted(name, state[name], like) for name, like in own.items()}
        for name, value in values.items():
            if value.ndim or value < 0:
                raise ValueError(f"{name!r} in state must be a number of zero or more, got {value!r:.60}")
        self._go(int(values["last_epoch"]), rate("base_lr", float(values["base_lr"])))
        self.optimizer.lr = self.at(self.last_epoch)

    def _go(self, last_epoch: int, base_lr: float) -> None:
        self.last_epoch, self.base_lr = last_epoch, base_lr
        self.optimizer.initial_lr = base_lr


class StepLR(LRScheduler):
    """Multiply the learning rate by `gamma` every `step_size` steps.

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
    gamma : float

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> sgd = nc.nn.SGD([nc.nn.Parameter(np.ones(1))], lr=8.0)
    >>> schedule = nc.nn.StepLR(sgd, step_size=2, gamma=0.5)
    >>> [schedule.at(epoch) for epoch in range(6)]
    [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = positive("step_size", step_size)
        self.gamma = rate("gamma", gamma)
        super().__init__(optimizer)

    def at(self, epoch: int) -> float:
        """Return the learning rate after so many steps; see `LRScheduler.at`."""
        return self.base_lr * self.gamma ** (epoch // self.step_size)


class CosineAnnealingLR(LRScheduler):
    """Fall from the learning rate to `eta_min` in `T_max` steps, along half a cosine, and rise again after that.

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
        Steps from the top to the bottom.
    eta_min : float

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    References
    ----------
    I. Loshchilov, F. Hutter, *SGDR: stochastic gradient descent with warm restarts*, arXiv:1608.03983.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> sgd = nc.nn.SGD([nc.nn.Parameter(np.ones(1))], lr=1.0)
    >>> schedule = nc.nn.CosineAnnealingLR(sgd, T_max=4)
    >>> [round(schedule.at(epoch), 4) for epoch in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:  # noqa: N803 (PyTorch's name)
        self.T_max = positive("T_max", T_max)
        self.eta_min = rate("eta_min", eta_min)
        super().__init__(optimizer)

    def at(self, epoch: int) -> float:
        """Return the learning rate after so many steps; see `LRScheduler.at`."""
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2


class LinearLR(LRScheduler):
    """Warm up: go in a straight line from one multiple of the learning rate to another, and stay there.

    Parameters
    ----------
    optimizer : Optimizer
    start_factor, end_factor : float
        Multiples of the learning rate at the start and after `total_iters` steps.
    total_iters : int

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    References
    ----------
    P. Goyal et al., *Accurate, large minibatch SGD: training ImageNet in 1 hour*, arXiv:1706.02677.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> sgd = nc.nn.SGD([nc.nn.Parameter(np.ones(1))], lr=8.0)
    >>> schedule = nc.nn.LinearLR(sgd, start_factor=0.25, total_iters=3)
    >>> [schedule.at(epoch) for epoch in range(5)]
    [2.0, 4.0, 6.0, 8.0, 8.0]
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = rate("start_factor", start_factor)
        self.end_factor = rate("end_factor", end_factor)
        self.total_iters = positive("total_iters", total_iters)
        super().__init__(optimizer)

    def at(self, epoch: int) -> float:
        """Return the learning rate after so many steps; see `LRScheduler.at`."""
        way = min(epoch, self.total_iters) / self.total_iters
        return self.base_lr * (self.start_factor + (self.end_factor - self.start_factor) * way)


class SequentialLR(LRScheduler):
    """One schedule after the other, such as a warm-up and then a cosine.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : sequence of LRScheduler
        All of the same optimiser. Each counts from 0 where it begins; only this schedule is stepped.
    milestones : sequence of int
        Where the second schedule begins, the third, and so on; increasing.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> sgd = nc.nn.SGD([nc.nn.Parameter(np.ones(1))], lr=8.0)
    >>> warm_up, fall = nc.nn.LinearLR(sgd, 0.5, total_iters=2), nc.nn.CosineAnnealingLR(sgd, T_max=2)
    >>> schedule = nc.nn.SequentialLR(sgd, [warm_up, fall], milestones=[2])
    >>> [round(schedule.at(epoch), 4) for epoch in range(5)]
    [4.0, 6.0, 8.0, 4.0, 0.0]
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        self.schedulers = list(schedulers)
        if not self.schedulers:
            raise ValueError("schedulers must not be empty")
        for number, schedule in enumerate(self.schedulers):
            if not isinstance(schedule, LRScheduler):
                raise TypeError(f"schedulers[{number}] must be an LRScheduler, got {type(schedule).__name__}")
            if schedule.optimizer is not optimizer:
                raise ValueError(f"schedulers[{number}] must belong to the same optimizer")
        self.milestones = [positive(f"milestones[{number}]", value) for number, value in enumerate(milestones)]
        if len(self.milestones) != len(self.schedulers) - 1 or self.milestones != sorted(set(self.milestones)):
            raise ValueError(
                f"milestones must be {len(self.schedulers) - 1} increasing numbers, one fewer than schedulers, "
                f"got {milestones!r:.60}"
            )
        super().__init__(optimizer)

    def at(self, epoch: int) -> float:
        """Return the learning rate after so many steps; see `LRScheduler.at`."""
        number = bisect.bisect_right(self.milestones, epoch)
        return self.schedulers[number].at(epoch - ([0, *self.milestones])[number])

    def _go(self, last_epoch: int, base_lr: float) -> None:
        super()._go(last_epoch, base_lr)
        for schedule in self.schedulers:
            schedule._go(schedule.last_epoch, base_lr)
