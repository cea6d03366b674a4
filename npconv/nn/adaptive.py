"""Optimisers that divide each element of a step by the size that its gradients had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from npconv.nn.arguments import Array, flag, fraction, namespace, rate
from npconv.nn.module import Parameter
from npconv.nn.optim import Optimizer


class Adam(Optimizer):
    """Steps along the mean gradient, each element divided by the root of its mean square; every rule is PyTorch's.

    Parameters
    ----------
    parameters : iterable of Parameter
        Usually ``net.parameters()``.
    lr : float
        Learning rate.
    betas : tuple of float
        Shares of the mean and of the mean square that are kept in a step, each from 0 to below 1.
    eps : float
        Added to the root.
    weight_decay : float
        Multiple of the value that is added to the gradient.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is not such a number; the message names it.

    Notes
    -----
    ``m = beta1 * m + (1 - beta1) * g``, ``v = beta2 * v + (1 - beta2) * g**2``, and in step ``t``
    ``value -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)``.

    References
    ----------
    D. Kingma, J. Ba, *Adam: a method for stochastic optimization*, arXiv:1412.6980.

    Examples
    --------
    The first step is `lr` long in every element:

    >>> import numpy as np
    >>> import npconv as nc
    >>> p = nc.nn.Parameter(np.zeros(2))
    >>> p.accumulate(np.array([5.0, -0.1]))
    >>> nc.nn.Adam([p], lr=0.5).step()
    >>> p.value.round(4)
    array([-0.5,  0.5])
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r:.60}")
        self.betas = tuple(fraction(f"betas[{i}]", beta, below_one=True) for i, beta in enumerate(betas))
        self.eps = rate("eps", eps)
        self.weight_decay = rate("weight_decay", weight_decay)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for every parameter; see `Optimizer.slots`."""
        return "step", "exp_avg", "exp_avg_sq"

    def update(self, value: Array, grad: Array, state: dict[str, Any]) -> Array:
        """Compute one parameter's next value; see `Optimizer.update`."""
        value, grad = self._decayed(value, grad)
        beta1, beta2 = self.betas
        step = state["step"] = state.get("step", 0) + 1
        xp = namespace("grad", grad)
        # One temporary for all, and what is kept changes in place: fresh memory costs more than the arithmetic.
        work = xp.multiply(grad, 1 - beta1, out=xp.empty_like(grad))
        mean = _moved(state, "exp_avg", beta1, work)
        xp.multiply(grad, grad, out=work)
        work *= 1 - beta2
        square = _moved(state, "exp_avg_sq", beta2, work)
        xp.sqrt(square, out=work)
        work /= (1 - beta2**step) ** 0.5
        work += self.eps
        xp.divide(mean, work, out=work)
        work *= self.lr / (1 - beta1**step)
        return xp.subtract(value, work, out=work)

    def _decayed(self, value: Array, grad: Array) -> tuple[Array, Array]:
        return value, grad + self.weight_decay * value if self.weight_decay else grad


def _moved(state: dict[str, Any], name: str, share: float, addend: Array) -> Array:
    """Return an array of the state after it was brought, in place, to ``share * array + addend``; it is 0 at first."""
    if name not in state:
        state[name] = addend.copy()
    else:
        state[name] *= share
        state[name] += addend
    return state[name]


class AdamW(Adam):
    """`Adam` whose weight decay shrinks the value itself, whatever the gradient; every rule is PyTorch's.

    Parameters
    ----------
    parameters, lr, betas, eps
        As for `Adam`.
    weight_decay : float
        Share of the value, times `lr`, that every step takes away.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is not such a number; the message names it.

    References
    ----------
    I. Loshchilov, F. Hutter, *Decoupled weight decay regularization*, arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> p = nc.nn.Parameter(np.array([8.0]))
    >>> p.accumulate(np.zeros(1))
    >>> nc.nn.AdamW([p], lr=0.5, weight_decay=0.5).step()
    >>> p.value
    array([6.])
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decayed(self, value: Array, grad: Array) -> tuple[Array, Array]:
        return value * (1 - self.lr * self.weight_decay), grad


class RMSprop(Optimizer):
    """Steps along the gradient, each element divided by the root of its mean square; every rule is PyTorch's.

    Parameters
    ----------
    parameters : iterable of Parameter
        Usually ``net.parameters()``.
    lr : float
        Learning rate.
    alpha : float
        Share of the mean square that is kept in a step, from 0 to 1.
    eps : float
        Added to the root.
    weight_decay : float
        Multiple of the value that is added to the gradient.
    momentum : float
        Share of the last step's direction that is kept.
    centered : bool
        Divide by the standard deviation: subtract the square of the mean gradient.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is not such a number; the message names it.

    References
    ----------
    T. Hinton, *Neural networks for machine learning*, lecture 6; A. Graves, *Generating sequences with recurrent neural
    networks*, arXiv:1308.0850, for the centred one.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> p = nc.nn.Parameter(np.zeros(2))
    >>> p.accumulate(np.array([5.0, -0.1]))
    >>> nc.nn.RMSprop([p], lr=0.5, alpha=0.75).step()
    >>> p.value.round(4)
    array([-1.,  1.])
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        self.alpha = fraction("alpha", alpha)
        self.eps = rate("eps", eps)
        self.weight_decay = rate("weight_decay", weight_decay)
        self.momentum = rate("momentum", momentum)
        self.centered = flag("centered", centered)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for every parameter; see `Optimizer.slots`."""
        return "square_avg", *(("grad_avg",) * self.centered), *(("momentum_buffer",) * bool(self.momentum))

    def update(self, value: Array, grad: Array, state: dict[str, Any]) -> Array:
        """Compute one parameter's next value; see `Optimizer.update`."""
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        square = state["square_avg"] = self.alpha * state.get("square_avg", 0) + (1 - self.alpha) * (grad * grad)
        if self.centered:
            mean = state["grad_avg"] = self.alpha * state.get("grad_avg", 0) + (1 - self.alpha) * grad
            square = square - mean * mean
        grad = grad / (namespace("grad", grad).sqrt(square) + self.eps)
        if self.momentum:
            grad = state["momentum_buffer"] = self.momentum * state.get("momentum_buffer", 0) + grad
        return value - self.lr * grad
