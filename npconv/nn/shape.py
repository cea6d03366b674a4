"""Layers that only rearrange their input."""

from __future__ import annotations

import math

from npconv.nn.arguments import Array, check_shape, namespace
from npconv.nn.module import Module


class Flatten(Module):
    """Flatten all axes but the first, between convolutions and fully connected layers.

    Notes
    -----
    Maps ``(N, ...)`` to ``(N, features)``. Like PyTorch's, it takes the first axis for the batch.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Flatten()
    >>> layer(np.zeros((2, 16, 5, 5))).shape
    (2, 400)
    >>> layer.backward(np.zeros((2, 400))).shape
    (2, 16, 5, 5)
    """

    def forward(self, x: Array) -> Array:
        """Flatten.

        Parameters
        ----------
        x : array
            ``(N, ...)``, with at least one axis after the first.

        Returns
        -------
        array
            ``(N, features)``.

        Raises
        ------
        ValueError, TypeError
            If `x` is not such an array.
        """
        namespace("x", x)
        if x.ndim < 2:
            raise ValueError(f"x must have at least 2 dimensions, (N, ...), got shape {x.shape}")
        self.keep(x.shape)
        return x.reshape(_flat(x.shape))

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        shape = self.recall()
        check_shape("dy", dy, _flat(shape), "that of the result")
        return dy.reshape(shape)


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
