"""Elementwise layers."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

from npconv.nn.arguments import Array, check_shape, floating, namespace, widened
from npconv.nn.module import Module


class Rectifier(Module):
    """What the rectifiers share: the gradient goes where the result was not cut off."""

    activation: ClassVar[str]
    """The name under which npconv applies it in the same pass as the operation before it."""

    def applied(self) -> None:
        """Take note that the layer before has done this one's work, and will do it in the backward pass."""
        self.keep(None)

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        y = self.recall()
        if y is None:
            return dy
        check_shape("dy", dy, y.shape, "that of the result")
        return kept_where(namespace("dy", dy), self._passes(y), dy)

    def _passes(self, y: Array) -> Array:
        """Where a result was not cut off."""
        raise NotImplementedError


class ReLU(Rectifier):
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

    activation = "relu"

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
        self.keep(y)  # which the next layer keeps, too: a mask would be memory of its own
        return y

    def _passes(self, y: Array) -> Array:
        return y > 0


class ReLU6(Rectifier):
    """``min(max(x, 0), 6)``, elementwise. The gradient at 0 and at 6 is 0; a NaN stays one.

    Notes
    -----
    Maps an array of any shape to one of that shape.

    References
    ----------
    A. Howard et al., *MobileNets*, arXiv:1704.04861.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.ReLU6()
    >>> layer(np.array([-1.0, 2.0, 8.0]))
    array([0., 2., 6.])
    >>> layer.backward(np.array([10.0, 10.0, 10.0]))
    array([ 0., 10.,  0.])
    """

    activation = "relu6"

    def forward(self, x: Array) -> Array:
        """Cut off what is negative or above 6.

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
        y = namespace("x", x).clip(x, 0, 6)
        self.keep(y)
        return y

    def _passes(self, y: Array) -> Array:
        return (y > 0) & (y < 6)


class _Smooth(Module):
    """Elementwise functions of floating-point numbers. A subclass defines the value and the slope."""

    def forward(self, x: Array) -> Array:
        """Apply the function to every element.

        Parameters
        ----------
        x : array
            Of a floating dtype; float16 is computed in float32.

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
        y, slope = self._value_and_slope(xp, widened(xp, x))
        if self.training:
            self.keep(slope.astype(x.dtype, copy=False))
        return y.astype(x.dtype, copy=False)

    def _value_and_slope(self, xp: ModuleType, x: Array) -> tuple[Array, Array]:
        """Return the function and, in training mode, its derivative."""
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """Return the input's gradient; see `Module.backward`."""
        slope = self.recall()
        check_shape("dy", dy, slope.shape, "that of the result")
        return dy * slope


class Sigmoid(_Smooth):
    """``1 / (1 + exp(-x))``, elementwise, without overflow.

    Notes
    -----
    Maps an array of any shape and of a floating dtype to one of that shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Sigmoid()
    >>> layer(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    >>> layer.backward(np.array([4.0, 4.0, 4.0]))
    array([0., 1., 0.])
    """

    def _value_and_slope(self, xp: ModuleType, x: Array) -> tuple[Array, Array]:
        y, rest = sigmoid(xp, x)
        return y, y * rest if self.training else y


class SiLU(_Smooth):
    """``x * sigmoid(x)``, elementwise; also called swish.

    Notes
    -----
    Maps an array of any shape and of a floating dtype to one of that shape and dtype.

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, *Sigmoid-weighted linear units*, arXiv:1702.03118.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.SiLU()
    >>> layer(np.array([-1000.0, 0.0, 1000.0]))
    array([  -0.,    0., 1000.])
    >>> layer.backward(np.array([4.0, 4.0, 4.0]))
    array([0., 2., 4.])
    """

    def _value_and_slope(self, xp: ModuleType, x: Array) -> tuple[Array, Array]:
        s, rest = sigmoid(xp, x)
        y = x * s
        return y, s + y * rest if self.training else y


class Hardswish(_Smooth):
    """``x * min(max(x + 3, 0), 6) / 6``, elementwise: close to SiLU without an exponential.

    Notes
    -----
    Maps an array of any shape and of a floating dtype to one of that shape and dtype. The slope is 0 up to -3 and 1
    from 3 on, those two included.

    References
    ----------
    A. Howard et al., *Searching for MobileNetV3*, arXiv:1905.02244.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Hardswish()
    >>> layer(np.array([-4.0, 0.0, 1.5, 4.0]))
    array([-0.   ,  0.   ,  1.125,  4.   ])
    >>> layer.backward(np.array([1.0, 1.0, 1.0, 1.0]))
    array([0. , 0.5, 1. , 1. ])
    """

    def _value_and_slope(self, xp: ModuleType, x: Array) -> tuple[Array, Array]:
        y = x * (xp.clip(x + 3, 0, 6) / 6)
        return y, xp.where(x <= -3, 0, xp.where(x < 3, x / 3 + 0.5, 1)).astype(x.dtype) if self.training else y


def kept_where(xp: ModuleType, condition: Array, value: Array) -> Array:
    """``where(condition, value, 0)``: also where a value that is not kept is infinite or NaN."""
    word = f"i{value.dtype.itemsize}"
    if value.dtype.kind != "f" or word not in ("i2", "i4", "i8") or not value.flags.c_contiguous:
        return xp.where(condition, value, 0)
    # And-ing bits, which has no branch, is five times as fast as NumPy's where.
    bits = condition.astype(word)
    xp.negative(bits, out=bits)
    bits &= value.view(word)
    return bits.view(value.dtype)


def sigmoid(xp: ModuleType, x: Array) -> tuple[Array, Array]:
    """``sigmoid(x)`` and ``1 - sigmoid(x)``, each with its own small relative error and without overflow."""
    e = xp.exp(-abs(x))
    large, small = 1 / (1 + e), e / (1 + e)
    return xp.where(x >= 0, large, small), xp.where(x >= 0, small, large)
