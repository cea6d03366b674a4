"""The compiled loops by themselves: edges against guard bytes, bounds checks, forks, threads, and the cache on disk."""

from __future__ import annotations

import ast
import multiprocessing
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from guards import OTHER_PROCESSORS, Guarded, run_python

import npconv as nc
from npconv.geometry import ConvSpec
from npconv.kernels import cpu
from npconv.kernels.cpu import few_positions, threads
from npconv.kernels.cpu.compile import sources

SPECS = [
    ConvSpec.of((2, 3, 9), (4, 3, 3), padding=((2, 1),)),
    ConvSpec.of((1, 4, 7), (4, 2, 2), stride=3, dilation=2, groups=2),
    ConvSpec.of((2, 2, 5, 6), (3, 2, 3, 2), stride=(2, 1), padding=((1, 2), (0, 3)), dilation=(1, 2)),
    ConvSpec.of((1, 3, 4, 5), (6, 1, 3, 3), padding="same", groups=3),
    ConvSpec.of((1, 2, 1, 1), (2, 2, 5, 5), padding=4, stride=2),
    ConvSpec.of((1, 2, 3, 4, 5), (2, 2, 2, 3, 2), stride=(1, 2, 3), padding=((0, 1), (2, 0), (1, 1))),
    ConvSpec.of((1, 1, 2, 3, 2, 3), (1, 1, 2, 2, 1, 2), padding=1),
    ConvSpec.of((2, 3, 4, 4), (5, 3, 1, 1), stride=2),
    ConvSpec.of((1, 2, 0, 3), (1, 2, 2, 2), padding=2),
]


def image(spec):
    return (spec.batch, spec.in_channels, *spec.window.size)


def result(spec):
    return (spec.batch, spec.out_channels, *spec.window.out)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_kernels_stay_inside_their_arrays(spec, n_threads, monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    nc.set_num_threads(n_threads)
    try:
        rng, guard = np.random.default_rng(0), Guarded()
        x, w, bias = (
            guard.array(image(spec), rng),
            guard.array(spec.w_shape, rng),
            guard.array((spec.out_channels,), rng),
        )
        dy, y = guard.array(result(spec), rng), guard.array(result(spec))
        dx, dw = guard.array(image(spec)), guard.array(spec.w_shape)
        taps, positions = spec.window.taps, spec.window.positions
        columns, folded = guard.array((*image(spec)[:2], taps, positions)), guard.array(image(spec))
        pooled, pooled_grad = guard.array((*image(spec)[:2], *spec.window.out)), guard.array(image(spec))
        winner = guard.array(pooled.shape, dtype=np.int64)
        a, b = guard.array((2, 3, 5), rng), guard.array((2, 2, 5, 7), rng)
        product = guard.array((2, 2, 3, 7))

        cpu.conv_forward(spec, x, w, bias, "relu", y)
        cpu.conv_input_grad(spec, dy, w, dx)
        cpu.conv_weight_grad(spec, x, dy, dw)
        cpu.unfold(spec.window, x, columns)
        cpu.fold(spec.window, columns, folded)
        pooled[...], winner[...] = -np.inf, -1
        cpu.max_pool(spec.window, x, pooled, winner)
        cpu.max_pool_grad(spec.window, pooled, winner, pooled_grad)
        cpu.matmul(a, b, product)

        guard.check()
        for finite in (y, dx, dw, columns, folded, product):
            assert np.isfinite(finite).all(), "a kernel left an output unwritten, or read outside an input"
        np.testing.assert_array_equal(product, a @ b)
    finally:
        nc.set_num_threads(None)


@pytest.mark.parametrize("most_bytes", [1, 2**20], ids=["two at once", "all at once"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((5, 6, 2, 3), (8, 6, 3, 3), {"padding": 1, "activation": "relu6"}),
        ((5, 6, 5, 4), (16, 3, 3, 2), {"padding": ((0, 1), (1, 0)), "stride": 2, "groups": 2, "activation": "relu"}),
    ],
)
def test_images_of_few_positions_lie_side_by_side(x_shape, w_shape, options, most_bytes, monkeypatch, made_anew):
    for name, value in (("WORTH_COPYING", 0), ("MOST_BYTES", most_bytes)):
        monkeypatch.setattr(few_positions, name, value)
    geometry = {name: value for name, value in options.items() if name != "activation"}
    spec, rng = ConvSpec.of(x_shape, w_shape, **geometry), np.random.default_rng(0)
    x, w, bias = (rng.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    assert few_positions.suits_forward(spec.window, spec.batch, spec.macs)
    y = np.full(spec.y_shape, np.nan, np.float32)
    cpu.conv_forward(spec, x, w, bias, options.get("activation"), y)
    expected = nc.conv(x, w, bias, backend="numpy", algorithm="direct", **options)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=0)


def test_many_small_images_are_right_and_their_plan_says_how():
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((8, 128, 2, 2), (128, 128, 3, 3)))
    how = {"padding": 1, "algorithm": "direct"}
    expected = nc.conv(x, w, backend="numpy", **how)
    np.testing.assert_array_equal(nc.conv(x, w, backend="numba", **how), expected)
    np.testing.assert_array_equal(nc.plan(x.shape, w.shape, backend="numba", **how).pack(w)(x), expected)
    w[0, 0, 0, 0] = np.inf  # which meets zeros of the padding
    with np.errstate(invalid="ignore"):
        expected = nc.conv(x, w, backend="numpy", **how)
    np.testing.assert_array_equal(nc.conv(x, w, backend="numba", **how), expected)
    assert "side by side" in str(nc.plan(x.shape, w.shape, backend="numba", **how))
    assert "side by side" not in str(nc.plan((1, *x.shape[1:]), w.shape, backend="numba", **how))


def test_numba_s_own_bounds_checks_find_nothing():
    code = """
import numpy as np, npconv as nc
rng = np.random.default_rng(0)
for shape, kernel, options in [
    ((2, 4, 7, 6), (4, 2, 3, 2), dict(stride=(2, 1), padding=((1, 2), (0, 3)), dilation=(1, 2), groups=2)),
    ((1, 2, 9), (2, 2, 4), dict(padding='full')),
    ((1, 2, 3, 4, 5), (2, 2, 2, 3, 2), dict(stride=3, padding=2)),
]:
    x, w = rng.standard_normal(shape), rng.standard_normal(kernel)
    for algorithm in ('direct', 'im2col'):
        y, pullback = nc.conv_vjp(x, w, algorithm=algorithm, backend='numba', **options)
        pullback(y)
    y, pullback = nc.max_pool_vjp(x, kernel[2:], padding=1, ceil_mode=True, backend='numba')
    pullback(y)
print('inside')
"""
    done = run_python(code, NUMBA_BOUNDSCHECK="1")
    assert done.stdout.strip() == "inside", done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are processors of one kind")
@pytest.mark.parametrize("processor", OTHER_PROCESSORS)
def test_other_processors_compute_the_same(processor):
    code = """
import numpy as np, npconv as nc
rng = np.random.default_rng(0)
x, w = rng.integers(-3, 4, (2, 6, 9, 40)).astype('f4'), rng.integers(-3, 4, (14, 3, 3, 3)).astype('f4')
for dtype in ('f4', 'f8'):
    for options in (dict(groups=2, padding=1), dict(groups=2, stride=2, padding=((1, 2), (0, 1)))):
        y, pullback = nc.conv_vjp(x.astype(dtype), w.astype(dtype), backend='numba', **options)
        expected, expected_back = nc.conv_vjp(x.astype(dtype), w.astype(dtype), backend='numpy', **options)
        np.testing.assert_array_equal(y, expected)
        for ours, theirs in zip(pullback(y)[:2], expected_back(y)[:2]):
            np.testing.assert_array_equal(ours, theirs)
print(nc.plan(x.shape, w.shape, groups=2, algorithm='direct', backend='numba').kernel)
"""
    done = run_python(code, **OTHER_PROCESSORS[processor])
    assert done.stdout.strip() == "tiles", done.stderr


# --------------------------------------------------------------------------------------------------------------------
# Processes and the cache
# --------------------------------------------------------------------------------------------------------------------

WORK = """
import numpy as np, npconv as nc
x, w = np.ones((4, 8, 32, 32), np.float32), np.ones((8, 8, 3, 3), np.float32)
assert (nc.conv(x, w, backend='numba') == 72).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_computes_after_its_parent_did():
    code = (
        WORK
        + """
import os
child = os.fork()
if child == 0:
    ok = (nc.conv(x, w, backend='numba') == 72).all()
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print('both')
"""
    )
    done = run_python(code, NPCONV_NUM_THREADS="2", PYTHONWARNINGS="ignore")
    assert done.stdout.strip() == "both", done.stderr


def test_a_convolution_at_exit_still_computes():
    code = WORK + "import atexit; atexit.register(lambda: print((nc.conv(x, w, backend='numba') == 72).all()))"
    done = run_python(code, NPCONV_NUM_THREADS="2")
    assert done.stdout.strip() == "True", done.stderr


def test_many_threads_compile_and_compute_at_once(tmp_path):
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np, npconv as nc
x, w = np.ones((4, 8, 32, 32), np.float32), np.ones((8, 8, 3, 3), np.float32)
def job(i):
    y, pullback = nc.conv_vjp(x, w, backend='numba', algorithm=('direct', 'im2col')[i % 2])
    return (y == 72).all() and pullback(y)[1].shape == w.shape
with ThreadPoolExecutor(8) as pool:
    print(all(pool.map(job, range(16))))
"""
    done = run_python(code, NPCONV_NUM_THREADS="2", NPCONV_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "True", done.stderr


def _child(value):
    x, w = np.full((2, 4, 16, 16), value, np.float32), np.ones((4, 4, 3, 3), np.float32)
    return float(nc.conv(x, w, backend="numba").max())


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_started_anew_compute(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} on this system")
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_child, [1.0, 2.0]) == [36.0, 72.0]


def test_compiled_code_is_found_again_by_the_next_process(tmp_path):
    code = (
        WORK + "from npconv.kernels.cpu.loops import conv_forward as f; print(f.stats.cache_hits, f.stats.cache_misses)"
    )
    counts = "from npconv.kernels.cpu import loops, compile as c; import os; print(len(os.listdir(c.cache_folder())))"
    first = run_python(WORK + counts, NPCONV_CACHE_DIR=str(tmp_path))
    assert int(first.stdout) > 0, first.stderr
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    second = run_python(code + "\n" + counts, NPCONV_CACHE_DIR=str(tmp_path))
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == files, "nothing was compiled again"


def _imported_rooms(path):
    """The rooms of the kernels' folder that a file imports, as Python's own parser reads it."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    within = [node.module.removeprefix(f"{cpu.__name__}.") for node in nodes if node.module.startswith(cpu.__name__)]
    beside = [alias.name for node in nodes if node.module == cpu.__name__ for alias in node.names]
    return {*within, *beside} - {cpu.__name__}


@pytest.mark.parametrize("path", sorted(Path(cpu.__file__).parent.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_machine_code_depends_on_all_that_its_file_imports(path):
    expected, ahead = set(), {path.stem}
    while ahead:
        ahead = set().union(*(_imported_rooms(path.with_name(f"{room}.py")) for room in ahead)) - expected
        expected |= ahead
    assert {source.stem for source in sources(path)} == expected


def test_a_damaged_file_of_compiled_code_is_replaced(tmp_path):
    assert run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path)).returncode == 0
    for path in tmp_path.rglob("*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    done = run_python(WORK + "print('right')", NPCONV_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "right", done.stderr
    assert "damaged" in done.stderr
    again = run_python(WORK, NPCONV_CACHE_DIR=str(tmp_path))
    assert "damaged" not in again.stderr


def test_the_cache_can_be_off(tmp_path):
    done = run_python(WORK + "print('right')", NPCONV_CACHE_DIR="off", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "right", done.stderr
    assert not list(tmp_path.rglob("*.nbc"))


def test_a_cache_folder_that_cannot_be_made_is_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = run_python(WORK + "print('right')", NPCONV_CACHE_DIR=str(blocked))
    assert done.stdout.strip() == "right", done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "NPCONV_CACHE_DIR" in done.stderr
