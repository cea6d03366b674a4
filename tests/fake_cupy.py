"""A stand-in for CuPy on a machine without a GPU: its own array type, which NumPy's functions refuse.

It checks that the portable forms reach arrays through `xp` alone, and that arrays end where they began; the kernels of
npconv.kernels.cuda are executed by `cuda_on_cpu`. It says nothing about CuPy itself: where there is a GPU, the tests
that take the fixture `device` run once more with CuPy.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator

import cuda_on_cpu
import numpy as np
import pytest
from strategies import ON_GPU

gpu = None
"""CuPy itself, while tests run on a GPU."""


class ndarray(np.ndarray):  # noqa: N801 - CuPy's own name
    """An array of the stand-in: operators and methods work, ``numpy.function(array)`` does not."""

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} was called on a CuPy array")

    @property
    def device(self):
        return types.SimpleNamespace(id=0)

    @property
    def __cuda_array_interface__(self):
        return self.__array_interface__


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
        "arange", "asarray", "ascontiguousarray", "zeros", "ones", "full", "ones_like", "where", "maximum",
        "clip", "matmul", "take", "moveaxis", "pad", "einsum", "isnan", "isfinite", "rint",
        "conj",
    ):  # fmt: skip
        setattr(fake, name, _on_device(getattr(np, name)))
    transforms = {name: _on_device(getattr(np.fft, name)) for name in ("fftn", "ifftn", "rfftn", "irfftn")}
    fake.fft = types.SimpleNamespace(**transforms)
    fake.empty = poisoned
    fake.RawModule = cuda_on_cpu.RawModule
    fake.may_share_memory = lambda a, b: np.may_share_memory(_plain(a), _plain(b))
    fake.asnumpy = lambda a: np.array(_plain(a))
    fake.ndarray = ndarray
    fake.frees = []
    fake.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: fake.frees.append(True))

    class CUDARuntimeError(RuntimeError):
        pass

    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: devices, getDevice=lambda: 0, CUDARuntimeError=CUDARuntimeError
    )

    def device(number: int):
        return types.SimpleNamespace(compute_capability=fake.capability)

    fake.capability = "90"
    fake.cuda = types.SimpleNamespace(runtime=runtime, Device=device)
    return fake


@contextlib.contextmanager
def installed():
    """The stand-in in CuPy's place; the test is skipped where its kernels cannot be executed."""
    from npconv import arrays
    from npconv.kernels.cuda import loader

    cuda_on_cpu.require_compiler()
    fake = module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fake)
        arrays.require.cache_clear()
        loader.forget()
        yield fake
    arrays.require.cache_clear()
    loader.forget()


@pytest.fixture
def cupy():
    """The stand-in, installed."""
    with installed() as fake:
        yield fake


@contextlib.contextmanager
def on_gpu():
    """CuPy itself: `upload`, `poisoned` and `download` move arrays to and from a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "gpu", importlib.import_module("cupy"))
        yield gpu


@pytest.fixture(scope="module", params=("emulated", *(pytest.param("gpu", marks=mark) for mark in ON_GPU)))
def device(request) -> Iterator[types.ModuleType]:
    """The stand-in for all tests of a file, so that `@given` may be used with it; and, where there is a GPU, CuPy."""
    with on_gpu() if request.param == "gpu" else installed() as module_:
        yield module_


def upload(array, offset: int = 0):
    """An array of the device with the same elements, `offset` elements behind an address of 64 bytes' alignment."""
    array = np.asarray(array)
    if gpu is not None:
        copy = poisoned(array.shape, array.dtype, offset)
        copy[...] = gpu.asarray(array)
        return copy
    buffer = np.empty(array.nbytes + 64 + offset * array.itemsize, np.uint8)
    start = -buffer.ctypes.data % 64 + offset * array.itemsize
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy.view(ndarray)


def poisoned(shape, dtype, offset: int = 0):
    """An array of the device that nothing has been written to."""
    if gpu is not None:
        dtype = np.dtype(dtype)
        count = int(np.prod(shape)) + offset
        return gpu.full(count * dtype.itemsize, 0xFF, np.uint8).view(dtype)[offset:].reshape(shape)
    empty = upload(np.zeros(shape, dtype), offset)
    empty.view(np.ndarray).reshape(-1).view(np.uint8).fill(0xFF)
    return empty


def download(array) -> np.ndarray:
    """The elements of an array that must be one of the device's."""
    assert type(array) is sys.modules["cupy"].ndarray
    return array.view(np.ndarray) if gpu is None else gpu.asnumpy(array)
