"""A stand-in for CuPy on a machine without a GPU: an array type of its own that NumPy's functions refuse.

It checks that the portable forms reach arrays through `xp` alone, that arrays end where they began, that nothing mixes
them with NumPy's, and, inside `waiting`, how often the host waits for the device. The kernels of npconv.kernels.cuda
are executed by `cuda_on_cpu`. It says nothing about CuPy itself: where there is a GPU, the tests that take the fixture
`device` run once more with CuPy.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
import types
from collections.abc import Iterator

import cuda_on_cpu
import numpy as np
import pytest
from strategies import ON_GPU

gpu = None
"""CuPy itself, while tests run on a GPU."""

_waits: list[str] | None = None
"""Where the host waited for the device, while somebody counts."""


@contextlib.contextmanager
def waiting() -> Iterator[list[str]]:
    """Collect what makes the host wait for the device, and what a graph cannot capture: uploads."""
    global _waits
    before, _waits = _waits, []
    try:
        yield _waits
    finally:
        _waits = before


def _wait(why: str) -> None:
    if _waits is not None:
        _waits.append(why)


class ndarray:  # noqa: N801 - CuPy's own name
    """An array of the stand-in. Its elements are on "the device": whoever looks at them waits for it."""

    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} was called on a CuPy array")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return _call(getattr(ufunc, method), inputs, options)

    def __getattr__(self, name: str):
        if name not in _METHODS:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        return lambda *args, **options: _call(getattr(self._value, name), args, options)

    @property
    def device(self):
        return types.SimpleNamespace(id=0)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._value.ctypes.data)

    @property
    def flags(self):
        flags = self._value.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    @property
    def shape(self):
        return self._value.shape

    @shape.setter
    def shape(self, shape) -> None:
        self._value.shape = shape

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self):
        return (self[i] for i in range(len(self._value)))

    def __getitem__(self, place):
        if _has_mask(place):
            _wait("a mask as an index")
        return _up(self._value[_index(place)])

    def __setitem__(self, place, value) -> None:
        self._value[_index(place)] = _down(value)

    def get(self) -> np.ndarray:
        _wait("get")
        return self._value.copy()

    def __repr__(self) -> str:
        return repr(self._value)


ndarray.__module__ = "cupy"

_METHODS = {
    "all", "any", "argmax", "argmin", "argsort", "astype", "clip", "conj", "copy", "cumsum", "dot", "fill", "flatten",
    "max", "mean", "min", "nonzero", "prod", "ravel", "repeat", "reshape", "round", "sort", "squeeze", "std", "sum",
    "swapaxes", "take", "transpose", "var", "view",
}  # fmt: skip


def _attribute(name: str) -> property:
    def get(self):
        value = getattr(self._value, name)
        return _up(value) if isinstance(value, np.ndarray) else value

    return property(get)


for _name in ("T", "dtype", "imag", "itemsize", "nbytes", "ndim", "real", "size", "strides"):
    setattr(ndarray, _name, _attribute(_name))


def _operator(name: str):
    function = getattr(operator, name)

    def apply(self, *others):
        return _call(function, (self, *others), {})

    return apply


def _reflected(name: str):
    function = getattr(operator, name)

    def apply(self, other):
        return _call(function, (other, self), {})

    return apply


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
for _name in ("lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in _BINARY:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__i{_name}__", _operator(f"__i{_name}__"))
    setattr(ndarray, f"__r{_name}__", _reflected(f"__{_name}__"))
ndarray.__hash__ = None


def _waits_for(name: str):
    function = getattr(np.ndarray, name)

    def look(self, *args):
        _wait(name.strip("_"))
        return function(self._value, *args)

    return look


for _name in ("__bool__", "__int__", "__float__", "__complex__", "__index__", "item", "tolist"):
    setattr(ndarray, _name, _waits_for(_name))


def _has_mask(place) -> bool:
    parts = place if isinstance(place, tuple) else (place,)
    return any(isinstance(part, ndarray) and part.dtype == bool for part in parts)


def _index(place):
    """An index, which may be an array of the host: CuPy uploads it."""
    if isinstance(place, tuple):
        return tuple(map(_index, place))
    if isinstance(place, np.ndarray | list):
        _wait("an index of the host's")
    return place._value if isinstance(place, ndarray) else place


def _down(value):
    """What an operation computes with; the host's arrays are refused, as CuPy refuses them."""
    if isinstance(value, ndarray):
        return value._value
    if isinstance(value, tuple | list):
        return type(value)(_down(v) for v in value)
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _up(value):
    if isinstance(value, tuple | list):
        return type(value)(_up(v) for v in value)
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return value


def _call(function, args, options):
    out = options.get("out")
    result = function(*_down(tuple(args)), **{name: _down(value) for name, value in options.items()})
    if isinstance(out, tuple):
        out = out[0]
    return out if out is not None else _same(args, _up(result))


def _same(args, result):
    """An operand that an operation works in, as itself."""
    if isinstance(result, ndarray):
        for value in args:
            if isinstance(value, ndarray) and value._value is result._value:
                return value
    return result


def _on_device(function):
    return lambda *args, **options: _call(function, args, options)


def _uploading(function):
    """A function that takes arrays of the host, too, and then brings them up."""

    def call(value, *args, **options):
        if isinstance(value, ndarray):
            return _call(function, (value, *args), options)
        _wait("an upload")
        return _up(np.array(function(value, *args, **options)))

    return call


def module(devices: int = 1) -> types.ModuleType:
    """A module to stand in ``sys.modules["cupy"]``."""
    fake = types.ModuleType("cupy")
    for name in (
        "arange", "zeros", "ones", "full", "ones_like", "zeros_like", "empty_like", "where", "maximum", "minimum",
        "clip", "matmul", "take", "moveaxis", "pad", "einsum", "tensordot", "isnan", "isfinite", "rint", "conj", "sqrt",
        "exp", "log", "log1p", "tanh", "multiply", "subtract", "divide", "reciprocal", "stack", "concatenate", "copyto",
        "negative",
    ):  # fmt: skip
        setattr(fake, name, _on_device(getattr(np, name)))
    fake.result_type, fake.can_cast, fake.float32 = np.result_type, np.can_cast, np.float32
    fake.asarray, fake.ascontiguousarray = _uploading(np.asarray), _uploading(np.ascontiguousarray)
    transforms = {name: _on_device(getattr(np.fft, name)) for name in ("fftn", "ifftn", "rfftn", "irfftn")}
    fake.fft = types.SimpleNamespace(**transforms)
    fake.empty = poisoned
    fake.RawModule = cuda_on_cpu.RawModule
    fake.may_share_memory = lambda a, b: np.may_share_memory(_down(a), _down(b))
    fake.asnumpy = lambda a: a.get()
    fake.ndarray = ndarray
    fake.frees = []
    fake.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: fake.frees.append(True))

    class CUDARuntimeError(RuntimeError):
        pass

    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: devices,
        getDevice=lambda: 0,
        CUDARuntimeError=CUDARuntimeError,
        getDeviceProperties=lambda _: {"name": b"a stand-in"},
    )

    def device(number: int):
        return types.SimpleNamespace(compute_capability=fake.capability)

    stream = types.SimpleNamespace(synchronize=lambda: _wait("synchronize"))
    fake.capability, fake.__version__ = "90", "0"
    fake.cuda = types.SimpleNamespace(runtime=runtime, Device=device, get_current_stream=lambda: stream)
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
        # Arrays of the stand-in also where the test before ran on a GPU.
        patch.setattr(sys.modules[__name__], "gpu", None)
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
    array = array._value if isinstance(array, ndarray) else np.asarray(array)
    if gpu is not None:
        copy = poisoned(array.shape, array.dtype, offset)
        copy[...] = gpu.asarray(array)
        return copy
    buffer = np.empty(array.nbytes + 64 + offset * array.itemsize, np.uint8)
    start = -buffer.ctypes.data % 64 + offset * array.itemsize
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return ndarray(copy)


def poisoned(shape, dtype=float, offset: int = 0):
    """An array of the device that nothing has been written to."""
    if gpu is not None:
        dtype = np.dtype(dtype)
        count = int(np.prod(shape)) + offset
        return gpu.full(count * dtype.itemsize, 0xFF, np.uint8).view(dtype)[offset:].reshape(shape)
    empty = upload(np.zeros(shape, dtype), offset)
    download(empty).reshape(-1).view(np.uint8).fill(0xFF)
    return empty


def download(array) -> np.ndarray:
    """The elements of an array that must be one of the device's."""
    if gpu is not None:
        assert type(array) is gpu.ndarray
        return gpu.asnumpy(array)
    assert type(array) is ndarray
    return array._value
