"""The cache folder: for the user alone, whole files or none, nothing read that somebody else wrote, one warning."""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from guards import run_python

import npconv
from npconv import disk

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")

WORK = """
import numpy as np, npconv as nc
x, w = np.ones((1, 1, 6), 'c16'), np.ones((1, 1, 2), 'c16')
assert (nc.conv(x, w, algorithm='direct') == 2).all()
"""


# What has nothing to compile, so that it is the only one to be kept.
KEPT = {
    "compiled code": WORK,
    "measurements": """
import npconv as nc
assert nc.autotune((1, 1, 6), (1, 1, 2), backend='numpy').measured_seconds > 0
assert nc.autotune((1, 1, 7), (1, 1, 2), backend='numpy').measured_seconds > 0
""",
    "roofs": """
import npconv as nc
from npconv import roofs
roofs.SECONDS, roofs.available_backends = 0.01, lambda: ('numpy',)
assert nc.this_machine(threads=1) == nc.this_machine(threads=1) != nc.this_machine('float64', threads=1)
""",
}


@pytest.fixture
def unwarned(monkeypatch):
    monkeypatch.setattr(disk, "_warned", set())


@posix
def test_folders_and_files_are_the_user_s_alone(tmp_path):
    before = os.umask(0)
    try:
        done = run_python(
            WORK + "nc.autotune((1, 1, 6), (1, 1, 2), backend='numpy')", NPCONV_CACHE_DIR=str(tmp_path / "a")
        )
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    made = list((tmp_path / "a").rglob("*"))
    assert {path.suffix for path in made if path.is_file()} == {".nbc", ".json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "a", *made] if path.is_dir()} == {0o700}


@posix
def test_what_somebody_else_may_have_written_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    disk.write(path, b"mine")
    assert disk.read(path) == b"mine"
    path.chmod(0o620)
    with pytest.raises(PermissionError, match="others may write it"):
        disk.read(path)
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to user"):
        disk.read(path)


def spoil(content: bytes) -> bytes:
    """One bit of the machine code that is otherwise in order."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@posix
@pytest.mark.parametrize("damage", ["a bit", "nothing in it", "foreign"])
def test_compiled_code_that_cannot_be_trusted_is_replaced_with_one_warning(tmp_path, damage):
    assert run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path)).returncode == 0
    files = list(tmp_path.rglob("*.nbc"))
    assert len(files) > 1
    for path in files:
        if damage == "foreign":
            path.chmod(0o666)
        else:
            path.write_bytes(spoil(path.read_bytes()) if damage == "a bit" else b"")
    done = run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "is replaced" in done.stderr
    again = run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path))
    assert (again.returncode, again.stderr) == (0, "")


@posix
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder in which nobody may write")
@pytest.mark.parametrize("where", ["nowhere", "full"])
@pytest.mark.parametrize("what", KEPT)
def test_a_disk_that_takes_nothing_costs_the_cache_and_one_warning(tmp_path, what, where):
    # Even root makes no folder in /proc; a limit on the size of files is what a full disk is to a program.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n" if where == "full" else ""
    folder = tmp_path if where == "full" else "/proc/npconv"
    done = run_python(limit + KEPT[what], NPCONV_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1, done.stderr
    assert "cannot be kept" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "half a file is left"


def test_writers_and_readers_at_once_see_whole_files(tmp_path):
    path, contents = tmp_path / "file", [bytes([n]) * 100_000 for n in range(4)]
    disk.write(path, contents[0])
    seen, stop, reads, late = set(), threading.Event(), 0, time.monotonic() + 60

    def write(content):
        while not stop.is_set():
            disk.write(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    try:
        # For as long as it takes every writer to have its turn, which one core may give them late.
        while reads < 300 or (len(seen) < len(contents) and time.monotonic() < late):
            content = disk.read(path)
            assert content in contents
            seen.add(content[0])
            reads += 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert len(seen) == len(contents)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_one_warning_a_subject(unwarned, recwarn):
    import warnings

    warnings.simplefilter("always")
    for subject in ("a", "b", "a"):
        disk.warn_once(subject, f"about {subject}")
    assert [str(w.message) for w in recwarn] == ["about a", "about b"]


UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}


def unpickles(tree: ast.AST) -> set[str]:
    """What in a program could unpickle: modules that it imports, and permission for NumPy to do it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & UNPICKLERS
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} & UNPICKLERS
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.add("allow_pickle")
    return found


def test_only_numba_s_own_cache_is_unpickled():
    """NumPy unpickles nothing unless it is allowed to."""
    files = Path(npconv.__file__).parent.rglob("*.py")
    users = {p.name: found for p in files if (found := unpickles(ast.parse(p.read_text(encoding="utf-8"))))}
    assert users == {"compile.py": {"pickle"}}


@pytest.mark.parametrize(
    "code",
    ["import pickle as p", "from shelve import open", "np.load(path, allow_pickle=flag)", "import torch.serialization"],
)
def test_what_could_unpickle_is_found(code):
    assert unpickles(ast.parse(code))


class Trap:
    """A pickle is a program: this one leaves a folder behind."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


@posix
@pytest.mark.parametrize(
    ("checksum", "mode", "sprung"), [(False, 0o600, False), (True, 0o622, False), (True, 0o600, True)],
    ids=["not what was written", "somebody else's", "the user's own"],
)  # fmt: skip
def test_what_is_not_trusted_is_not_unpickled(tmp_path, checksum, mode, sprung):
    assert run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path)).returncode == 0
    trap = pickle.dumps(Trap(tmp_path / "trace"))
    for path in tmp_path.rglob("*.nbc"):
        path.write_bytes((hashlib.sha256(trap).digest() if checksum else bytes(32)) + trap)
        path.chmod(mode)
    done = run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr.count("is replaced")) == (0, 1), done.stderr
    assert (tmp_path / "trace").exists() == sprung


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_processes_that_compile_at_once_are_right_and_need_not_compile_again(tmp_path):
    environment = {**os.environ, "NPCONV_CACHE_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORK], env=environment, stderr=subprocess.PIPE) for _ in range(3)
    ]
    assert [worker.communicate(timeout=300)[1] for worker in workers] == [b""] * 3
    assert [worker.returncode for worker in workers] == [0] * 3
    files = times(tmp_path)
    assert {path.suffix for path in files} == {".nbc"}, "a draft is left"
    done = run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert times(tmp_path) == files
