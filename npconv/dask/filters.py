"""Filters of dask arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import npconv as nc
from npconv.dask.blocks import Ints, Part, as_dask, blockwise, each, gathered, grown, out_chunks, padded, weights_of

# npconv's boundaries and the modes of `dask.array.pad`.
_BOUNDARIES = {
    **dict.fromkeys(("reflect", "grid-mirror"), "symmetric"),
    **dict.fromkeys(("constant", "grid-constant"), "constant"),
    **dict.fromkeys(("wrap", "grid-wrap"), "wrap"),
    "nearest": "edge",
    "mirror": "reflect",
}


def correlate(
    x: Any,
    w: Any,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    nan_policy: str = "propagate",
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
) -> Any:
    """`npconv.correlate` of a dask array.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    w, mode, boundary, cval, origin, axes, stride, min_weight, method, dtype
        As for `npconv.correlate`.
    nan_policy : {"propagate", "raise", "omit"}
        ``"interpolate"`` filters twice and is refused.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.correlate`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> x = da.ones((400, 300), chunks=100)
    >>> y = nc.dask.correlate(x, nc.filters.sobel(0))
    >>> y.shape, y.numblocks, float(y[99, 99])
    ((400, 300), (4, 3), 0.0)
    """
    how = {"nan_policy": nan_policy, "min_weight": min_weight, "method": method, "dtype": dtype}
    return _filter(nc.correlate, x, w, mode, boundary, cval, origin, axes, stride, how)


def convolve(
    x: Any,
    w: Any,
    *,
    mode: str = "same",
    boundary: str = "reflect",
    cval: complex = 0.0,
    origin: Ints = 0,
    axes: Ints | None = None,
    stride: Ints = 1,
    nan_policy: str = "propagate",
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
) -> Any:
    """`npconv.convolve` of a dask array.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    w, mode, boundary, cval, origin, axes, stride, min_weight, method, dtype
        As for `npconv.convolve`.
    nan_policy : {"propagate", "raise", "omit"}
        ``"interpolate"`` filters twice and is refused.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.convolve`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> signal = da.arange(1000, chunks=250)
    >>> nc.dask.convolve(signal, np.array([1, -1]), mode="valid")[:3].compute()
    array([1, 1, 1])
    """
    how = {"nan_policy": nan_policy, "min_weight": min_weight, "method": method, "dtype": dtype}
    return _filter(nc.convolve, x, w, mode, boundary, cval, origin, axes, stride, how)


def _filter(
    function: Any, x: Any, w: Any, mode: str, boundary: str, cval: Any, origin: Any, axes: Any, stride: Any, how: Any
) -> Any:
    if how["nan_policy"] == "interpolate":
        raise ValueError(
            "nan_policy 'interpolate' filters twice, so a block would need two halos; interpolate with 'omit' first"
        )
    x = as_dask(x)
    weights, kernel, w_dtype = weights_of(w)
    chosen: list[int] = list(range(x.ndim)) if axes is None else list(each(axes, 1))
    # One element in memory, as long as x is: npconv checks everything and says what comes out.
    how["axes"] = tuple(chosen)
    like = _like(function, x, w_dtype, kernel, mode, boundary, cval, origin, stride, how)
    chosen = [axis % x.ndim for axis in chosen]
    strides, origins = each(stride, len(chosen)), each(origin, len(chosen))
    sign = -1 if function is nc.convolve else 1
    lows = [{"same": k // 2 + sign * o, "full": k - 1, "valid": 0}[mode] for k, o in zip(kernel, origins, strict=True)]
    dense = [
        {"same": n, "full": n + k - 1, "valid": n - k + 1}[mode]
        for n, k in zip((x.shape[axis] for axis in chosen), kernel, strict=True)
    ]
    pairs = [
        (lo, out + k - 1 - lo - x.shape[axis])
        for lo, out, k, axis in zip(lows, dense, kernel, chosen, strict=True)
    ]  # fmt: skip
    chunks = [grown(x.chunks[axis], pair) for axis, pair in zip(chosen, pairs, strict=True)]
    image = padded(x, chosen, pairs, _BOUNDARIES[boundary], cval)
    parts = [
        gathered(c, -(-out // s), s, k - 1, 0) for c, out, s, k in zip(chunks, dense, strides, kernel, strict=True)
    ]
    how = {**how, "stride": strides, "mode": "valid"}
    chunks = out_chunks(image, chosen, parts, {})
    return blockwise(_filter_block, image, chosen, parts, chunks, like, w=weights, run=function, how=how)


def _like(
    function: Any,
    x: Any,
    w_dtype: Any,
    kernel: Any,
    mode: Any,
    boundary: Any,
    cval: Any,
    origin: Any,
    stride: Any,
    how: Any,
) -> np.dtype[Any]:
    """The result's dtype; npconv's errors, from a filter of as many dimensions that costs next to nothing."""
    small = tuple(min(n, 2 * k) for n, k in zip((x.shape[a] for a in how["axes"]), kernel, strict=False))
    shape = [1] * x.ndim
    for axis, n in zip(how["axes"], small, strict=False):
        shape[axis] = n
    ones = np.ones(kernel, w_dtype)
    given = {"mode": mode, "boundary": boundary, "cval": cval, "origin": origin, "stride": stride, **how}
    dtype: np.dtype[Any] = function(np.zeros(shape, x.dtype), ones, **{**given, "method": "direct"}).dtype
    return dtype


def _filter_block(block: Any, _: list[Part], *, w: Any, run: Any, how: dict[str, Any]) -> Any:
    return run(block, w, **how)
