"""The cache folder: for the user alone, whole files or none, nothing read that somebody else wrote, one warning."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time

import pytest
from guards import run_python

from npconv import disk

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")

WORK = """
import numpy as np, npconv as nc
x, w = np.ones((1, 1, 6), 'c16'), np.ones((1, 1, 2), 'c16')
assert (nc.conv(x, w, algorithm='direct') == 2).all()
"""


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
def test_a_disk_that_takes_nothing_costs_the_cache_and_one_warning(tmp_path, where):
    # Even root makes no folder in /proc; a limit on the size of files is what a full disk is to a program.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n" if where == "full" else ""
    folder = tmp_path if where == "full" else "/proc/npconv"
    done = run_python(limit + WORK, NPCONV_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
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


def test_only_numba_s_own_cache_is_unpickled():
    from pathlib import Path

    import npconv

    users = [
        p.name for p in Path(npconv.__file__).parent.rglob("*.py") if "pickle.load" in p.read_text(encoding="utf-8")
    ]
    assert users == ["compile.py"]
