"""The textbook's functions on channels, under the names that *Dive into Deep Learning* gives them.

One image, no batch: ``(h, w)`` or ``(channels, h, w)``. Everything here is written with the public face, as a reader
would write it.

References
----------
A. Zhang, Z. Lipton, M. Li, A. Smola, *Dive into Deep Learning*, chapter "Convolutional Neural Networks": "Convolutions
for Images" (`corr2d`, learning a kernel), "Padding and Stride" (`comp_conv2d`) and "Multiple Input and Multiple Output
Channels" (the others). https://d2l.ai/chapter_convolutional-neural-networks/channels.html
"""

# ruff: noqa: N803, N806 - the textbook writes X, K and Y

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

import npconv as nc

Array = Any

_IMAGE_FORMS = {2: "(h, w)", 3: "(channels, h, w)"}
_KERNEL_FORMS = {2: "(kh, kw)", 3: "(channels, kh, kw)", 4: "(out_channels, channels, kh, kw)"}


def corr2d(X: Array, K: Array) -> Array:
    """Cross-correlate an image with a kernel: slide the kernel over it, multiply, sum.

    Parameters
    ----------
    X : array of shape (h, w)
    K : array of shape (kh, kw)

    Returns
    -------
    array of shape (h - kh + 1, w - kw + 1)
        In the dtype of ``numpy.result_type(X, K)``: integers stay integers.

    Raises
    ------
    ValueError
        If a shape is not what is described here, or `K` is larger than `X`.
    TypeError
        If an argument is not an array of numbers.

    Examples
    --------
    >>> from npconv import d2l
    >>> d2l.corr2d(np.arange(9).reshape(3, 3), np.arange(4).reshape(2, 2))
    array([[19, 25],
           [37, 43]])
    """
    _check(X, 2, K, 2)
    return nc.conv2d(X[None], K[None, None])[0]


def corr2d_multi_in(X: Array, K: Array) -> Array:
    """Cross-correlate several input channels, each with its own kernel, and sum the results.

    Parameters
    ----------
    X : array of shape (channels, h, w)
    K : array of shape (channels, kh, kw)

    Returns
    -------
    array of shape (h - kh + 1, w - kw + 1)

    Raises
    ------
    ValueError, TypeError
        As for `corr2d`; also if `X` and `K` differ in their number of channels.

    Examples
    --------
    >>> from npconv import d2l
    >>> image = np.arange(9).reshape(3, 3)
    >>> kernel = np.arange(4).reshape(2, 2)
    >>> d2l.corr2d_multi_in(np.stack([image, image + 1]), np.stack([kernel, kernel + 1]))
    array([[ 56,  72],
           [104, 120]])
    """
    _check(X, 3, K, 3)
    return nc.conv2d(X, K[None])[0]


def corr2d_multi_in_out(X: Array, K: Array) -> Array:
    """Cross-correlate several input channels with several kernels, one for each output channel.

    Parameters
    ----------
    X : array of shape (channels, h, w)
    K : array of shape (out_channels, channels, kh, kw)

    Returns
    -------
    array of shape (out_channels, h - kh + 1, w - kw + 1)

    Raises
    ------
    ValueError, TypeError
        As for `corr2d_multi_in`.

    Examples
    --------
    >>> from npconv import d2l
    >>> image = np.arange(9).reshape(3, 3)
    >>> kernel = np.arange(4).reshape(2, 2)
    >>> X, K = np.stack([image, image + 1]), np.stack([kernel, kernel + 1])
    >>> d2l.corr2d_multi_in_out(X, np.stack([K, K + 1, K + 2]))
    array([[[ 56,  72],
            [104, 120]],
           [[ 76, 100],
            [148, 172]],
           [[ 96, 128],
            [192, 224]]])
    """
    _check(X, 3, K, 4)
    return nc.conv2d(X, K)


def corr2d_multi_in_out_1x1(X: Array, K: Array) -> Array:
    """Convolve with 1x1 kernels, written as what it is: a matrix product over the channels, the same at every pixel.

    Parameters
    ----------
    X : array of shape (channels, h, w)
    K : array of shape (out_channels, channels, 1, 1)

    Returns
    -------
    array of shape (out_channels, h, w)
        What `corr2d_multi_in_out` gives, up to the rounding of a sum that is taken in another order.

    Raises
    ------
    ValueError, TypeError
        As for `corr2d_multi_in`; also if the kernels are not 1x1.

    Examples
    --------
    >>> from npconv import d2l
    >>> X = np.arange(12).reshape(3, 2, 2)
    >>> K = np.array([[1, 0, 0], [1, 1, 1]]).reshape(2, 3, 1, 1)
    >>> d2l.corr2d_multi_in_out_1x1(X, K)
    array([[[ 0,  1],
            [ 2,  3]],
           [[12, 15],
            [18, 21]]])
    """
    _check(X, 3, K, 4)
    if tuple(K.shape[2:]) != (1, 1):
        raise ValueError(f"K must have shape (out_channels, channels, 1, 1), got {tuple(K.shape)}")
    (channels, h, w), outputs = X.shape, K.shape[0]
    return (K.reshape(outputs, channels) @ X.reshape(channels, h * w)).reshape(outputs, h, w)


def comp_conv2d(conv2d: Any, X: Array) -> Array:
    """Call a two-dimensional layer on one image, without its batch and channel axes.

    Parameters
    ----------
    conv2d : callable, or object with a method ``forward``
        Takes and returns arrays of shape ``(1, 1, h, w)``.
    X : array of shape (h, w)

    Returns
    -------
    array of shape (h_out, w_out)

    Raises
    ------
    ValueError
        If `X` is not an image, or what `conv2d` returns is not one image of one channel.
    TypeError
        If `conv2d` cannot be called.

    Examples
    --------
    >>> import npconv as nc
    >>> from npconv import d2l
    >>> K = np.ones((1, 1, 3, 5))
    >>> d2l.comp_conv2d(lambda x: nc.conv2d(x, K, padding=(0, 1), stride=(3, 4)), np.ones((8, 8))).shape
    (2, 2)
    """
    layer = conv2d if callable(conv2d) else getattr(conv2d, "forward", None)
    if not callable(layer):
        raise TypeError(f"conv2d must be callable or have a method forward, got {_type_name(conv2d)}")
    _check_array("X", X, "(h, w)", 2)
    Y = layer(X[None, None])
    shape = tuple(getattr(Y, "shape", ()))
    if len(shape) != 4 or shape[:2] != (1, 1):
        raise ValueError(f"conv2d must return an array of shape (1, 1, h, w), got {shape or _type_name(Y)}")
    return Y[0, 0]


def learn_kernel(
    X: Array,
    Y: Array,
    kernel_size: int | tuple[int, int],
    lr: float | None = None,
    steps: int = 500,
    rng: int | np.random.Generator | None = None,
) -> tuple[Array, list[float]]:
    """Find the kernel that turns `X` into `Y`, by gradient descent on the squared error ``sum((corr2d(X, K) - Y)**2)``.

    Parameters
    ----------
    X : NumPy array of shape (h, w), or (n, h, w) for several examples
        Integers or real floating-point numbers; everything is computed in float64.
    Y : NumPy array of shape (h - kh + 1, w - kw + 1), or (n, h - kh + 1, w - kw + 1)
        What the kernel should make of `X`.
    kernel_size : int or (int, int)
    lr : float, optional
        The learning rate: each step subtracts `lr` times the gradient. By default the inverse of the error's largest
        curvature, with which no step can make the error larger. From twice that on the steps diverge; it is refused.
    steps : int
        Number of steps, zero or more.
    rng : None, int or numpy.random.Generator
        Where the random kernel to start from comes from: a generator, or a seed for one.

    Returns
    -------
    kernel : array of shape (kh, kw)
    losses : list of float
        The squared error before every step and after the last one: ``steps + 1`` numbers that, but for rounding, never
        rise.

    Raises
    ------
    ValueError
        If a shape is not what is described here; if `X` or `Y` holds infinities, NaNs, or numbers whose squares are
        infinite; if `X` is zero everywhere, so that nothing can be learned from it; if `lr` is not positive, or so
        large that the steps would diverge.
    TypeError
        If an argument is of another kind than described here.

    Notes
    -----
    The squared error is quadratic in the kernel, with the Hessian ``2 A.T @ A`` where ``A @ K`` is ``corr2d(X, K)``.
    For each tap of the kernel, a convolution and the weight gradient of its result give a row of ``A.T @ A``, and the
    eigenvalues say which steps are safe. A direction of small eigenvalue (kernels to which `X` hardly responds) is
    learned slowly, one of eigenvalue zero not at all.

    References
    ----------
    *Dive into Deep Learning*, "Convolutions for Images", section "Learning a Kernel".

    Examples
    --------
    The edge detector, from a black bar on white and its edges:

    >>> from npconv import d2l
    >>> X = np.ones((6, 8))
    >>> X[:, 2:6] = 0
    >>> Y = d2l.corr2d(X, np.array([[1.0, -1.0]]))
    >>> K, losses = d2l.learn_kernel(X, Y, (1, 2), rng=0)
    >>> bool(np.allclose(K, [[1, -1]])), losses[-1] < 1e-12
    (True, True)
    """
    kernel_h, kernel_w = _kernel_size(kernel_size)
    x, y = _examples("X", X), _examples("Y", Y)
    expected = (*x.shape[:-2], x.shape[-2] - kernel_h + 1, x.shape[-1] - kernel_w + 1)
    if min(expected[-2:]) < 1:
        raise ValueError(f"kernel_size {(kernel_h, kernel_w)} is larger than X of shape {x.shape}")
    if y.shape != expected:
        raise ValueError(
            f"Y must have shape {expected}, what kernel_size {(kernel_h, kernel_w)} makes of X of shape {x.shape}; "
            f"got {y.shape}"
        )
    steps = _integer("steps", steps, 0)
    images, targets = (value.reshape(-1, 1, *value.shape[-2:]) for value in (x, y))
    # What overflows is found by looking at the results: one error instead of many warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        rate = _learning_rate(lr, _curvature(images, kernel_h, kernel_w))
        kernel = _generator(rng).standard_normal((1, 1, kernel_h, kernel_w))
        return _descend(images, targets, kernel, rate, steps)


def _descend(images: Array, targets: Array, kernel: Array, rate: float, steps: int) -> tuple[Array, list[float]]:
    losses: list[float] = []
    while True:
        error = nc.conv2d(images, kernel) - targets
        losses.append(_finite("X and Y", float((error**2).sum())))
        if len(losses) > steps:
            return kernel[0, 0], losses
        kernel = kernel - rate * nc.conv_weight_grad(images, 2 * error, kernel.shape)


def _curvature(images: Array, kernel_h: int, kernel_w: int) -> float:
    """Largest second derivative of the squared error, over all directions in which a kernel can change."""
    taps = np.eye(kernel_h * kernel_w).reshape(-1, 1, 1, kernel_h, kernel_w)
    rows = [nc.conv_weight_grad(images, nc.conv2d(images, tap), tap.shape).ravel() for tap in taps]
    _finite("X", float(np.sum(rows)))
    return 2 * float(np.linalg.eigvalsh(rows)[-1])


def _finite(name: str, squares: float) -> float:
    if not math.isfinite(squares):
        raise ValueError(f"{name} must hold smaller numbers: the sum of their squares is infinite")
    return squares


def _learning_rate(lr: Any, curvature: float) -> float:
    if curvature < np.finfo(np.float64).tiny:
        raise ValueError("X must not be zero everywhere, nor have squares that are: no kernel can be learned from it")
    if lr is None:
        return 1 / curvature
    if isinstance(lr, bool) or not isinstance(lr, int | float | np.integer | np.floating):
        raise TypeError(f"lr must be a number or None, got {lr!r}")
    if not 0 < lr < 2 / curvature:
        raise ValueError(
            f"lr must be positive and, for this X, smaller than {2 / curvature:.6g}, or the steps diverge; got {lr!r}. "
            "Leave it out to have half of that"
        )
    return float(lr)


def _generator(rng: Any) -> np.random.Generator:
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng must be None, a seed or a numpy.random.Generator, got {rng!r}") from None


# --------------------------------------------------------------------------------------------------------------------
# Checking what callers give
# --------------------------------------------------------------------------------------------------------------------


def _check(X: Array, x_ndim: int, K: Array, k_ndim: int) -> None:
    _check_array("X", X, _IMAGE_FORMS[x_ndim], x_ndim)
    _check_array("K", K, _KERNEL_FORMS[k_ndim], k_ndim)
    if _kind(X) == _kind(K) == "b":
        raise TypeError("X and K must hold numbers, at least one of them; got two boolean arrays")
    x_shape, k_shape = tuple(X.shape), tuple(K.shape)
    if x_ndim == 3 and x_shape[0] != k_shape[-3]:
        outputs = "out_channels, " if k_ndim == 4 else ""
        raise ValueError(
            f"K must have shape ({outputs}{x_shape[0]}, kh, kw), one kernel for each channel of X of shape {x_shape}; "
            f"got {k_shape}"
        )
    if any(k > n for k, n in zip(k_shape[-2:], x_shape[-2:], strict=True)):
        raise ValueError(f"K of shape {k_shape} is larger than X of shape {x_shape}")


def _check_array(name: str, value: Any, form: str, *ndims: int) -> None:
    shape = getattr(value, "shape", None)
    if shape is None:
        raise TypeError(f"{name} must be an array of shape {form}, got {_type_name(value)}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; fill it first")
    if _kind(value) not in "biufc":
        raise TypeError(f"{name} must hold numbers, got an array of {value.dtype}")
    if len(shape) not in ndims:
        raise ValueError(f"{name} must have shape {form}, got {tuple(shape)}")


def _kind(value: Any) -> str:
    """NumPy's letter for the kind of number that an array holds; arrays whose dtype has none are taken as they are."""
    return str(getattr(getattr(value, "dtype", None), "kind", "f"))


def _examples(name: str, value: Any) -> Array:
    """One image or several, in float64."""
    _check_array(name, value, "(h, w) or (n, h, w)", 2, 3)
    array = np.asarray(value)
    if _kind(array) == "c":
        raise TypeError(f"{name} must hold real numbers, got an array of {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got infinities or NaNs")
    return array.astype(np.float64)


def _kernel_size(value: Any) -> tuple[int, int]:
    items = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(items) != 2:
        raise ValueError(f"kernel_size must be an integer or (kh, kw), got {value!r}")
    return _integer("kernel_size", items[0], 1), _integer("kernel_size", items[1], 1)


def _integer(name: str, value: Any, minimum: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} ({_type_name(value)})") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return number


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
