"""Depthwise convolution of channels-last arrays against plain sums: every border, odd channels, any division."""

from __future__ import annotations

import numpy as np
import pytest
from guards import Guarded

import npconv as nc
from npconv.algorithms.depthwise_last_times import forward_seconds
from npconv.algorithms.rates import AVX2, AVX512
from npconv.geometry import ConvSpec
from npconv.kernels.cpu import depthwise_last, threads
from npconv.kernels.cpu.operands import BOUNDS

# Every case is machine code of its own, which takes two seconds to make.
CASES = [
    # Whole lines of channels, the last overlapping, in blocks; a row of segments with and without borders.
    ((2, 5, 13, 94), (94, 1, 3, 3), {"padding": 1}, "float32"),
    # Single vectors; rows of the kernel in the padding; strides and dilations that share a factor with it.
    ((1, 9, 20, 21), (21, 1, 5, 2), {"padding": ((2, 4), (0, 3)), "stride": 2, "dilation": (1, 2)}, "float32"),
    # Fewer channels than a vector has lanes, in a volume; a row narrower than the kernel.
    ((1, 3, 4, 2, 3), (3, 1, 3, 2, 3), {"padding": 2, "stride": (2, 1, 1)}, "float32"),
    ((2, 19, 30), (30, 1, 7), {"padding": 3}, "float64"),
]


@pytest.fixture(autouse=True)
def in_small_parts(monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(depthwise_last, "WORTH_WRITING_OUT", 1)
    monkeypatch.setattr(depthwise_last, "WEIGHT_BYTES", 1024)
    prepared = depthwise_last.layout, depthwise_last.runner
    for cached in prepared:
        cached.cache_clear()
    yield
    for cached in prepared:
        cached.cache_clear()
    nc.set_num_threads(None)


def spec_of(x_shape, w_shape, options):
    return ConvSpec.of(x_shape, w_shape, groups=w_shape[0], layout="channels_last", **options)


@pytest.mark.parametrize(("x_shape", "w_shape", "options", "dtype"), CASES)
def test_sums_are_exact_and_stay_inside_their_arrays(x_shape, w_shape, options, dtype):
    spec, rng, guard, dtype = spec_of(x_shape, w_shape, options), np.random.default_rng(0), Guarded(), np.dtype(dtype)
    assert depthwise_last.suits(spec, dtype)
    x, w, bias = (guard.array(shape, rng, dtype) for shape in (x_shape, w_shape, w_shape[:1]))
    how = {"groups": spec.groups, "layout": "channels_last", "backend": "numpy", **options}
    packed = depthwise_last.pack_weights(spec, w)
    for limit, shift, activation in ((1, bias, None), (3, bias, "relu6"), (2, None, "hardswish")):
        y = guard.array(spec.y_shape, None, dtype)
        bounds = BOUNDS.get(activation, BOUNDS[None])
        depthwise_last.runner(spec, dtype, bounds, activation == "hardswish")(x, packed, shift, y, limit)
        np.testing.assert_array_equal(y, nc.conv(x, w, shift, activation=activation, **how))
    guard.check()


def test_bits_do_not_depend_on_threads_and_nan_stays_where_it_is():
    spec, rng = spec_of(*CASES[0][:3]), np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in (spec.x_shape, spec.w_shape))
    x[0, 0, 0, 5], x[1, 4, 12, 93] = np.nan, np.inf
    run, packed = depthwise_last.runner(spec, x.dtype, BOUNDS[None], False), depthwise_last.pack_weights(spec, w)
    one, five = np.empty(spec.y_shape, "f4"), np.empty(spec.y_shape, "f4")
    run(x, packed, None, one, 1)
    run(x, packed, None, five, 5)
    np.testing.assert_array_equal(one, five)
    expected = nc.conv(x, w, padding=1, groups=94, layout="channels_last", backend="numpy")
    np.testing.assert_array_equal(np.isnan(one), np.isnan(expected))
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_what_suits():
    float32 = np.dtype("f4")

    def suits(channels, outputs, kernel, size=56, dtype=float32, **options):
        spec = ConvSpec.of(
            (1, size, size, channels), (outputs, 1, kernel, kernel), groups=channels, layout="channels_last", **options
        )
        return depthwise_last.suits(spec, dtype)

    assert suits(32, 32, 3, padding=1)
    assert suits(768, 768, 7, 7, padding=3)
    assert suits(16, 16, 5, stride=2, padding="same")
    assert not suits(32, 64, 3)  # two outputs a channel
    assert not suits(1, 1, 3)  # has no layout
    assert not suits(32, 32, 3, dtype=np.dtype("i4"))
    assert not suits(32, 32, 51, padding=25)  # too much code


def test_small_images_are_not_worth_their_code(monkeypatch):
    spec = spec_of((5, 9, 9, 32), (32, 1, 3, 3), {})
    assert depthwise_last.suits(spec, np.dtype("f4"))
    monkeypatch.setattr(depthwise_last, "WORTH_WRITING_OUT", spec.macs // 5 + 1)
    assert not depthwise_last.suits(spec, np.dtype("f4"))


def test_the_price_grows_with_the_work():
    small, large, wide = (spec_of((1, n, n, c), (c, 1, 3, 3), {}) for n, c in ((20, 32), (40, 32), (20, 64)))
    for rates in (AVX2, AVX512):
        times = [forward_seconds(rates, spec, size) for spec, size in ((small, 4), (small, 8), (large, 8))]
        assert times == sorted(set(times))
        assert times[0] < forward_seconds(rates, wide, 4) < 2 * times[0]
