"""Filters of dask arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import npconv as nc
from npconv.dask.blocks import (
    Ints,
    as_dask,
    check_arrays,
    dask_array,
    each,
    gathered,
    grown,
    out_chunks,
    padded,
    weights_of,
)
from npconv.dask.graph import blockwise

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
    mask: Any = None,
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
) -> Any:
    """`npconv.correlate` of a dask array.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    w, mode, boundary, cval, origin, axes, stride, nan_policy, min_weight, method, dtype
        As for `npconv.correlate`.
    mask : dask array, or what `as_dask` takes, optional
        As for `npconv.correlate`; of the shape of `x`.

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
    how = {
        "mode": mode, "boundary": boundary, "cval": cval, "origin": origin, "axes": axes, "stride": stride,
        "nan_policy": nan_policy, "min_weight": min_weight, "method": method, "dtype": dtype,
    }  # fmt: skip
    return _filter(nc.correlate, x, w, mask, how)


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
    mask: Any = None,
    min_weight: float = 0.0,
    method: str = "auto",
    dtype: Any = None,
) -> Any:
    """`npconv.convolve` of a dask array.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    w, mode, boundary, cval, origin, axes, stride, nan_policy, min_weight, method, dtype
        As for `npconv.convolve`.
    mask : dask array, or what `as_dask` takes, optional
        As for `npconv.convolve`; of the shape of `x`.

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
    how = {
        "mode": mode, "boundary": boundary, "cval": cval, "origin": origin, "axes": axes, "stride": stride,
        "nan_policy": nan_policy, "min_weight": min_weight, "method": method, "dtype": dtype,
    }  # fmt: skip
    return _filter(nc.convolve, x, w, mask, how)


def _filter(function: Any, x: Any, w: Any, mask: Any, how: dict[str, Any]) -> Any:
    """Check what a caller wrote, and interpolate first if that was asked for."""
    x = as_dask(x)
    check_arrays(w=w)
    mask = None if mask is None else as_dask(mask)
    if mask is not None and mask.shape != x.shape:
        raise ValueError(f"mask must have shape {x.shape}, that of x; got {mask.shape}")
    how = {**how, "axes": tuple(range(x.ndim)) if how["axes"] is None else each(how["axes"], 1)}
    result = _result_dtype(function, x, w, mask, how)
    base = _result_dtype(function, x, w, mask, {**how, "dtype": None})
    wide = _wide(base, result)
    how = {**how, "dtype": result, "axes": tuple(axis % x.ndim for axis in how["axes"])}
    if how["nan_policy"] == "interpolate":
        x, mask = _interpolated(function, x, w, mask, how, wide), None
        how = {**how, "nan_policy": "propagate", "min_weight": 0.0}
    elif how["cval"] != 0 and _BOUNDARIES[how["boundary"]] == "constant":
        x = x.astype(wide)
        how["cval"] = _wrapped(how["cval"], wide)
    return _local(function, x, w, mask, how)


def _wide(base: np.dtype[Any], result: np.dtype[Any]) -> np.dtype[Any]:
    """What npconv computes in, which holds what is interpolated and what lies beyond the edge, too."""
    if base.kind in "iub":
        return np.dtype(np.int64 if base.kind == "i" else np.uint64)
    wide: np.dtype[Any] = np.result_type(base, result)
    return np.dtype(np.float32) if wide == np.float16 else wide


def _wrapped(cval: Any, wide: np.dtype[Any]) -> Any:
    """A constant as an integer dtype takes it; sums of integers wrap."""
    if wide.kind == "u":
        return int(cval) % 2**64
    return (int(cval) + 2**63) % 2**64 - 2**63 if wide.kind == "i" else cval


def _local(function: Any, x: Any, w: Any, mask: Any, how: dict[str, Any]) -> Any:
    """Filter each block with what it needs around it."""
    weights, kernel, _ = weights_of(w)
    axes, mode = list(how["axes"]), how["mode"]
    strides, origins = each(how["stride"], len(axes)), each(how["origin"], len(axes))
    sign = -1 if function is nc.convolve else 1
    lows = [{"same": k // 2 + sign * o, "full": k - 1, "valid": 0}[mode] for k, o in zip(kernel, origins, strict=True)]
    sizes = [x.shape[axis] for axis in axes]
    dense = [
        {"same": n, "full": n + k - 1, "valid": n - k + 1}[mode] for n, k in zip(sizes, kernel, strict=True)
    ]  # fmt: skip
    pairs = [(lo, out + k - 1 - lo - n) for lo, out, k, n in zip(lows, dense, kernel, sizes, strict=True)]
    chunks = [grown(x.chunks[axis], pair) for axis, pair in zip(axes, pairs, strict=True)]
    parts = [
        gathered(c, -(-out // s), s, k - 1, 0) for c, out, s, k in zip(chunks, dense, strides, kernel, strict=True)
    ]
    pad = _BOUNDARIES[how["boundary"]]
    arrays = [padded(x, axes, pairs, pad, how["cval"])]
    if mask is not None:
        arrays.append(padded(mask.rechunk(x.chunks), axes, pairs, pad, False))
    how = {**how, "stride": strides, "mode": "valid", "origin": 0}
    chunks = out_chunks(arrays[0], axes, parts, {})
    return blockwise(_filter_block, arrays, axes, parts, chunks, how["dtype"], w=weights, run=function, how=how)


def _filter_block(block: Any, *mask_and_parts: Any, w: Any, run: Any, how: dict[str, Any]) -> Any:
    mask = mask_and_parts[0] if len(mask_and_parts) > 1 else None
    return run(block, w, mask=mask, **how)


def _interpolated(function: Any, x: Any, w: Any, mask: Any, how: dict[str, Any], wide: np.dtype[Any]) -> Any:
    """The array, its missing elements replaced by the kernel's mean of those around them."""
    da = dask_array()
    gaps = da.isnan(x) if x.dtype.kind in "fc" else da.zeros_like(x, dtype=bool)
    gaps = gaps if mask is None else gaps | mask.rechunk(x.chunks)
    origin = how["origin"] if how["mode"] == "same" else 0
    omit = {**how, "nan_policy": "omit", "mode": "same", "origin": origin, "stride": 1, "dtype": wide}
    total = (w if function is nc.convolve else w.conj()).astype(wide).sum()
    image = x.astype(wide)
    return da.where(gaps, _local(function, image, w, mask, omit) / total, image)


def _result_dtype(function: Any, x: Any, w: Any, mask: Any, how: dict[str, Any]) -> np.dtype[Any]:
    """The result's dtype; npconv's errors, from a filter of as many dimensions that costs next to nothing."""
    shape = [1] * x.ndim
    for axis, k in zip(how["axes"], w.shape, strict=False):
        if isinstance(axis, int | np.integer) and -x.ndim <= axis < x.ndim:
            shape[axis] = min(x.shape[axis], 2 * k)
    kernel = w if isinstance(w, np.ndarray) else np.ones(w.shape, w.dtype)
    here = None if mask is None else np.zeros(shape, mask.dtype)
    dtype: np.dtype[Any] = function(np.zeros(shape, x.dtype), kernel, mask=here, **{**how, "method": "direct"}).dtype
    return dtype
