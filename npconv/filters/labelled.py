"""Labelled arrays: a filtered `xarray.DataArray` keeps its dimensions, its name, its attributes, its coordinates.

xarray is never imported here; who hands in one of its arrays has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from npconv.arrays import Array, Operands
from npconv.filters.frame import Frame
from npconv.lazy import stand_in


def is_labelled(x: Any) -> bool:
    """Whether an array is a `xarray.DataArray`."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(x, xarray.DataArray)


def unlabelled(value: Any, x: Any, name: str = "") -> Array:
    """An array without labels; one with a `name`, a mask, must have the dimensions of `x`."""
    if not is_labelled(value):
        return value
    if name and value.dims != getattr(x, "dims", value.dims):
        raise ValueError(f"{name} must have the dimensions of x, {x.dims}, got {value.dims}")
    return value.data


def frame_of(flip: bool, x: Array, w: Array, mode: str, boundary: str, origin: Any, axes: Any, stride: Any) -> Frame:
    """The geometry of a filter of arrays without labels."""
    return Frame.of(Operands(None, x=stand_in(x), w=stand_in(w)), flip, mode, boundary, origin, axes, stride)


def labels(x: Any, frame: Frame) -> Callable[[Array], Any]:
    """How a result is labelled as `x` is.

    Along a filtered dimension it keeps the coordinates of the elements that the kernel's centre stood on; in mode
    "full" it may have stood beyond the edge, so there the dimension loses its coordinates.
    """
    if not is_labelled(x):
        return lambda y: y
    kept, dropped = {}, set()
    for axis, out, stride, kernel in zip(frame.axes, frame.out, frame.stride, frame.kernel, strict=True):
        first = kernel // 2 if frame.mode == "valid" else 0
        if frame.mode == "full" and kernel > 1:
            dropped.add(x.dims[axis])
        else:
            kept[x.dims[axis]] = slice(first, first + (out - 1) * stride + 1, stride)
    coordinates = {name: value for name, value in x.isel(kept).coords.items() if not dropped.intersection(value.dims)}
    return lambda y: type(x)(y, coordinates, x.dims, x.name, x.attrs)
