"""Normalisation layers."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

import npconv as nc
from npconv.nn import init
from npconv.nn.arguments import Array, check_shape, flag, floating, fraction, positive, rate, widened
from npconv.nn.module import Buffer, Module, Parameter


class BatchNorm(Module):
    """Batch normalisation over any number of dimensions: each channel to mean 0 and variance 1, then scaled and moved.

    `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are the same with the number of dimensions fixed.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        Added to the variance under the root.
    momentum : float or None
        Share of the newest batch in the running statistics, from 0 to 1; None averages over all batches alike.
    affine : bool
        Whether scale and offset are learned.
    track_running_stats : bool
        Whether running statistics are kept. Without them evaluation mode normalises by the batch as well.
    dtype : {"float32", "float64", "float16"}

    Attributes
    ----------
    weight, bias : Parameter or None
        ``(num_features,)``; ones and zeros at first.
    running_mean, running_var : Buffer or None
        ``(num_features,)``; zeros and ones at first. The variance is the unbiased one.
    num_batches_tracked : Buffer or None
        Batches seen in training mode, an integer.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, num_features, *spatial)`` to the same shape. In training mode it normalises by the mean and the biased
    variance of the batch, taken over all axes but the channels', and moves the running statistics:
    ``running = (1 - momentum) * running + momentum * batch``. In evaluation mode it normalises by the running
    statistics. float16 is computed in float32. An empty batch changes no statistics.

    References
    ----------
    S. Ioffe, C. Szegedy, *Batch normalization: accelerating deep network training by reducing internal covariate
    shift*, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.BatchNorm(2, eps=0.0, dtype="float64")
    >>> layer(np.array([[1.0, 5.0], [3.0, 9.0]]))
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> layer.running_mean.value, layer.running_var.value
    (array([0.2, 0.7]), array([1.1, 1.7]))
    >>> layer.backward(np.array([[1.0, 0.0], [1.0, 0.0]])), layer.bias.grad
    (array([[0., 0.],
           [0., 0.]]), array([2., 0.]))
    """

    ndims: ClassVar[tuple[int, ...] | None] = None
    """Numbers of axes that an input may have; None allows any from 2 on."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.num_features = positive("num_features", num_features)
        self.eps = rate("eps", eps)
        self.momentum = None if momentum is None else fraction("momentum", momentum)
        ones = init.constant((self.num_features,), 1, dtype=dtype)
        self.weight: Parameter | None = None
        self.bias: Parameter | None = None
        if flag("affine", affine):
            self.weight, self.bias = Parameter(ones), Parameter(0 * ones)
        self.running_mean: Buffer | None = None
        self.running_var: Buffer | None = None
        self.num_batches_tracked: Buffer | None = None
        if flag("track_running_stats", track_running_stats):
            self.running_mean, self.running_var = Buffer(0 * ones), Buffer(ones.copy())
            self.num_batches_tracked = Buffer(init.constant((), 0, dtype="int64"))

    def forward(self, x: Array) -> Array:
        """Normalise.

        Parameters
        ----------
        x : array
            ``(N, num_features, *spatial)``, of a floating dtype.

        Returns
        -------
        array
            Of the shape of `x`; its dtype is the wider one of `x` and `weight`.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit, or if its channels have a single element each where the batch decides.
        """
        return self.activated(x, None)

    def activated(self, x: Array, activation: str | None) -> Array:
        """Normalise and, in the same pass, apply an activation of `npconv.batch_norm_vjp`; see `forward`."""
        xp = self._check(x)
        weight, bias = (None if part is None else part.value for part in (self.weight, self.bias))
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None or self.training:
            y, batch_mean, batch_var, pullback = nc.batch_norm_vjp(x, weight, bias, self.eps, activation=activation)
            count = x.size // self.num_features
            if self.training and count:
                self._track(xp, batch_mean, batch_var * (count / (count - 1)))
            self.keep((pullback, tuple(x.shape)))
            return y
        per_channel = (1, -1) + (1,) * (x.ndim - 2)
        dtype = x.dtype if weight is None else xp.result_type(x.dtype, weight.dtype)
        gain = 1 / xp.sqrt(widened(xp, var.value) + self.eps)
        gain = gain if weight is None else gain * weight
        y = (widened(xp, x.astype(dtype, copy=False)) - mean.value.reshape(per_channel)) * gain.reshape(per_channel)
        y = y if bias is None else y + bias.reshape(per_channel)
        return y.astype(dtype, copy=False)

    def _check(self, x: Array) -> ModuleType:
        xp = floating("x", x)
        if x.ndim < 2 or x.ndim not in (self.ndims or (x.ndim,)):
            wanted = " or ".join(map(str, self.ndims)) if self.ndims else "at least 2"
            raise ValueError(f"x must have {wanted} dimensions, (N, C, *spatial), got shape {x.shape}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} channels, as num_features says; got shape {x.shape}")
        if x.size == self.num_features and (self.training or self.running_mean is None):
            raise ValueError(f"x must have more than one element per channel to normalise by them, got shape {x.shape}")
        return xp

    def _track(self, xp: ModuleType, mean: Array, var: Array) -> None:
        """Move the running statistics towards those of the batch."""
        if self.num_batches_tracked is None:
            return
        # A sum with a 0-d array is a scalar, which would not be state.
        self.num_batches_tracked.value = xp.asarray(self.num_batches_tracked.value + 1)
        share = 1 / float(self.num_batches_tracked.value) if self.momentum is None else self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            if running is not None:
                moved = (1 - share) * widened(xp, running.value) + share * batch
                running.value = moved.astype(running.value.dtype, copy=False)

    def backward(self, dy: Array) -> Array:
        """Add to the gradients of weight and bias, and return the input's; see `Module.backward`."""
        pullback, shape = self.recall()
        check_shape("dy", dy, shape, "that of the result")
        floating("dy", dy)
        dx, along, total = pullback(dy)
        if self.weight is not None and self.bias is not None:
            self.weight.accumulate(along)
            self.bias.accumulate(total)
        return dx.astype(dy.dtype, copy=False)

    def describe(self) -> str:
        """Return the channels, and what is not at its default."""
        off = ", affine=False" if self.weight is None else ""
        off += ", track_running_stats=False" if self.running_mean is None else ""
        return f"{self.num_features}" + self._unusual(eps=1e-5, momentum=0.1) + off


class BatchNorm1d(BatchNorm):
    """`BatchNorm` for features, ``(N, C)``, and signals, ``(N, C, length)``.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, dtype
        As for `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.BatchNorm1d(3)
    >>> list(layer.state_dict())
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    >>> layer.eval()(np.zeros((1, 3, 7), "float32")).shape
    (1, 3, 7)
    """

    ndims = (2, 3)


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for images, ``(N, C, H, W)``.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, dtype
        As for `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> x = np.random.default_rng(0).normal(3, 2, (8, 4, 10, 10))
    >>> y = nc.nn.BatchNorm2d(4)(x)
    >>> bool(abs(y.mean(axis=(0, 2, 3))).max() < 1e-6), bool(abs(y.std(axis=(0, 2, 3)) - 1).max() < 1e-5)
    (True, True)
    """

    ndims = (4,)


class BatchNorm3d(BatchNorm):
    """`BatchNorm` for volumes, ``(N, C, D, H, W)``.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, dtype
        As for `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.BatchNorm3d(2)(np.ones((1, 2, 3, 4, 5), "float32")).shape
    (1, 2, 3, 4, 5)
    """

    ndims = (5,)
