"""``npconv filter``: pictures through a kernel."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands import CommandError, UsageError, pictures
from npconv.commands.arguments import add_json, describe, need
from npconv.demo import ImageError, open_picture

EXAMPLES = """
npconv filter holiday.jpg --kernel sobel                     edges, into npconv-filtered/holiday.png
npconv filter holiday.jpg --kernel gaussian:3 -o soft.jpg    a blur of standard deviation 3 pixels
npconv filter photos/ --kernel sharpen                       every picture of a folder
npconv filter 'photos/*.png' --kernel mine.npy -o out/       a kernel of your own, saved by numpy.save
"""

LARGEST = 1000
"""Pixels: what a picture is blurred over. More is a slip of the hand, whose kernel would fill the memory."""
KERNELS = "sobel, laplace, sharpen, gaussian:SIGMA, box:SIZE or a file FILE.npy"


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "filter", run, "pictures through a kernel", EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder, or a pattern in quotes")
    parser.add_argument("--kernel", required=True, help=KERNELS)
    parser.add_argument("--boundary", default="reflect", help="as npconv.correlate takes it (default: %(default)s)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("npconv-filtered"), metavar="PATH",
        help="a folder, or for one picture a file (default: %(default)s)",
    )  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Correlate every colour of a picture with a kernel, and write the result as a picture.

    Kernels whose weights sum to zero give differences, which are shown from mid grey; sobel gives the edges' strength.
    Transparency is left out, and so is all but the first picture of an animation.
    """
    need("image", "PIL", "tqdm")
    apply = _kernel(options.kernel, options.boundary)
    sources = pictures.find(options.images)
    targets = _targets(sources, options.output)
    written = []
    for source, target in _progress(list(zip(sources, targets, strict=True))):
        try:
            _write(apply(_read(source)), target)
            written.append({"picture": str(source), "written": str(target)})
        except ImageError as error:
            if len(sources) == 1:
                raise UsageError(error) from None
            print(f"npconv: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps(written, indent=2))
    if len(written) < len(sources):
        raise CommandError(f"{len(sources) - len(written)} of {len(sources)} pictures could not be read")
    if not options.json:
        print(f"{len(sources)} picture{'s' if len(sources) > 1 else ''} written, the last to {targets[-1]}")


def _progress(items: list[Any]) -> Iterable[Any]:
    """A bar where there is a terminal to show it and something to wait for."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, unit="picture", leave=False, disable=None if len(items) > 1 else True)
    return bar


def _targets(sources: list[Path], output: Path) -> list[Path]:
    """Where the results go; never over a picture that is read, and no two to the same place."""
    if output.suffix and not output.is_dir():
        if len(sources) > 1:
            raise UsageError(f"--output must be a folder for {len(sources)} pictures, got {output}")
        targets = [output]
    else:
        targets = [output / f"{source.stem}.png" for source in sources]
    read = {source.resolve() for source in sources}
    for number, target in enumerate(targets):
        if target.resolve() in read:
            raise UsageError(f"output must not be over a picture that is read, got {target}")
        if target in targets[:number]:
            raise UsageError(f"two of the pictures are called {target.stem}: write them to folders of their own")
        if target.suffix.lower() not in pictures.SUFFIXES:
            raise UsageError(f"--output must be a kind of picture, such as .png, got {target}")
    return targets


def _kernel(text: str, boundary: str) -> Any:
    """What is done to one picture, ``(channels, height, width)`` between 0 and 1."""
    name, _, number = text.partition(":")
    if name == "sobel" and not number:
        across, down = nc.filters.sobel(1).astype(np.float32) / 4, nc.filters.sobel(0).astype(np.float32) / 4
        return lambda x: np.hypot(_apply(x, across, boundary), _apply(x, down, boundary))
    if name in ("gaussian", "box") and number:
        line = _line(text, name, number)
        return lambda x: _along(_along(x, line, 1, boundary), line, 2, boundary)
    weights = np.asarray(_weights(text, name, number), np.float32)
    middle = 0.5 if abs(float(weights.sum())) < 1e-3 * float(np.abs(weights).sum()) else 0.0
    return lambda x: middle + _apply(x, weights, boundary)


def _apply(x: Any, weights: Any, boundary: str) -> Any:
    return nc.correlate(x, weights, axes=(1, 2), boundary=boundary)


def _along(x: Any, line: Any, axis: int, boundary: str) -> Any:
    return nc.correlate(x, line, axes=(axis,), boundary=boundary)


def _line(text: str, name: str, number: str) -> Any:
    """A row, or a column, of a kernel that is the product of the two."""
    size = _number(text, number)
    if name == "box" and not size.is_integer():
        raise UsageError(f"size of a box must be an integer, got {number}")
    if size > LARGEST:
        raise UsageError(f"--kernel must be of {LARGEST} pixels or less, got {text!r}")
    line = nc.filters.box(int(size), ndim=1) if name == "box" else nc.filters.gaussian(size, ndim=1)
    return line.astype(np.float32)


def _weights(text: str, name: str, number: str) -> Any:
    if name == "laplace" and not number:
        return nc.filters.laplace()
    if name == "sharpen" and not number:
        return np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    if text.endswith(".npy"):
        return _load(Path(text))
    raise UsageError(f"--kernel must be {KERNELS}, got {text!r}")


def _number(text: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise UsageError(f"--kernel must be {KERNELS}, got {text!r}") from None


def _load(path: Path) -> Any:
    try:
        weights = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"there is no kernel at {path}") from None
    except (OSError, ValueError, EOFError):
        raise UsageError(f"{path} is not an array that numpy.save wrote") from None
    if getattr(weights, "ndim", 0) != 2 or not weights.size or weights.dtype.kind not in "iuf":
        kind = getattr(weights, "dtype", type(weights).__name__)
        raise UsageError(
            f"the kernel in {path} must be a real array of two dimensions, got {kind} of {np.shape(weights)}"
        )
    if not np.abs(weights.astype(np.float64)).sum() <= np.finfo(np.float32).max:
        raise UsageError(f"the kernel in {path} must be finite, and its weights' magnitudes sum to a float32")
    return weights


def _read(path: Path) -> Any:
    picture = open_picture(path)
    if picture.mode.startswith(("I", "F")):
        raise ImageError(f"the picture {path} has more than 8 bits a colour, of which it would lose the rest")
    pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"), np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _write(values: Any, path: Path) -> None:
    from PIL import Image

    pixels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path)
