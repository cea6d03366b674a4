"""Files for the user alone, replaced as a whole; those of the cache are trusted where nobody else wrote them.

Whatever is wrong with the disk of the cache, or with what is on it, costs the cache and one warning, never a result.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import warnings
from pathlib import Path
from uuid import uuid4

_warned: set[str] = set()
_lock = threading.Lock()


def make(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone.

    Raises
    ------
    OSError
        If that is impossible.
    """
    if folder.is_dir():
        return
    make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def write(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, and only this user can read it.

    A `durable` one is whole after a loss of power too, for which its bytes wait to be on the disk. What is in the
    cache is checked when it is read, and need not wait.

    Raises
    ------
    OSError
        If that is impossible; nothing is left then.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex[:16]}")
    try:
        with open(draft, "xb", opener=_private) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def read(path: Path, most: int | None = None) -> bytes:
    """The content of a file that this user wrote.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is none.
    OSError, ValueError
        If it cannot be read, has more than `most` bytes, or if somebody else may have written it.
    """
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no file")
        if hasattr(os, "geteuid"):
            if facts.st_uid != os.geteuid():
                raise PermissionError(f"it belongs to user {facts.st_uid}, not to {os.geteuid()}")
            if facts.st_mode & 0o022:
                raise PermissionError(f"others may write it (mode {stat.S_IMODE(facts.st_mode):o})")
        if most is not None and facts.st_size > most:
            raise ValueError(f"it is larger than {most} bytes")
        return file.read()


def warn_once(subject: str, message: str, stacklevel: int = 2) -> None:
    """Say what is wrong with the cache, once a process for each subject."""
    with _lock:
        if subject in _warned:
            return
        _warned.add(subject)
    warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _renew() -> None:
    """A forked child may have inherited a locked lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
