"""Pictures with classes for ``npconv train`` and ``predict``: the digits, a folder of folders, a file of arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npconv.commands import UsageError
from npconv.commands.pictures import pictures_in
from npconv.demo import ImageError, open_picture


@dataclass(frozen=True)
class Samples:
    """Pictures ``(N, C, H, W)`` as bytes or as numbers from 0 to 1, their classes, and the classes' names."""

    pictures: Any
    labels: Any
    names: tuple[str, ...]

    def split(self, share: float, shift: int, seed: int) -> tuple[Augmented, Augmented]:
        """Return those to train on, and so large a share that is held back; one seed makes one choice."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        held = round(share * len(order))
        if not 0 < held < len(order):
            raise UsageError(
                f"--held-back {share:g} of {len(order)} pictures leaves none to train on or none to look at"
            )
        first, rest = order[:held], order[held:]
        return (
            Augmented(self.pictures[rest], self.labels[rest], shift),
            Augmented(self.pictures[first], self.labels[first], 0),
        )


class Augmented:
    """A `npconv.nn.Dataset` whose pictures are moved by up to `shift` pixels, each its own way, while training."""

    def __init__(self, pictures: Any, labels: Any, shift: int) -> None:
        self.pictures, self.labels, self.shift = pictures, labels, shift

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Any, rng: np.random.Generator | None) -> tuple[Any, Any]:
        """Return pictures as float32 and their classes; see `npconv.nn.Dataset.batch`."""
        x = scaled(self.pictures[indices])
        if rng is not None and self.shift:
            height, width = x.shape[2:]
            wide = np.pad(x, ((0, 0), (0, 0), (self.shift,) * 2, (self.shift,) * 2), mode="edge")
            downs, rights = rng.integers(0, 2 * self.shift + 1, (2, len(x)))
            moves = zip(wide, downs, rights, strict=True)
            x = np.stack([picture[:, down : down + height, right : right + width] for picture, down, right in moves])
        return x, self.labels[indices]


def scaled(pictures: Any) -> Any:
    """Bytes become float32 from 0 to 1; numbers become float32."""
    x = np.asarray(pictures, np.float32)
    return x / np.float32(255) if pictures.dtype == np.uint8 else x


def load(source: str, size: int, channels: int | None) -> Samples:
    """Return the samples that ``--data`` names.

    Raises
    ------
    UsageError
        If there are none, or they cannot be read; the message names the file.
    """
    if source == "digits":
        return digits(size, channels or 1)
    path = Path(source)
    if path.is_dir():
        return _folder(path, size, channels or 3)
    if path.suffix == ".npz":
        return _file(path)
    raise UsageError(f"--data must be digits, a folder with a folder for each class, or a file .npz; got {source}")


def digits(size: int, channels: int = 1) -> Samples:
    """Return scikit-learn's 1797 handwritten digits, 8x8, enlarged to `size`.

    They are counts of the dark pixels in blocks of 4x4 of a bitmap of 32x32, so 32 is their true size.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    bytes_ = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pictures = np.stack([resized(image, size, "L") for image in bytes_])
    return Samples(np.repeat(pictures, channels, axis=1), data.target, tuple(map(str, range(10))))


def _folder(path: Path, size: int, channels: int) -> Samples:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [(file, number) for number, folder in enumerate(folders) for file in pictures_in(folder)]
    found = {number for _, number in files}
    if len(found) < 2:
        raise UsageError(
            f"{path} must have at least two folders with pictures, one for each class; it has {len(found)}"
        )
    for number, folder in enumerate(folders):
        if number not in found:
            raise UsageError(f"{folder} has no pictures; a folder is a class")
    pixels = np.stack([read(file, size, channels) for file, _ in files])
    return Samples(pixels, np.array([number for _, number in files]), tuple(folder.name for folder in folders))


def _file(path: Path) -> Samples:
    if path.is_file() and not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
        raise UsageError(f"{path} is no .npz file, or a truncated one")
    try:
        with np.load(path, allow_pickle=False) as file:
            pictures, labels = file["x"], file["y"]
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except KeyError:
        raise UsageError(f"{path} must hold two arrays: x, the pictures, and y, their classes as integers") from None
    except Exception as error:  # whatever a file that is no archive makes zipfile, zlib and NumPy raise
        raise UsageError(f"{path} cannot be read: {error}") from None
    pictures = pictures[:, None] if pictures.ndim == 3 else pictures
    if pictures.ndim != 4 or not (pictures.dtype == np.uint8 or pictures.dtype.kind == "f") or not pictures.size:
        raise UsageError(
            f"x in {path} must be pictures, (N, C, H, W) or (N, H, W), uint8 or floating; "
            f"it is {pictures.dtype} of shape {pictures.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != pictures.shape[:1] or labels.min() < 0:
        raise UsageError(
            f"y in {path} must be {len(pictures)} integers from 0; it is {labels.dtype} of shape {labels.shape}"
        )
    if labels.max() >= len(labels):
        # A network has an output for each class: one absurd number would take all memory.
        raise UsageError(
            f"y in {path} must be classes from 0 on, fewer than the {len(labels)} pictures; it has {labels.max()}"
        )
    if pictures.dtype.kind == "f" and not np.isfinite(pictures).all():
        raise UsageError(f"x in {path} must be finite; it has NaN or infinity")
    if pictures.dtype.kind == "f" and not 0 <= pictures.min() <= pictures.max() <= 1:
        # Those that are predicted later are from 0 to 1, whatever the network was trained on.
        raise UsageError(
            f"x in {path} must be bytes, or numbers from 0 to 1; "
            f"its numbers are from {pictures.min():g} to {pictures.max():g}"
        )
    return Samples(pictures, labels.astype(np.int64), tuple(map(str, range(max(2, int(labels.max()) + 1)))))


def read(path: Path, size: int | Sequence[int], channels: int) -> Any:
    """Return a picture as bytes ``(channels, size, size)``, cut to the middle square and resized."""
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise UsageError(f"pictures have 1 or 3 channels, the network takes {channels}")
    try:
        return resized(open_picture(path), size, mode)
    except ImageError as error:
        raise UsageError(str(error)) from None


def resized(picture: Any, size: int | Sequence[int], mode: str) -> Any:
    """Return Pillow's picture, or an array, cut to shape in the middle and resized, as bytes ``(C, H, W)``."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    height, width = (size, size) if isinstance(size, int) else size
    fitted = ImageOps.fit(picture.convert(mode), (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
