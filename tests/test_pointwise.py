"""1x1 convolutions with weights in panels: right, inside their result, and the same on any number of threads."""

import numpy as np
import pytest

import npconv as nc

pytest.importorskip("numba")

from npconv.kernels.cpu import pointwise
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.lying import tile_for_positions

TILE = tile_for_positions(np.dtype("float32"), 1)


def filling(channels, missing):
    """The next whole number of panels, but for some channels."""
    return -(-channels // TILE.columns) * TILE.columns - missing


MOST = pointwise.MOST_POSITIONS // processor().register_bytes
CASES = [  # batch, groups, channels, outputs of a group, positions, activation
    (1, 1, 96, filling(64, 0), (7, 7), "relu"),
    (2, 1, 513, filling(128, 3), (MOST // 14, 14), None),
    (2, 2, 192, filling(64, 0), (3 * TILE.lanes + 1,), "hardswish"),
    (1, 1, 1030, filling(144, 5), (MOST // 65, 5, 13), "relu6"),
]


@pytest.mark.skipif(TILE.rows > TILE.lanes, reason="a tile's positions are packed and stored as one vector")
@pytest.mark.parametrize(("batch", "groups", "channels", "outputs", "size", "activation"), CASES)
def test_panels_give_the_definition_and_write_nothing_else(batch, groups, channels, outputs, size, activation):
    rng, outputs = np.random.default_rng(0), groups * outputs
    x = rng.integers(-3, 4, (batch, channels, *size)).astype(np.float32)
    w = rng.integers(-2, 3, (outputs, channels // groups, *(1 for _ in size))).astype(np.float32)
    bias = rng.integers(-3, 4, outputs).astype(np.float32)
    plan = nc.plan(x.shape, w.shape, groups=groups, activation=activation, algorithm="pointwise", backend="numba")
    assert "panels" in str(plan)
    packed = plan.pack(w, bias)
    around = np.full(batch * outputs * int(np.prod(size)) + 64, np.nan, np.float32)
    y = around[32:-32].reshape(batch, outputs, *size)
    packed(x, out=y)
    expected = nc.conv(x.astype(float), w.astype(float), bias.astype(float), groups=groups, backend="numpy")
    # Sums of small integers are exact; hardswish rounds three times.
    if activation == "hardswish":
        expected = expected * np.clip(expected + 3, 0, 6) / 6
        np.testing.assert_allclose(y, expected, rtol=1e-6)
    else:
        high = 6 if activation == "relu6" else np.inf
        np.testing.assert_array_equal(y, expected if activation is None else np.clip(expected, 0, high))
    assert np.isnan(around[:32]).all()
    assert np.isnan(around[-32:]).all()


def test_threads_do_not_change_the_bits_and_nan_stays_where_it_is():
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal((1, 600, MOST // 13 - 1, 13), np.float32),
        rng.standard_normal((96, 600, 1, 1), np.float32),
    )
    x[0, 5, 3, 4] = np.nan
    packed = [nc.plan(x.shape, w.shape, threads=n, backend="numba").pack(w) for n in (1, 3)]
    one, three = (p(x) for p in packed)
    np.testing.assert_array_equal(one, three)
    assert np.isnan(one[0, :, 3, 4]).all()
    assert np.isnan(one[0]).sum() == 96
