"""The array layer: whose array is this, where does it live, what is it computed in, what goes back to the caller.

A `Backend` is a name, an array namespace `xp` and, where there are any, compiled loops. Everything right of this file
is written against those three, so the same glue runs on NumPy and on CuPy. This is the only room where arrays change
hands: `Operands` takes the caller's arrays in, `Operands.deliver` gives the result back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from npconv import config
from npconv.geometry import Size, choice
from npconv.interrupts import to_the_end

Array: TypeAlias = Any
"""An N-d array of any namespace; its kind is the backend's affair, so the type checker does not ask."""

DTYPES = "float16, float32, float64, complex64, complex128 and all integer types"

NARROW = ("float16", "bfloat16")
"""Names of the floats that are summed in float32; the second is `ml_dtypes`'s, and for GPUs alone."""

_OPTIONAL = ("bias",)
_DLPACK_CPU = 1

# NumPy's flags C_CONTIGUOUS and ALIGNED.
_C_ORDER_ALIGNED = 0x101

# Whether two strided arrays share memory is a hard problem; beyond this effort they count as sharing.
_MAX_OVERLAP_WORK: Any = 10_000


@dataclass(frozen=True)
class Backend:
    """Where a call runs: `xp` is NumPy or CuPy, `kernels` the module of compiled loops or None."""

    name: str
    xp: ModuleType
    kernels: ModuleType | None

    def __reduce__(self) -> tuple[Any, ...]:
        # Modules do not pickle; the name finds them again, or says what is missing there.
        return require, (self.name,)

    def matmul(self, a: Array, b: Array) -> Array:
        """``a @ b`` for ``(G, M, K)`` and ``(N, G, K, P)``, by compiled loops where there are any."""
        if self.kernels is None:
            return self.xp.matmul(a, b)
        product = self.xp.empty((*b.shape[:2], a.shape[1], b.shape[3]), b.dtype)
        self.kernels.matmul(a, self.xp.ascontiguousarray(b), product)
        return product

    def turns(self, image: Array) -> bool:
        """Whether there are loops that bring an image's channels from first to last and back."""
        return self.name == "numba" and self.kernels is not None and bool(self.kernels.turns(image))

    def turned(self, image: Array, to_last: bool) -> Array:
        """``(N, C, *spatial)`` as ``(N, *spatial, C)``, or back, where `turns`."""
        kernels: Any = self.kernels
        result: Array = kernels.turned(image, to_last)
        return result

    def scratch(self, shape: Size, dtype: np.dtype[Any]) -> Array:
        """An array that holds anything and does not outlive a call: where it is large, in memory used before."""
        if self.name == "numba" and self.kernels is not None:
            return self.kernels.workspace.empty(shape, dtype)
        return self.xp.empty(shape, dtype)


# --------------------------------------------------------------------------------------------------------------------
# Backends: what is there, what was asked for
# --------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=len(config.BACKENDS))
def require(name: str) -> Backend:
    """The backend called `name`, or an error that says what is missing. ``"auto"`` stands for the best CPU backend."""
    if name == "auto":
        return require(_best_on_cpu())
    if name == "numba":
        try:
            to_the_end(importlib.import_module, "numba")
        except ImportError as error:
            raise ImportError(
                f"the backend 'numba' needs the package numba, which cannot be imported ({error}); "
                "install it with: pip install numba"
            ) from error
        return Backend("numba", np, to_the_end(importlib.import_module, "npconv.kernels.cpu"))
    if name == "cupy":
        return Backend("cupy", _import_cupy(), importlib.import_module("npconv.kernels.cuda"))
    return Backend("numpy", np, None)


def _best_on_cpu() -> str:
    try:
        require("numba")
    except ImportError as error:
        if importlib.util.find_spec("numba") is not None:
            warnings.warn(f"Numba is installed but does not work, NumPy is used: {error}", RuntimeWarning, stacklevel=4)
        return "numpy"
    return "numba"


def _import_cupy() -> ModuleType:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise ImportError(
            f"the backend 'cupy' needs the package CuPy, which cannot be imported ({error}); install it with: "
            "pip install 'npconv[cuda13]' (or 'npconv[cuda12]' for a driver older than 580)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"the backend 'cupy' needs an NVIDIA GPU and its driver; CuPy is installed, but CUDA answers: {error}"
        ) from error
    if count == 0:
        raise RuntimeError(
            "the backend 'cupy' needs an NVIDIA GPU; CuPy and the driver are installed, but no GPU is visible"
        )
    return cupy


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run here, slowest first.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.available_backends()[:2]
    ('numpy', 'numba')
    """

    def works(name: str) -> bool:
        try:
            require(name)
        except (ImportError, RuntimeError):
            return False
        return True

    return tuple(name for name in config.BACKENDS[1:] if works(name))


def free_workspace() -> None:
    """Give scratch memory that is kept for the next call back to the system.

    A call whose transformed weights take more than 1 MiB keeps the memory for a later one, 128 MiB at most in all. On a
    GPU it is CuPy's pool of memory that keeps it.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.free_workspace()
    """
    for room in ("cpu", "cuda"):
        kernels: Any = sys.modules.get(f"npconv.kernels.{room}")
        if hasattr(kernels, "free_workspace"):
            kernels.free_workspace()


# --------------------------------------------------------------------------------------------------------------------
# Operands: in and out
# --------------------------------------------------------------------------------------------------------------------


class Operands:
    """The arrays of one call: checked on arrival, converted when loaded, returned as the kind that came.

    Nothing is copied or uploaded until `load`, so every check of shapes comes before any allocation.

    Parameters
    ----------
    backend : str or None
        What the caller asked for; None means `config.get_backend`.
    **operands : array or None
        The call's arrays under the names that error messages use; the first decides what kind goes back. None stands
        for a bias that was left out.
    """

    _bfloat16 = False

    def __init__(self, backend: str | None, **operands: Any) -> None:
        given = {name: value for name, value in operands.items() if value is not None or name not in _OPTIONAL}
        self._given = {name: _enter(name, value, self._bfloat16) for name, value in given.items()}
        homes = {_home(operands[name]) for name in self._given}
        if "cupy" in homes and len(homes) > 1:
            owners = ", ".join(f"{name} is a {_type_name(operands[name])}" for name in self._given)
            raise TypeError(f"all arrays must live on the same device: {owners}")
        self.home = "cupy" if "cupy" in homes else "numpy"
        self._exit = _foreign_exit(next(iter(operands.values()))) if self.home == "numpy" else None
        self.backend = _choose_backend(backend, self.home, next(iter(self._given)))
        self.dtype = _result_dtype(self._given)
        for name, value in self._given.items():
            _check_bfloat16(name, value.dtype, self.backend)
        self.compute_dtype = compute_dtype(self.dtype)

    def companion(self, **operands: Any) -> Operands:
        """Take in arrays that come later to the same call, such as a gradient, on its backend and device."""
        later = type(self)(self.backend.name, **operands)
        if later.home != self.home:
            name, value = next(iter(operands.items()))
            kind = "a CuPy array" if self.home == "cupy" else "in the CPU's memory"
            raise TypeError(f"{name} is a {_type_name(value)}, but what it belongs to is {kind}")
        later._exit = self._exit
        return later

    def shape(self, name: str) -> Size:
        """Shape of an operand as the caller gave it."""
        return tuple(self._given[name].shape)

    def dtype_of(self, name: str) -> np.dtype[Any]:
        """Dtype of an operand as the caller gave it."""
        dtype: np.dtype[Any] = self._given[name].dtype
        return dtype

    def has(self, name: str) -> bool:
        """Whether an optional operand was given."""
        return name in self._given

    def check_dtype(self, name: str, dtype: np.dtype[Any], why: str) -> None:
        """Raise unless an operand can be computed in `dtype` without loss of kind."""
        given = self._given[name].dtype
        if np.result_type(given, dtype) != dtype:
            raise TypeError(f"{name} must be of dtype {dtype}, {why}; got {given}")

    def load(self, name: str, dtype: np.dtype[Any] | None = None) -> Array:
        """The operand on the backend, contiguous and aligned, in the dtype that is computed in."""
        value = self.backend.xp.asarray(self._given[name])
        return contiguous(self.backend, value, dtype or self.compute_dtype)

    def load_image(self, name: str, layout: str, batched: bool, dtype: np.dtype[Any] | None = None) -> Array:
        """The operand as ``(N, C, *spatial)``, whatever its layout."""
        xp = self.backend.xp
        value, dtype = xp.asarray(self._given[name]), dtype or self.compute_dtype
        if layout == "channels_last" and value.dtype == dtype and self.backend.turns(value):
            return self.backend.turned(value if batched else value[None], to_last=False)
        return contiguous(self.backend, to_channels_first(xp, value, layout, batched), dtype)

    def check_out(self, out: Any, shape: Size, dtype: np.dtype[Any] | None = None) -> None:
        """Raise unless `out` can take a result of this shape and dtype without harming an operand."""
        if out is None:
            return
        dtype = self.dtype if dtype is None else dtype
        view = _enter("out", out, self._bfloat16)
        if _home(out) != self.home:
            raise TypeError(f"out must live on the same device as the inputs, got {_type_name(out)}")
        if tuple(view.shape) != shape:
            raise ValueError(f"out must have the shape of the result, {shape}, got {tuple(view.shape)}")
        if view.dtype != dtype:
            raise TypeError(f"out must have the dtype of the result, {dtype}, got {view.dtype}")
        if not getattr(view.flags, "writeable", True):
            raise ValueError("out must be writeable, got a read-only array")
        if _overlaps_itself(view):
            raise ValueError(f"out must not overlap itself in memory, got strides {view.strides}")
        for name, value in self._given.items():
            if _overlap(self.backend.xp, view, value):
                raise ValueError(f"out must not share memory with {name}")

    def deliver(self, result: Array, out: Any = None, dtype: np.dtype[Any] | None = None) -> Array:
        """Give `result` back: in the result's dtype, into `out` if there is one, as the kind of array that came in."""
        result = result.astype(self.dtype if dtype is None else dtype, copy=False)
        if self.home == "numpy" and self.backend.name == "cupy":
            result = self.backend.xp.asnumpy(result)
        if out is not None:
            _enter("out", out, self._bfloat16)[...] = result
            return out
        return result if self._exit is None else self._exit(result)


class ConvOperands(Operands):
    """Operands of a convolution or its gradients, which a GPU computes in bfloat16, too."""

    _bfloat16 = True


def is_plain(value: Any) -> bool:
    """Whether a kernel may have the array as it is, but for its dtype: NumPy's own, in C order and aligned."""
    return type(value) is np.ndarray and value.flags.num & _C_ORDER_ALIGNED == _C_ORDER_ALIGNED


def contiguous(backend: Backend, value: Array, dtype: np.dtype[Any]) -> Array:
    """`value` in C order, aligned and in native byte order: what kernels are promised. Copies only if it must."""
    if backend.xp is np:
        return np.require(value, dtype, ("C", "A"))
    return backend.xp.ascontiguousarray(value, dtype)


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What a dtype is computed in: narrow floats in float32, integers in int64 (which wraps to the narrower ones)."""
    if dtype.kind in "iu":
        return np.dtype(np.int64)
    return np.dtype(np.float32) if dtype.name in NARROW else dtype


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of real floating-point numbers; NumPy has no kind for bfloat16."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def to_channels_first(xp: ModuleType, value: Array, layout: str, batched: bool) -> Array:
    """A view of an image, signal or volume as ``(N, C, *spatial)``."""
    value = value if batched else value[None]
    return value if layout == "channels_first" else xp.moveaxis(value, -1, 1)


def from_channels_first(backend: Backend, value: Array, layout: str, batched: bool) -> Array:
    """The inverse of `to_channels_first`, in C order."""
    if layout == "channels_last":
        if backend.turns(value):
            value = backend.turned(value, to_last=True)
        else:
            value = backend.xp.ascontiguousarray(backend.xp.moveaxis(value, 1, -1))
    return value if batched else value[0]


def check_shape(name: str, given: Size, expected: Size, why: str) -> None:
    """Raise a `ValueError` unless an operand has the shape that the geometry gives."""
    if given != expected:
        raise ValueError(f"{name} must have shape {expected}, {why}; got {given}")


def flatten(value: Array, leading: int) -> Array:
    """A view with all axes after the first `leading` as one, which ``-1`` cannot ask for where a size is zero."""
    return value.reshape(*value.shape[:leading], math.prod(value.shape[leading:]))


# --------------------------------------------------------------------------------------------------------------------
# Kinds, devices, dtypes
# --------------------------------------------------------------------------------------------------------------------


def _enter(name: str, value: Any, bfloat16: bool = False) -> Array:
    """The operand as a NumPy or CuPy array, without a copy; anything else is a `TypeError` that names it."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; fill it first, for example with {name}.filled(0)"
        )
    array: Array
    if _home(value) == "cupy":
        array = value
    elif isinstance(value, np.ndarray):
        array = np.asarray(value)
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__") and not isinstance(value, np.generic):
        array = _from_dlpack(name, value)
    else:
        raise TypeError(f"{name} must be an array (NumPy, CuPy, or one that speaks DLPack), got {_type_name(value)}")
    if not (_is_supported(array.dtype) or (bfloat16 and array.dtype.name == "bfloat16")):
        raise TypeError(f"{name} has dtype {array.dtype}; supported are {DTYPES}")
    return array


def supported_dtype(name: str, value: Any, backend: Backend | None = None) -> np.dtype[Any]:
    """A dtype that a result may have, from anything that NumPy takes for one; on a GPU that may be bfloat16."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be one of {DTYPES}, got {value!r}") from None
    if backend is not None:
        _check_bfloat16(name, dtype, backend)
    known = _is_supported(dtype) or (backend is not None and dtype.name == "bfloat16")
    if value is None or dtype.kind == "b" or not known:
        raise TypeError(f"{name} must be one of {DTYPES}, got {value!r}")
    native: np.dtype[Any] = dtype.newbyteorder("=")
    return native


def _check_bfloat16(name: str, dtype: Any, backend: Backend) -> None:
    if dtype.name == "bfloat16" and backend.name != "cupy":
        raise TypeError(
            f"{name} has dtype bfloat16, which is computed on a GPU only (backend 'cupy'), and the backend is "
            f"{backend.name!r}; supported there are {DTYPES}"
        )


def _is_supported(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "fciub" and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def _from_dlpack(name: str, value: Any) -> Array:
    try:
        device = int(value.__dlpack_device__()[0])
    except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(f"{name}, a {_type_name(value)}, has no memory that can be read: {error}") from error
    if device != _DLPACK_CPU:
        raise TypeError(
            f"{name} is a {_type_name(value)} on another device (DLPack device type {device}); "
            "npconv computes on NumPy arrays, CuPy arrays, and arrays in the CPU's memory"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}, a {_type_name(value)}, cannot be read through DLPack: {error}") from error


def _foreign_exit(value: Any) -> Callable[[Array], Any] | None:
    """How a NumPy result becomes the kind of array that `value` is; None where it stays NumPy's."""
    if isinstance(value, np.ndarray):
        return None
    if hasattr(value, "__array_namespace__"):
        namespace = value.__array_namespace__()
    else:
        namespace = sys.modules.get(type(value).__module__.partition(".")[0])
    return getattr(namespace, "from_dlpack", None)


def _home(value: Any) -> str:
    return "cupy" if type(value).__module__.partition(".")[0] == "cupy" else "numpy"


def _choose_backend(asked: str | None, home: str, name: str) -> Backend:
    chosen = config.get_backend() if asked is None else choice("backend", asked, config.BACKENDS)
    if home == "cupy":
        if chosen not in ("auto", "cupy"):
            raise TypeError(f"the backend {chosen!r} computes in the CPU's memory, but {name} is a CuPy array")
        chosen = "cupy"
    return require(chosen)


def _result_dtype(given: dict[str, Array]) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.result_type(*(np.dtype(value.dtype) for value in given.values()))
    dtype = dtype.newbyteorder("=")
    if dtype.kind == "b":
        names = " and ".join(given)
        raise TypeError(
            f"{names} of dtype bool: a convolution needs numbers, convert with .astype(numpy.int8) or another type"
        )
    return dtype


def _overlap(xp: ModuleType, a: Array, b: Array) -> bool:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return bool(xp.may_share_memory(a, b))
    try:
        return np.shares_memory(a, b, max_work=_MAX_OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(value: Array) -> bool:
    """Whether two elements may share memory: strides, from the smallest up, must clear what lies below them."""
    extent = value.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(value.strides, value.shape, strict=True) if n > 1):
        if stride < extent:
            return bool(value.size > 0)
        extent = stride * (n - 1) + extent
    return False


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
