"""Batch normalisation by the batch's own statistics, with an activation after it, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv import epilogue
from npconv.arrays import Array, Backend, Operands, check_shape, compute_dtype
from npconv.geometry import choice

Pullback = Callable[[Array], tuple[Array, Array | None, Array | None]]

ACTIVATIONS = (None, "relu", "relu6")


def batch_norm_vjp(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> tuple[Array, Array, Array, Pullback]:
    """Bring each channel to mean 0 and variance 1 over the batch, scale and move it; and the vector-Jacobian product.

    Parameters
    ----------
    x : array
        ``(N, C, *spatial)``, of a floating dtype.
    weight, bias : array, optional
        ``(C,)``, both or neither. None of these may be changed until the pullback has been called.
    eps : float
        Added to the variance under the root.
    activation : {None, "relu", "relu6"}
        Applied in the same pass over the memory.
    backend : str, optional
        As for `npconv.conv`.

    Returns
    -------
    y : array
        ``activation((x - mean) / sqrt(var + eps) * weight + bias)``, of the shape of `x`.
    mean, var : array
        ``(C,)``: over all axes but the channels', the variance biased. An empty batch has mean 0 and variance 1.
    pullback : callable
        ``dx, dweight, dbias = pullback(dy)``; the last two are None without `weight` and `bias`. The batch's mean and
        variance are functions of `x`, too, and their share is in `dx`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    References
    ----------
    S. Ioffe, C. Szegedy, *Batch normalization: accelerating deep network training by reducing internal covariate
    shift*, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, mean, var, pullback = nc.batch_norm_vjp(np.array([[1.0, 5.0], [3.0, 9.0]]), eps=0.0)
    >>> y, mean, var
    (array([[-1., -1.],
           [ 1.,  1.]]), array([2., 7.]), array([1., 4.]))
    >>> pullback(np.array([[1.0, 0.0], [1.0, 0.0]]))
    (array([[0., 0.],
           [0., 0.]]), None, None)
    """
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias must be given both or not at all")
    choice("activation", activation, ACTIVATIONS)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and zero or more, got {eps!r:.60}")
    given = {"x": x} if weight is None else {"x": x, "weight": weight, "bias": bias}
    operands = Operands(backend, **given)
    shape = operands.shape("x")
    if len(shape) < 2:
        raise ValueError(f"x must have at least 2 dimensions, (N, C, *spatial), got shape {shape}")
    if operands.dtype.kind != "f":
        raise TypeError(f"x, weight and bias must be of a floating dtype, got {operands.dtype}")
    for name in list(given)[1:]:
        check_shape(name, operands.shape(name), shape[1:2], "one element per channel")
    # As an image of one axis; everything else is the same whatever the number of dimensions.
    flat = (*shape[:2], math.prod(shape[2:]))
    form = _Form(operands.backend, activation, float(eps))
    parameters = _parameters(operands, shape[1], operands.compute_dtype)
    x_ = operands.load("x").reshape(flat)
    y_, mean, var = form.forward(x_, *parameters)

    def pullback(dy: Array) -> tuple[Array, Array | None, Array | None]:
        grads = operands.companion(dy=dy)
        check_shape("dy", grads.shape("dy"), shape, "that of the result")
        dtype = np.result_type(grads.dtype, operands.dtype)
        wide = compute_dtype(dtype)
        values = (x_, *parameters, mean, var)
        dx, *rest = form.backward(
            grads.load("dy", wide).reshape(flat), *(value.astype(wide, copy=False) for value in values)
        )
        dweight, dbias = (None, None) if weight is None else (grads.deliver(grad, dtype=dtype) for grad in rest)
        return grads.deliver(dx.reshape(shape), dtype=dtype), dweight, dbias

    wide = operands.compute_dtype
    delivered = operands.deliver(y_.reshape(shape))
    return delivered, operands.deliver(mean, dtype=wide), operands.deliver(var, dtype=wide), pullback


def _parameters(operands: Operands, channels: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Weight and bias as they are computed with; ones and zeros where there are none."""
    if operands.has("weight"):
        return operands.load("weight"), operands.load("bias")
    xp = operands.backend.xp
    return xp.ones(channels, dtype), xp.zeros(channels, dtype)


class _Form:
    """The arithmetic on ``(N, C, S)``: by compiled loops where the backend has them, else by whole arrays."""

    def __init__(self, backend: Backend, activation: str | None, eps: float) -> None:
        self.backend, self.activation, self.eps = backend, activation, eps
        self.compiled = hasattr(backend.kernels, "batch_norm")

    def forward(self, x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
        """Return the result, the mean and the variance."""
        xp = self.backend.xp
        if not x.size:
            return xp.empty_like(x), xp.zeros(x.shape[1], x.dtype), xp.ones(x.shape[1], x.dtype)
        if self.compiled:
            y, mean, var = xp.empty_like(x), xp.empty_like(weight), xp.empty_like(weight)
            self.backend.kernels.batch_norm(x, weight, bias, y, mean, var, self.eps, self.activation)  # type: ignore[union-attr]
            return y, mean, var
        mean = x.mean(axis=(0, 2))
        y = x - mean[:, None]
        var = (y * y).mean(axis=(0, 2))
        y *= (weight / xp.sqrt(var + self.eps))[:, None]
        y += bias[:, None]
        return epilogue.activate(self.backend, y, self.activation), mean, var

    def backward(
        self, dy: Array, x: Array, weight: Array, bias: Array, mean: Array, var: Array
    ) -> tuple[Array, Array, Array]:
        """Return the gradients in `x`, the weight and the bias."""
        xp = self.backend.xp
        if self.compiled and x.size:
            dx, dweight, dbias = xp.empty_like(x), xp.empty_like(weight), xp.empty_like(weight)
            self.backend.kernels.batch_norm_grad(  # type: ignore[union-attr]
                dy, x, weight, bias, mean, var, self.eps, self.activation, dx, dweight, dbias
            )
            return dx, dweight, dbias
        scale = 1 / xp.sqrt(var + self.eps)
        normed = x - mean[:, None]
        if self.activation is not None:
            # Rounded as in the forward pass, so that both see the same corners; nobody has to keep the result.
            before = normed * (weight / xp.sqrt(var + self.eps))[:, None]
            before += bias[:, None]
            dy = xp.where(epilogue.slope(self.backend, before, self.activation) > 0, dy, 0)
        normed *= scale[:, None]
        dweight, dbias = (dy * normed).sum(axis=(0, 2)), dy.sum(axis=(0, 2))
        count = max(x.shape[0] * x.shape[2], 1)
        dx = dy - (dbias / count)[:, None]
        dx -= normed * (dweight / count)[:, None]
        dx *= (weight * scale)[:, None]
        return dx, dweight, dbias
