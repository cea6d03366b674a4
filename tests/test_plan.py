"""A plan explains itself: what will run, in which tiles, how fast, and how much longer the others would take."""

from __future__ import annotations

import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import npconv as nc
from npconv.algorithms import ALGORITHMS, OPERATIONS
from npconv.algorithms.rates import AVX2, AVX512, rates_of
from npconv.algorithms.tile_times import forward_seconds
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.machine import Machine
from npconv.planning import explanation
from npconv.units import duration

SHAPES = (1, 64, 56, 56), (64, 64, 3, 3)


def lines(plan):
    """The lines of a printed plan by their label."""
    _, *rest = str(plan).splitlines()
    return dict(re.fullmatch(r"  (\S+(?: \S+)?)  +(.*)", line).groups() for line in rest)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    monkeypatch.setattr(explanation, "remembered", lambda *_: None)


@pytest.mark.parametrize(
    ("shapes", "options", "label", "words"),
    [
        (SHAPES, {"algorithm": "direct"}, "driver", "implicit GEMM"),
        (SHAPES, {"algorithm": "direct"}, "blocks", "depth 576 in slices"),
        (SHAPES, {"algorithm": "winograd"}, "tile", "outputs from"),
        (SHAPES, {"algorithm": "im2col"}, "blocks", "1 of 1 images at once, 576 x 3136"),
        (SHAPES, {"algorithm": "fft"}, "blocks", "transforms of"),
        (((1, 64, 56, 56), (64, 64, 1, 1)), {}, "driver", "matrix product"),
        (((1, 64, 56, 56), (64, 1, 3, 3)), {"groups": 64}, "driver", "rows of one channel"),
        (((1, 64, 56, 56), (2, 64, 3, 3)), {"algorithm": "direct"}, "driver", "few channels"),
    ],
)
def test_how_it_is_done_is_said(shapes, options, label, words):
    padding = shapes[1][-1] // 2
    assert words in lines(nc.plan(*shapes, padding=padding, **options))[label]


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_describes_every_operation(name, op):
    for backend in map(require, ("numpy", "numba")):
        for x, w, groups in (
            ((2, 4, 9, 8), (4, 4, 3, 3), 1),
            ((2, 4, 9, 8), (4, 1, 3, 3), 4),
            ((2, 4, 9), (3, 4, 1), 1),
        ):
            spec = ConvSpec.of(x, w, groups=groups)
            if ALGORITHMS[name].supports(spec, op, backend, np.dtype("float32")) is None:
                for label, text in ALGORITHMS[name].details(spec, op, backend, np.dtype("float32"), False):
                    assert label
                    assert text


def test_an_empty_result_has_no_tiles():
    assert "driver" not in lines(nc.plan((0, 3, 8, 8), (4, 3, 3, 3)))


def test_the_share_of_the_peak_is_the_predicted_rate_over_it():
    plan = nc.plan(*SHAPES, padding=1, algorithm="direct", threads=2)
    share = plan.flops / plan.predicted_seconds / (2 * rates_of(plan.backend).peak)
    assert lines(plan)["predicted"].endswith(f", {share:.0%} of its peak")
    assert 0.5 < share < 1
    wide = nc.plan(*SHAPES, padding=1, algorithm="direct", threads=2, dtype="float64")
    found = float(re.search(r"(\d+)% of its peak", lines(wide)["predicted"]).group(1)) / 100
    assert found == pytest.approx(share, abs=0.02), "half as many numbers fit a vector"


def test_a_measured_peak_scales_the_prediction(monkeypatch):
    plan = nc.plan(*SHAPES, padding=1, threads=1)
    twice = Machine("here", macs_per_second=rates_of(plan.backend).peak)  # two operations each
    monkeypatch.setattr(explanation, "remembered", lambda *_: twice)
    assert lines(plan)["here"].startswith(duration(plan.predicted_seconds / 2))
    assert "here" not in lines(nc.plan(*SHAPES, padding=1, backend="numpy"))
    assert "here" not in lines(nc.plan(*SHAPES, padding=1, dtype="int32"))


def test_every_other_algorithm_has_a_reason_in_the_same_terms():
    plan = nc.plan(*SHAPES, padding=1, threads=2)
    assert set(plan.rejected) == set(ALGORITHMS) - {plan.algorithm}
    alone = nc.plan(*SHAPES, padding=1, threads=2, algorithm="direct")
    ratio = alone.predicted_seconds / plan.predicted_seconds
    assert plan.rejected["direct"] == f"predicted {duration(alone.predicted_seconds)}, {ratio:.3g} times as long"
    assert nc.plan((1, 8, 9, 9), (8, 8, 1, 1)).rejected["direct"].endswith("the same loops")


def test_the_notebook_form_says_the_same():
    class Text(HTMLParser):
        def __init__(self):
            super().__init__()
            self.cells = []

        def handle_data(self, data):
            self.cells.append(data)

    plan = nc.plan(*SHAPES, padding=1)
    text = Text()
    text.feed(plan._repr_html_())
    head, *cells = text.cells
    assert head == str(plan).splitlines()[0]
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == lines(plan)
    assert "color" not in plan._repr_html_()


@pytest.mark.parametrize("rates", [AVX2, AVX512])
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_predicted_times_grow_with_the_work(groups, rates):
    times = [
        forward_seconds(rates, ConvSpec.of((n, 16, 32, 32), (32, 16 // groups, 3, 3), groups=groups), 4, False)
        for n in (1, 2, 4)
    ]
    assert times == sorted(set(times))
    # Twice the images take twice the time, but for the call.
    assert times[2] - times[1] == pytest.approx(2 * (times[1] - times[0]), rel=0.05)


def test_plain_arrays_take_a_short_road_to_the_same_bits():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 9, 8)).astype("f"), rng.normal(size=(4, 3, 3, 3)).astype("f")
    bias = np.arange(4, dtype="f")
    plan = nc.plan(x.shape, w.shape, 2, 1, backend="numpy", activation="relu")
    y = plan(x, w, bias)
    np.testing.assert_array_equal(y, plan(x, w, bias, out=np.empty_like(y)), "with out= the road is the long one")
    np.testing.assert_array_equal(y, nc.conv(x, w, bias, 2, 1, backend="numpy", activation="relu"))
    assert pickle.loads(pickle.dumps(plan)) == plan, "what is kept for the short road stays here"
    for wrong in ((x[:1], w, bias), (x, w[:, :2], bias), (x, w, bias[:1]), (x, w, bias.astype("d"))):
        with pytest.raises((ValueError, TypeError), match="as planned"):
            plan(*wrong)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((1, 64, 9, 8), (32, 64, 1, 1), {}),
        ((1, 128, 7, 7), (64, 128, 1, 1), {"activation": "relu"}),  # weights in panels
        ((2, 24, 9, 11), (40, 12, 3, 3), {"algorithm": "direct", "padding": 1, "groups": 2}),
        ((1, 32, 24, 24), (32, 32, 3, 3), {"algorithm": "winograd"}),
        ((1, 16, 24, 24), (16, 16, 5, 5), {"algorithm": "fft"}),
        ((2, 12, 9, 8), (12, 1, 3, 3), {"groups": 12, "padding": 1, "activation": "hardswish"}),
        ((1, 9, 8, 48), (16, 48, 3, 3), {"layout": "channels_last", "stride": 2}),
        ((1, 9, 8, 48), (48, 1, 3, 3), {"layout": "channels_last", "groups": 48, "padding": 1}),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
        ((3, 9, 9), (4, 3, 3, 3), {}),  # without a batch
        ((1, 3, 9, 9), (4, 3, 3, 3), {"dtype": "int16"}),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"dtype": "complex64"}),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"backend": "numpy"}),
        ((0, 3, 9, 9), (4, 3, 3, 3), {}),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_bound_call_sees_new_numbers_in_the_same_arrays(x_shape, w_shape, options, with_bias):
    rng = np.random.default_rng(0)
    options = {"dtype": "f4", "backend": "numba"} | options
    plan = nc.plan(x_shape, w_shape, **options)
    w, bias = (rng.integers(-9, 10, shape).astype(plan.dtype) for shape in (w_shape, w_shape[:1]))
    packed = plan.pack(w, bias if with_bias else None)
    x, y = np.zeros(x_shape, plan.dtype), np.empty(plan.spec.y_shape, plan.dtype)
    again = packed.bound(x, y)
    for _ in range(2):
        x[...] = rng.integers(-9, 10, x_shape)
        again()
        np.testing.assert_array_equal(y, packed(x))


def test_a_bound_call_is_checked_once_for_all():
    packed = nc.plan((1, 3, 9, 9), (4, 3, 3, 3), dtype="f4").pack(np.ones((4, 3, 3, 3), "f4"))
    x, y = np.zeros((1, 3, 9, 9), "f4"), np.zeros((1, 4, 7, 7), "f4")
    for wrong, name in (
        ((x[:, :2], y), "x"),
        ((x, y[0]), "out"),
        ((x, y.astype("f8")), "out"),
        ((x.astype("f8"), y), "x"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{name}"):
            packed.bound(*wrong)
    fixed = y.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out"):
        packed.bound(x, fixed)
    strided, spread = np.zeros((1, 3, 9, 18), "f4")[..., ::2], np.zeros((1, 4, 7, 14), "f4")[..., ::2]
    again = packed.bound(strided, spread)
    strided[...] = np.arange(9)
    again()
    np.testing.assert_array_equal(spread, packed(strided))
