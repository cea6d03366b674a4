"""Which part of a dask array a block of a result depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Ints = int | tuple[int, ...]


class Part(NamedTuple):
    """One block along one axis: results ``first`` to ``last`` depend on elements ``start`` to ``stop`` alone.

    `low` and `high` are what the window has to be padded with on either side of these elements.
    """

    first: int
    last: int
    start: int
    stop: int
    low: int
    high: int


def as_dask(x: Any, chunks: Any = "auto") -> Any:
    """A dask array of what lies in memory, in a file or in a Zarr store, without reading it.

    Parameters
    ----------
    x : dask array, numpy.memmap, zarr.Array or numpy.ndarray
        Of a memory-mapped file (`numpy.load` with ``mmap_mode="r"``) workers get the name, and each maps the file
        itself; it must stay where it is.
    chunks : optional
        As for `dask.array.from_array`; a Zarr array has chunks of its own.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ImportError
        If dask is missing.
    TypeError
        If `x` is something else, or a masked array, whose mask would be lost.
    ValueError
        If dask does not know how large its chunks are, or `chunks` are none for its shape.

    Examples
    --------
    >>> import numpy as np
    >>> from npconv.dask import as_dask
    >>> as_dask(np.zeros((1, 3, 64, 64)), chunks=(1, 3, 32, 32)).numblocks
    (1, 1, 2, 2)
    """
    da = dask_array()
    if isinstance(x, da.Array):
        if any(n != n for n in x.shape):
            raise ValueError(f"x must have chunks of known sizes, got shape {x.shape}; call its compute_chunk_sizes()")
        check_arrays(x=x)
        return x
    if isinstance(x, np.memmap) and x.filename is not None and _maps_whole_file_order(x):
        sizes = _chunks(chunks, x)
        facts = {"filename": str(x.filename), "shape": x.shape, "offset": x.offset, "kind": x.dtype.str}
        return da.map_blocks(_read, chunks=sizes, dtype=x.dtype, meta=np.empty((0,) * x.ndim, x.dtype), **facts)
    if type(x).__module__.partition(".")[0] == "zarr":
        return da.from_zarr(x)
    if isinstance(x, np.ndarray):
        check_arrays(x=x)
        if x.dtype.kind not in "biufc":
            raise TypeError(f"x must be an array of numbers, got dtype {x.dtype}")
        return da.from_array(np.asarray(x), chunks=_chunks(chunks, x))
    raise TypeError(f"x must be an array of dask, NumPy or Zarr, got {type(x).__name__}")


def _chunks(chunks: Any, x: Any) -> Any:
    """The sizes of chunks along each axis, from anything that dask takes for them."""
    try:
        sizes = dask_array().core.normalize_chunks(chunks, x.shape, dtype=x.dtype)
        wrong = any(sum(line) != n or min(line) < 0 for line, n in zip(sizes, x.shape, strict=True))
    except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, NotImplementedError):
        wrong = True
    if wrong:
        raise ValueError(f"chunks must be what dask.array.from_array takes for shape {x.shape}, got {chunks!r}")
    return sizes


def _maps_whole_file_order(x: Any) -> bool:
    """Whether a memory map is the one that was opened, not a view of a part of it."""
    return bool(x.flags.c_contiguous) and (x.base is None or not isinstance(x.base, np.memmap))


def _read(*, filename: str, shape: tuple[int, ...], offset: int, kind: str, block_info: Any = None) -> Any:
    """One block of a memory-mapped file."""
    place = tuple(slice(first, last) for first, last in block_info[None]["array-location"])
    return np.array(np.memmap(filename, np.dtype(kind), "r", offset, shape)[place])


def dask_array() -> Any:
    """The module `dask.array`, or an error that says what is missing."""
    try:
        return importlib.import_module("dask.array")
    except ImportError as error:
        raise ImportError(
            f"npconv.dask needs dask, which cannot be imported ({error}); install it with: pip install 'npconv[dask]'"
        ) from error


def check_arrays(**given: Any) -> None:
    """Raise unless these are arrays, or None, and nothing of them would be lost."""
    for name, value in given.items():
        if value is not None and not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise TypeError(f"{name} must be an array of dask or NumPy, got {type(value).__name__}")
        if isinstance(getattr(value, "_meta", value), np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, whose mask would be lost; fill it first")


def weights_of(w: Any) -> tuple[Any, tuple[int, ...], np.dtype[Any]]:
    """Weights as something that dask hands to every block once, their shape and dtype."""
    da, dask = dask_array(), importlib.import_module("dask")
    shape, dtype = tuple(w.shape), np.dtype(w.dtype)
    if isinstance(w, da.Array):
        return w.rechunk(-1).to_delayed().item(), shape, dtype
    return dask.delayed(np.asarray(w), pure=True), shape, dtype


def without_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An array of a shape that takes no memory, for asking npconv what it would make of one."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def gathered(chunks: tuple[int, ...], out: int, stride: int, reach: int, low: int) -> list[Part]:
    """Blocks of results that each look at ``reach + 1`` elements from ``position * stride - low`` on.

    They follow the chunks of the input: a result belongs to the chunk that holds the middle of its window.
    """
    size, bounds = sum(chunks), [0]
    for bound in np.cumsum(chunks)[:-1].tolist():
        bounds.append(min(max(-((reach // 2 - low - bound) // stride), bounds[-1]), out))
    parts: list[Part] = []
    for first, last in zip(bounds, [*bounds[1:], out], strict=True):
        if first == last:
            continue
        start, stop = first * stride - low, (last - 1) * stride - low + reach + 1
        inside = max(start, 0), min(stop, size)
        parts.append(Part(first, last, *inside, max(-start, 0), max(stop - size, 0)))
    return _with_elements(parts, lambda a, b: Part(a.first, b.last, a.start, b.stop, a.low, b.high))


def scattered(chunks: tuple[int, ...], out: int, stride: int, reach: int, low: int) -> list[Part]:
    """Blocks of a transposed convolution's results, which the elements of the input are spread over.

    Here `low` and `high` crop what a block would have; a negative `high` extends it with zeros.
    """
    size, bounds = sum(chunks), [0]
    for bound in np.cumsum(chunks)[:-1].tolist():
        bounds.append(min(max(bound * stride - low + reach // 2, bounds[-1]), out))
    parts: list[Part] = []
    for first, last in zip(bounds, [*bounds[1:], out], strict=True):
        if first == last:
            continue
        start = max(min(-((reach - first - low) // stride), (first + low) // stride), 0)
        stop = min((last - 1 + low) // stride + 1, size)
        crop = first + low - start * stride
        parts.append(
            Part(first, last, start, stop, crop, (stop - start - 1) * stride + reach + 1 - crop - last + first)
        )

    def merged(a: Part, b: Part) -> Part:
        start, stop = a.start, max(a.stop, b.stop)
        extent = (stop - start - 1) * stride + reach + 1
        return Part(a.first, b.last, start, stop, a.low, extent - a.low - b.last + a.first)

    return _with_elements(parts, merged)


def _with_elements(parts: list[Part], merged: Callable[[Part, Part], Part]) -> list[Part]:
    """The same blocks, where those that depend on no element of the input are joined with a neighbour."""
    found: list[Part] = []
    for part in parts:
        if found and (part.start >= part.stop or found[-1].start >= found[-1].stop):
            part = merged(found.pop(), part)
        found.append(part)
    return found


def out_chunks(x: Any, axes: list[int], parts: list[list[Part]], others: dict[int, tuple[int, ...]]) -> list[Any]:
    """Chunks of the result: those of its parts along `axes`, of `others` where they are given, else of `x`."""
    chunks = [others.get(axis, x.chunks[axis]) for axis in range(x.ndim)]
    for axis, along in zip(axes, parts, strict=True):
        chunks[axis] = tuple(part.last - part.first for part in along)
    return chunks


def grown(chunks: tuple[int, ...], pair: tuple[int, int]) -> tuple[int, ...]:
    """Chunks whose outer ones have been padded."""
    sizes = list(chunks)
    sizes[0] += pair[0]
    sizes[-1] += pair[1]
    return tuple(sizes)


def padded(x: Any, axes: list[int], pairs: Any, mode: str, cval: Any = 0) -> Any:
    """`x` with its boundary written down; what a boundary repeats may lie in the chunks at the far end."""
    da = dask_array()
    if not any(map(any, pairs)):
        return x
    for axis, pair in zip(axes, pairs, strict=True):
        most = x.shape[axis] - (mode == "reflect")
        if mode != "constant" and max(pair) > (most if mode != "edge" else max(pair)):
            raise ValueError(
                f"a boundary of {max(pair)} elements cannot be made from {x.shape[axis]} along axis {axis} of a dask "
                "array without repeating it more than once; pad it before"
            )
    width = [(0, 0)] * x.ndim
    for axis, pair in zip(axes, pairs, strict=True):
        width[axis] = tuple(pair)
    return da.pad(x, width, mode=mode, **({"constant_values": cval} if mode == "constant" else {}))


def each(value: Any, dims: int) -> tuple[Any, ...]:
    """One value for all of some dimensions, or one each."""
    return (int(value),) * dims if isinstance(value, int | np.integer) else tuple(value)
