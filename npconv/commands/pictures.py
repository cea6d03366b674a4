"""Which pictures a command was given: files, folders, and patterns that the shell has left alone."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from npconv.commands import UsageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
"""Endings of pictures."""


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def find(patterns: Iterable[str]) -> list[Path]:
    """The files that were named, without repetition.

    Raises
    ------
    UsageError
        If there is no picture in a folder, or for a pattern.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern:  # which a path takes for the folder we are in
            raise UsageError("a picture must have a name, got ''")
        path = Path(pattern)
        if path.is_dir():
            named = pictures_in(path)
        elif path.exists() or not glob.has_magic(pattern):
            named = [path]
        else:
            names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - a pattern may be absolute
            named = [Path(name) for name in names if Path(name).is_file()]
        if not named:
            raise UsageError(f"there is no picture in {pattern}")
        found.update(dict.fromkeys(named))
    return list(found)
