"""The stress test finds what it is there for, and what it looks for in an hour is not there in a minute either."""

from __future__ import annotations

import functools
import gc
import sys
import tracemalloc

import numpy as np
import pytest
import stress

import npconv as nc
from npconv.filters import compiled


def allocations() -> int:
    """Blocks that compiled code holds."""
    from numba.core.runtime import rtsys

    stats = rtsys.get_allocation_stats()
    return stats.alloc - stats.free


ALLOWED = 1000
"""Bytes that a round of some forty calls may leave; the smallest of their results has 1,728."""


def held(rounds: int) -> tuple[int, int]:
    """Bytes of Python and NumPy and blocks of compiled code, that are held after so many more rounds of mixed calls."""
    jobs = stress._mixed_jobs(0)
    for _ in range(rounds):
        for job in jobs:
            job()
    gc.collect()
    return tracemalloc.get_traced_memory()[0], allocations()


@pytest.fixture
def traced():
    from numba.core.runtime import _nrt_python

    _nrt_python.memsys_enable_stats()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    _nrt_python.memsys_disable_stats()


def test_calls_leave_nothing_behind(traced):
    held(3)  # what is made once: plans, loops, tables
    bytes_before, blocks_before = held(10)
    bytes_after, blocks_after = held(20)
    assert bytes_after - bytes_before < 20 * ALLOWED
    assert blocks_after == blocks_before


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        (np.float32, {"method": "direct"}),
        (np.float32, {"method": "fft"}),
        (np.float32, {"method": "direct", "stride": 2}),
        (np.int16, {"method": "direct"}),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (1, 5)], ids=["a signal", "rows"])
def test_long_signals_of_many_lengths_leave_little_behind(traced, dtype, how, shape):
    """A filter has a table of 8 bytes for each place of an axis, and is remembered."""
    length, w = compiled.LONG, np.ones(shape, dtype)

    def call(length):
        x = np.ones((*(3,) * (len(shape) - 1), length), dtype)
        for _ in range(3):  # the second one, and those after it, are remembered
            nc.correlate(x, w, **how)

    call(length - 1)  # loads or compiles the loops
    before = tracemalloc.get_traced_memory()[0]
    for n in range(4 * compiled.MOST_LONG):
        call(length + n)
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - before < 2 * compiled.MOST_LONG * 8 * length


def test_what_is_left_behind_is_found(traced, monkeypatch):
    left = []
    real = nc.conv

    def leaking(*arguments, **options):
        y = real(*arguments, **options)
        left.append(y.ravel()[:64].copy())
        return y

    before, _ = held(3)
    monkeypatch.setattr(stress.nc, "conv", leaking)
    assert held(20)[0] - before > 20 * ALLOWED


def test_sixteen_callers_at_once_get_the_bits_of_one():
    assert "no bit different" in stress.many_threads(0.0, seed=1)


def test_a_bit_that_differs_is_found(monkeypatch):
    real, count = nc.conv, 0

    def wrong(*arguments, **options):
        nonlocal count
        y = real(*arguments, **options)
        count += 1
        if count > 30:
            y.flat[0] += 1
        return y

    monkeypatch.setattr(stress.nc, "conv", wrong)
    with pytest.raises(AssertionError, match="Mismatched"):
        list(map(functools.partial(stress.many_threads, 0.0), range(20)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_grows_is_found(monkeypatch):
    monkeypatch.setattr(stress, "_mixed_jobs", lambda _: [lambda: left.append(np.ones(2**19))])
    left: list[np.ndarray] = []
    with pytest.raises(AssertionError, match="MB more after 10 calls"):
        stress.no_leak(0.0, seed=0)


def test_status_and_seed_say_what_was_found(monkeypatch, capsys):
    def found(until, seed):
        raise AssertionError("a wrong number")

    once = ["--minutes", "0", "--seed", "7", "--only", "random specs"]
    monkeypatch.setitem(stress.SCENES, "random specs", lambda _, seed: f"nothing with {seed}")
    assert stress.main(once) == 0
    assert "seed 7\nrandom specs: nothing with 7 (" in capsys.readouterr().out
    monkeypatch.setitem(stress.SCENES, "random specs", found)
    assert stress.main(once) == 1
    out = capsys.readouterr().out
    assert "random specs: FAILED" in out
    assert "a wrong number" in out


def test_a_scene_of_tests_fails_where_one_of_them_does():
    assert "passed" in stress.again("units", "amount")(0.0, 0)
    with pytest.raises(AssertionError, match="deselected"):
        stress.again("units", "no_test_is_called_so")(0.0, 0)
