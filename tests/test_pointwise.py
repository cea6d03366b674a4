"""1x1 convolutions with weights in panels: right, inside their result, and the same on any number of threads."""

import numpy as np
import pytest

import npconv as nc

pytest.importorskip("numba")

CASES = [  # batch, groups, channels, outputs, positions, activation
    (1, 1, 96, 64, (7, 7), "relu"),
    (2, 1, 513, 125, (14, 14), None),
    (2, 2, 192, 128, (25,), "hardswish"),
    (1, 1, 1030, 139, (3, 5, 13), "relu6"),
]


@pytest.mark.parametrize(("batch", "groups", "channels", "outputs", "size", "activation"), CASES)
def test_panels_give_the_definition_and_write_nothing_else(batch, groups, channels, outputs, size, activation):
    rng = np.random.default_rng(0)
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
    x, w = rng.standard_normal((1, 600, 14, 13), np.float32), rng.standard_normal((96, 600, 1, 1), np.float32)
    x[0, 5, 3, 4] = np.nan
    packed = [nc.plan(x.shape, w.shape, threads=n, backend="numba").pack(w) for n in (1, 3)]
    one, three = (p(x) for p in packed)
    np.testing.assert_array_equal(one, three)
    assert np.isnan(one[0, :, 3, 4]).all()
    assert np.isnan(one[0]).sum() == 96
