"""Optimisers: how a gradient becomes a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from npconv.nn import init
from npconv.nn.arguments import Array, converted, flag, namespace, rate, widened
from npconv.nn.module import Parameter


class Optimizer:
    """What all optimisers share: the parameters, the learning rate, one step for each. A subclass defines `update`.

    Parameters
    ----------
    parameters : iterable of Parameter
        Usually ``net.parameters()``.
    lr : float
        Learning rate, zero or more. It may be set again at any time, as a schedule does.

    Attributes
    ----------
    initial_lr : float or None
        The learning rate that schedules start from: that at which the first of them took over.

    Raises
    ------
    TypeError, ValueError
        If `parameters` are none or not parameters, all different, or `lr` is not such a number.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> class Sign(nc.nn.Optimizer):
    ...     def update(self, value, grad, state):
    ...         return value - self.lr * np.sign(grad)
    >>> p = nc.nn.Parameter(np.array([1.0, 1.0]))
    >>> p.accumulate(np.array([5.0, -0.1]))
    >>> Sign([p], lr=0.5).step()
    >>> p.value
    array([0.5, 1.5])
    """

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        if not isinstance(parameters, Iterable):
            raise TypeError(
                "parameters must be an iterable of Parameter, such as net.parameters(), "
                f"got {type(parameters).__name__}"
            )
        self.parameters = list(parameters)
        for number, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Parameter):
                raise TypeError(f"parameters[{number}] must be a Parameter, got {type(parameter).__name__}")
        if not self.parameters:
            raise ValueError("parameters must not be empty: there is nothing to learn")
        if len(set(map(id, self.parameters))) < len(self.parameters):
            raise ValueError("parameters must be all different: one that occurs twice would take two steps")
        self.lr = lr
        self.initial_lr: float | None = None
        self._state: list[dict[str, Any]] = [{} for _ in self.parameters]

    @property
    def lr(self) -> float:
        """Learning rate."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = rate("lr", value)

    def step(self) -> None:
        """Take one step: replace the value of every parameter that has a gradient."""
        for parameter, state in zip(self.parameters, self._state, strict=True):
            if parameter.grad is not None:
                value, xp = parameter.value, namespace("value", parameter.value)
                new = self.update(widened(xp, value), widened(xp, parameter.grad), state)
                parameter.value = new.astype(value.dtype, copy=False)

    def update(self, value: Array, grad: Array, state: dict[str, Any]) -> Array:
        """Compute one parameter's next value.

        Parameters
        ----------
        value, grad : array
            Neither is written into. Those of a float16 parameter come as float32, in which its state is kept, too:
            there the square of a small gradient is not zero.
        state : dict
            The parameter's own, empty before its first step; what is stored here is there at the next. What `slots`
            names is saved.

        Returns
        -------
        array
            Of the shape and dtype of `value`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(value, grad, state)")

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters; the next backward pass starts from none."""
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for every parameter from step to step: arrays of its shape, and ``"step"``, a count."""
        return ()

    def state_dict(self) -> dict[str, Array]:
        """Copies of the learning rate and of what is kept for each parameter, by the parameter's number.

        Returns
        -------
        dict of str to array
            ``"lr"``, and ``"0.exp_avg"`` and the like for parameters that have taken a step.

        Examples
        --------
        >>> import numpy as np
        >>> import npconv as nc
        >>> p = nc.nn.Parameter(np.zeros(2))
        >>> adam = nc.nn.Adam([p])
        >>> p.accumulate(np.ones(2))
        >>> adam.step()
        >>> list(adam.state_dict())
        ['lr', '0.step', '0.exp_avg', '0.exp_avg_sq']
        """
        entries = {"lr": init.constant((), self.lr, dtype="float64")}
        for number, state in enumerate(self._state):
            for slot in self.slots:
                if slot in state:
                    value = state[slot]
                    entries[f"{number}.{slot}"] = (
                        init.constant((), value, dtype="int64") if slot == "step" else value.copy()
                    )
        return entries

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the learning rate and what is kept for each parameter. Either everything fits, or nothing is changed.

        Parameters
        ----------
        state : mapping of str to array
            As `state_dict` returns it from an optimiser of the same kind, with the same parameters in the same order.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a shape does not match; all of them are named.
        TypeError
            If a value is no array, or of a kind of numbers that does not convert; it is named too.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
        scalars = {"lr": init.constant((), 0, dtype="float64"), "step": init.constant((), 0, dtype="int64")}
        likes = {("", "lr"): scalars["lr"]} | {
            (f"{number}.", slot): scalars.get(slot, widened(namespace("value", parameter.value), parameter.value))
            for number, parameter in enumerate(self.parameters)
            for slot in self.slots
        }
        started = {prefix for prefix, slot in likes if f"{prefix}{slot}" in state} | {""}
        wanted = {prefix + slot: like for (prefix, slot), like in likes.items() if prefix in started}
        problems = [f"{name!r} is missing" for name in wanted if name not in state]
        problems += [f"{name!r} is unknown" for name in state if name not in wanted]
        values = {name: converted(name, state[name], like) for name, like in wanted.items() if name in state}
        for name, value in values.items():
            if tuple(value.shape) != tuple(wanted[name].shape):
                problems.append(
                    f"{name!r} has shape {tuple(value.shape)} where {tuple(wanted[name].shape)} is expected"
                )
            elif name.endswith(".step") and value < 1:
                problems.append(f"{name!r} must be positive, got {int(value)}")
        if problems:
            raise ValueError(f"state does not fit this {type(self).__name__}: {'; '.join(problems)}")
        self.lr = float(values["lr"])
        self._state = [
            {slot: int(values[prefix + slot]) if slot == "step" else values[prefix + slot] for slot in self.slots}
            if prefix in started
            else {}
            for prefix in (f"{number}." for number in range(len(self.parameters)))
        ]


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum where wanted; every rule is PyTorch's.

    Parameters
    ----------
    parameters : iterable of Parameter
        Usually ``net.parameters()``.
    lr : float
        Learning rate.
    momentum : float
        Share of the last step's direction that is kept.
    nesterov : bool
        Look ahead along the momentum, which must then be positive.
    weight_decay : float
        Multiple of the value that is added to the gradient.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is not a finite number of zero or more; the message names it.

    Notes
    -----
    ``g = grad + weight_decay * value``, ``v = momentum * v + g`` (``v = g`` in the first step), then
    ``value -= lr * v``, with Nesterov's momentum ``value -= lr * (g + momentum * v)``.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl, G. Hinton, *On the importance of initialization and momentum in deep learning*,
    ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> p = nc.nn.Parameter(np.array([1.0]))
    >>> sgd = nc.nn.SGD([p], lr=0.25, momentum=0.5)
    >>> for _ in range(2):
    ...     sgd.zero_grad()
    ...     p.accumulate(np.array([1.0]))
    ...     sgd.step()
    ...     print(p.value)
    [0.75]
    [0.375]
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum = rate("momentum", momentum)
        self.nesterov = flag("nesterov", nesterov)
        self.weight_decay = rate("weight_decay", weight_decay)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a positive momentum, got momentum=0")

    def update(self, value: Array, grad: Array, state: dict[str, Any]) -> Array:
        """Compute one parameter's next value; see `Optimizer.update`."""
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        if self.momentum:
            if "momentum_buffer" in state:
                # In place: fresh memory for every parameter in every step costs more than the arithmetic.
                velocity = state["momentum_buffer"]
                velocity *= self.momentum
                velocity += grad
            else:
                velocity = state["momentum_buffer"] = grad.copy()
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        step = self.lr * grad
        return namespace("value", value).subtract(value, step, out=step)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for every parameter; see `Optimizer.slots`."""
        return ("momentum_buffer",) if self.momentum else ()
