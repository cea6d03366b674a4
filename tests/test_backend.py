"""The backend switch: environment, process, block and call; threads; what a missing backend says."""

from __future__ import annotations

import builtins
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import npconv as nc
from npconv import arrays, config

X = np.arange(24.0).reshape(1, 2, 3, 4)
W = np.arange(16.0).reshape(2, 2, 2, 2)


@pytest.fixture
def clean(monkeypatch):
    """No setting from outside, and none left behind."""
    monkeypatch.delenv("NPCONV_BACKEND", raising=False)
    monkeypatch.delenv("NPCONV_NUM_THREADS", raising=False)
    yield monkeypatch
    nc.set_backend(None)
    nc.set_num_threads(None)


@pytest.fixture
def forget_backends():
    """Backends are looked for anew, before and after."""
    arrays.require.cache_clear()
    yield
    arrays.require.cache_clear()


def test_the_default_is_auto(clean):
    assert nc.get_backend() == "auto"


def test_call_wins_over_block_wins_over_process_wins_over_environment(clean):
    clean.setenv("NPCONV_BACKEND", "numpy")
    assert nc.get_backend() == "numpy"
    nc.set_backend("numba")
    assert nc.get_backend() == "numba"
    with nc.use_backend("numpy"):
        assert nc.get_backend() == "numpy"
        with nc.use_backend("auto"):
            assert nc.get_backend() == "auto"
        assert nc.plan(X.shape, W.shape, backend="numba").backend.name == "numba"
        assert nc.plan(X.shape, W.shape).backend.name == "numpy"
    assert nc.get_backend() == "numba"
    nc.set_backend(None)
    assert nc.get_backend() == "numpy"


def test_a_block_ends_also_with_an_error(clean):
    with pytest.raises(KeyError), nc.use_backend("numpy"):
        raise KeyError
    assert nc.get_backend() == "auto"


@pytest.mark.parametrize("name", ["", "torch", "NUMPY", None, 3, ["numpy"]])
def test_an_unknown_backend_lists_the_known_ones(clean, name):
    for call in (
        lambda: nc.use_backend(name).__enter__(),
        *([lambda: nc.set_backend(name)] if name is not None else []),
        *([lambda: nc.conv(X, W, backend=name)] if name is not None else []),
    ):
        with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'numpy', 'numba', 'cupy'; got"):
            call()
    assert nc.get_backend() == "auto"


def test_an_unknown_name_in_the_environment_raises_at_first_use(clean):
    clean.setenv("NPCONV_BACKEND", "tensorflow")
    with pytest.raises(ValueError, match="NPCONV_BACKEND must be one of 'auto', 'numpy', 'numba', 'cupy'; got 'tensor"):
        nc.conv(X, W)
    assert nc.conv(X, W, backend="numpy").shape == (1, 2, 2, 3)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_the_environment_switches_a_whole_program(name):
    code = "import npconv as nc; print(nc.get_backend(), nc.plan((1, 1, 4), (1, 1, 2)).backend.name)"
    import os

    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NPCONV_BACKEND": name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == [name, name]


def test_a_block_holds_for_its_own_thread_only(clean):
    inside, outside = threading.Event(), threading.Event()
    seen = []

    def other():
        inside.wait(10)
        seen.append(nc.get_backend())
        outside.set()

    thread = threading.Thread(target=other)
    thread.start()
    with nc.use_backend("numpy"):
        inside.set()
        assert outside.wait(10)
    thread.join()
    assert seen == ["auto"]


def test_many_threads_switch_and_compute_at_once(clean):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-4, 5, (2, 8, 40, 40)).astype("float32"), rng.integers(-4, 5, (8, 8, 3, 3)).astype("float32")
    expected = nc.conv(x, w, backend="numpy")

    def job(i):
        name = ("numpy", "numba")[i % 2]
        with nc.use_backend(name):
            result = nc.conv(x, w)
            assert nc.get_backend() == name
        return np.array_equal(result, expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(job, range(64)))


def test_cupy_without_the_package_names_the_extra(clean, forget_backends, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for call in (
        lambda: nc.conv(X, W, backend="cupy"),
        lambda: nc.set_backend("cupy"),
        lambda: nc.use_backend("cupy").__enter__(),
    ):
        with pytest.raises(ImportError, match=r"'cupy' needs the package CuPy.*npconv\[cuda13\]"):
            call()
    assert "cupy" not in nc.available_backends()
    clean.setenv("NPCONV_BACKEND", "cupy")
    with pytest.raises(ImportError, match="CuPy"):
        nc.conv(X, W)


def fake_cupy(monkeypatch, devices):
    """Stand in for a CuPy that is installed on a machine with `devices` GPUs; an exception stands for no driver."""
    import types

    class CUDARuntimeError(RuntimeError):
        pass

    def count():
        if isinstance(devices, int):
            return devices
        raise CUDARuntimeError(devices)

    runtime = types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    module = types.ModuleType("cupy")
    module.cuda = types.SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", module)


def test_cupy_without_a_driver_says_so(clean, forget_backends, monkeypatch):
    fake_cupy(monkeypatch, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU and its driver.*cudaErrorInsufficientDriver"):
        nc.conv(X, W, backend="cupy")
    assert nc.conv(X, W).shape == (1, 2, 2, 3), "auto goes on with the CPU"


def test_cupy_without_a_gpu_says_so(clean, forget_backends, monkeypatch):
    fake_cupy(monkeypatch, 0)
    with pytest.raises(RuntimeError, match="no GPU is visible"):
        nc.set_backend("cupy")
    assert nc.get_backend() == "auto"


def test_without_numba_auto_is_numpy_and_numba_is_an_error(clean, forget_backends, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert nc.plan(X.shape, W.shape).backend.name == "numpy"
    with pytest.raises(ImportError, match="pip install numba"):
        nc.conv(X, W, backend="numba")


def test_a_broken_numba_is_not_passed_over_in_silence(clean, forget_backends, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        arrays.importlib,
        "import_module",
        lambda name: (_ for _ in ()).throw(ImportError("needs NumPy 1.0")) if name == "numba" else real(name),
    )
    with pytest.warns(RuntimeWarning, match=r"Numba is installed but does not work.*needs NumPy 1\.0"):
        assert nc.plan(X.shape, W.shape).backend.name == "numpy"


# --------------------------------------------------------------------------------------------------------------------
# Threads
# --------------------------------------------------------------------------------------------------------------------


def test_threads_from_process_wins_over_environment(clean):
    assert nc.get_num_threads() == config.available_cpus()
    clean.setenv("NPCONV_NUM_THREADS", "3")
    assert nc.get_num_threads() == 3
    nc.set_num_threads(np.int64(2))
    assert nc.get_num_threads() == 2
    nc.set_num_threads(None)
    assert nc.get_num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "9999", "¹"])
def test_a_bad_number_of_threads_in_the_environment_raises_at_first_use(clean, text):
    clean.setenv("NPCONV_NUM_THREADS", text)
    with pytest.raises(ValueError, match="NPCONV_NUM_THREADS must be a number from 1 to 1024"):
        nc.conv(X, W, backend="numba")


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-2, ValueError), (1025, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_a_bad_number_of_threads_names_the_argument(clean, n, error):
    with pytest.raises(error, match=r"^n must be"):
        nc.set_num_threads(n)
    with pytest.raises(error, match=r"^threads must be|1024"):
        nc.plan(X.shape, W.shape, threads=n)


def test_a_plan_keeps_its_number_of_threads(clean):
    plan = nc.plan(X.shape, W.shape, dtype="float64", threads=1, backend="numba")
    nc.set_num_threads(2)
    assert plan.threads == 1
    np.testing.assert_array_equal(plan(X, W), nc.conv(X, W))
    assert nc.get_num_threads() == 2
