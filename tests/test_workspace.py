"""Memory that is lent again: by whom it is held, how much, and that nobody gets what somebody has."""

from __future__ import annotations

import gc
import platform

import numba
import numpy as np
import pytest
from guards import run_python

import npconv as nc
from npconv.kernels.cpu import workspace
from npconv.kernels.cpu.blocking import LINE
from npconv.kernels.cpu.vectors import address_of

LARGE = (workspace.SMALLEST, 1)
F4 = np.dtype("f4")


@pytest.fixture(autouse=True)
def _nothing_held():
    nc.free_workspace()
    yield
    nc.free_workspace()


def address(array):
    return array.ctypes.data


def test_memory_comes_back_when_its_last_array_is_gone():
    first = workspace.empty(LARGE, F4)
    assert (first.shape, first.dtype, first.flags.writeable) == (LARGE, F4, True)
    place, view = address(first), first[10:]
    del first
    gc.collect()
    second = workspace.empty(LARGE, F4)
    assert address(second) != place, "a view of it is still there"
    del view
    gc.collect()
    assert address(workspace.empty(LARGE, F4)) == place


def test_two_arrays_at_once_are_two():
    arrays = [workspace.empty(LARGE, F4) for _ in range(3)]
    for n, array in enumerate(arrays):
        array[...] = n
    assert [array[0, 0] for array in arrays] == [0, 1, 2]
    assert len({address(array) for array in arrays}) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scratch_begins_with_a_line_of_the_caches(dtype):
    @numba.njit
    def addresses(count):
        array = workspace.on_lines(count, dtype)
        array[:] = 1  # all of it is there
        return array.size, address_of(array)

    for count in (0, 1, 5, 1000):
        size, place = addresses(count)
        assert (size, place % LINE) == (count, 0)
    for shape in ((0,), (3, 7), LARGE):
        for array in (workspace.aligned(shape, np.dtype(dtype)), workspace.empty(shape, np.dtype(dtype))):
            assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, dtype, True)
            assert not array.size or address(array) % LINE == 0


def test_what_is_held_is_bounded_and_can_be_freed(monkeypatch):
    monkeypatch.setattr(workspace, "MOST_HELD", 9 * workspace.SMALLEST)
    arrays = [workspace.empty(LARGE, F4) for _ in range(4)]  # of 4 MiB
    del arrays
    gc.collect()
    assert sum(memory.nbytes for memory in workspace._held) == 8 * workspace.SMALLEST
    nc.free_workspace()
    assert not workspace._held


def test_memory_much_too_large_is_left_for_others():
    large = workspace.empty((8 * workspace.SMALLEST,), F4)
    place = address(large)
    del large
    gc.collect()
    assert address(workspace.empty(LARGE, F4)) != place


def test_small_arrays_are_not_lent():
    assert isinstance(workspace.empty((3,), F4).base, np.ndarray), "it would be a loan"
    assert not isinstance(workspace.empty(LARGE, F4).base, np.ndarray)


def test_when_memory_is_short_what_is_held_goes_first(monkeypatch):
    held = workspace.empty(LARGE, F4)
    del held
    gc.collect()
    real, asked = np.empty, []

    def short(*arguments):
        asked.append(len(workspace._held))
        if len(asked) == 1:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(workspace.np, "empty", short)
    assert workspace.empty((8 * workspace.SMALLEST,), F4).size == 8 * workspace.SMALLEST
    assert asked == [1, 0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_scratch_of_compiled_code_is_not_new_in_every_call(monkeypatch):
    # dask.distributed sets this for its workers, and leaves it set; then the C library's thresholds no longer follow.
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    code = """
import resource
import numpy as np
from npconv.kernels.cpu import workspace

def use():
    for array in [np.empty(3 * 2**20, np.uint8) for _ in range(5)]:
        array[::4096] = 1

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = run_python(code)
    assert int(done.stdout) < 400, done.stderr  # of 3840 pages
