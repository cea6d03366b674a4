"""Depthwise strips and dots against plain sums: NaN around every buffer, any division of the work, every border."""

from __future__ import annotations

import numpy as np
import pytest
from guards import Guarded
from test_kernels import image, result

import npconv as nc
from npconv.geometry import ConvSpec
from npconv.kernels import cpu
from npconv.kernels.cpu import depthwise, threads
from npconv.kernels.cpu.depthwise import SUMS, forward_strips, gradient_strips
from npconv.kernels.cpu.vectors import halves

# Every kernel, stride, padding and number of rows of a strip is machine code of its own, which takes seconds to make,
# so planes that may have the same height have it.
SPECS = [
    # (x, w, options): planes narrower than a vector, in blocks of channels with a rest; wider than some, with a rest
    ((2, 10, 7, 7), (10, 1, 3, 3), {"padding": 1}),
    ((2, 3, 7, 33), (3, 1, 3, 3), {"padding": 1}),
    ((1, 2, 19, 3), (6, 1, 5, 2), {"padding": ((2, 4), (0, 3))}),
    # strides of 1, 2 and more in rows and columns, with odd rests, and dilations that share a factor with them
    ((2, 3, 14, 15), (3, 1, 3, 3), {"padding": 1, "stride": 2}),
    ((2, 2, 17, 40), (4, 1, 5, 5), {"padding": 2, "stride": 2}),
    ((1, 3, 20, 37), (3, 1, 3, 4), {"padding": (3, 2), "stride": (3, 2), "dilation": (2, 2)}),
    ((1, 3, 11, 35), (3, 1, 2, 3), {"padding": 2, "stride": (1, 3)}),
    ((1, 2, 12, 18), (2, 1, 1, 20), {"padding": ((0, 0), (9, 12)), "stride": (2, 2)}),
    # signals, volumes with taps and whole kernels in the padding, a kernel larger than the image, no image at all
    ((2, 3, 70), (3, 1, 7), {"padding": 3}),
    ((2, 5, 3, 5, 9), (5, 1, 3, 3, 3), {"padding": 1}),
    ((1, 2, 4, 6, 9), (4, 1, 1, 2, 2), {"padding": 1, "stride": (2, 2, 2), "dilation": (2, 1, 1)}),
    ((1, 2, 2, 3), (2, 1, 3, 5), {"padding": 4}),
    ((1, 2, 2, 0), (2, 1, 3, 5), {"padding": 4}),
    # planes of one vector, all of whose rows are written out under each leading tap, and with too many of padding
    ((1, 2, 4, 6, 7), (4, 1, 2, 3, 2), {"dilation": (1, 2, 3)}),
    ((2, 2, 3, 4), (2, 1, 2, 3), {"padding": ((20, 20), (1, 1))}),
]
# float64 differs in lanes alone: a rest, odd strides of both kinds, a signal, a volume.
CASES = [(*spec, "float32") for spec in SPECS] + [(*SPECS[i], "float64") for i in (1, 3, 5, 8, 10)]


def named(case):
    x_shape, w_shape, _, dtype = case
    return "-".join(["x".join(map(str, x_shape)), "x".join(map(str, w_shape)), dtype])


@pytest.mark.usefixtures("made_anew")
@pytest.mark.parametrize(("x_shape", "w_shape", "options", "dtype"), CASES, ids=map(named, CASES))
def test_strips_and_dots_are_exact_and_stay_inside_their_arrays(
    dtype, x_shape, w_shape, options, monkeypatch, made_anew
):
    monkeypatch.setattr(depthwise, "WORTH_WRITING_OUT", 0)
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    spec = ConvSpec.of(x_shape, w_shape, groups=x_shape[1], **options)
    rng, guard = np.random.default_rng(0), Guarded()
    x, w, dy = (guard.array(shape, rng, dtype) for shape in (image(spec), spec.w_shape, result(spec)))
    bias = guard.array((spec.out_channels,), rng, dtype)
    how = {"groups": spec.groups, "backend": "numpy", "algorithm": "direct", **options}
    dx_expected, dw_expected = nc.conv_input_grad(dy, w, x_shape, **how), nc.conv_weight_grad(x, dy, w_shape, **how)
    try:
        for n_threads, activation in ((1, None), (2, "relu6"), (3, "hardswish")):
            nc.set_num_threads(n_threads)
            y, dx, dw = (guard.array(value.shape, None, dtype) for value in (dy, x, w))
            cpu.conv_forward(spec, x, w, bias, activation, y)
            np.testing.assert_array_equal(y, nc.conv(x, w, bias, activation=activation, **how))
            cpu.conv_input_grad(spec, dy, w, dx)
            np.testing.assert_array_equal(dx, dx_expected)
            cpu.conv_weight_grad(spec, x, dy, dw)
            np.testing.assert_array_equal(dw, dw_expected)
    finally:
        nc.set_num_threads(None)
    guard.check()


@pytest.mark.usefixtures("made_anew")
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "stride": 2}], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(options, monkeypatch):
    monkeypatch.setattr(depthwise, "WORTH_WRITING_OUT", 0)
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    spec, rng = ConvSpec.of((2, 5, 30, 21), (5, 1, 3, 3), groups=5, **options), np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape).astype("f4") for shape in (image(spec), spec.w_shape, result(spec)))
    found = []
    try:
        for n_threads in (1, 2, 7):
            nc.set_num_threads(n_threads)
            y, dx, dw = (np.empty_like(value) for value in (dy, x, w))
            cpu.conv_forward(spec, x, w, None, None, y)
            cpu.conv_input_grad(spec, dy, w, dx)
            cpu.conv_weight_grad(spec, x, dy, dw)
            found.append((y, dx, dw))
    finally:
        nc.set_num_threads(None)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("made_anew")
@pytest.mark.parametrize("spoilt", ["x", "dy"])
def test_numbers_that_are_not_finite_stay_where_the_definition_has_them(spoilt, monkeypatch):
    """Lanes behind the last output meet nothing, whatever the image holds there."""
    monkeypatch.setattr(depthwise, "WORTH_WRITING_OUT", 0)
    options = {"groups": 2, "stride": 2}
    spec, rng = ConvSpec.of((1, 2, 8, 12), (2, 1, 3, 3), **options), np.random.default_rng(0)
    x, dy = rng.standard_normal(image(spec)).astype("f4"), rng.standard_normal(result(spec)).astype("f4")
    if spoilt == "x":
        x[..., -1], x[..., -1, :] = np.inf, np.nan  # under no tap
    else:
        dy[0, 0, 1, 2] = np.inf
    dw = np.empty(spec.w_shape, "f4")
    cpu.conv_weight_grad(spec, x, dy, dw)
    np.testing.assert_array_equal(
        np.isfinite(dw), np.isfinite(nc.conv_weight_grad(x, dy, spec.w_shape, backend="numpy", **options))
    )
    if spoilt == "x":
        assert np.isfinite(dw).all()


def test_a_strip_fits_the_registers_and_the_plane():
    for height in range(1, 40):
        for stride in (1, 2, 3):
            spec = ConvSpec.of((1, 1, height, 40), (1, 1, 3, 3), stride=stride, padding=1)
            forward, tables, number = forward_strips(spec.window, 4)
            assert forward.rows * forward.vectors <= SUMS
            assert number == -(-spec.window.out[0] // forward.rows)
            assert (tables.columns[:-1, 0] > tables.columns[1:, 0]).all()  # from right to left
            if stride < 3:
                gradient, _, _ = gradient_strips(spec.window, 1, 4)
                assert gradient.rows % stride == 0
                assert gradient.rows * gradient.vectors * gradient.phases <= SUMS


@pytest.mark.parametrize(("itemsize", "lanes"), [(4, 4), (4, 8), (4, 16), (8, 2), (8, 4), (8, 8)])
def test_halves_are_every_second_lane(itemsize, lanes):
    assert sorted(halves(itemsize, lanes)) == list(range(0, 2 * lanes, 2))


def test_layers_of_mobilenet_are_written_out():
    """The plain tiles take five to ten times as long for one channel."""
    for channels, side, stride in ((32, 48, 1), (64, 48, 2), (512, 6, 1), (512, 6, 2), (1024, 3, 1)):
        spec = ConvSpec.of((16, channels, side, side), (channels, 1, 3, 3), groups=channels, stride=stride, padding=1)
        assert depthwise.is_written_out(9, spec.macs // spec.batch)
        assert ("driver", "rows of one channel, the taps written out") in cpu.details(spec, np.dtype("f4"))
