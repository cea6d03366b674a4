"""Kernels ready made: Gaussian, box, Sobel, Laplace, Gabor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from npconv.arrays import Array
from npconv.filters.arguments import number
from npconv.filters.frame import Ints, named_axes
from npconv.filters.sums import only
from npconv.geometry import check_extent, integer, sequence


def gaussian(sigma: float | tuple[float, ...], truncate: float = 4.0, *, ndim: int | None = None) -> Array:
    """Gaussian kernel, that of `scipy.ndimage.gaussian_filter`.

    Parameters
    ----------
    sigma : float or tuple of float
        Standard deviation in elements, one for all dimensions or one each; 0 leaves an axis as it is.
    truncate : float
        Radius in standard deviations; it is rounded to whole elements, ``int(truncate * sigma + 0.5)``.
    ndim : int, optional
        Number of dimensions; that of a tuple `sigma`, otherwise 2.

    Returns
    -------
    numpy.ndarray
        float64, of odd sizes, with sum 1.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.gaussian(0.5, truncate=2.0, ndim=1).round(4)
    array([0.1065, 0.787 , 0.1065])
    """
    sigmas = [number("sigma", s, 0.0) for s in _each("sigma", sigma, ndim)]
    truncate = number("truncate", truncate, 0.0)
    radii = [int(_finite("truncate", truncate * s + 0.5)) for s in sigmas]
    check_extent("the kernel", tuple(2 * radius + 1 for radius in radii))
    lines = []
    for s, radius in zip(sigmas, radii, strict=True):
        position = np.arange(-radius, radius + 1)
        with np.errstate(over="ignore"):  # the weight of what is that far away is 0
            line = np.exp(-0.5 * (position / s) ** 2) if radius else np.ones(1)
        lines.append(line / line.sum())
    return _outer(lines)


def box(size: Ints, *, ndim: int | None = None) -> Array:
    """Kernel of equal weights, that of `scipy.ndimage.uniform_filter`.

    Parameters
    ----------
    size : int or tuple of int
        Elements, one for all dimensions or one each.
    ndim : int, optional
        Number of dimensions; that of a tuple `size`, otherwise 2.

    Returns
    -------
    numpy.ndarray
        float64, with sum 1.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.box((2, 1))
    array([[0.5],
           [0.5]])
    """
    sizes = check_extent("size", tuple(integer("size", n, 1) for n in _each("size", size, ndim)))
    return np.full(sizes, 1 / math.prod(sizes))


def sobel(axis: int = -1, *, ndim: int = 2) -> Array:
    """Sobel kernel, that of `scipy.ndimage.sobel`: a difference along one axis, smoothed along the others.

    Parameters
    ----------
    axis : int
        The axis of the derivative. As correlation it is positive where values rise.
    ndim : int
        Number of dimensions.

    Returns
    -------
    numpy.ndarray
        int64, 3 elements along each axis.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.sobel(0)
    array([[-1, -2, -1],
           [ 0,  0,  0],
           [ 1,  2,  1]])
    """
    ndim = _dimensions(ndim)
    (chosen,) = named_axes((axis,), ndim, "axis")
    return _outer([np.array([-1, 0, 1] if i == chosen else [1, 2, 1]) for i in range(ndim)])


def laplace(*, ndim: int = 2) -> Array:
    """Laplace kernel, that of `scipy.ndimage.laplace`: the sum of the second differences.

    Parameters
    ----------
    ndim : int
        Number of dimensions.

    Returns
    -------
    numpy.ndarray
        int64, 3 elements along each axis.

    Raises
    ------
    ValueError, TypeError
        If `ndim` is not a positive integer.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.laplace()
    array([[ 0,  1,  0],
           [ 1, -4,  1],
           [ 0,  1,  0]])
    """
    ndim = _dimensions(ndim)
    middle = [np.array([0, 1, 0])] * ndim
    lines = ([np.array([1, -2, 1]) if i == axis else line for i, line in enumerate(middle)] for axis in range(ndim))
    return sum(_outer(line) for line in lines)


def gabor(
    frequency: float,
    theta: float = 0.0,
    bandwidth: float = 1.0,
    sigma_x: float | None = None,
    sigma_y: float | None = None,
    n_stds: float = 3,
    offset: float = 0.0,
) -> Array:
    """Gabor kernel in two dimensions, `skimage.filters.gabor_kernel`: a plane wave under a Gaussian.

    Parameters
    ----------
    frequency : float
        Cycles per element.
    theta : float
        Direction of the wave in radians, from the second axis towards the first.
    bandwidth : float
        In octaves; gives the standard deviations that are not given.
    sigma_x, sigma_y : float, optional
        Standard deviations along the wave and across it, in elements.
    n_stds : float
        Radius in standard deviations.
    offset : float
        Phase of the wave at the centre, in radians.

    Returns
    -------
    numpy.ndarray
        complex128, of odd sizes.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.filters.gabor(0.25).shape
    (15, 15)
    """
    frequency = number("frequency", frequency, 0.0, 1e300, above=True)
    theta, offset = number("theta", theta, -1e300), number("offset", offset, -1e300)
    bandwidth, n_stds = number("bandwidth", bandwidth, 0.0, above=True), number("n_stds", n_stds, 0.0)
    if bandwidth > 1000:
        raise ValueError(f"bandwidth must be at most 1000 octaves, got {bandwidth!r}")
    octaves = math.log(2) * bandwidth
    usual = math.sqrt(math.log(2) / 2) / math.pi * (math.exp(octaves) + 1) / math.expm1(octaves) / frequency
    along = usual if sigma_x is None else number("sigma_x", sigma_x, 0.0, above=True)
    across = usual if sigma_y is None else number("sigma_y", sigma_y, 0.0, above=True)
    c, s = math.cos(theta), math.sin(theta)
    if not along * across > 0:
        raise ValueError(f"sigma_x and sigma_y must not be so small that their product is 0, got {along} and {across}")
    reach = (
        max(abs(n_stds * along * c), abs(n_stds * across * s)),
        max(abs(n_stds * across * c), abs(n_stds * along * s)),
    )
    rx, ry = (math.ceil(max(_finite("n_stds", far), 1)) for far in reach)
    check_extent("the kernel", (2 * ry + 1, 2 * rx + 1))
    y, x = np.ogrid[-ry : ry + 1, -rx : rx + 1]
    turned_x, turned_y = x * c + y * s, y * c - x * s
    with np.errstate(over="ignore"):
        envelope = -0.5 * ((turned_x / along) ** 2 + (turned_y / across) ** 2)
    wave = np.exp(envelope + 1j * (2 * math.pi * frequency * turned_x + offset))
    return wave / (2 * math.pi * along * across)


def _finite(name: str, radius: float) -> float:
    """A kernel's radius, in elements, which an argument times a standard deviation has given."""
    if not radius < 2**62:
        raise ValueError(f"{name} times the standard deviation must fit into 64 bits, got {radius:g} elements")
    return radius


def _dimensions(ndim: Any) -> int:
    count = integer("ndim", ndim, 1)
    if count > 32:
        raise ValueError(f"ndim must be at most 32, got {count}")
    return count


def _each(name: str, value: Any, ndim: Any) -> tuple[Any, ...]:
    """One value per dimension."""
    items = sequence(value)
    if items is None:
        return (value,) * (2 if ndim is None else _dimensions(ndim))
    if not items or (ndim is not None and len(items) != _dimensions(ndim)):
        raise ValueError(f"{name} must have one value for each dimension, got {value!r} for ndim={ndim}")
    return items


def _outer(lines: list[Any]) -> Any:
    """The outer product of one line per axis."""
    check_extent("the kernel", tuple(len(line) for line in lines))
    product: Any = np.ones((1,) * len(lines), lines[0].dtype)
    for axis, line in enumerate(lines):
        product = product * line.reshape(only(axis, (len(line),) * len(lines), 1))
    return product
