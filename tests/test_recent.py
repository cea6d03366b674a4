"""Calls like an earlier one take a short road: it must lead where the long one leads."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import npconv as nc
from npconv.planning import recent

X = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8) % 7 - 3
W = np.arange(4 * 3 * 2 * 2, dtype=np.float32).reshape(4, 3, 2, 2) % 5 - 2


@pytest.fixture(autouse=True)
def _forget():
    recent.forget()
    yield
    recent.forget()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.complex64, np.float16, ">f4"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"stride": 2, "padding": "same"}, {"padding": ((1, 0), (0, 1))}, {"padding": 1, "padding_mode": "reflect"}],
    ids=str,
)
def test_a_second_call_gives_the_same_bits(backend, dtype, arguments):
    x, w, bias = X.astype(dtype), W.astype(dtype), np.arange(4).astype(dtype)
    for operands in ((x, w), (x, w, bias), (x[0], w, bias), (x[..., ::-1], w), (x, w)):
        first, second = (nc.conv(*operands, backend=backend, **arguments) for _ in range(2))
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert first.tobytes() == second.tobytes()
        assert not np.shares_memory(first, second)
    read_only = x.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(nc.conv(read_only, w, backend=backend), nc.conv(x, w, backend=backend))


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("wrong", [True, 1.0, np.True_, (True, True), (1.0, 1), [[1]]], ids=repr)
def test_what_equals_a_number_is_still_refused_after_the_number(name, wrong):
    for _ in range(2):
        nc.conv(X, W, **{name: 1})
        if name != "groups":
            nc.conv(X, W, **{name: (1, 1)})
    with pytest.raises((TypeError, ValueError)):
        nc.conv(X, W, **{name: wrong})


def test_what_is_wrong_is_refused_after_what_is_right():
    for _ in range(2):
        nc.conv(X, W)
    for wrong in ({"activation": ["relu"]}, {"layout": None}, {"bias": np.zeros(3, np.float32)}, {"backend": {}}):
        with pytest.raises((TypeError, ValueError)):
            nc.conv(X, W, **wrong)
    with pytest.raises(TypeError, match="masked"):
        nc.conv(np.ma.masked_array(X), W)
    with pytest.raises(ValueError, match="w"):
        nc.conv1d(X, W)


def test_settings_changed_between_two_equal_calls_take_effect(monkeypatch):
    seen = []
    original = nc.planning.plan_for

    def spy(spec, op, backend, *rest):
        plan = original(spec, op, backend, *rest)
        seen.append((backend.name, plan.threads))
        return plan

    monkeypatch.setattr(nc.planning, "plan_for", spy)
    monkeypatch.delenv("NPCONV_BACKEND", raising=False)
    monkeypatch.delenv("NPCONV_NUM_THREADS", raising=False)

    def call() -> tuple[str, int] | None:
        seen.clear()
        for _ in range(3):
            nc.conv(X, W)
        assert len(seen) <= 1
        return seen[0] if seen else None

    available = nc.get_num_threads()
    assert call() == ("numba", available)
    assert call() is None
    monkeypatch.setenv("NPCONV_BACKEND", "numpy")
    assert call() == ("numpy", available)
    monkeypatch.setenv("NPCONV_NUM_THREADS", "3")
    assert call() == ("numpy", 3)
    with nc.use_backend("numba"):
        assert call() == ("numba", 3)
    nc.set_backend("numba")
    nc.set_num_threads(2)
    try:
        assert call() == ("numba", 2)
        with nc.strict():
            assert call() == ("numba", 2)
    finally:
        nc.set_backend(None)
        nc.set_num_threads(None)
    monkeypatch.setenv("NPCONV_NUM_THREADS", "none")
    with pytest.raises(ValueError, match="NPCONV_NUM_THREADS"):
        nc.conv(X, W)
    monkeypatch.delenv("NPCONV_NUM_THREADS")
    monkeypatch.setenv("NPCONV_BACKEND", "nobody")
    with pytest.raises(ValueError, match="NPCONV_BACKEND"):
        nc.conv(X, W)
    monkeypatch.delenv("NPCONV_BACKEND")
    assert call() is None


def test_strict_arithmetic_is_asked_for_at_every_call():
    x, w = np.ones((1, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
    for _ in range(2):
        nc.conv(x, w, algorithm="winograd")
    with nc.strict(), pytest.raises(ValueError, match="strict"):
        nc.conv(x, w, algorithm="winograd")
    nc.conv(x, w, algorithm="winograd")


@pytest.mark.parametrize("gradient", ["conv_input_grad", "conv_weight_grad"])
def test_gradients_are_remembered_and_still_checked(gradient):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 64, 12, 12)).astype("f4"), rng.standard_normal((64, 64, 3, 3)).astype("f4")
    dy, call = rng.standard_normal((2, 64, 10, 10)).astype("f4"), getattr(nc, gradient)
    operands, shape = ((dy, w), x.shape) if gradient == "conv_input_grad" else ((x, dy), w.shape)
    before = len(recent._calls)
    first, second = call(*operands, shape), call(*operands, shape)
    assert len(recent._calls) == before + 1
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(call(*operands, list(shape)), first)  # in no dictionary: the long road
    with pytest.raises(ValueError, match="padding"):
        call(*operands, shape, padding=-1)
    with pytest.raises(TypeError, match="stride"):
        call(*operands, shape, stride=1.0)
    with pytest.raises(ValueError, match="dy"):
        call(*operands, (*shape[:-1], shape[-1] + 1))
    wide = [value.astype("f8") for value in operands]
    assert call(*wide, shape).dtype == np.float64
    call(*operands, shape, algorithm="winograd")
    with nc.strict(), pytest.raises(ValueError, match="strict"):
        call(*operands, shape, algorithm="winograd")


def test_the_number_of_remembered_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(recent, "MOST", 5)
    for size in range(4, 20):
        nc.conv(np.ones((1, 1, size), np.float32), np.ones((1, 1, 2), np.float32))
    assert len(recent._calls) == 5


def test_many_threads_may_call_and_remember_at_once(monkeypatch):
    monkeypatch.setattr(recent, "MOST", 7)

    def work(seed: int) -> bool:
        good = True
        for size in np.random.default_rng(seed).integers(4, 20, 100).tolist():
            y = nc.conv(np.full((1, 2, size), size, np.float32), np.ones((3, 2, 2), np.float32))
            good &= y.shape == (1, 3, size - 1) and bool((y == 4 * size).all())
        return good

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(recent._calls) <= 7


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("algorithm", ["direct", "im2col", "winograd", "fft"])
def test_the_result_is_written_where_it_is_wanted(backend, algorithm):
    w = np.ones((4, 3, 3, 3), np.float32)
    expected = nc.conv(X, w, padding=1, algorithm=algorithm, backend=backend)
    plan = nc.plan(X.shape, w.shape, padding=1, algorithm=algorithm, backend=backend)
    around = np.full((2, 6, 8, 8), 9, np.float32)
    for out in (np.empty_like(expected), around[:, 1:5], np.empty((8, 8, 4, 2), np.float32).T):
        for call in (
            lambda out: nc.conv(X, w, padding=1, algorithm=algorithm, backend=backend, out=out),
            lambda out: plan(X, w, out=out),
            lambda out: plan.pack(w)(X, out=out),
        ):
            out[...] = -1
            assert call(out) is out
            np.testing.assert_allclose(out, expected, atol=1e-3)
    assert (around[:, [0, 5]] == 9).all()


def test_a_direct_out_needs_no_second_result():
    import tracemalloc

    x, w, out = (
        np.ones((1, 8, 256, 256), np.float32),
        np.ones((8, 8, 1, 1), np.float32),
        np.empty((1, 8, 256, 256), "f4"),
    )
    nc.set_num_threads(1)  # every thread has panels of its own
    try:
        nc.conv(x, w, backend="numba", out=out)
        tracemalloc.start()
        nc.conv(x, w, backend="numba", out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        nc.set_num_threads(None)
    assert peak < out.nbytes / 4
    np.testing.assert_array_equal(out, 8)


def test_a_packed_plan_can_be_copied_and_sent():
    packed = nc.plan(X.shape, W.shape).pack(W)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        np.testing.assert_array_equal(other(X), packed(X))
    for wrong in (X[:, :, :-1], X[0], X.astype(np.float64), X.tolist()):
        with pytest.raises((TypeError, ValueError)):
            packed(wrong)
    np.testing.assert_array_equal(packed(X[..., ::-1]), nc.conv(X[..., ::-1], W))


def test_a_packed_plan_says_what_it_holds():
    packed = nc.plan(X.shape, W.shape).pack(W)
    assert str(packed.plan) in repr(packed)
    assert f"{packed.nbytes} B of weights" in repr(packed)


def test_a_measurement_counts_for_the_very_next_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NPCONV_CACHE_DIR", str(tmp_path))
    x, w = np.ones((1, 3, 9, 9), np.float32), np.ones((4, 3, 3, 3), np.float32)
    nc.conv(x, w)
    before = recent._epoch
    nc.autotune(x.shape, w.shape)
    assert recent._epoch > before
    assert not recent._calls


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "i8"])
@pytest.mark.parametrize("stride", [1, [2, 3], 9])
@pytest.mark.parametrize("kernel", [(3, 3), (12, 14)])
def test_a_filter_that_is_remembered_writes_into_out(kernel, stride, dtype):
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 200, (40, 61)).astype(dtype), rng.integers(0, 4, kernel).astype(dtype)
    every = (stride, stride) if isinstance(stride, int) else stride
    expected = nc.correlate(x, w, backend="numpy", method="direct")[:: every[0], :: every[1]]
    recent.forget()
    for _ in range(2):
        out = np.zeros_like(expected, order="C")
        assert nc.correlate(x, w, stride=stride, out=out) is out
        np.testing.assert_allclose(out, expected, rtol=2e-5)
        np.testing.assert_allclose(nc.correlate(x, w, stride=stride), expected, rtol=2e-5)
    assert sum(key[0] == "filter" for key in recent._calls) == 2  # one with out, one without
    for wrong in (out[:-1], out.astype("c8"), x[:: every[0], :: every[1]], np.broadcast_to(out[:1], out.shape)):
        with pytest.raises((ValueError, TypeError), match="out must"):
            nc.correlate(x, w, stride=stride, out=wrong)


def test_lists_are_remembered_as_tuples_are():
    for _ in range(2):
        np.testing.assert_array_equal(
            nc.conv(X, W, stride=[2, 1], padding=[(1, 0), [0, 1]]),
            nc.conv(X, W, stride=(2, 1), padding=((1, 0), (0, 1))),
        )
    assert len(recent._calls) == 1
