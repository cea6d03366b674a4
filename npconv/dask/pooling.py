"""Pooling of dask arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import npconv as nc
from npconv.dask.blocks import Ints, Part, as_dask, each, gathered, out_chunks, without_memory
from npconv.dask.graph import blockwise


def max_pool(
    x: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    *,
    layout: str = "channels_first",
) -> Any:
    """`npconv.max_pool` of a dask array ``(N, C, *spatial)``.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    kernel_size, stride, layout
        As for `npconv.max_pool`.
    padding : int or tuple
        An integer, or one integer or ``(low, high)`` pair per dimension.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.max_pool`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> x = da.arange(16, chunks=16).reshape(1, 1, 4, 4).rechunk((1, 1, 2, 4))
    >>> nc.dask.max_pool(x, (2, 2)).compute()[0, 0]
    array([[ 5,  7],
           [13, 15]])
    """
    return _pool(nc.max_pool, x, kernel_size, stride, padding, layout)


def avg_pool(
    x: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    *,
    layout: str = "channels_first",
) -> Any:
    """`npconv.avg_pool` of a dask array ``(N, C, *spatial)``, counting the padding.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    kernel_size, stride, layout
        As for `npconv.avg_pool`.
    padding : int or tuple
        An integer, or one integer or ``(low, high)`` pair per dimension.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.avg_pool`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> x = da.arange(16.0, chunks=16).reshape(1, 1, 4, 4).rechunk((1, 1, 2, 4))
    >>> nc.dask.avg_pool(x, (2, 2)).compute()[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    return _pool(nc.avg_pool, x, kernel_size, stride, padding, layout)


def _pool(function: Any, x: Any, kernel_size: Any, stride: Any, padding: Any, layout: str) -> Any:
    x = as_dask(x)
    if isinstance(padding, str):
        raise ValueError(f"padding must be given in numbers for a dask array, got {padding!r}")
    dims = x.ndim - 2 if isinstance(kernel_size, int | np.integer) else len(kernel_size)
    stride = kernel_size if stride is None else stride
    channel = x.ndim - 1 if layout == "channels_last" else x.ndim - dims - 1
    first = channel - dims if layout == "channels_last" else channel + 1
    # A batch of no images is checked as any other, and costs nothing.
    probe = tuple(0 if i == (0 if x.ndim == dims + 2 else channel) else n for i, n in enumerate(x.shape))
    like = function(without_memory(probe, x.dtype), kernel_size, stride, padding, layout=layout)
    axes = list(range(first, first + dims))
    sizes, strides, pads = each(kernel_size, dims), each(stride, dims), each(padding, dims)
    lows = [int(pad if isinstance(pad, int | np.integer) else pad[0]) for pad in pads]
    parts = [
        gathered(x.chunks[axis], like.shape[axis], s, k - 1, low)
        for axis, s, k, low in zip(axes, strides, sizes, lows, strict=True)
    ]
    how = {"kernel_size": sizes, "stride": strides, "layout": layout}
    chunks = out_chunks(x, axes, parts, {})
    return blockwise(_pool_block, [x], axes, parts, chunks, like.dtype, pool=function, how=how)


def _pool_block(block: Any, parts: list[Part], *, pool: Any, how: dict[str, Any]) -> Any:
    return pool(block, padding=tuple((part.low, part.high) for part in parts), **how)
