"""Channels-last convolutions read as they lie: exact, inside their arrays, on any number of threads, and chosen."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from guards import Guarded

import npconv as nc
from npconv.geometry import ConvSpec

pytest.importorskip("numba")

from npconv.kernels import cpu
from npconv.kernels.cpu import dense_last, threads
from npconv.kernels.cpu.blocking import Tile


def spec(x_shape, w_shape, **geometry):
    return ConvSpec.of(x_shape, w_shape, layout="channels_last", **geometry)


# A matrix product, whole tiles inside a row, runs of several taps across both edges, rows shorter than a tile, slices
# of taps and of channels, groups, one, three and four axes, strides, dilation, rows and columns beyond the image, a
# kernel larger than the image, fewer weights than a vector has lanes.
SPECS = [
    spec((2, 5, 7, 40), (35, 40, 1, 1)),
    spec((1, 9, 31, 20), (24, 20, 3, 3), padding=1),
    spec((2, 13, 20, 3), (17, 3, 3, 5), padding=((2, 1), (3, 2)), stride=2),
    spec((3, 4, 3, 70), (16, 70, 3, 3), padding=1),
    spec((1, 2, 3, 600), (16, 600, 2, 1)),
    spec((1, 11, 12, 26), (28, 13, 3, 3), padding=2, dilation=2, groups=2),
    spec((2, 90, 6), (31, 6, 4), padding=((0, 3),), stride=3),
    spec((1, 4, 5, 17, 18), (12, 18, 3, 2, 2), padding=1, stride=(2, 1, 2), dilation=(1, 3, 1)),
    spec((1, 2, 3, 2, 9, 16), (8, 16, 2, 1, 2, 1), padding=1),
    spec((1, 3, 4, 5), (14, 5, 7, 9), padding=4),
    spec((1, 6, 6, 4), (12, 4, 1, 1), stride=3, padding=1),
    spec((1, 12, 11, 1), (12, 1, 3, 3), padding=1),
]


def shapes(spec):
    return "-".join("x".join(map(str, shape)) for shape in (spec.x_shape, spec.w_shape))


def expected(spec, x, w, bias, activation, dtype):
    """By the portable form, which knows one layout."""
    geometry = {
        "stride": spec.window.stride, "padding": spec.window.padding, "dilation": spec.window.dilation,
        "groups": spec.groups,
    }  # fmt: skip
    image = np.moveaxis(x, -1, 1)
    y = nc.conv(image, w, bias, algorithm="direct", backend="numpy", activation=activation, **geometry)
    return np.moveaxis(y, 1, -1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=shapes)
def test_images_as_they_lie_give_the_definition_and_stay_inside(spec, dtype, monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    rng, guard, dtype = np.random.default_rng(0), Guarded(), np.dtype(dtype)
    # Each tile is code of its own, which takes seconds to make.
    tile = Tile(5, 2, 8) if dtype == "float32" else Tile(6, 2, 4)
    monkeypatch.setattr(dense_last, "tile_for", lambda *_: tile)
    monkeypatch.setattr(dense_last, "MOST_POSITIONS", 50)
    monkeypatch.setattr(dense_last, "layout", dense_last.layout.__wrapped__)
    monkeypatch.setattr(dense_last, "_layer", dense_last._layer.__wrapped__)
    activation = (None, "relu6", "hardswish")[spec.out_channels % 3]
    x, w, bias = (guard.array(shape, rng, dtype) for shape in (spec.x_shape, spec.w_shape, (spec.out_channels,)))
    limits = (0.0, 6.0) if activation == "relu6" else (-np.inf, np.inf)
    run = dense_last.runner(spec, dtype, limits, activation == "hardswish")
    panels = dense_last.pack_weights(spec, w)
    for count in (1, 3):
        y = guard.array(spec.y_shape, None, dtype)
        run(x, panels, bias, y, count)
        # Sums of small whole numbers are exact; hardswish rounds.
        tolerance = 1e-6 if activation == "hardswish" else 0
        np.testing.assert_allclose(y, expected(spec, x, w, bias, activation, dtype), rtol=tolerance, atol=0)
    guard.check()


@pytest.mark.parametrize("outputs", [8, 16, 24, 64, 72])
def test_the_tile_wastes_little(outputs):
    tile = dense_last.tile_for(np.dtype("float32"), 3000, outputs)
    forced = -outputs % tile.lanes
    assert -outputs % tile.columns <= max(forced, outputs // 3)


def test_plans_calls_and_packed_plans_agree_to_the_bit_and_take_what_convolutions_take():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 15, 14, 40), np.float32), rng.standard_normal((48, 40, 3, 3), np.float32)
    x[0, 5, 3, 4], w[3, 7, 0, 1] = np.nan, np.inf
    plan = nc.plan(
        x.shape, w.shape, stride=2, padding=1, layout="channels_last", algorithm="direct", backend="numba",
        activation="relu",
    )  # fmt: skip
    assert plan.reads_channels_last
    assert "as it lies" in str(plan)
    packed = pickle.loads(pickle.dumps(plan.pack(w)))
    y, into = packed(x), np.empty(plan.spec.y_shape, np.float32)
    assert packed(x, out=into) is into
    how = {"stride": 2, "padding": 1, "layout": "channels_last", "activation": "relu", "backend": "numba"}
    for other in (into, plan(x, w), nc.conv2d(x, w, algorithm="direct", **how), packed(x[::-1])[::-1]):
        np.testing.assert_array_equal(other, y)
    np.testing.assert_allclose(y, nc.conv2d(x, w, algorithm="im2col", **how), rtol=1e-4, atol=1e-4)
    alone = nc.conv2d(x[1], w, algorithm="direct", **how)
    np.testing.assert_array_equal(alone, y[1])


@pytest.mark.parametrize("padding", [0, 1])
def test_infinite_weights_meet_the_padding(padding):
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 6, 7, 24), np.float32), rng.standard_normal((24, 1, 3, 3), np.float32)
    w[5, 0, 0, 0] = np.inf
    how = {"padding": padding, "groups": 24, "layout": "channels_last"}
    y = nc.conv2d(x, w, algorithm="depthwise", backend="numba", **how)
    assert np.isnan(y[..., 5]).any() == bool(padding)
    with np.errstate(invalid="ignore"):
        by_definition = nc.conv2d(x, w, backend="numpy", algorithm="direct", **how)
    np.testing.assert_allclose(y, by_definition, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize(
    "shape", [(2, 3, 40, 9), (1, 33, 7, 5), (2, 70, 3), (1, 8, 2, 2, 1), (1, 1, 1, 1), (0, 3, 4, 5)]
)
def test_channels_go_from_first_to_last_and_back(shape, dtype, monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    image = Guarded().array(shape, np.random.default_rng(0), np.dtype(dtype))
    for limit in (1, 3):
        with nc.config.limit_threads(limit):
            last = cpu.turned(image, True)
            np.testing.assert_array_equal(last, np.moveaxis(image, 1, -1))
            np.testing.assert_array_equal(cpu.turned(last, False), image)


def test_packed_weights_and_channels_first_arrays_do_not_meet():
    plan = nc.plan((1, 9, 9, 16), (16, 16, 3, 3), layout="channels_last", algorithm="direct", backend="numba")
    packed = plan.packed(np.ones(plan.spec.w_shape, np.float32))
    with pytest.raises(ValueError, match="run_last"):
        plan.run(np.ones((1, 16, 9, 9), np.float32), packed)


def test_what_has_no_loops_of_its_own_is_transposed_and_priced_so():
    shape, weights = (1, 28, 28, 64), (64, 64, 3, 3)
    plan = nc.plan(shape, weights, padding=1, layout="channels_last", backend="numba", algorithm="winograd")
    first = nc.plan((1, 64, 28, 28), weights, padding=1, backend="numba", algorithm="winograd")
    assert not plan.reads_channels_last
    assert plan.predicted_seconds > first.predicted_seconds
    circular = nc.plan(shape, weights, padding=1, padding_mode="circular", layout="channels_last", backend="numba")
    assert not circular.reads_channels_last
    assert not cpu.reads_channels_last(plan.spec, "input_grad", np.dtype("float32"))
    assert not cpu.reads_channels_last(plan.spec, "forward", np.dtype("int32"))
