"""Arrays that are computed later: a call with dask arrays goes to `npconv.dask`, which has it under the same name.

dask is never imported here; who hands in one of its arrays has done so.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import numpy as np


def is_lazy(*values: Any) -> bool:
    """Whether one of these is a dask array."""
    kind = getattr(sys.modules.get("dask.array"), "Array", None)
    return kind is not None and any(isinstance(value, kind) for value in values)


def later(name: str, **given: Any) -> Any:
    """What `npconv.dask` makes of a call of a public function; `given` are all its arguments.

    Raises
    ------
    ValueError
        If something is given that `npconv.dask` has no argument for.
    """
    function = getattr(importlib.import_module("npconv.dask"), name)
    known = inspect.signature(function).parameters
    defaults = inspect.signature(getattr(importlib.import_module("npconv"), name)).parameters
    for argument, value in given.items():
        default = defaults[argument].default
        same = value is default or (type(value) is type(default) and value == default)
        if argument not in known and not same:
            raise ValueError(f"{argument} cannot be given for a dask array, got {value!r:.60}")
    return function(**{argument: value for argument, value in given.items() if argument in known})


def stand_in(value: Any) -> Any:
    """An array of the same shape and dtype that takes no memory, for a lazy one; anything else as it is.

    Raises
    ------
    ValueError
        If dask does not know how large its chunks are.
    """
    if not is_lazy(value):
        return value
    if any(n != n for n in value.shape):
        raise ValueError(
            f"a dask array must have chunks of known sizes, got shape {value.shape}; call its compute_chunk_sizes()"
        )
    return np.broadcast_to(np.zeros((), value.dtype), value.shape)
