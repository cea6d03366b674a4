"""Arrays in files: safetensors and ``.npz``, never pickles; written whole or not at all."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npconv import disk
from npconv.nn.arguments import Array, namespace
from npconv.nn.module import Module

_METADATA = "__metadata__"

# What the zip file and NumPy's reader raise for bytes that are no archive of arrays.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, MemoryError,
    OverflowError,
)  # fmt: skip


def save(model: Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write all parameters and buffers of a network into a file.

    Parameters
    ----------
    model : Module
    path : str or Path
        Ends in ``.safetensors``, which other libraries read too and which needs the extra ``train``, or in ``.npz``,
        NumPy's format. A file that is there is replaced at once, or left alone if anything fails.
    metadata : mapping of str to str, optional
        Kept beside the arrays; `load` returns it.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.
    ImportError
        If safetensors is wanted but missing.
    OSError
        If the file cannot be written.

    References
    ----------
    The format: https://huggingface.co/docs/safetensors.

    Examples
    --------
    >>> import tempfile
    >>> import npconv as nc
    >>> a, b = nc.nn.Linear(3, 2, rng=0), nc.nn.Linear(3, 2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nc.nn.save(a, f"{folder}/weights.npz", {"made by": "an example"})
    ...     nc.nn.load(b, f"{folder}/weights.npz")
    {'made by': 'an example'}
    >>> bool((a.weight.value == b.weight.value).all())
    True
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    write(path, model.state_dict(), {} if metadata is None else metadata)


def load(model: Module, path: str | Path) -> dict[str, str]:
    """Read all parameters and buffers of a network from a file that `save` wrote. All fits, or nothing is changed.

    Parameters
    ----------
    model : Module
        Of the structure of the one that was saved.
    path : str or Path
        Ends in ``.safetensors`` or ``.npz``.

    Returns
    -------
    dict of str to str
        The file's metadata.

    Raises
    ------
    ValueError
        If the file is damaged, or does not fit the network; the message names the arrays.
    TypeError
        If an array is of a kind of numbers that does not convert.
    ImportError
        If safetensors is wanted but missing.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, npconv as nc
    >>> trained, fresh = nc.nn.Linear(3, 2, rng=0), nc.nn.Linear(3, 2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nc.nn.save(trained, f"{folder}/weights.npz", {"epochs": "20"})
    ...     nc.nn.load(fresh, f"{folder}/weights.npz")
    {'epochs': '20'}
    >>> bool((fresh.weight.value == trained.weight.value).all())
    True
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    arrays, metadata = read(path)
    try:
        model.load_state_dict(arrays)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None
    return metadata


def write(path: str | Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write named arrays and strings into a file; see `save`."""
    kind = kind_of(path)
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must map strings to strings, got {metadata!r:.60}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map strings to strings, got {key!r:.60}: {value!r:.60}")
    encode = _safetensors if kind == ".safetensors" else _npz
    content = encode({name: _on_host(name, value) for name, value in arrays.items()}, dict(metadata))
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(path).parent} for the file {Path(path).name}")
    disk.write(Path(path), content, durable=True)


def read(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays, NumPy's, and the strings of a file; see `load`."""
    kind = kind_of(path)
    decode = _from_safetensors if kind == ".safetensors" else _from_npz
    return decode(Path(path))


def kind_of(path: str | Path) -> str:
    """Return the ending of `path` that says the format, or raise if there is none."""
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a string or a Path, got {type(path).__name__}")
    kind = Path(path).suffix
    if kind not in (".safetensors", ".npz"):
        raise ValueError(f"path must end in .safetensors or .npz, got {str(path)!r}")
    return kind


def _on_host(name: str, value: Array) -> Array:
    """An array of NumPy's in C order and in the machine's order of bytes."""
    host = value if namespace(name, value) is np else value.get()
    return np.asarray(host, host.dtype.newbyteorder("="), order="C")


# --------------------------------------------------------------------------------------------------------------------
# The two formats
# --------------------------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"files ending in .safetensors need it ({error}): pip install 'npconv[train]'") from None
    return safetensors


def _safetensors(arrays: dict[str, Array], metadata: dict[str, str]) -> bytes:
    content: bytes = _library().numpy.save(arrays, metadata or None)
    return content


def _from_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    library = _library()
    path.stat()  # a file that is missing is an OSError with its name
    name = None
    try:
        with library.safe_open(path, framework="numpy") as file:
            arrays = {}
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                arrays[name] = file.get_tensor(name)
            return arrays, file.metadata() or {}
    except (library.SafetensorError, TypeError, AttributeError) as error:
        cut = _first_incomplete(path)
        if cut is not None:
            raise ValueError(f"{path} is cut off: {cut!r} is incomplete") from None
        where = path if name is None else f"{name!r} in {path}"
        raise ValueError(f"{where} cannot be read as safetensors: {error}") from None


def _first_incomplete(path: Path) -> str | None:
    """Name the first array that the end of a safetensors file cuts off."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        room = path.stat().st_size - 8 - length
        try:
            header = json.loads(file.read(length)) if room >= 0 else {}
            ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA}
            return min((name for name in ends if ends[name] > room), key=lambda name: ends[name], default=None)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None


def _npz(arrays: dict[str, Array], metadata: dict[str, str]) -> bytes:
    content = io.BytesIO()
    # As numpy.savez does, which cannot store every name.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, value in {**arrays, _METADATA: np.array(json.dumps(metadata))}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)
    return content.getvalue()


def _from_npz(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    where, content = str(path), path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {}
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                where = f"{name!r} in {path}"
                with archive.open(entry) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
            where = str(path)
        metadata = json.loads(str(arrays.pop(_METADATA, "{}")))
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no mapping")
        return arrays, metadata
    except _DAMAGE as error:
        begun = _last_begun(content) if where == str(path) else None
        if begun is not None:
            raise ValueError(f"{path} is cut off: {begun!r} is incomplete, or the list of contents after it") from None
        raise ValueError(f"{where} cannot be read as npz: {error}") from None


def _last_begun(content: bytes) -> str | None:
    """Name the last array that begins in a zip file whose list of contents, at its end, is missing."""
    at = content.rfind(b"PK\x03\x04")
    if not content.startswith(b"PK\x03\x04") or b"PK\x05\x06" in content[at:]:
        return None
    length = int.from_bytes(content[at + 26 : at + 28], "little")
    return content[at + 30 : at + 30 + length].decode(errors="replace").removesuffix(".npy")
