"""Where a limit is reached: memory, threads, Ctrl-C. An error comes soon, and the next call is right.

Each scene is a program of its own, because limits hold for a process.
"""

from __future__ import annotations

import sys

import pytest
from guards import run_python

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and signals are Linux's here")

SCENE = """
import numpy as np, npconv as nc
rng = np.random.default_rng(0)
x, w = rng.integers(-3, 4, (2, 8, 40, 40)).astype('f4'), rng.integers(-3, 4, (8, 8, 3, 3)).astype('f4')

def answers():
    y = nc.conv(x, w, padding=1, algorithm='direct')
    pool = nc.max_pool(x, 2)
    return [y, nc.conv(x, w, padding=1, algorithm='im2col'), nc.conv_input_grad(y, w, x.shape, padding=1),
            nc.conv_weight_grad(x, y, w.shape, padding=1), pool, nc.correlate(x[0], w[0, 0], axes=(1, 2))]

expected = answers()
def right():
    return all(np.array_equal(a, b) for a, b in zip(answers(), expected))
"""


def scene(code: str, **environment: str) -> list[str]:
    done = run_python(SCENE + code, **{"NPCONV_NUM_THREADS": "2", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@linux
def test_too_little_memory_is_a_memory_error_and_the_next_call_works():
    code = """
import resource
big, deep = np.broadcast_to(np.float32(1), (64, 8, 512, 512)), np.ones((64, 8, 5, 5), 'f4')
small = np.ones((2, 8, 512, 512), 'f4')
calls = [lambda a=a: nc.conv(big, deep, algorithm=a) for a in ('direct', 'im2col', 'winograd', 'fft')]
calls += [
    lambda: nc.conv(small, deep, algorithm='im2col', backend='numpy'),
    lambda: nc.conv_input_grad(np.broadcast_to(np.float32(1), (64, 64, 508, 508)), deep, big.shape),
    lambda: nc.conv_weight_grad(big, np.broadcast_to(np.float32(1), (64, 64, 508, 508)), deep.shape),
    lambda: nc.conv_transpose(small, np.ones((8, 64, 5, 5), 'f4'), stride=4),
    lambda: nc.conv_vjp(big, deep), lambda: nc.unfold(small, 7), lambda: nc.max_pool(big, 2),
    lambda: nc.avg_pool(big, 3, 1), lambda: nc.correlate(big, deep[0, 0], axes=(2, 3)),
    lambda: nc.correlate(big, deep[0, 0], axes=(2, 3), nan_policy='omit'),
    lambda: nc.conv(x, w, padding=40000),
]
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
for n, call in enumerate(calls):
    try:
        call()
        print(f'{n}:finished')
    except MemoryError:
        pass
    if not right():
        print(f'{n}:wrong')
print('done')
"""
    assert scene(code) == ["done"]


@linux
def test_threads_that_cannot_be_started_leave_their_work_to_the_caller_and_touch_nothing_later():
    code = """
import threading
from npconv.kernels.cpu import threads as pool
real = threading.Thread.start
def fail(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = fail
pool.WORTH_A_THREAD = 1
pool._forget()  # the helpers that there are
nc.set_num_threads(4)
y = nc.conv(x, w, padding=1, algorithm='direct')
print(np.array_equal(y, expected[0]), right())
threading.Thread.start = real
y[:] = 7  # what was queued for a thread that never came must not be done when one comes
print(right(), bool((y == 7).all()))
"""
    assert scene(code) == ["True"] * 4


LONG = {
    "forward": "lambda: nc.conv(a, k, padding=2, algorithm='direct')",
    "im2col": "lambda: nc.conv(a[:8], k, padding=2, algorithm='im2col')",
    "input gradient": "lambda: nc.conv_input_grad(b, k, a.shape, padding=2, algorithm='direct')",
    "weight gradient": "lambda: nc.conv_weight_grad(a, b, k.shape, padding=2, algorithm='direct')",
    "one long row of integers": "lambda: nc.conv(row, taps)",
    "one weight of integers": "lambda: nc.conv_weight_grad(row, row[:, :, :-2000], taps.shape)",
    "winograd": "lambda: nc.conv(deep, many, padding=1, algorithm='winograd')",
    "fft": "lambda: nc.conv(a, k, algorithm='fft')",
    "depthwise": "lambda: nc.conv(a, wide, padding=22, groups=64)",
    "filter": "lambda: nc.correlate(picture, lens, method='direct')",
    "one long row": "lambda: nc.conv_weight_grad(floats, floats[:, :, :-40000], (1, 1, 40001), algorithm='direct')",
}


@linux
def test_ctrl_c_comes_through_within_a_second_and_the_next_call_is_right():
    # Signals after 0.3 s; what is interrupted would take several seconds to minutes.
    code = f"""
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been started without it
a, k = np.ones((40, 64, 96, 96), 'f4'), np.ones((64, 64, 5, 5), 'f4')
b, row, taps = np.ones((40, 64, 96, 96), 'f4'), np.ones((1, 1, 8_000_000), 'i8'), np.ones((1, 1, 2001), 'i8')
floats = row.astype('f4')
deep, many, wide = np.ones((24, 256, 96, 96), 'f4'), np.ones((256, 256, 3, 3), 'f4'), np.ones((64, 1, 45, 45), 'f4')
picture, lens = np.ones((6000, 6000), 'f4'), np.random.default_rng(0).random((101, 101), 'f4')
def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
# Much is compiled before, so that it is mostly the convolution that is interrupted.
nc.conv(a[:1, :, :20, :20], k, padding=2); nc.conv(row[:, :, :9000], taps)
nc.conv_weight_grad(row[:, :, :9000], row[:, :, :7000], taps.shape)
nc.conv(deep[:1, :, :20, :20], many, padding=1, algorithm='winograd'); nc.conv(a[:1], wide, padding=22, groups=64)
nc.conv(a[:1], k, algorithm='fft'); nc.correlate(picture[:200, :200], lens, method='direct')
for name, call in {{ {", ".join(f"{name!r}: {call}" for name, call in LONG.items())} }}.items():
    for attempt in range(6):
        sent, thread = [], threading.Thread(target=interrupt)
        thread.start()
        try:
            call()
            print(name.replace(' ', '_'), 'finished')
            thread.join()
            time.sleep(0.1)
        except KeyboardInterrupt:
            late, cpu = time.perf_counter() - sent[0], time.process_time()
            thread.join()
            time.sleep(0.2)
            if late > 1:
                print(name.replace(' ', '_'), 'took', late)
            if time.process_time() - cpu < 0.1:
                break
        # Compiling goes on by itself, and then that is done; computing would go on every time.
        time.sleep(5)
    else:
        print(name.replace(' ', '_'), 'goes_on')
    if not right():
        print(name, 'wrong')
print('done')
"""
    assert scene(code) == ["done"]


@linux
def test_ctrl_c_while_numba_is_imported_and_compiles_breaks_nothing(tmp_path):
    code = """
import os, random, signal, sys, threading, time
import numpy as np, npconv as nc
signal.signal(signal.SIGINT, signal.default_int_handler)
x, w = np.ones((2, 4, 16, 16), 'f8'), np.ones((4, 4, 3, 3), 'f8')
random.seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
count, done = 0, False
def shoot():
    while not done:
        time.sleep(random.uniform(0.05, 0.4))
        if not done:
            os.kill(os.getpid(), signal.SIGINT)
def attempt():
    global done
    y = nc.conv(x, w, backend='numba', algorithm='direct')
    dx = nc.conv_weight_grad(x, y, w.shape, backend='numba', algorithm='direct')
    done = True
    return (y == 36).all() and (dx == 36 * 2 * 14 * 14).all()
gun = threading.Thread(target=shoot)
gun.start()
while not done:
    try:
        ok = attempt()
    except KeyboardInterrupt:
        count += 1
while True:
    try:
        gun.join()
        print(ok, count > 0)
        break
    except KeyboardInterrupt:
        pass
"""
    done = run_python(code, NPCONV_CACHE_DIR=str(tmp_path))
    assert done.stdout.split() == ["True", "True"], done.stdout + done.stderr
