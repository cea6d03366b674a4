"""How a loop becomes machine code: Numba without the interpreter's lock, remembered on disk in the user's cache folder.

Numba's own `cache=True` keeps an index file per function that two processes may rewrite at once and then read each
other's code under their own signature. Here every compiled variant has a file of its own, named by a hash of all that
it depends on, so there is nothing to disagree about; a file that cannot be trusted is compiled again: one of somebody
else, since it is unpickled and run, or one whose content is not what its checksum says.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import llvmlite
import numba
from numba.core import caching, compiler, compiler_lock, runtime, serialize

from npconv import config, disk
from npconv.interrupts import to_the_end

# Numba carries no types for these.
_rebuild: Any = compiler.CompileResult._rebuild
_dumps: Any = serialize.dumps
_numba_config: Any = numba.config
_njit: Any = numba.njit
_runtime: Any = runtime.rtsys  # type: ignore[attr-defined]
_compiler_lock: Any = compiler_lock.global_compiler_lock

_CHECKSUM = hashlib.sha256().digest_size

# `from npconv.kernels.cpu.ROOM import ...` or `from npconv.kernels.cpu import ROOM, ...`
_IMPORTS = re.compile(rf"^ *from {re.escape(__package__)}(?:\.(\w+) import| import (\([^)]*\)|.*))", re.MULTILINE)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop when it is first called with given types; a multiplication and an addition may share a rounding.

    Parameters
    ----------
    function : callable
        Works on arrays by index and allocates nothing.
    """
    return _compile(function, {"contract"})


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that only compiled loops call.

    It has no way in from Python, which takes a while to make: a call from there crashes.
    """
    return _compile(function, {"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compiled_reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop whose sums may be taken in vector lanes.

    The order is fixed when the code is made, so results do not depend on how the work was divided.
    """
    return _compile(function, {"contract", "reassoc", "nsz"})


def entry(*signature: Any) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Compile a loop at once for these types of its arguments, as what Python calls.

    What comes out looks at no argument's type, as a compiled function otherwise does at each call: the caller vouches
    for them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        dispatcher: Any = _compile(function, {"contract"})
        point: Callable[..., None] = dispatcher.compile(signature)
        return point

    return decorate


def _compile(function: Callable[..., Any], fastmath: set[str], **options: bool) -> Callable[..., Any]:
    captured = _captured(function)
    if captured:
        # The linker knows compiled code by the function's name and its argument types, and where some of it comes from
        # the disk by nothing else: without a name of its own, one tile's code would be taken for another's.
        digest = hashlib.sha256(repr(captured).encode()).hexdigest()[:16]
        function.__qualname__ = f"{function.__qualname__}_{digest}"
    dispatcher: Any = _njit(nogil=True, error_model="numpy", fastmath=fastmath, **options)(function)
    dispatcher.compile = _whole(dispatcher.compile)
    folder = cache_folder()
    if folder is not None:
        dispatcher._cache = _DiskCache(function, folder)
    loop: Callable[..., Any] = dispatcher
    return loop


def _whole(compile_one: Callable[..., Any]) -> Callable[..., Any]:
    """Compiling that goes on when it is interrupted.

    Numba that was cut off while it learned about a type does not know that type from then on.
    """

    def compile_whole(signature: Any) -> Any:
        if _compiler_lock.is_locked():  # by this very thread, on which any other one would wait
            return compile_one(signature)
        return to_the_end(compile_one, signature)

    return compile_whole


@functools.lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """The folder that holds compiled code, made if need be; None where caching is off or impossible."""
    root = config.cache_dir()
    if root is None:
        return None
    folder = root / "kernels" / f"{platform.python_version()}-numba{numba.__version__}-llvmlite{llvmlite.__version__}"
    try:
        disk.make(folder)
        probe = folder / f"{uuid4().hex}.probe"
        disk.write(probe, b"")
        probe.unlink()
    except OSError as error:
        _cannot_be_kept(folder, error)
        return None
    return folder


@functools.cache
def sources(path: Path) -> frozenset[Path]:
    """The files of this folder that a file's code is made from: its imports, and theirs. The file itself is another."""
    found: set[Path] = set()
    ahead = [path]
    while ahead:
        new = _imported(ahead.pop()) - found
        found |= new
        ahead += new
    return frozenset(found)


@functools.cache
def _imported(path: Path) -> frozenset[Path]:
    rooms = [
        room
        for one, several in _IMPORTS.findall(_text(path))
        for room in ([one] if one else re.findall(r"\w+", several))
    ]
    return frozenset(Path(__file__).with_name(f"{room}.py") for room in rooms)


@functools.cache
def _fingerprint(path: Path) -> str:
    """What the machine code of a file's functions depends on, beside versions and the processor."""
    texts = [_text(path) for path in (path, *sorted(sources(path)))]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def _made_from(function: Any) -> str:
    return _fingerprint(Path(function.__code__.co_filename))


@functools.cache
def _text(path: Path) -> str:
    """A file's text; none where only bytecode was installed."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _cannot_be_kept(folder: Path, error: OSError) -> None:
    disk.warn_once(
        "keeping compiled code",
        f"compiled code cannot be kept in {folder} ({error}), so every process compiles anew; "
        "set NPCONV_CACHE_DIR to a writeable folder, or to off",
        stacklevel=3,
    )


class _DiskCache(caching._Cache):
    """One file per function, signature and processor."""

    def __init__(self, function: Callable[..., None], folder: Path) -> None:
        self._function = function
        # Brackets, as in "<locals>", are not allowed everywhere.
        self._name = function.__qualname__.replace("<", "").replace(">", "")
        self._folder = folder
        self._enabled = True

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        for path in self._folder.glob(f"{self._name}-*.nbc"):
            path.unlink(missing_ok=True)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if not self._enabled:
            return None
        # Numba's own caches load everything that compiling could need, SciPy included. What was compiled needs memory
        # to be managed, and no more.
        _runtime.initialize(target_context)
        try:
            content = disk.read(self._path(sig, target_context.codegen()))
            checksum, data = content[:_CHECKSUM], content[_CHECKSUM:]
            if hashlib.sha256(data).digest() != checksum:
                raise ValueError("its content is not what was written")
            return _rebuild(target_context, *pickle.loads(data))
        except FileNotFoundError:
            return None
        except Exception as error:
            # Numba rebuilds from what the file holds; whatever that makes it raise, compiling is the answer.
            disk.warn_once(
                "reading compiled code",
                f"a damaged or foreign file of compiled code in {self._folder} is replaced: {error!r}",
            )
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._enabled:
            return
        path = self._path(sig, data.codegen)
        content = _dumps(data._reduce())
        try:
            disk.write(path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            _cannot_be_kept(self._folder, error)

    def _path(self, sig: Any, codegen: Any) -> Path:
        options = (_numba_config.BOUNDSCHECK, _numba_config.OPT)
        key = repr((self._function.__module__, _made_from(self._function), sig, codegen.magic_tuple(), options))
        return self._folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc"


def _captured(function: Any) -> tuple[Any, ...]:
    """What a function made in a factory takes from around it, as text: the same source with another tile is other code.

    Sizes, tables and tiles by their value; compiled functions and intrinsics by what they capture in turn.
    """
    found: list[Any] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        value = cell.cell_contents
        inner = getattr(value, "py_func", None) or getattr(value, "_defn", value)
        if inspect.isfunction(inner):
            found.append((name, inner.__qualname__, _made_from(inner), *_captured(inner)))
        else:
            found.append((name, repr(inner)))
    return tuple(found)
