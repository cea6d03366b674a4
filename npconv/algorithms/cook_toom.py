"""Cook-Toom transforms F(m, r): m neighbouring outputs of a kernel with r taps from n = m + r - 1 products, not m * r.

A correlation of n inputs d with r weights g is ``A^T [(G g) * (B^T d)]``. The matrices evaluate polynomials at n - 1
points and at infinity and interpolate their product; they are worked out in exact fractions. Tiles of several axes
nest: a matrix per axis.

A. Lavin and S. Gray, *Fast Algorithms for Convolutional Neural Networks*, arXiv:1509.09308; B. Barabasz et al., *Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks*, arXiv:1803.10986.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Rows = list[list[Fraction]]
Matrix = np.ndarray[Any, np.dtype[np.float64]]
Tile = tuple[tuple[int, int], ...]
"""``(m, r)`` per axis; an axis whose kernel has one tap is ``(1, 1)``, where nothing is transformed."""

_HALF = Fraction(1, 2)
POINTS: dict[int, tuple[Fraction | int, ...]] = {
    1: (),
    4: (0, 1, -1),
    5: (1, -1, _HALF, -_HALF),
    6: (0, 1, -1, _HALF, -2),
    8: (0, 1, -1, 2, -2, _HALF, -_HALF),
}
"""Interpolation points besides infinity, by the number n of products of a tile. Small numbers and their reciprocals,
since errors grow with their powers; powers of two, so that B^T and A^T are exact. With n = 10 errors would explode.
Five are for results of three, such as the phases of a large dilation; without 0 they are two pairs, and round less.
"""

SIZES = {kernel: tuple(n - kernel + 1 for n in POINTS if n > kernel) for kernel in range(2, 8)} | {1: (1,)}
"""The outputs m of a tile that there are points for, by the kernel's taps r."""

GROWTH_LIMIT = 2048.0
"""Largest `growth` of a tile that is used: F(6,3) and F(4,5) in two dimensions fit, F(4,3) in three does not."""


@dataclass(frozen=True, eq=False)
class Transforms:
    """The matrices of F(m, r): `at` is A^T (m x n), `g` is G (n x r), `bt` is B^T (n x n)."""

    at: Matrix
    g: Matrix
    bt: Matrix

    def absolute(self) -> Transforms:
        """The matrices of absolute values: what errors pass through."""
        return Transforms(np.abs(self.at), np.abs(self.g), np.abs(self.bt))


def exact_transforms(m: int, r: int) -> tuple[Rows, Rows, Rows]:
    """``(A^T, G, B^T)`` in fractions, with each pair of rows of G and B^T balanced by a power of two."""
    points = [Fraction(p) for p in POINTS[m + r - 1]]
    at = [[p**i for p in points] + [Fraction(i == m - 1)] for i in range(m)]
    g = [[p**j / _spread(p, points) for j in range(r)] for p in points] + [[Fraction(j == r - 1) for j in range(r)]]
    bt = [[*_product([q for q in points if q != p]), Fraction(0)] for p in points] + [_product(points)]
    for i, data in enumerate(bt):
        scale = _balance(data, _spread(points[i], points) if i < len(points) else Fraction(1))
        g[i], bt[i] = [v * scale for v in g[i]], [v / scale for v in data]
    return at, g, bt


@functools.cache
def transforms(m: int, r: int) -> Transforms:
    """The matrices of F(m, r), rounded to float64.

    Examples
    --------
    >>> f = transforms(2, 3)
    >>> d, w = np.array([1.0, 2, 3, 4]), np.array([1.0, 10, 100])
    >>> f.at @ ((f.g @ w) * (f.bt @ d))
    array([321., 432.])
    """
    matrices = [np.array(rows, np.float64) for rows in exact_transforms(m, r)]
    for matrix in matrices:
        matrix.setflags(write=False)
    return Transforms(*matrices)


def _spread(point: Fraction, points: list[Fraction]) -> Fraction:
    """Product of a point's distances from the others."""
    return math.prod((point - other for other in points if other != point), start=Fraction(1))


def _product(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, the constant first, of the product of ``x - root``."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _balance(data: list[Fraction], spread: Fraction) -> Fraction:
    """The power of two that brings a row of B^T and one of G, which is divided by `spread`, to about one size.

    It changes no rounding error, only how soon a side overflows. It leaves B^T the same for all kernels of one n.
    """
    return Fraction(2) ** round(math.log2(sum(map(abs, data)) * abs(spread)) / 2)


# --------------------------------------------------------------------------------------------------------------------
# Rounding: see docs/accuracy.md for the proof
# --------------------------------------------------------------------------------------------------------------------


def growth(tile: Tile, op: str = "forward") -> float:
    """How much larger errors may be than those of the plain sum, relative to ``max |d| * sum |g|``: kappa.

    With it `error_factor` bounds the error of every output, whatever the operands. For the weight gradient it is
    relative to ``max |d| * sum |dy|`` over a tile.

    Examples
    --------
    >>> growth(((2, 3), (2, 3)))
    16.0
    """
    return math.prod(_growth(m, r, op) for m, r in tile)


@functools.cache
def _growth(m: int, r: int, op: str) -> float:
    f = transforms(m, r).absolute()
    if op == "weight_grad":
        return float((f.g.T @ (f.at.max(0) * f.bt.sum(1))).max())
    return float((f.at @ (f.g.max(1) * f.bt.sum(1))).max())


def accurate_enough(tile: Tile, op: str = "forward") -> bool:
    """Whether the proven error bound of a tile is small enough to be used: the one place that decides."""
    return growth(tile, op) <= GROWTH_LIMIT


def roundings(tile: Tile, terms: int, op: str = "forward") -> int:
    """Most roundings that any product passes on its way into a result, `terms` products being summed per point.

    A row of k numbers that are not zero costs k roundings, and one more if its numbers are themselves rounded.
    """
    if op == "weight_grad":
        return terms + sum(_row(f.bt) + _row(f.at.T) + _row(f.g.T) for f in (transforms(m, r) for m, r in tile))
    return terms + sum(_row(f.bt) + _row(f.g) + _row(f.at) for f in (transforms(m, r) for m, r in tile))


def _row(matrix: Matrix) -> int:
    return int((matrix != 0).sum(1).max()) + 1


def error_factor(tile: Tile, terms: int, dtype: np.dtype[Any], op: str = "forward") -> float:
    """gamma_n = n u / (1 - n u) for the n of `roundings`, one more for a bias; u is the dtype's unit roundoff."""
    lost = (roundings(tile, terms, op) + 1) * float(np.finfo(dtype).eps) / 2
    return lost / (1 - lost)


@functools.lru_cache(maxsize=1024)
def overflow_growth(tile: Tile, terms: int) -> float:
    """How much larger than the largest operands, or their product, any number may become on its way in any operation.

    The product of all row sums of absolute values; twice that, which no rounding fills.
    """
    sums = [
        max(1.0, float(matrix.sum(1).max()))
        for f in (transforms(m, r).absolute() for m, r in tile)
        for matrix in (f.at, f.at.T, f.g, f.g.T, f.bt)
    ]
    return 2.0 * max(terms, 1) * math.prod(sums)
