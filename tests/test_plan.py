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
