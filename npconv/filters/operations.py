"""Correlate and convolve: one description of what both take, and the road that both go."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.arrays import Array, Backend, is_plain
from npconv.filters import compiled, integers, transformed
from npconv.filters.arguments import narrow, turned
from npconv.filters.frame import Frame, Ints
from npconv.filters.labelled import frame_of, is_labelled, labels, unlabelled
from npconv.filters.missing import interpolated, omit
from npconv.filters.problem import Problem
from npconv.filters.separable import may_split, taken_apart
from npconv.filters.sums import Run
from npconv.lazy import is_lazy, later
from npconv.planning import recent

_INTEGERS = "bBhHiIlLqQ"
_TOGETHER = frozenset(x + w for xs, ws in (("fd", "fdlq"), (_INTEGERS, _INTEGERS)) for x in xs for w in ws)
"""Characters of the dtypes of an image and a kernel whose calls are remembered."""


def correlate(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    nan_policy: str = "propagate",
    mask: Array | None = None,
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Correlate an array of any number of dimensions with a kernel.

    ``y[p] = sum over t of conj(w[t]) * x[p * stride + t - low]``, where ``low`` is ``w.shape // 2 + origin`` in mode
    ``"same"``, ``w.shape - 1`` in ``"full"`` and 0 in ``"valid"``. A complex kernel is conjugated, as
    `numpy.correlate`, `scipy.signal.correlate` and `scipy.ndimage.correlate` do; `npconv.conv` does not.

    Parameters
    ----------
    x : array
        Any shape. NumPy, CuPy, or anything that speaks DLPack, as PyTorch and JAX do; a `xarray.DataArray` keeps its
        labels. float16, float32, float64, complex64, complex128 or
        any integer.
    w : array
        The kernel, with one dimension for each of `axes`.
    mode : {"same", "full", "valid"}
        Size of the result, as in `scipy.signal`: that of `x`, every overlap, or only whole overlaps. A kernel that is
        larger than `x` has no valid result here; `scipy.signal` swaps the two.
    boundary : {"reflect", "mirror", "nearest", "wrap", "constant", "grid-mirror", "grid-wrap", "grid-constant"}
        What stands beyond the edge, in `scipy.ndimage`'s words: ``"reflect"`` = ``"grid-mirror"`` is
        ``b a | a b c | c b``, ``"mirror"`` is ``c b | a b c | b a``, ``"nearest"`` is ``a a | a b c | c c``,
        ``"wrap"`` = ``"grid-wrap"`` is ``b c | a b c | a b``, and ``"constant"`` = ``"grid-constant"`` is `cval`.
        `scipy.signal` always means ``"constant"``.
    cval : number
        What stands beyond the edge where `boundary` is ``"constant"``. NaN there is a missing value.
    origin : int or tuple of int
        Moves the kernel to the left, as in `scipy.ndimage`; from ``-(w.shape // 2)`` to ``(w.shape - 1) // 2``. For
        mode ``"same"`` only.
    axes : int or tuple of int, optional
        The axes that the kernel's dimensions stand for; the rest is a batch. All by default.
    stride : int or tuple of int
        Keep every so many-th result along each of `axes`; the others are not computed.
    nan_policy : {"propagate", "raise", "omit", "interpolate"}
        ``"propagate"``: a NaN reaches every result whose kernel covers it, also with weight 0. ``"raise"``: a NaN in
        `x` raises. ``"omit"``: results are the sum over what is present, times the kernel's sum over the sum of the
        weights that were present (astropy's ``nan_treatment="interpolate"``). ``"interpolate"``: what is missing is
        first replaced by the kernel's weighted mean of what is present around it (astropy's
        ``interpolate_replace_nans``), and what cannot be is NaN.
    mask : array of bool, optional
        Of the shape of `x`; True marks an element as missing, as in `numpy.ma`. For the policies ``"omit"`` and
        ``"interpolate"`` only.
    min_weight : float
        Share of the kernel's weight, in magnitudes, that must be present; results, and interpolated elements, with
        less are NaN. With 0 only those are that have nothing but missing values under weights other than 0, or present
        weights of both signs that cancel.
    method : {"auto", "direct", "fft", "separable"}
        ``"separable"`` runs one pass per axis and needs a kernel that is the outer product of one factor per axis, to
        the rounding of its dtype; ``"auto"`` does so where it is fewer products, and otherwise asks `npconv.plan`.
        All give NaN at the same places. Where `x` holds infinities, ``"fft"`` sums directly, since a transform would
        spread them.
    dtype : str or numpy.dtype, optional
        Of the result. By default a floating-point `x` keeps its precision whatever that of `w`, complex if either is;
        otherwise it is ``numpy.result_type(x, w)``, and int64 where integers have no common integer type.
    backend : {"auto", "numpy", "numba", "cupy"}, optional
        Defaults to `npconv.get_backend`.
    out : array, optional
        Receives the result; must have its shape and dtype and share no memory with the operands.

    Returns
    -------
    array
        The axes of `x` in their order. Integers are summed in 64 bits and wrap only if `dtype` is narrower; with
        integers the policies ``"omit"`` and ``"interpolate"`` give float64. float16 is computed in float32.

    Raises
    ------
    ValueError
        If a value or a shape is not what is described here; if `nan_policy` is ``"raise"`` and `x` holds NaN; if the
        kernel's weights sum to zero where they normalise.
    TypeError
        If a dtype or a kind of argument is not.

    See Also
    --------
    convolve, correlate_vjp

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.correlate(np.array([1, 2, 4, 8]), np.array([-1, 0, 1]))
    array([1, 3, 6, 4])
    >>> x = np.array([1.0, np.nan, 3.0, 5.0])
    >>> nc.correlate(x, nc.filters.box(3, ndim=1), nan_policy="omit")
    array([1.        , 2.        , 4.        , 4.33333333])
    """
    return _filter(
        False, x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, method, dtype, backend,
        out,
    )  # fmt: skip


def convolve(
    x: Array,
    w: Array,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    nan_policy: str = "propagate",
    mask: Array | None = None,
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Convolve an array of any number of dimensions with a kernel, which is turned round and not conjugated.

    In mode ``"same"`` the result is centred as `scipy.signal.convolve` centres it. `scipy.ndimage.convolve` differs
    for even kernels, by one element: its `origin` is one less on an axis where `w` is even.

    Parameters
    ----------
    x, w, mode, boundary, cval, axes, stride, nan_policy, mask, min_weight, method, dtype, backend, out
        As for `correlate`.
    origin : int or tuple of int
        Moves the kernel to the right; from ``-((w.shape - 1) // 2)`` to ``w.shape // 2``.

    Returns
    -------
    array
        As for `correlate`.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.convolve(np.array([1, 2, 4]), np.array([1, 10]), mode="full", boundary="constant")
    array([ 1, 12, 24, 40])
    """
    return _filter(
        True, x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, method, dtype, backend,
        out,
    )  # fmt: skip


def _filter(
    flip: bool, x: Array, w: Array, mode: str, boundary: str, cval: complex, origin: Ints, axes: Ints | None,
    stride: Ints, nan_policy: str, mask: Array | None, min_weight: float, method: str, dtype: Any, backend: str | None,
    out: Array | None,
) -> Array:  # fmt: skip
    if is_labelled(x):
        frame = frame_of(flip, x.data, unlabelled(w, x), mode, boundary, origin, axes, stride)
        y = _filter(
            flip, x.data, unlabelled(w, x), mode, boundary, cval, origin, axes, stride, nan_policy,
            unlabelled(mask, x, "mask"), min_weight, method, dtype, backend, unlabelled(out, x),
        )  # fmt: skip
        return labels(x, frame)(y)
    key = None
    if mask is None and dtype is None and nan_policy == "propagate" and min_weight == 0:
        geometry = (origin, stride) if axes is None else (origin, stride, axes)
        key = _key(x, w, out, geometry, (flip, mode, boundary, method, backend, type(cval), cval))
        if key is not None and (call := recent.find(key)) is not None:
            return call(x, w, out)
    if is_lazy(x, w, mask):
        frame_of(flip, x, w, mode, boundary, origin, axes, stride)
        return later(
            "convolve" if flip else "correlate", x=x, w=w, mode=mode, boundary=boundary, cval=cval, origin=origin,
            axes=axes, stride=stride, nan_policy=nan_policy, mask=mask, min_weight=min_weight, method=method,
            dtype=dtype, backend=backend, out=out,
        )  # fmt: skip
    arguments = mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, method, dtype, backend, out
    problem = Problem.of(flip, x, w, *arguments)
    y = _computed(problem)
    if key is not None and 0 not in problem.frame.y_shape:
        here, frame, wide = problem.operands.backend, problem.frame, problem.wide
        if wide.kind == "f" and here.xp is np:
            recent.remember(key, _made_ready(here, frame, wide, method, flip, problem.cval))
        elif wide.kind == "i" and compiled.fits(here, frame.unstrided(), np.dtype(np.float32)):
            again = functools.partial(_again, flip, *arguments)
            recent.remember(key, integers.made_ready(here, frame, method, flip, problem.cval, problem.result, again))
    return problem.operands.deliver(y, out, problem.result)


def _again(flip: bool, *arguments: Any) -> Array:
    """A call that was made ready, of integers whose sums need the long road: x, w and out come last."""
    *checked, _, x, w, out = arguments
    problem = Problem.of(flip, x, w, *(*checked, out))
    return problem.operands.deliver(_computed(problem), out, problem.result)


def _computed(problem: Problem) -> Array:
    """The result, as wide as it was computed."""
    operands, frame, here, wide = problem.operands, problem.frame, problem.operands.backend, problem.wide
    if math.prod(frame.y_shape) == 0:
        problem.image()  # which may raise
        return here.xp.zeros(frame.y_shape, wide)
    if not problem.missing:
        return narrow(problem.summed(), operands, problem.result)
    how, image = (problem.kernel, problem.cval, problem.min_weight), problem.image()
    if problem.nan_policy == "omit":
        return omit(problem.run, frame, image, problem.gaps(image), *how).y
    filled = interpolated(problem.run, frame, image, problem.gaps(image), *how)
    return problem.run(frame, filled, problem.kernel.astype(wide), problem.cval)


def _key(x: Array, w: Array, out: Array | None, geometry: tuple[Any, ...], words: tuple[Any, ...]) -> Any:
    """Everything that decides a call, or None where it is out of the ordinary; the kernel may be of another dtype.

    The last two words are the type of what is beyond the edge, and that.
    """
    *_, kind, cval = words
    if kind not in (int, float) or cval != cval:
        return None
    key = recent.key("filter", x, w, None, geometry, words, alike=False)
    if key is None or not w.dtype.isnative or x.dtype.char + w.dtype.char not in _TOGETHER:
        return None
    if out is not None:
        # Bounds are enough to know that nothing is shared; where they overlap the long road looks closer.
        if not is_plain(out) or not out.flags.writeable or np.may_share_memory(out, x) or np.may_share_memory(out, w):
            return None
        key = (*key, out.shape, out.dtype)
    return key


def _made_ready(
    backend: Backend, frame: Frame, wide: np.dtype[Any], method: str, flip: bool, cval: Any
) -> Callable[[Array, Array, Any], Array]:
    """A call for arrays like those of an earlier one, whose result is of the dtype that is computed in.

    It writes into its third argument unless that is None.
    """
    whole, split = Run(backend, method), may_split(frame.kernel, method)
    if whole.sums_all(frame, wide):
        return _strided(frame, _made_ready(backend, frame.unstrided(), wide, method, flip, cval))
    strips = compiled.fits(backend, frame, wide)
    tiles = transformed.filter_for(backend, frame, wide) if whole.transforms(frame, wide) else None
    dense = whole.dense(frame, wide) if tiles is None else None
    if compiled.is_long(frame):
        # They hold tables of which few are remembered; nor are they held here.
        tiles = tiles and _asked_again(transformed.filter_for, backend, frame, wide)
        dense = dense and _asked_again(compiled.summer, backend, frame, wide)

    def call(x: Array, w: Array, out: Array | None) -> Array:
        kernel = turned(w) if flip else w
        factors = taken_apart(backend, kernel, wide, method) if split else None
        if factors is not None and strips:
            return compiled.by_axes(backend, frame, factors, x, cval, out)
        if factors is None and dense is not None:
            return dense(x, kernel, cval, out)
        kernel = kernel.astype(wide, copy=False)
        y = tiles(x, kernel, cval, out) if factors is None and tiles is not None else None
        if y is None:
            y = Run(backend, method, factors).without_tiles(frame, x, kernel, cval)
        return y if out is None or y is out else _into(out, y)

    return call


def _asked_again(make: Callable[..., Any], *how: Any) -> Callable[..., Any]:
    """What is made anew where it was forgotten."""
    return lambda *arguments: make(*how)(*arguments)


def _strided(frame: Frame, dense: recent.Call) -> recent.Call:
    """What passes over results of a call that gives all of them."""

    def call(x: Array, w: Array, out: Array | None) -> Array:
        y = frame.strided(dense(x, w, None))
        return y.copy() if out is None else _into(out, y)

    return call


def _into(out: Array, y: Array) -> Array:
    """A result where the caller wants it."""
    out[...] = y
    return out
