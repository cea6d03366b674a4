"""Convolutions of dask arrays and their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import npconv as nc
from npconv.dask.blocks import (
    Ints,
    Part,
    as_dask,
    check_arrays,
    each,
    gathered,
    grown,
    out_chunks,
    padded,
    scattered,
    weights_of,
    without_memory,
)
from npconv.dask.graph import blockwise

# npconv's names of padding modes and boundaries, and those of `dask.array.pad`.
_PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _axes(x: Any, w_shape: tuple[int, ...], layout: str) -> tuple[Any, list[int], int]:
    """`x` with its channels in one chunk, its spatial axes, and that of its channels."""
    dims = len(w_shape) - 2
    channel = x.ndim - 1 if layout == "channels_last" else x.ndim - dims - 1
    first = channel - dims if layout == "channels_last" else channel + 1
    return x.rechunk({channel: -1}), list(range(first, first + dims)), channel


def _spec(names: tuple[str, str], *shapes: Any, **how: Any) -> Any:
    """`npconv.plan`'s spec; its errors speak of shapes, here they name the arrays whose shapes those are."""
    try:
        return nc.plan(*shapes, **how).spec
    except (ValueError, TypeError) as error:
        words = str(error)
        for asked, name in zip(("x_shape", "w_shape"), names, strict=True):
            words = words.replace(asked, name)
        raise type(error)(words) from None


def conv(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    activation: str | None = None,
    algorithm: str = "auto",
) -> Any:
    """`npconv.conv` of a dask array, in any number of dimensions.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
        ``(N, C, *spatial)`` or ``(C, *spatial)``, chunked as it likes.
    w, bias : array
        As for `npconv.conv`, in memory; a dask array is gathered.
    stride, padding, dilation, groups, padding_mode, layout, activation, algorithm
        As for `npconv.conv`.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.conv`, before anything is computed; also if a padding mode would have to repeat the input more
        than once.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> x = da.ones((1, 1, 4000, 4000), dtype="f4", chunks=(1, 1, 1000, 1000))
    >>> nc.dask.conv(x, np.ones((8, 1, 5, 5), "f4"), stride=2)[0, :, 0, 0].compute()
    array([25., 25., 25., 25., 25., 25., 25., 25.], dtype=float32)
    """
    x = as_dask(x)
    check_arrays(w=w, bias=bias)
    weights, w_shape, w_dtype = weights_of(w)
    dtype = np.result_type(x.dtype, w_dtype, *(() if bias is None else (bias.dtype,)))
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spec = _spec(
        ("x", "w"), x.shape, w_shape, **window, padding_mode=padding_mode, layout=layout, dtype=dtype,
        activation=activation, algorithm=algorithm,
    )  # fmt: skip
    if bias is not None and tuple(bias.shape) != w_shape[:1]:
        raise ValueError(f"bias must have shape {w_shape[:1]}, one for each output channel; got {tuple(bias.shape)}")
    x, axes, channel = _axes(x, w_shape, layout)
    pairs, chunks = spec.window.padding, [x.chunks[axis] for axis in axes]
    if padding_mode != "zeros":
        # Blocks follow the chunks that the input had; what the padding repeats goes to the outer ones.
        x = padded(x, axes, pairs, _PADDING[padding_mode])
        chunks = [grown(c, pair) for c, pair in zip(chunks, pairs, strict=True)]
        pairs = ((0, 0),) * len(axes)
    parts = [
        gathered(c, out, s, (k - 1) * d, lo)
        for c, out, s, k, d, (lo, _) in zip(
            chunks, spec.window.out, spec.window.stride, spec.window.kernel, spec.window.dilation, pairs, strict=True
        )
    ]
    how = {"stride": stride, "dilation": dilation, "groups": groups, "layout": layout, "activation": activation}
    if 0 in spec.y_shape or 0 in x.shape:
        raise ValueError(
            f"x of shape {x.shape} gives a result without elements, {spec.y_shape}, so nothing is computed"
        )
    return blockwise(
        _conv_block, [x], axes, parts, out_chunks(x, axes, parts, {channel: w_shape[:1]}), dtype, w=weights,
        bias=None if bias is None else weights_of(bias)[0], how={**how, "algorithm": algorithm},
    )  # fmt: skip


def _conv_block(block: Any, parts: list[Part], *, w: Any, bias: Any, how: dict[str, Any]) -> Any:
    padding = tuple((part.low, part.high) for part in parts)
    return nc.conv(block, w, bias, padding=padding, **how)


def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Any = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    algorithm: str = "auto",
) -> Any:
    """`npconv.conv_transpose` of a dask array.

    Parameters
    ----------
    x : dask array, or what `as_dask` takes
    w, bias, stride, output_padding, groups, dilation, layout, activation, algorithm
        As for `npconv.conv_transpose`.
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
        As for `npconv.conv_transpose`; also if `padding` is a word.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> x = da.ones((1, 8, 64, 64), dtype="f4", chunks=(1, 8, 32, 32))
    >>> y = nc.dask.conv_transpose(x, np.ones((8, 1, 2, 2), "f4"), stride=2)
    >>> y.shape, y.numblocks, float(y[0, 0, 5, 5])
    ((1, 1, 128, 128), (1, 1, 2, 2), 8.0)
    """
    x = as_dask(x)
    check_arrays(w=w, bias=bias)
    weights, w_shape, w_dtype = weights_of(w)
    if isinstance(padding, str):
        raise ValueError(f"padding must be given in numbers for a dask array, got {padding!r}")
    probe = without_memory((0, *_unbatched(x, w_shape)), x.dtype)
    shift = None if bias is None else without_memory(tuple(bias.shape), bias.dtype)
    how: dict[str, Any] = {"layout": layout, "activation": activation, "algorithm": algorithm}
    y_shape = nc.conv_transpose(
        probe, without_memory(w_shape, w_dtype), shift, stride, padding, output_padding, groups, dilation, **how
    ).shape[1:]
    x, axes, channel = _axes(x, w_shape, layout)
    out = [y_shape[axis - x.ndim] for axis in axes]
    dtype = np.result_type(x.dtype, w_dtype, *(() if bias is None else (bias.dtype,)))
    return _scatter(
        x, weights, w_shape, None if bias is None else weights_of(bias)[0], axes, channel, out, stride, padding,
        groups, dilation, how, dtype,
    )  # fmt: skip


def conv_input_grad(
    dy: Any,
    w: Any,
    input_shape: tuple[int, ...],
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "channels_first",
    algorithm: str = "auto",
) -> Any:
    """`npconv.conv_input_grad` of a dask array.

    Parameters
    ----------
    dy : dask array, or what `as_dask` takes
    w, input_shape, stride, padding, dilation, groups, layout, algorithm
        As for `npconv.conv_input_grad`; padding is zeros.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.conv_input_grad`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> dy = da.ones((1, 4, 62, 62), dtype="f4", chunks=(1, 4, 31, 31))
    >>> dx = nc.dask.conv_input_grad(dy, np.ones((4, 1, 3, 3), "f4"), (1, 1, 64, 64))
    >>> dx.shape, float(dx[0, 0, 0, 0]), float(dx[0, 0, 30, 30])
    ((1, 1, 64, 64), 4.0, 36.0)
    """
    dy = as_dask(dy)
    check_arrays(w=w)
    _, w_shape, w_dtype = weights_of(w)
    w = w.conj()
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spec = _spec(("input_shape", "w"), input_shape, w_shape, **window, layout=layout)
    if dy.shape != spec.y_shape:
        raise ValueError(f"dy must have shape {spec.y_shape}, that of the convolution's result; got {dy.shape}")
    dy, axes, channel = _axes(dy, w_shape, layout)
    dtype = np.result_type(dy.dtype, w_dtype)
    return _scatter(
        dy, weights_of(w)[0], w_shape, None, axes, channel, list(spec.window.size), spec.window.stride,
        spec.window.padding, groups, spec.window.dilation, {"layout": layout, "algorithm": algorithm}, dtype,
    )  # fmt: skip


def _unbatched(x: Any, w_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape: tuple[int, ...] = x.shape
    return shape[1:] if x.ndim == len(w_shape) else shape


def _scatter(
    x: Any, w: Any, w_shape: Any, bias: Any, axes: list[int], channel: int, out: list[int], stride: Any, padding: Any,
    groups: int, dilation: Any, how: dict[str, Any], dtype: Any,
) -> Any:  # fmt: skip
    dims = len(axes)
    strides, dilations = each(stride, dims), each(dilation, dims)
    lows = [pad if isinstance(pad, int | np.integer) else pad[0] for pad in each(padding, dims)]
    parts = [
        scattered(x.chunks[axis], n, s, (k - 1) * d, lo)
        for axis, n, s, k, d, lo in zip(axes, out, strides, w_shape[2:], dilations, lows, strict=True)
    ]
    how = {**how, "stride": strides, "dilation": dilations, "groups": groups}
    chunks = out_chunks(x, axes, parts, {channel: (w_shape[1] * groups,)})
    return blockwise(_scatter_block, [x], axes, parts, chunks, dtype, w=w, bias=bias, how=how)


def _scatter_block(block: Any, parts: list[Part], *, w: Any, bias: Any, how: dict[str, Any]) -> Any:
    padding = tuple((part.low, max(part.high, 0)) for part in parts)
    extension = tuple(max(-part.high, 0) for part in parts)
    return nc.conv_transpose(block, w, bias, padding=padding, output_padding=extension, **how)


def conv_weight_grad(
    x: Any,
    dy: Any,
    weight_shape: tuple[int, ...],
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "channels_first",
    algorithm: str = "auto",
) -> Any:
    """`npconv.conv_weight_grad` of dask arrays: the blocks' gradients, added in a fixed order.

    Parameters
    ----------
    x, dy : dask array, or what `as_dask` takes
        `dy` is chunked as the convolution of `x` would be.
    weight_shape, stride, padding, dilation, groups, layout, algorithm
        As for `npconv.conv_weight_grad`; padding is zeros.

    Returns
    -------
    dask.array.Array
        In one chunk.

    Raises
    ------
    ImportError
        If dask is missing.
    ValueError, TypeError
        As for `npconv.conv_weight_grad`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npconv as nc
    >>> x = da.ones((2, 1, 64, 64), dtype="f4", chunks=(1, 1, 32, 32))
    >>> dy = da.ones((2, 1, 62, 62), dtype="f4", chunks=(1, 1, 31, 31))
    >>> nc.dask.conv_weight_grad(x, dy, (1, 1, 3, 3)).compute()[0, 0]
    array([[7688., 7688., 7688.],
           [7688., 7688., 7688.],
           [7688., 7688., 7688.]], dtype=float32)
    """
    x, dy = as_dask(x), as_dask(dy)
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spec = _spec(("x", "weight_shape"), x.shape, weight_shape, **window, layout=layout)
    if dy.shape != spec.y_shape:
        raise ValueError(f"dy must have shape {spec.y_shape}, that of the convolution's result; got {dy.shape}")
    dtype, geometry = np.result_type(x.dtype, dy.dtype), spec.window
    x, axes, channel = _axes(x, spec.w_shape, layout)
    parts = []
    for n, axis in enumerate(axes):
        reach = (geometry.kernel[n] - 1) * geometry.dilation[n]
        parts.append(
            gathered(x.chunks[axis], geometry.out[n], geometry.stride[n], reach, geometry.padding[n][0])
        )  # fmt: skip
    dy = dy.rechunk(tuple(out_chunks(x, axes, parts, {channel: (spec.out_channels,)})))
    how = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": groups}
    how |= {"layout": layout, "algorithm": algorithm}
    # Each block's gradient is one chunk: a row of numbers along the last axis.
    numbers = math.prod(spec.w_shape)
    chunks = [*((1,) * n for n in x.numblocks[:-1]), (numbers,) * x.numblocks[-1]]
    for axis, along in zip(axes, parts, strict=True):
        chunks[axis] = (numbers if axis == x.ndim - 1 else 1,) * len(along)
    rows = blockwise(_weight_grad_block, [x], axes, parts, chunks, dtype, aligned=(dy,), shape=spec.w_shape, how=how)
    across = rows.sum(tuple(range(x.ndim - 1)), dtype=dtype).reshape((-1, numbers))
    return across.sum(0, dtype=dtype).reshape(spec.w_shape)


def _weight_grad_block(block: Any, dy: Any, parts: list[Part], *, shape: tuple[int, ...], how: dict[str, Any]) -> Any:
    padding = tuple((part.low, part.high) for part in parts)
    return nc.conv_weight_grad(block, dy, shape, padding=padding, **how).reshape((1,) * (block.ndim - 1) + (-1,))
