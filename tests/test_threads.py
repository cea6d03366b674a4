"""Who may call at once: threads, pools, workers of joblib and dask, forked children; and that no bit depends on it.

Each scene is a small program of its own, since some of them once ended the process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import threading
import weakref

import numpy as np
import pytest
from guards import run_python

import npconv as nc
from npconv.algorithms import ALGORITHMS, OPERATIONS
from npconv.algorithms.base import image_shape, result_shape
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads as pool
from npconv.planning import plan_for

# Large enough for several threads; the sums are small whole numbers, so every algorithm's result is exact or near.
SCENE = """
import numpy as np, npconv as nc
rng = np.random.default_rng(0)
x = rng.integers(-3, 4, (2, 8, 40, 40)).astype('f4')
w = rng.integers(-3, 4, (8, 8, 3, 3)).astype('f4')
expected = nc.conv(x, w, padding=1, backend='numpy', algorithm='direct')

def right(algorithm='direct'):
    y = nc.conv(x, w, padding=1, backend='numba', algorithm=algorithm)
    return bool(np.allclose(y, expected, rtol=0, atol=0 if algorithm in ('direct', 'im2col') else 1e-2))
"""
MANY = ("direct", "im2col", "winograd", "fft")


def scene(code: str, **environment: str) -> str:
    """What a program prints that begins with `SCENE` and may use two threads a call."""
    done = run_python(SCENE + code, **{"NPCONV_NUM_THREADS": "2", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed; the extra dev has it")


def test_several_python_threads_at_once():
    code = f"""
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(6) as callers:
    print(all(callers.map(right, {MANY} * 6)))
"""
    assert scene(code) == "True"


def test_a_call_from_a_worker_of_a_pool_whose_task_starts_threads_of_its_own():
    code = f"""
from concurrent.futures import ThreadPoolExecutor
def outer(_):
    with ThreadPoolExecutor(3) as inner:
        return right('winograd') and all(inner.map(right, {MANY}))
with ThreadPoolExecutor(3) as callers:
    print(all(callers.map(outer, range(6))))
"""
    assert scene(code, NPCONV_NUM_THREADS="3") == "True"


@needs("joblib")
@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
@pytest.mark.filterwarnings("ignore")
def test_inside_joblib_s_workers(backend, tmp_path):
    # Workers import what they run, so it has to be a module.
    (tmp_path / "scene.py").write_text(SCENE)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from joblib import Parallel, delayed
import scene
right()
print(all(Parallel(2, backend={backend!r})(delayed(scene.right)(name) for name in {MANY} * 2)))
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert scene(code, PYTHONPATH=path) == "True"


@needs("dask")
def test_inside_dask_s_workers():
    code = f"""
import dask
jobs = [dask.delayed(right)(name) for name in {MANY} * 3]
print(all(dask.compute(*jobs, scheduler='threads', num_workers=4)))
"""
    assert scene(code) == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_in_children_forked_before_the_first_call_and_while_the_parent_computes():
    code = f"""
import os, threading
names, done = {MANY}, threading.Event()
children = []
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0 if all(map(right, names)) else 1)
    children.append(child)
fork()  # before Numba was imported here
assert all(map(right, names))
def busy():
    while not done.is_set():
        assert right()
thread = threading.Thread(target=busy)
thread.start()
for _ in range(5):
    fork()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
done.set()
thread.join()
print(codes)
"""
    assert scene(code, PYTHONWARNINGS="ignore") == str([0] * 6)


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_numba_s_threading_layers_make_no_difference(layer):
    # npconv starts none of them; a program beside it may, in the same process.
    code = f"""
import numba
@numba.njit(parallel=True)
def total(values):
    result = 0.0
    for i in numba.prange(values.size):
        result += values[i]
    return result
try:
    there = total(np.ones(1000)) == 1000 and numba.threading_layer()
except ValueError:  # this layer is not installed
    there = 'missing'
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as callers:
    print(there, all(callers.map(right, {MANY} * 2)))
"""
    there, right = scene(code, NUMBA_THREADING_LAYER=layer).split()
    assert there in (layer, "missing")
    assert right == "True"


@pytest.mark.parametrize("algorithm", MANY)
def test_other_python_threads_go_on_while_kernels_run(algorithm):
    """A loop that counts in another thread is not stopped: without the interpreter's lock it hardly notices."""
    code = f"""
import sys, threading, time
x, w = np.ones((4, 64, 96, 96), 'f4'), np.ones((64, 64, 3, 3), 'f4')
plan = nc.plan(x.shape, w.shape, padding=1, algorithm={algorithm!r}, backend='numba', threads=1)
packed = plan.pack(w)
packed(x)
counts, stop = [0], threading.Event()
def count():
    while not stop.is_set():
        counts[0] += 1
        time.sleep(1e-4)
thread = threading.Thread(target=count)
thread.start()
# A thread that held the lock would keep it for this long.
sys.setswitchinterval(1000)
before, start = counts[0], time.perf_counter()
while time.perf_counter() - start < 0.3:
    packed(x)
during, seconds = counts[0] - before, time.perf_counter() - start
sys.setswitchinterval(0.005)
stop.set()
thread.join()
print(during)
"""
    assert int(scene(code)) > 5


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_is_over_keeps_no_array_while_its_helpers_are_busy_elsewhere(fails):
    begun, gate = threading.Event(), threading.Event()

    def wait(*_):
        begun.set()
        gate.wait(60)

    def compute(start, stop, values):
        if fails:
            raise ValueError("failed")

    # One long run that occupies whoever is there to help.
    busy = threading.Thread(target=pool.run, args=(wait, 2, 10**6), kwargs={"limit": 2})
    busy.start()
    try:
        assert begun.wait(60)
        values = np.zeros(10)
        held = weakref.ref(values)
        gc.disable()  # an error must not be part of a cycle either
        with pytest.raises(ValueError, match="failed") if fails else contextlib.nullcontext() as caught:
            pool.run(compute, 2, 10**6, values, limit=2)
        del values, caught
        assert held() is None
    finally:
        gc.enable()
        gate.set()
        busy.join()


def test_a_helper_that_comes_late_writes_into_nobody_s_result(monkeypatch):
    late, values = [], np.zeros(10)
    monkeypatch.setattr(pool, "_ask", lambda shares, count: late.append(shares) or count)

    def compute(start, stop, values):
        values[start:stop] += 1

    pool.run(compute, 10, 10**6, values, limit=4)
    assert (values == 1).all(), "the caller did all of it"
    (shares,) = late
    shares.help()
    assert (values == 1).all()
    assert shares.close() is None, "nor does it fail"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_does_not_wait_for_its_parent_s_helpers():
    code = """
import os, signal
from npconv.kernels.cpu import threads
done = []
def kernel(start, stop, *_):
    done.append(stop - start)
def run():
    done.clear()
    threads.run(kernel, 2, 10**9, limit=2, stoppable=True)  # which the main thread leaves to helpers
    return sum(done)
assert run() == 2
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if run() == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert scene(code, PYTHONWARNINGS="ignore") == "0"


@pytest.mark.parametrize("before", ["", "run(2)"], ids=["no helper yet", "helpers sleep"])
def test_what_is_collected_while_the_interpreter_ends_may_still_compute(before):
    """No other thread runs then, and one that is started never comes up: whoever waited for either would never end."""
    code = f"""
import builtins
from npconv.kernels.cpu import threads
done = []
def kernel(start, stop, *_):
    done.append(stop - start)
def run(tasks, work=10**6, **options):
    threads.run(kernel, tasks, work, limit=2, **options)
{before}
class Last:
    def __del__(self, run=run, done=done, print=print):
        done.clear()
        run(2)
        run(2, 10**9, stoppable=True)
        print(sum(done), flush=True)
builtins.last = Last()
"""
    assert scene(code) == "4"


SPECS = [
    ConvSpec.of((2, 6, 17, 23), (10, 6, 3, 3), padding=1),
    ConvSpec.of((1, 4, 12, 13), (8, 1, 3, 3), padding=1, groups=4),
    ConvSpec.of((3, 5, 9, 8), (7, 5, 1, 1)),
    ConvSpec.of((2, 4, 15, 16), (6, 2, 5, 4), stride=(2, 1), padding=((2, 1), (0, 3)), groups=2),
    ConvSpec.of((2, 3, 60), (5, 3, 4), padding=2),
    ConvSpec.of((1, 3, 5, 7, 9), (4, 3, 3, 2, 3), padding=1),
]


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_bit_depends_on_the_number_of_threads(algorithm, op, dtype, monkeypatch):
    monkeypatch.setattr(pool, "WORTH_A_THREAD", 1)
    rng, numba, dtype = np.random.default_rng(0), require("numba"), np.dtype(dtype)
    for spec in SPECS:
        if ALGORITHMS[algorithm].supports(spec, op, numba, dtype):
            continue
        left = image_shape(spec) if op != "input_grad" else result_shape(spec)
        right = result_shape(spec) if op == "weight_grad" else spec.w_shape
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in (left, right))
        results = []
        for count in (1, 2, 3):
            plan = plan_for(spec, op, numba, dtype, algorithm, threads=count)
            nc.set_num_threads(count)  # packing asks for it
            try:
                results.append(plan.run(a, plan.packed(b) if op == "forward" else b))
            finally:
                nc.set_num_threads(None)
        for other in results[1:]:
            assert results[0].tobytes() == other.tobytes(), f"{spec}"
