"""From a file to a model: what is read is checked before it is believed, and nothing in it is executed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npconv.inference import MAX_MEMORY, Budget, Model
from npconv.onnx.convert import convert
from npconv.onnx.package import require

Array = Any

LARGEST = 2**31 - 1
"""Bytes of a file beyond which it is no protobuf message."""


def load(model: str | os.PathLike[str] | bytes, *, max_memory: int = MAX_MEMORY) -> Model:
    """Read an ONNX model and make it ready to run.

    Parameters
    ----------
    model : path or bytes
        A ``.onnx`` file, or what it holds. Only a path may refer to external data, in the file's own folder.
    max_memory : int
        Bytes that the model may hold at a time: its constants, and what a run needs besides. Whatever would take more
        is refused before it is allocated.

    Returns
    -------
    npconv.inference.Model
        ``model(x)`` and ``model.run({name: x})``.

    Raises
    ------
    ImportError
        If the package `onnx` is not installed.
    OSError
        If the file cannot be read.
    ValueError, TypeError
        If it is not a valid ONNX model, or wants more than `max_memory`; the message names the node or the tensor.
    NotImplementedError
        If an operator is one that neither npconv nor `onnx`'s reference evaluator knows.

    Notes
    -----
    A model file is data: no code in it is run, and nothing outside its folder is read. Constants are folded, batch
    normalisation and activations move into the convolutions before them, and every node is planned once for a shape of
    input. Operators that are not npconv's business run in `onnx.reference.ReferenceEvaluator`. `max_memory` bounds
    memory, not time: a model may loop for as long as it likes.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "rectifier", [x], [y])
    >>> opset = helper.make_opsetid("", 17)
    >>> file = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    >>> model = nc.onnx.load(file)
    >>> model(np.array([[-1, 0, 2]], "float32"))
    array([[0., 0., 2.]], dtype=float32)
    """
    onnx = require()
    if isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1:
        raise ValueError(f"max_memory must be a positive number of bytes, got {max_memory!r}")
    if isinstance(model, bytes | bytearray | memoryview):
        name, data, folder = "this", bytes(model), None
    elif isinstance(model, str | os.PathLike):
        name, data, folder = str(model), _content(Path(model)), Path(model).parent
    else:
        raise TypeError(f"model must be a path or bytes, got {type(model).__name__}")
    proto = _parsed(onnx, data, name)
    budget = Budget(max_memory)
    for where, tensor in _tensors(onnx, proto):
        _check_tensor(onnx, where, tensor, folder, budget)
    return convert(onnx, proto, budget)


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} is no ONNX model: it has {size:,} bytes, more than a protobuf message may")
    return path.read_bytes()


def _parsed(onnx: Any, data: bytes, name: str) -> Any:
    """The message, which must be a model and not something else that can be read as one."""
    message = require("google.protobuf.message")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (message.DecodeError, RecursionError) as error:
        raise ValueError(f"{name} is no ONNX model, or a truncated one: {error}") from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise ValueError(f"{name} is no ONNX model: it has no version and no graph")
    return proto


# --------------------------------------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------------------------------------


def _tensors(onnx: Any, proto: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor of a model, in initializers and in attributes, and what to call it."""
    yield from _of_graph(onnx, proto.graph)
    for function in proto.functions:
        for attribute in function.attribute_proto:
            yield from _of_attribute(onnx, attribute, f"the function {function.name!r}")
        for node in function.node:
            yield from _of_node(onnx, node)


def _of_graph(onnx: Any, graph: Any) -> Iterator[tuple[str, Any]]:
    for tensor in graph.initializer:
        yield f"initializer {tensor.name!r}", tensor
    for sparse in graph.sparse_initializer:
        yield f"initializer {sparse.values.name!r}", sparse.values
        yield f"the indices of initializer {sparse.values.name!r}", sparse.indices
    for node in graph.node:
        yield from _of_node(onnx, node)


def _of_node(onnx: Any, node: Any) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        yield from _of_attribute(onnx, attribute, f"node {node.name or node.op_type}")


def _of_attribute(onnx: Any, attribute: Any, owner: str) -> Iterator[tuple[str, Any]]:
    who = f"attribute {attribute.name!r} of {owner}"
    held = [attribute.t] if attribute.HasField("t") else []
    for tensor in [*held, *attribute.tensors]:
        yield who, tensor
    lone = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in [*lone, *attribute.sparse_tensors]:
        yield who, sparse.values
        yield f"the indices of {who}", sparse.indices
    for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
        yield from _of_graph(onnx, graph)


def _check_tensor(onnx: Any, who: str, tensor: Any, folder: Path | None, budget: Budget) -> None:
    """Check that a tensor's data is what its shape says, and read it in where it is in another file."""
    dims = tuple(tensor.dims)
    # NumPy refuses an empty array too, if its other axes are beyond what a pointer reaches.
    if any(n < 0 for n in dims) or math.prod(n or 1 for n in dims) >= 2**59 or len(dims) > 64:
        raise ValueError(f"{who} has the impossible shape {dims}")
    if tensor.HasField("segment"):
        raise ValueError(f"{who} is a segment of a tensor, which no version of the format supports")
    kinds = onnx.TensorProto
    if tensor.data_type in (kinds.UNDEFINED, kinds.STRING):
        if tensor.data_type == kinds.UNDEFINED:
            raise ValueError(f"{who} has no data type")
        if len(tensor.string_data) != math.prod(dims):
            raise ValueError(f"{who} of shape {dims} has {len(tensor.string_data)} strings")
        try:
            for text in tensor.string_data:
                text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{who} holds a string that is no UTF-8: {error}") from None
        return
    if tensor.data_type not in kinds.DataType.values():
        raise ValueError(f"{who} has the unknown data type {tensor.data_type}")
    nbytes = _nbytes(onnx, tensor)
    budget.check(nbytes, who)
    if tensor.data_location == kinds.EXTERNAL:
        tensor.raw_data = _external(who, tensor, folder, nbytes)
        tensor.data_location = kinds.DEFAULT
        del tensor.external_data[:]
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            raise ValueError(f"{who} of shape {dims} needs {nbytes:,} bytes and has {len(tensor.raw_data):,}")
    else:
        _check_typed(onnx, who, tensor, nbytes)


def _nbytes(onnx: Any, tensor: Any) -> int:
    """Bytes of a tensor in a file; types of less than a byte share them."""
    count: int = math.prod(tensor.dims)
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    for part, ending in ((2, ("INT4", "E2M1")), (4, ("INT2",))):
        if name.endswith(ending):
            return int(-(-count // part))
    return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def _check_typed(onnx: Any, who: str, tensor: Any, nbytes: int) -> None:
    """Check the number of elements where they are written as numbers of their own field."""
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    count = math.prod(tensor.dims)
    if onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind == "c":
        count *= 2
    if nbytes < count:  # several share a byte
        count = nbytes
    found = len(getattr(tensor, field))
    if found != count:
        raise ValueError(f"{who} of shape {tuple(tensor.dims)} needs {count:,} elements and has {found:,}")


def _external(who: str, tensor: Any, folder: Path | None, nbytes: int) -> bytes:
    """Data from another file, which must be a plain one in the model's own folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ValueError(
            f"{who} is in the file {location!r}, which only a model that is loaded from a path may refer to"
        )
    home = folder.resolve()
    path = home / location
    if not location or "\0" in location or not path.resolve().is_relative_to(home) or path.resolve() == home:
        raise ValueError(f"{who} is in {location!r}, outside the model's folder")
    if not path.is_file():
        raise ValueError(f"{who} is in {location!r}, which is not there or no plain file")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", nbytes))
    except ValueError as error:
        raise ValueError(f"{who} has external data at no number: {error}") from None
    if length != nbytes or offset < 0 or offset + length > path.stat().st_size:
        raise ValueError(
            f"{who} needs {nbytes:,} bytes and should have {length:,} of them from byte {offset:,} of {location!r}, "
            f"which has {path.stat().st_size:,}"
        )
    with path.open("rb") as file:
        file.seek(offset)
        return bytes(file.read(length))
