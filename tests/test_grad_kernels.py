"""The compiled gradients by themselves: tiles against plain sums, phases, edges, block sizes and threads."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import Guarded, image, result

import npconv as nc
from npconv.geometry import ConvSpec
from npconv.kernels import cpu
from npconv.kernels.cpu import columns, correlation, few_positions, input_grad, one_tap, threads, weight_grad
from npconv.kernels.cpu.blocking import Tile, processor
from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.vectors import address_of
from npconv.planning import recent

DTYPES = ("float32", "float64")
SPECS = [
    # (x, w, options); dense with whole and with partial tiles, one input channel, one tap, signals and volumes
    ((2, 5, 9, 12), (20, 5, 3, 3), {"padding": 1}),
    ((3, 1, 7, 20), (33, 1, 5, 3), {"padding": ((4, 2), (0, 3))}),
    ((2, 9, 6, 7), (17, 9, 1, 1), {}),
    ((2, 9, 6, 7), (18, 9, 1, 1), {"stride": 2, "padding": 1}),
    # one tap and fewer input channels than outputs, but more than a vector has lanes: the image is packed
    ((2, 40, 3, 7), (90, 20, 1, 1), {"groups": 2}),
    ((2, 6, 40), (34, 3, 4), {"stride": 3, "dilation": 2, "groups": 2}),
    ((1, 3, 4, 5, 6), (18, 3, 2, 3, 2), {"padding": 1, "stride": (2, 1, 2)}),
    # few output channels in a group
    ((2, 4, 11, 19), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ((2, 4, 11, 19), (8, 1, 7, 7), {"padding": 3, "groups": 4, "stride": 2}),
    ((2, 6, 8, 9), (9, 2, 3, 2), {"groups": 3, "dilation": 2}),
    ((1, 40, 6, 10), (3, 40, 3, 3), {"padding": 1}),
    ((2, 4, 5, 9), (4, 1, 1, 1), {"groups": 4}),
    # phases without taps, stride and dilation with a common factor, padding beyond the reach, elements left over
    ((2, 5, 10, 11), (6, 5, 1, 2), {"stride": 3}),
    ((2, 3, 13, 12), (5, 3, 3, 3), {"stride": 4, "dilation": 2, "padding": 2}),
    ((1, 2, 6, 5), (3, 2, 2, 2), {"stride": (1, 2), "padding": ((3, 4), (2, 5))}),
    ((1, 2, 6, 5), (3, 2, 2, 2), {"padding": ((3, 4), (2, 5))}),
    ((2, 3, 11, 14), (4, 3, 3, 3), {"stride": 5, "padding": (1, 0)}),
    # windows that touch and do not overlap, in groups
    ((2, 6, 4, 40), (6, 3, 2, 2), {"stride": 2, "groups": 2}),
    ((2, 3, 6, 8), (5, 3, 3, 4), {"stride": (3, 4)}),
]


def rounded(rng, shape, dtype):
    return rng.integers(-3, 4, shape).astype(dtype)


# The generated instructions


@functools.cache
def caller(kind, *sizes):
    """A compiled loop that does nothing but call one of the generated functions with integers."""
    if kind == "product":
        product = correlation.taps_product(sizes[0], Tile(*sizes[1:]))

        @compiled
        def call_product(height, width, x, pitch, offsets, b, c, accumulate):
            product(height, width, address_of(x), pitch, address_of(offsets), address_of(b), address_of(c), accumulate)

        return call_product
    if kind == "dots":
        dot = correlation.dots(*sizes)

        @compiled
        def call_dots(height, width, dy, distance, places, x, pitch, offsets, sums):
            dot(
                height, width, address_of(dy), distance, address_of(places),
                address_of(x), pitch, address_of(offsets), address_of(sums),
            )  # fmt: skip

        return call_dots
    turn = correlation.turner(*sizes)

    @compiled
    def call_turn(target, target_pitch, source, source_pitch, rows, columns):
        turn(address_of(target), target_pitch, address_of(source), source_pitch, rows, columns)

    return call_turn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (3, 5), (2, 17)])
@pytest.mark.parametrize("accumulate", [0, 1])
def test_a_tile_of_taps_sums_over_positions(dtype, height, width, accumulate):
    size, rng, guard = np.dtype(dtype).itemsize, np.random.default_rng(0), Guarded()
    rows, vectors = processor().tiles[0]
    tile, pitch = Tile(rows, vectors, processor().register_bytes // size), width + 3
    offsets = np.array([3 * r % 7 for r in range(rows)])
    x = guard.array((int(offsets.max()) + (height - 1) * pitch + width,), rng, dtype)
    b = guard.array((height * width, tile.columns), rng, dtype)
    c = guard.array((rows, tile.columns), rng if accumulate else None, dtype)
    before = np.where(np.isnan(c), 0, c)
    caller("product", size, rows, vectors, tile.lanes)(height, width, x, pitch, offsets, b, c, accumulate)
    seen = (np.arange(height)[:, None] * pitch + np.arange(width)).reshape(-1)
    np.testing.assert_array_equal(c, before + x[offsets[:, None] + seen] @ b)
    guard.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "taps"), [(1, 1), (1, 9), (2, 3), (4, 1), (4, 3)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 7), (2, 16), (2, 21)])
def test_dots_keep_a_sum_in_every_lane(dtype, rows, taps, height, width):
    size, rng, guard = np.dtype(dtype).itemsize, np.random.default_rng(0), Guarded()
    lanes, pitch, distance = processor().register_bytes // size, width + 2, width + 1
    offsets, places = np.arange(taps) * 2, np.arange(rows)[::-1] * height * distance
    x = guard.array((int(offsets.max()) + (height - 1) * pitch + width,), rng, dtype)
    dy = guard.array((int(places.max()) + (height - 1) * distance + width,), rng, dtype)
    sums = guard.array((rows, taps, lanes), rng, dtype)
    expected = sums.copy()
    for r, t, i, j in np.ndindex(rows, taps, height, width):
        expected[r, t, j % lanes] += dy[places[r] + i * distance + j] * x[offsets[t] + i * pitch + j]
    caller("dots", size, lanes, rows, taps)(height, width, dy, distance, places, x, pitch, offsets, sums)
    np.testing.assert_array_equal(sums, expected)
    guard.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 40])
@pytest.mark.parametrize("columns", [1, 3, 4, 7, 16, 40])
def test_blocks_are_turned_and_nothing_else_is_touched(dtype, rows, columns):
    size, rng, guard = np.dtype(dtype).itemsize, np.random.default_rng(0), Guarded()
    lanes = processor().register_bytes // size
    used_rows, used_columns = min(rows, lanes), min(columns, lanes)
    source = guard.array((rows, columns), rng, dtype)
    target = guard.array((used_columns, used_rows), None, dtype)
    caller("turn", size, lanes)(target, used_rows, source, columns, rows, columns)
    np.testing.assert_array_equal(target, source[:used_rows, :used_columns].T)
    guard.check()


# Phases


@given(
    size=st.integers(1, 12), kernel=st.integers(1, 5), stride=st.integers(1, 6), dilation=st.integers(1, 6),
    low=st.integers(0, 9), high=st.integers(0, 9),
)  # fmt: skip
def test_phases_reach_every_element_by_its_taps(size, kernel, stride, dilation, low, high):
    out = (size + low + high - (kernel - 1) * dilation - 1) // stride + 1
    if out <= 0:
        return
    found = []
    for first in range(stride):
        phase = input_grad.axis_phase(size, kernel, stride, dilation, low, first)
        assert phase.length == len(range(first, size, stride))
        for m in range(phase.length):
            reached = [(m - phase.low + u * phase.dilation, tap) for u, tap in enumerate(phase.taps)]
            found += [(first + m * stride, p, tap) for p, tap in reached if 0 <= p < out]
    places = [(p * stride + tap * dilation - low, p, tap) for p in range(out) for tap in range(kernel)]
    assert sorted(found) == sorted(place for place in places if 0 <= place[0] < size)


def test_pieces_cover_everything_once_in_contiguous_parts(monkeypatch):
    monkeypatch.setattr(input_grad, "WAITING", 1000)
    monkeypatch.setattr(input_grad, "TURNED_BYTES", 1000)
    monkeypatch.setattr(input_grad, "FEWEST_CHANNELS", 4)
    for batch, groups, depth, plane, channel in [
        (5, 3, 4, 30, 1), (2, 7, 3, 200, 1), (3, 1, 40, 100, 1), (1, 2, 3, 10**6, 1), (4, 2, 9, 0, 100),
        (3, 5, 2, 1, 200),
    ]:  # fmt: skip
        seen = np.zeros((batch, groups, depth), int)
        for piece in input_grad.pieces(batch, groups, depth, plane, channel):
            part = seen[piece.images, piece.groups, piece.channels]
            assert part.shape[0] == 1 or part.shape[1:] == (groups, depth)
            assert part.shape[1] == 1 or part.shape[2] == depth
            assert seen.reshape(batch, -1)[piece.images, piece.planes(depth)].size == part.size
            part += 1
        assert (seen == 1).all()


# Both gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), SPECS, ids=str)
def test_gradients_are_exact_inside_their_arrays_and_the_same_bits_for_any_threads(
    dtype, x_shape, w_shape, options, monkeypatch
):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    spec, rng, guard = ConvSpec.of(x_shape, w_shape, **options), np.random.default_rng(0), Guarded()
    x, w, dy = (guard.array(shape, rng, dtype) for shape in (image(spec), spec.w_shape, result(spec)))
    how = {"backend": "numpy", "algorithm": "direct", **options}
    expected = nc.conv_input_grad(dy, w, x_shape, **how), nc.conv_weight_grad(x, dy, w_shape, **how)
    noise = [rng.standard_normal(value.shape).astype(dtype) for value in (x, w, dy)]
    small = {
        input_grad: {"WAITING": 64, "TURNED_BYTES": 64, "FEWEST_CHANNELS": 2},
        weight_grad: {"MOST_TAPS": 1, "MOST_OUTPUTS": 1, "MOST_STAGED": 1, "FEWEST_POSITIONS": 1},
    }
    folded = {columns: {"suits": lambda *_: True}, few_positions: {"suits": lambda *_: True}}
    rows_of_images = {
        few_positions: {"suits": lambda *_: False},
        one_tap: {"suits": lambda *_: True, "MOST_POSITIONS": 16, "MOST_PLANES": 2},
    }
    # At once, and in pieces, of which there are more than threads. The order of a sum depends on the pieces.
    ways = [{}, small, folded, {columns: {"WAITING": 300}, few_positions: {"MOST_BYTES": 1}}]
    for limits in [*ways, *[rows_of_images] * (set(spec.window.kernel[-2:]) == {1})]:
        for module, values in limits.items():
            for name, value in values.items():
                monkeypatch.setattr(module, name, value)
        kept = []
        try:
            for n_threads in (1, 2):
                nc.set_num_threads(n_threads)
                dx, dw = guard.array(x.shape, None, dtype), guard.array(w.shape, None, dtype)
                cpu.conv_input_grad(spec, dy, w, dx)
                cpu.conv_weight_grad(spec, x, dy, dw)
                np.testing.assert_array_equal(dx, expected[0])
                np.testing.assert_array_equal(dw, expected[1])
                cpu.conv_input_grad(spec, noise[2], noise[1], dx)
                cpu.conv_weight_grad(spec, noise[0], noise[2], dw)
                kept.append((dx, dw))
        finally:
            nc.set_num_threads(None)
        for one, two in zip(*kept, strict=True):
            np.testing.assert_array_equal(one, two)
    guard.check()


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), SPECS[::2], ids=str)
def test_tiny_blocks_of_positions_give_the_exact_sums_too(x_shape, w_shape, options, monkeypatch):
    monkeypatch.setattr(weight_grad, "depth_for", lambda *_: 3)
    monkeypatch.setattr(weight_grad, "low_positions_for", lambda *_: 3)
    monkeypatch.setattr(weight_grad, "MOST_DOT_TAPS", 1)
    spec, rng = ConvSpec.of(x_shape, w_shape, **options), np.random.default_rng(0)
    x, dy = rounded(rng, image(spec), "float32"), rounded(rng, result(spec), "float32")
    dw = np.full(w_shape, np.nan, "float32")
    cpu.conv_weight_grad(spec, x, dy, dw)
    np.testing.assert_array_equal(dw, nc.conv_weight_grad(x, dy, w_shape, backend="numpy", **options))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("spoilt", ["x", "w", "dy"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((1, 2, 5, 6), (9, 2, 3, 3), {}),
        ((1, 2, 5, 6), (9, 2, 3, 3), {"stride": 2, "padding": 1}),
        ((1, 16, 2, 2), (17, 16, 2, 2), {"padding": 1}),
        ((1, 4, 6, 7), (4, 1, 3, 3), {"stride": 2, "groups": 4}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_not_finite_reach_what_the_definition_says(
    spoilt, number, x_shape, w_shape, options, monkeypatch
):
    spec, rng = ConvSpec.of(x_shape, w_shape, **options), np.random.default_rng(0)
    arrays = {
        "x": rounded(rng, image(spec), "f4"),
        "w": rounded(rng, w_shape, "f4"),
        "dy": rounded(rng, result(spec), "f4"),
    }
    arrays[spoilt].flat[0] = number
    x, w, dy = arrays.values()
    ours, theirs = ({"backend": b, "algorithm": "direct", **options} for b in ("numba", "numpy"))
    np.testing.assert_array_equal(
        nc.conv_input_grad(dy, w, x_shape, **ours), nc.conv_input_grad(dy, w, x_shape, **theirs)
    )
    for few in (False, True):
        monkeypatch.setattr(few_positions, "suits", lambda *_, few=few: few)
        recent.forget()
        np.testing.assert_array_equal(
            nc.conv_weight_grad(x, dy, w_shape, **ours), nc.conv_weight_grad(x, dy, w_shape, **theirs)
        )


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((2, 9, 6, 7), (17, 9, 1, 1), {}),
        ((2, 5, 9, 12), (20, 5, 3, 3), {"padding": 1}),
        ((1, 2, 6, 5), (300, 2, 3, 3), {"padding": 1}),
        ((2, 4, 40, 40), (4, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 4}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_remembered_gradient_is_that_of_new_arrays(x_shape, w_shape, options):
    """The second call of a kind takes a shorter road; an infinite weight sends it back where zeros would spread NaN."""
    spec, rng = ConvSpec.of(x_shape, w_shape, **options), np.random.default_rng(0)
    for spoilt in (False, False, True):
        x, w, dy = (rounded(rng, shape, "f4") for shape in (image(spec), w_shape, result(spec)))
        if spoilt:
            w.flat[0] = np.inf
        ours, theirs = ({"backend": b, "algorithm": "direct", **options} for b in ("numba", "numpy"))
        np.testing.assert_array_equal(
            nc.conv_input_grad(dy, w, x_shape, **ours), nc.conv_input_grad(dy, w, x_shape, **theirs)
        )
        np.testing.assert_array_equal(
            nc.conv_weight_grad(x, dy, w_shape, **ours), nc.conv_weight_grad(x, dy, w_shape, **theirs)
        )


def test_images_of_few_positions_lie_side_by_side():
    """Many channels at 2x2 do; wider images, a single one, and channels that do not fill a vector do not."""

    def lie(batch, channels, side, groups=1):
        spec = ConvSpec.of(
            (batch, channels, side, side), (channels, channels // groups, 3, 3), padding=1, groups=groups
        )
        return few_positions.suits(spec.window, batch, groups, channels, channels, 4)

    assert lie(16, 512, 2)
    assert lie(16, 512, 2, groups=4)
    assert not lie(1, 512, 2)
    assert not lie(16, 512, 4)
    assert not lie(16, 4096, 2, groups=1024)


def test_long_sums_are_blocked():
    """A million times 1.1 in float32: one running sum would be off by one in a hundred."""
    x = np.full((1, 1, 2**20), 1.1, "f4")
    for outputs in (1, 32):
        dw = nc.conv_weight_grad(x, np.ones((1, outputs, 2**20), "f4"), (outputs, 1, 1), backend="numba")
        assert np.abs(dw / (x.astype("f8").sum()) - 1).max() < 2 * 2**10 * np.finfo("f4").eps
