"""Elementwise layers."""

from __future__ import annotations

from npconv.nn.arguments import Array, check_shape, namespace
from npconv.nn.module import Module


class ReLU(Module):
    """``max(x, 0)``, elementwise. The gradient at 0 is 0; a NaN stays one.

    Notes
    -----
    Maps an array of any shape to one of that shape.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.ReLU()
    >>> layer(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    >>> layer.backward(np.array([10.0, 10.0, 10.0]))
    array([ 0.,  0., 10.])
    """

    def forward(self, x: Array) -> Array:
        """Cut off what is negative.

        Parameters
        ----------
        x : array

        Returns
        -------
        array
            Of the shape and dtype of `x`.

        Raises
        ------
        TypeError
            If `x` is not an array.
        """
        y = namespace("x", x).maximum(x, 0)
        if self.training:
            self.keep(y > 0)
        return y

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        passed = self.recall()
        check_shape("dy", dy, passed.shape, "that of the result")
        return namespace("dy", dy).where(passed, dy, 0)
