"""`npconv run MODEL.onnx INPUT`: one input in, the outputs to a file or their largest elements to the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from npconv.onnx.reading import load

Array = Any


def run(model: Path, source: Path, output: Path | None, top: int, max_memory: int) -> None:
    """Run a model on an array or a picture.

    Parameters
    ----------
    model : Path
        An ONNX file with one input.
    source : Path
        ``.npy``, or a picture: scaled to the input's size, from 0 to 1, channels first.
    output : Path or None
        Where the outputs go: ``.npy`` for one, ``.npz`` for any number. None prints them.
    top : int
        How many of the largest elements of each output are printed.
    max_memory : int
        In bytes.
    """
    network = load(model, max_memory=max_memory)
    if len(network.inputs) != 1:
        raise ValueError(f"{model} has {len(network.inputs)} inputs ({', '.join(network.inputs)}); run takes one")
    if output is not None and not (output.suffix == ".npz" or (output.suffix == ".npy" and len(network.outputs) == 1)):
        raise ValueError(f"output must end in .npz, or in .npy for one output, got {output}")
    ((name, (shape, dtype)),) = network.inputs.items()
    x = _array(source) if source.suffix == ".npy" else _picture(source, shape, dtype)
    results = network.run({name: x})
    if output is None:
        for key, value in results.items():
            _show(key, value, top)
    elif output.suffix == ".npy":
        np.save(output, *results.values())
    else:
        np.savez(output, **results)


def _array(source: Path) -> Array:
    try:
        return np.load(source, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{source} is no array of numbers: {error}") from error


def _picture(source: Path, shape: tuple[int | None, ...] | None, dtype: Any) -> Array:
    """A picture as the model's input: ``(1, channels, height, width)``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(f"pictures need Pillow ({error}): pip install 'npconv[demo]'") from None
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3) or np.dtype(dtype).kind != "f":
        raise ValueError(f"the model's input of shape {shape} and dtype {dtype} is no picture; give an .npy file")
    try:
        with Image.open(source) as image:
            picture = image.convert("L" if shape[1] == 1 else "RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{source} is no picture, and no .npy file") from None
    height, width = (wanted or had for wanted, had in zip(shape[2:], picture.size[::-1], strict=True))
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype) / 255
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), -1, 0)[None], dtype)


def _show(name: str, value: Array, top: int) -> None:
    print(f"{name}  {' x '.join(map(str, value.shape))}  {value.dtype}")
    flat = value.reshape(-1)
    if flat.dtype.kind in "biuf":
        for place in np.argsort(-flat.astype(float), kind="stable")[:top]:
            print(f"  {place:>6}  {flat[place]:.6g}")
