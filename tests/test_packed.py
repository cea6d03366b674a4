"""Convolutions with weights in panels: exact, inside their arrays, on other processors and any number of threads."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from guards import OTHER_PROCESSORS, Guarded

import npconv as nc
from npconv.geometry import ConvSpec

pytest.importorskip("numba")

from npconv.kernels import cpu
from npconv.kernels.cpu import drivers, packed, threads
from npconv.kernels.cpu.blocking import PROCESSORS, features, processor
from npconv.kernels.cpu.lying import tile_for_positions
from npconv.kernels.cpu.winograd_driver import WinogradWeights

TILE = tile_for_positions(np.dtype("float32"), 1)
PANEL = TILE.columns
"""Output channels of a panel of float32; one of float64 has half of them."""

# Several slices, blocks and panels with a rest of each, strides, dilation, groups, one and three axes, a plane of
# zeros, a kernel that is larger than a slice, nothing to pad, fewer positions than a tile has rows.
SPECS = [
    ConvSpec.of((1, 70, 15, 13), (2 * PANEL - 2, 70, 3, 3), stride=2, padding=1),
    ConvSpec.of((2, 14, 9, 75), (4 * PANEL - 2, 7, 3, 5), stride=(1, 3), padding="same", groups=2),
    ConvSpec.of((1, 3, 40, 61), (2 * PANEL, 3, 4, 4), stride=4),
    ConvSpec.of((1, 5, 3, 7, 20), (PANEL, 5, 2, 3, 3), stride=(2, 1, 2), padding=1, dilation=(1, 2, 1)),
    ConvSpec.of((2, 20, 1300), (PANEL, 20, 4), padding=((0, 3),), dilation=7),
    ConvSpec.of((1, 4, 3, 3), (2 * PANEL - 1, 4, 3, 2), padding=((1, 0), (0, 0))),
    ConvSpec.of((1, 2, 30, 34), (PANEL, 2, 17, 19), padding=8),
    ConvSpec.of((1, 17, 33, 33), (3 * PANEL, 17, 3, 3), dilation=12, padding=12),
]


def shapes(spec):
    return "-".join("x".join(map(str, shape)) for shape in (spec.x_shape, spec.w_shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=shapes)
def test_panels_give_the_definition_and_stay_inside(spec, dtype, monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(packed, "STAGED_BYTES", 2**15)
    # Each tile is code of its own, which takes seconds to make: of as many rows as there are, and of one less.
    rows = processor().tiles[0][0] - (dtype == "float64")
    tile = tile_for_positions(np.dtype(dtype), rows)
    assert tile.rows == rows
    monkeypatch.setattr(packed, "tile_for_positions", lambda *_: tile)
    rng, guard, dtype = np.random.default_rng(0), Guarded(), np.dtype(dtype)
    activation = (None, "relu6", "hardswish")[spec.out_channels % 3]
    assert packed.suits(spec, dtype)
    x, w, bias = (guard.array(shape, rng, dtype) for shape in (spec.x_shape, spec.w_shape, (spec.out_channels,)))
    plan = nc.plan(
        spec.x_shape, spec.w_shape, stride=spec.window.stride, padding=spec.window.padding, dtype=dtype,
        dilation=spec.window.dilation, groups=spec.groups, algorithm="direct", backend="numpy", activation=activation,
    )  # fmt: skip
    expected = plan(x, w, bias)
    limits = (0.0, 6.0) if activation == "relu6" else (-np.inf, np.inf)
    run = packed.panel_runner(spec, dtype, limits, activation == "hardswish")
    panels = packed.weight_layer(spec, dtype)(w)
    for count in (1, 3):
        y = guard.array(spec.y_shape, None, dtype)
        run(x, panels, bias, y, count)
        # Sums of small whole numbers are exact; hardswish rounds.
        np.testing.assert_allclose(y, expected, rtol=1e-6 if activation == "hardswish" else 0, atol=0)
    guard.check()


@pytest.mark.parametrize("count", [1, 3])
def test_a_single_call_lays_weights_out_where_that_is_faster(count, made_anew, monkeypatch):
    """Two groups, panels that are not full, depths of several slices and of a few products."""
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(threads, "get_num_threads", lambda: count)
    rng, guard = np.random.default_rng(0), Guarded()
    spec = ConvSpec.of((1, 94, 17, 15), (60, 47, 3, 3), stride=2, padding=1, groups=2)
    assert cpu.lays_out(spec, np.dtype("f4"))
    x, w, bias = (guard.array(shape, rng) for shape in (spec.x_shape, spec.w_shape, (60,)))
    y = guard.array(spec.y_shape)
    cpu.conv_forward(spec, x, w, bias, "relu", y)
    np.testing.assert_array_equal(y, nc.conv(x, w, bias, 2, 1, groups=2, activation="relu", backend="numpy"))
    guard.check()
    few = ConvSpec.of((1, 94, 5, 5), (60, 47, 3, 3), stride=2, padding=1, groups=2)
    assert cpu.takes_panels(few, np.dtype("f4"))
    assert not cpu.lays_out(few, np.dtype("f4"))
    assert "laid out in each call" in dict(cpu.details(spec, np.dtype("f4")))["driver"]


def test_plans_lay_weights_out_and_a_functional_call_does_not():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 40, 20, 20), np.float32), rng.standard_normal((64, 40, 3, 3), np.float32)
    x[0, 5, 3, 4] = np.nan
    plan = nc.plan(x.shape, w.shape, stride=2, algorithm="direct", backend="numba")
    assert "weights in panels" in str(plan)
    assert isinstance(plan.packed(w), tuple)
    assert plan.packed(w, once=True) is w
    y, straight = plan.pack(w)(x), plan(x, w)
    np.testing.assert_allclose(y, straight, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(straight))
    assert np.isnan(y).sum() == 64 * 2  # in row 3 one output reads it, in column 4 two


ONE_TAP = pytest.mark.skipif(TILE.rows > TILE.lanes, reason="1x1 stores a tile's positions as one vector")


@pytest.mark.parametrize(("channels", "size", "kernel"), [(64, 20, 3), pytest.param(128, 7, 1, marks=ONE_TAP)])
def test_panels_from_another_processor_s_pickle_are_refused(channels, size, kernel, monkeypatch):
    """As this one's they would be wrong, or read behind their end."""
    w = np.ones((channels, channels, kernel, kernel), np.float32)
    data = pickle.dumps(nc.plan((1, channels, size, size), w.shape, algorithm="direct", backend="numba").pack(w))
    pickle.loads(data)
    other = next(entry for entry in PROCESSORS.values() if entry.register_bytes != processor().register_bytes)
    monkeypatch.setattr(drivers, "processor", lambda: other)
    with pytest.raises(ValueError, match=rf"{processor().register_bytes} bytes; .* {other.register_bytes} bytes: send"):
        pickle.loads(data)


def test_transformed_weights_know_their_layout_and_plain_ones_have_none():
    assert cpu.layout_of((np.ones(3), WinogradWeights(np.ones(3), 0, None), 1.0)) is not None
    assert cpu.layout_of(np.ones(3)) is cpu.layout_of((np.ones(3), None)) is None


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize(("batch", "channels", "outputs"), [(0, 4, 16), (2, 0, 16), (2, 4, 0)])
def test_where_there_is_nothing_to_lay_out_a_plan_packs_all_the_same(batch, channels, outputs, kernel):
    x, w, bias = np.ones((batch, channels, 8, 8)), np.ones((outputs, channels, *kernel)), np.ones(outputs)
    plan = nc.plan(x.shape, w.shape, dtype=x.dtype, algorithm="direct", backend="numba")
    np.testing.assert_array_equal(plan.pack(w, bias)(x), nc.conv(x, w, bias, backend="numpy"))


@pytest.mark.skipif("sse2" not in features(), reason="these are processors of one kind")
def test_another_processor_gives_the_definition_too():
    if "NUMBA_CPU_NAME" in os.environ:
        pytest.skip("this already runs as another processor")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "inside and float32",
        __file__,
    ]
    as_other = {**os.environ, "PYTEST_ADDOPTS": "", **OTHER_PROCESSORS["SSE"]}
    done = subprocess.run(command, env=as_other, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    assert len(re.findall("stay_inside.* PASSED", done.stdout)) == len(SPECS)
