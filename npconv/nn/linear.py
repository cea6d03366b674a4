"""Fully connected layers."""

from __future__ import annotations

from typing import Any

from npconv.nn import init
from npconv.nn.arguments import Array, check_shape, flag, namespace, positive
from npconv.nn.module import Module, Parameter


class Linear(Module):
    """``y = x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Whether a learned number is added to each output.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from: a seed, or a generator to share among layers.
    dtype : {"float32", "float64", "float16"}

    Attributes
    ----------
    weight : Parameter
        ``(out_features, in_features)``.
    bias : Parameter or None
        ``(out_features,)``.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, in_features)`` to ``(N, out_features)``, with any number of axes in place of ``N``, none included.
    Weights and bias start uniform in ``[-b, b]``, ``b = 1 / sqrt(in_features)``, as PyTorch's do.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Linear(3, 2, rng=0, dtype="float64")
    >>> layer.load_state_dict({"weight": np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), "bias": np.array([0.5, 0.0])})
    >>> layer(np.array([[1.0, 1.0, 1.0]]))
    array([[6.5, 1. ]])
    >>> layer.backward(np.array([[1.0, 10.0]]))
    array([[ 1., 12.,  3.]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: init.Rng = None,
        dtype: Any = "float32",
    ) -> None:
        self.in_features = positive("in_features", in_features)
        self.out_features = positive("out_features", out_features)
        shape = (self.out_features, self.in_features)
        rng = init.generator(rng)
        bound = init.default_bound(shape)
        self.weight = Parameter(init.uniform(shape, bound, rng=rng, dtype=dtype))
        self.bias: Parameter | None = None
        if flag("bias", bias):
            self.bias = Parameter(init.uniform(shape[:1], bound, rng=rng, dtype=dtype))

    def forward(self, x: Array) -> Array:
        """Multiply by the weights.

        Parameters
        ----------
        x : array
            ``(..., in_features)``.

        Returns
        -------
        array
            ``(..., out_features)``.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        namespace("x", x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x must have {self.in_features} features on its last axis, as in_features says; got shape {x.shape}"
            )
        # The backward pass must use these weights even if an optimiser has replaced them by then.
        weight = self.weight.value
        y = x @ weight.T
        if self.bias is not None:
            y = y + self.bias.value
        self.keep((x, weight))
        return y

    def backward(self, dy: Array) -> Array:
        """Add to the gradients of weight and bias, and return the input's; see `Module.backward`."""
        weight = self._learn(dy)
        return dy @ weight

    def backward_parameters(self, dy: Array) -> None:
        """Add to the gradients of weight and bias; see `Module.backward_parameters`."""
        if type(self).backward is Linear.backward:
            self._learn(dy)
        else:  # a subclass may do more in its own
            self.backward(dy)

    def _learn(self, dy: Array) -> Array:
        """Add to the gradients of weight and bias; return the weights of the forward pass."""
        x, weight = self.recall()
        check_shape("dy", dy, (*x.shape[:-1], self.out_features), "that of the result")
        rows = dy.reshape(-1, self.out_features)
        self.weight.accumulate(rows.T @ x.reshape(-1, self.in_features))
        if self.bias is not None:
            self.bias.accumulate(rows.sum(axis=0))
        return weight

    def describe(self) -> str:
        """Return the arguments, those that are not at their defaults by name."""
        return f"{self.in_features}, {self.out_features}" + (", bias=False" if self.bias is None else "")
