"""Optimisers: how a gradient becomes a step."""

from __future__ import annotations

from collections.abc import Iterable

from npconv.nn.arguments import Array, flag, rate
from npconv.nn.module import Parameter


class Optimizer:
    """What all optimisers share: the parameters, the learning rate, one step for each. A subclass defines `update`.

    Parameters
    ----------
    parameters : iterable of Parameter
        Usually ``net.parameters()``.
    lr : float
        Learning rate, zero or more. It may be set again at any time, as a schedule does.

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
        self._state: list[dict[str, Array]] = [{} for _ in self.parameters]

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
                parameter.value = self.update(parameter.value, parameter.grad, state)

    def update(self, value: Array, grad: Array, state: dict[str, Array]) -> Array:
        """Compute one parameter's next value.

        Parameters
        ----------
        value, grad : array
            Neither is written into.
        state : dict
            The parameter's own, empty before its first step; what is stored here is there at the next.

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

    def update(self, value: Array, grad: Array, state: dict[str, Array]) -> Array:
        """Compute one parameter's next value; see `Optimizer.update`."""
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        if self.momentum:
            velocity = grad if "velocity" not in state else self.momentum * state["velocity"] + grad
            state["velocity"] = velocity
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        return value - self.lr * grad
