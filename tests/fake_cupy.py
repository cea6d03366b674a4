"""A stand-in for CuPy on a machine without a GPU: its own array type, which NumPy's functions refuse.

It checks that the portable forms reach arrays through `xp` alone, and that arrays end where they began. It says nothing
about CuPy itself.
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest


class ndarray(np.ndarray):  # noqa: N801 - CuPy's own name
    """An array of the stand-in: operators and methods work, ``numpy.function(array)`` does not."""

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} was called on a CuPy array")


ndarray.__module__ = "cupy"


def _plain(value):
    if isinstance(value, ndarray):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    return value


def _on_device(function):
    def call(*args, **kwargs):
        out = kwargs.get("out")
        result = function(*_plain(args), **{k: _plain(v) for k, v in kwargs.items()})
        if out is not None:
            return out
        return result.view(ndarray) if isinstance(result, np.ndarray | np.generic) and np.ndim(result) else result

    return call


def module(devices: int = 1) -> types.ModuleType:
    """A module to stand in ``sys.modules["cupy"]``."""
    fake = types.ModuleType("cupy")
    for name in (
        "arange", "asarray", "ascontiguousarray", "empty", "zeros", "ones", "full", "ones_like", "where", "maximum",
        "clip", "matmul", "take", "moveaxis", "pad", "einsum",
        "conj",
    ):  # fmt: skip
        setattr(fake, name, _on_device(getattr(np, name)))
    transforms = {name: _on_device(getattr(np.fft, name)) for name in ("fftn", "ifftn", "rfftn", "irfftn")}
    fake.fft = types.SimpleNamespace(**transforms)
    fake.may_share_memory = lambda a, b: np.may_share_memory(_plain(a), _plain(b))
    fake.asnumpy = lambda a: np.array(_plain(a))
    fake.ndarray = ndarray

    class CUDARuntimeError(RuntimeError):
        pass

    runtime = types.SimpleNamespace(getDeviceCount=lambda: devices, CUDARuntimeError=CUDARuntimeError)
    fake.cuda = types.SimpleNamespace(runtime=runtime)
    return fake


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, installed."""
    from npconv import arrays

    arrays.require.cache_clear()
    fake = module()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    yield fake
    arrays.require.cache_clear()
