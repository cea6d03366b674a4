"""Whether npconv computes here what it should: every backend and algorithm against the definition, on small cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv import reference
from npconv.algorithms import ALGORITHMS, OPERATIONS, fft, winograd
from npconv.arrays import available_backends, require
from npconv.conv import conv
from npconv.geometry import ConvSpec
from npconv.gradients import conv_input_grad, conv_weight_grad

CASES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 4, 9, 8), (6, 4, 3, 3), {"padding": 1}),
    ((1, 4, 9, 8), (6, 2, 3, 2), {"stride": 2, "padding": (1, 0), "dilation": (1, 2), "groups": 2}),
    ((2, 4, 7, 6), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ((2, 4, 5, 5), (3, 4, 1, 1), {}),
)
DTYPES = ("float32", "float64", "int64")
BOUNDS = {"winograd": winograd.error_bound, "fft": fft.error_bound}


def self_test() -> list[dict[str, Any]]:
    """Compare with `npconv.reference`; whole numbers make all sums exact, transforms may be off by their bound.

    Returns
    -------
    list of dict
        ``what`` was compared, and whether it is ``right``, for each backend, algorithm and operation.

    Examples
    --------
    >>> from npconv.self_test import self_test
    >>> all(result["right"] for result in self_test())
    True
    """
    results = []
    for backend in available_backends():
        for name in ALGORITHMS:
            for op in OPERATIONS:
                found = compared(backend, name, op)
                if found is not None:
                    results.append(found)
    return results


def compared(backend: str, name: str, op: str) -> dict[str, Any] | None:
    """One of `self_test`'s comparisons; None where an algorithm can compute none of the cases."""
    found = [_is_right(backend, name, op, x, w, options, dtype) for x, w, options in CASES for dtype in DTYPES]
    known = [right for right in found if right is not None]
    return {"what": f"{backend} {name} {op}, {len(known)} cases", "right": all(known)} if known else None


def _is_right(
    backend: str, name: str, op: str, x_shape: Any, w_shape: Any, options: dict[str, Any], dtype: str
) -> bool | None:
    """Whether one result is the definition's; None where the algorithm cannot compute it."""
    spec = ConvSpec.of(x_shape, w_shape, **options)
    if ALGORITHMS[name].supports(spec, op, require(backend), np.dtype(dtype)) is not None:
        return None
    x, w, dy = (_numbers(shape, dtype) for shape in (x_shape, w_shape, spec.y_shape))
    window = spec.window
    full: dict[str, Any] = {
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "groups": spec.groups,
    }
    how: dict[str, Any] = {**options, "backend": backend, "algorithm": name}
    if op == "forward":
        a, b, actual, expected = x, w, conv(x, w, **how), reference.conv(x, w, **full)
    elif op == "input_grad":
        a, b = dy, w
        actual = conv_input_grad(dy, w, x_shape, **how)
        expected = reference.conv_input_grad(a, b, window.size, **full)
    else:
        a, b = x, dy
        actual = conv_weight_grad(x, dy, w_shape, **how)
        expected = reference.conv_weight_grad(a, b, window.kernel, **full)
    if name not in BOUNDS:
        return bool(np.array_equal(actual, expected))
    return bool(np.all(np.abs(actual - expected) <= BOUNDS[name](spec, op, a, b, np.dtype(dtype))))


def _numbers(shape: tuple[int, ...], dtype: str) -> Any:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-4, 5, shape).astype(dtype)
