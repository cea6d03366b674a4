"""The gradients of both operations, which are adjoints."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npconv import padding
from npconv.arrays import Array, Backend, check_shape, compute_dtype, contiguous
from npconv.filters.arguments import narrow, turned
from npconv.filters.frame import Frame, Ints
from npconv.filters.labelled import frame_of, is_labelled, labels, unlabelled
from npconv.filters.missing import Normalised, omit
from npconv.filters.problem import Problem
from npconv.filters.sums import surround
from npconv.geometry import Size
from npconv.gradients import conv_input_grad, conv_weight_grad

Pullback = Callable[[Array], tuple[Array, Array]]


def correlate_vjp(
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
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`correlate` and its vector-Jacobian product: the result, and how a gradient travels back through it.

    Parameters
    ----------
    x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, dtype, backend
        As for `correlate`. What is missing gets the gradient 0, and a result that is NaN because too little was present
        passes nothing back; otherwise a NaN is a number like any other. `x`, `w` and `mask` must not be changed until
        the pullback has been called.

    Returns
    -------
    y : array
        ``correlate(x, w, ...)``.
    pullback : callable
        ``dx, dw = pullback(dy)``, of the shapes of `x` and `w` and the dtype of ``numpy.result_type(y, dy)``. With
        `cval` 0, `dx` is the adjoint: ``vdot(correlate(x, w), dy) == vdot(x, dx)``, and, since the kernel is
        conjugated, the real part of ``vdot(w, dw)`` equals that of ``vdot(correlate(x, w), dy)``. A policy that
        normalises makes the result depend on `w` as a fraction does, and `dw` is the derivative of that.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.filters.correlate_vjp(np.array([1.0, 2.0, 4.0]), np.array([1.0, 10.0]), mode="valid")
    >>> pullback(np.array([1.0, 1.0]))
    (array([ 1., 11., 10.]), array([3., 6.]))
    """
    return _vjp(False, x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, dtype, backend)


def convolve_vjp(
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
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """`convolve` and its vector-Jacobian product.

    Parameters
    ----------
    x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, dtype, backend
        As for `convolve` and `correlate_vjp`.

    Returns
    -------
    y : array
        ``convolve(x, w, ...)``.
    pullback : callable
        ``dx, dw = pullback(dy)``, as for `correlate_vjp`; with `cval` 0 both are adjoints, complex ones too.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`; the pullback's name ``dy``.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> y, pullback = nc.filters.convolve_vjp(np.array([1.0, 2.0, 4.0]), np.array([1.0, 10.0]), mode="valid")
    >>> pullback(np.array([1.0, 1.0]))
    (array([10., 11.,  1.]), array([6., 3.]))
    """
    return _vjp(True, x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, dtype, backend)


def _vjp(
    flip: bool, x: Array, w: Array, mode: str, boundary: str, cval: complex, origin: Ints, axes: Ints | None,
    stride: Ints, nan_policy: str, mask: Array | None, min_weight: float, dtype: Any, backend: str | None,
) -> tuple[Array, Pullback]:  # fmt: skip
    if is_labelled(x):
        frame = frame_of(flip, x.data, unlabelled(w, x), mode, boundary, origin, axes, stride)
        y, plain = _vjp(
            flip, x.data, unlabelled(w, x), mode, boundary, cval, origin, axes, stride, nan_policy,
            unlabelled(mask, x, "mask"), min_weight, dtype, backend,
        )  # fmt: skip

        def labelled_pullback(dy: Array) -> tuple[Array, Array]:
            dx, dw = plain(unlabelled(dy, x))
            return x.copy(data=dx), dw

        return labels(x, frame)(y), labelled_pullback
    problem = Problem.of(
        flip, x, w, mode, boundary, cval, origin, axes, stride, nan_policy, mask, min_weight, "auto", dtype, backend
    )
    operands, frame, kernel = problem.operands, problem.frame, problem.kernel.astype(problem.wide)
    image = problem.image()
    empty = math.prod(frame.y_shape) == 0
    backward: Callable[[_Adjoint, Array], tuple[Array, Array]]
    if empty:
        y = operands.backend.xp.zeros(frame.y_shape, problem.wide)
    elif not problem.missing:
        y = problem.run(frame, image, kernel, problem.cval)
        backward = functools.partial(_plain, image, problem.cval)
    else:
        y, backward = (_omitting if nan_policy == "omit" else _interpolating)(problem, image, problem.gaps(image))

    def pullback(dy: Array) -> tuple[Array, Array]:
        grads = operands.companion(dy=dy)
        check_shape("dy", grads.shape("dy"), frame.y_shape, "that of the result")
        kind = np.result_type(problem.result, grads.dtype)
        adjoint = _Adjoint(operands.backend, frame, kernel, compute_dtype(np.result_type(problem.wide, kind)))
        if empty:
            dx, dw = (operands.backend.xp.zeros(shape, adjoint.dtype) for shape in (frame.x_shape, kernel.shape))
        else:
            dx, dw = backward(adjoint, grads.load("dy", adjoint.dtype))
        if flip:
            dw = turned(dw)
        elif dw.dtype.kind == "c":
            dw = dw.conj()
        dw = contiguous(operands.backend, dw, adjoint.dtype)
        return grads.deliver(dx, dtype=kind), grads.deliver(dw, dtype=kind)

    return operands.deliver(narrow(y, operands, problem.result), dtype=problem.result), pullback


@dataclass(frozen=True)
class _Adjoint:
    """The adjoints of one filter, in a dtype; images and results have their axes as the caller has them."""

    backend: Backend
    frame: Frame
    kernel: Array
    dtype: np.dtype[Any]

    def of_image(self, g: Array) -> Array:
        """What an image gets of a result's gradient."""
        frame, here = self.frame, self.backend
        size = (math.prod(frame.x_shape) // max(math.prod(frame.size), 1), 1, *frame.size)
        pairs, boundary = frame.added, frame.boundary
        padded = size if boundary == "zeros" else (*size[:2], *self._surrounded(size[2:]))
        virtual = pairs if boundary == "zeros" else ((0, 0),) * len(pairs)
        dx = conv_input_grad(
            self._entered(g), self.kernel.astype(self.dtype)[None, None], padded, stride=frame.stride, padding=virtual,
            backend=here.name,
        )  # fmt: skip
        if boundary != "zeros":
            dx = padding.pad_adjoint(here, dx, pairs, size[2:], boundary)
        return frame.leave(here, dx)

    def of_kernel(self, image: Array, cval: Any, g: Array) -> Array:
        """What the kernel gets, over an image and the constant beyond its edge."""
        frame, here = self.frame, self.backend
        x, pairs = self._entered(image), frame.added
        virtual = ((0, 0),) * len(pairs)
        if frame.boundary != "zeros":
            x = padding.pad(here, x, pairs, frame.boundary)
        elif cval != 0:
            x = surround(here, x, pairs, cval)
        else:
            virtual = pairs
        return conv_weight_grad(
            x, self._entered(g), (1, 1, *self.kernel.shape), stride=frame.stride, padding=virtual, backend=here.name
        )[0, 0]

    def _entered(self, value: Array) -> Array:
        return contiguous(self.backend, self.frame.enter(self.backend, value), self.dtype)

    def _surrounded(self, size: Size) -> Size:
        return tuple(n + low + high for n, (low, high) in zip(size, self.frame.added, strict=True))


def _plain(image: Array, cval: Any, adjoint: _Adjoint, g: Array) -> tuple[Array, Array]:
    return adjoint.of_image(g), adjoint.of_kernel(image, cval, g)


def _omitting(problem: Problem, image: Array, gaps: Array) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """A filter of what is present, and its derivative: ``y = S * T / W`` of three sums that depend on the kernel."""
    found = omit(problem.run, problem.frame, image, gaps, problem.kernel, problem.cval, problem.min_weight)
    backward = functools.partial(_omitted, found, image, gaps, problem.cval)
    return found.y, backward


def _omitted(
    found: Normalised, image: Array, gaps: Array, cval: Any, adjoint: _Adjoint, g: Array
) -> tuple[Array, Array]:
    """The derivatives of ``S * T / W``, S the sum over what is present, T the kernel's sum, W that of what is present.

    A result that is lost passes nothing back. With ``r = T / W`` the kernel gets ``r * dS`` and ``y / T`` for each tap,
    less ``r * y / T`` for each tap that met something present.
    """
    xp, kind = adjoint.backend.xp, adjoint.dtype
    beyond = bool(cval != cval)
    # A result may be NaN for other reasons, and then is one like any other.
    g = xp.where(found.lost, kind.type(0), g)
    y = xp.where(found.lost, kind.type(0), found.y)
    scaled, total = g * xp.conj(found.ratio), adjoint.kernel.sum()
    present = xp.where(gaps, kind.type(0), image)
    dw = adjoint.of_kernel(present, kind.type(0) if beyond else cval, scaled)
    dw += (g * xp.conj(y / total)).sum()
    dw -= adjoint.of_kernel(~gaps, kind.type(not beyond), scaled * xp.conj(y / total))
    return xp.where(gaps, kind.type(0), adjoint.of_image(scaled)), dw


def _interpolating(problem: Problem, image: Array, gaps: Array) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """A filter of an image whose gaps are filled with ``Y / T``, and its derivative; `Y` is the filter that omits."""
    frame, kernel = problem.frame.dense(), problem.kernel.astype(problem.wide)
    found = omit(problem.run, frame, image, gaps, problem.kernel, problem.cval, problem.min_weight)
    means, xp = found.y / kernel.sum(), problem.operands.backend.xp
    filled = xp.where(gaps, means, image)
    y = problem.run(problem.frame, filled, kernel, problem.cval)

    def backward(adjoint: _Adjoint, g: Array) -> tuple[Array, Array]:
        zero = adjoint.dtype.type(0)
        # What could not be filled is NaN, and so is what it reaches; neither passes anything back.
        unknown = gaps & found.lost
        g = xp.where(xp.isnan(y), zero, g) if bool(unknown.any()) or problem.cval != problem.cval else g
        cval = zero if problem.cval != problem.cval else problem.cval
        dx = adjoint.of_image(g)
        dw = adjoint.of_kernel(xp.where(unknown, zero, filled), cval, g)
        inner = replace(adjoint, frame=frame)
        filling = xp.where(gaps & ~found.lost, dx, zero) / xp.conj(kernel.sum())
        through, more = _omitted(found, image, gaps, problem.cval, inner, filling)
        # The mean is ``S / W``: the part of the derivative that the kernel's own sum has is taken back.
        more -= (filling * xp.conj(xp.where(found.lost, zero, means))).sum()
        return xp.where(gaps, zero, dx) + through, dw + more

    return y, backward
