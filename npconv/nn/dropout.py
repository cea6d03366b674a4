"""Layers that drop some of their input at random."""

from __future__ import annotations

from npconv.nn import init
from npconv.nn.arguments import Array, check_shape, floating, fraction
from npconv.nn.module import Module


class Dropout(Module):
    """Set each element to zero with probability `p` and divide the others by ``1 - p``; nothing in evaluation mode.

    Parameters
    ----------
    p : float
        From 0 to 1.
    rng : int, numpy.random.Generator or None
        Where the choice comes from: a seed, or a generator to share among layers. Every forward pass in training mode
        draws one number in float32 for each element of its input.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps an array of any shape and of a floating dtype to one of that shape and dtype. The choice is drawn on the host,
    so that one seed drops the same elements on every device.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, *Dropout: a simple way to prevent neural
    networks from overfitting*, JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Dropout(0.5, rng=0)
    >>> y = layer(np.ones(1000))
    >>> np.unique(y), bool((layer.backward(np.ones(1000)) == y).all())
    (array([0., 2.]), True)
    >>> layer.eval()(np.ones(3))
    array([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, *, rng: init.Rng = None) -> None:
        self.p = fraction("p", p)
        self._rng = init.generator(rng)

    def forward(self, x: Array) -> Array:
        """Drop elements in training mode; in evaluation mode return `x` itself.

        Parameters
        ----------
        x : array
            Of a floating dtype.

        Returns
        -------
        array
            Of the shape and dtype of `x`.

        Raises
        ------
        TypeError
            If `x` is not such an array.
        """
        xp = floating("x", x)
        if not self.training:
            return x
        # Multiples of 2**-24 in [0, 1): p=0 keeps and p=1 drops every element.
        stays = xp.asarray(self._rng.random(x.shape, dtype="float32") >= self.p)
        self.keep(stays)
        return self._masked(x, stays)

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        stays = self.recall()
        check_shape("dy", dy, stays.shape, "that of the result")
        return self._masked(dy, stays)

    def _masked(self, value: Array, stays: Array) -> Array:
        xp = floating("dy", value)
        return xp.where(stays, value / (1 - self.p) if self.p < 1 else value, 0)

    def describe(self) -> str:
        """Return the probability."""
        return f"p={self.p}"
