"""``npconv run``: what an ONNX model makes of an array or a picture."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands import UsageError, samples
from npconv.commands.arguments import add_json, describe, need, positive

EXAMPLES = """
npconv run model.onnx cat.jpg
npconv run model.onnx input.npy --output result.npy
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "run", run, "run an ONNX model", EXAMPLES)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a model with one input")
    parser.add_argument("input", type=Path, metavar="INPUT", help="an .npy file, or a picture")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help=".npy for one output, .npz for any number")
    parser.add_argument(
        "--top", type=positive, default=5, metavar="N", help="so many of the largest elements (default: %(default)s)"
    )
    parser.add_argument("--max-memory", type=float, default=4.0, metavar="GIB", help="default: %(default)s")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Run an ONNX model, and print the largest elements of its outputs or save them.

    A picture is scaled to the size of the model's input, from 0 to 1 and channels first, and nothing else is done to
    it: what a model expects besides, such as a mean taken away, is done in an .npy file.
    """
    if not (math.isfinite(options.max_memory * 2**30) and options.max_memory > 0):
        raise UsageError(f"--max-memory must be finite and above zero, got {options.max_memory}")
    max_memory = int(options.max_memory * 2**30)
    model = nc.onnx.load(options.model, max_memory=max_memory)
    if len(model.inputs) != 1:
        raise UsageError(f"{options.model} has {len(model.inputs)} inputs ({', '.join(model.inputs)}); run takes one")
    _check_output(options.output, len(model.outputs))
    ((name, (shape, dtype)),) = model.inputs.items()
    x = _array(options.input) if options.input.suffix == ".npy" else _picture(options.input, shape, dtype, max_memory)
    results = model.run({name: x})
    if options.json:
        print(json.dumps({key: _values(value, options.top) for key, value in results.items()}, indent=2))
    elif options.output is None:
        for key, value in results.items():
            _show(key, value, options.top)
    if options.output is None:
        return
    if options.output.suffix == ".npy":
        np.save(options.output, *results.values())
    else:
        np.savez(options.output, **results)
    if not options.json:
        print(f"{len(results)} array{'s' if len(results) > 1 else ''} written to {options.output}")


def _check_output(path: Path | None, outputs: int) -> None:
    if path is None or path.suffix == ".npz" or (path.suffix == ".npy" and outputs == 1):
        return
    raise UsageError(f"--output must end in .npz, or in .npy where there is one output; got {path} for {outputs}")


def _array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is no array of numbers: {error}") from error


def _picture(path: Path, shape: tuple[int | None, ...] | None, dtype: Any, max_memory: int) -> Any:
    """A picture as the model's input, ``(1, channels, height, width)``."""
    need("demo", "PIL")
    channels, *size = (shape or ())[1:] or (None,)
    if len(size) != 2 or channels not in (1, 3) or not all(size) or np.dtype(dtype).kind != "f":
        raise UsageError(
            f"the model's input, {dtype} of shape {shape}, is no picture of a known size; give an .npy file"
        )
    nbytes = int(channels or 0) * math.prod(int(n or 0) for n in size) * np.dtype(dtype).itemsize
    if nbytes > max_memory:
        raise UsageError(f"the model's input of shape {shape} needs {nbytes:,} bytes, more than --max-memory allows")
    picture = samples.read(path, [int(n or 0) for n in size], channels)
    return samples.scaled(picture)[None].astype(dtype)


def _show(name: str, value: Any, top: int) -> None:
    print(f"{name}  {' x '.join(map(str, value.shape))}  {value.dtype}")
    for place, number in _largest(value, top):
        print(f"  {place:>6}  {number:.6g}")


def _values(value: Any, top: int) -> dict[str, Any]:
    # JSON has no infinities and no NaN.
    pairs = [
        {"place": int(place), "value": number.item() if math.isfinite(number) else str(number)}
        for place, number in _largest(value, top)
    ]
    return {"shape": list(value.shape), "dtype": str(value.dtype), "largest": pairs}


def _largest(value: Any, top: int) -> list[tuple[int, Any]]:
    """The largest elements, each with its place in C order; none of an array that has no order."""
    flat = value.reshape(-1)
    if flat.dtype.kind not in "biuf":
        return []
    return [(place, flat[place]) for place in np.argsort(-flat.astype(float), kind="stable")[:top]]
