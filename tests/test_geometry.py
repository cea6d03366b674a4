"""Windows and convolution specs against enumeration: sizes, padding, taps, counts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from strategies import PADDING_STRINGS, PoolProblem, Problem, pool_problems, problems

import npconv as nc
from npconv.geometry import ConvSpec, Window


def spec_of(problem: Problem) -> ConvSpec:
    return ConvSpec.of(problem.x_shape, problem.w_shape, **problem.keywords)


@given(problem=problems())
def test_output_size_counts_the_window_positions_that_fit(problem: Problem) -> None:
    axes = zip(problem.padded, problem.reach, problem.stride, strict=True)
    fitting = tuple(sum(1 for start in range(0, n, s) if start + r < n) for n, r, s in axes)
    spec = spec_of(problem)
    assert spec.window.out == fitting
    assert spec.y_shape == problem.shape(problem.out_channels, fitting)


@given(problem=problems())
def test_a_spec_gives_back_the_shapes_that_it_was_made_of(problem: Problem) -> None:
    spec = spec_of(problem)
    assert (spec.x_shape, spec.w_shape) == (problem.x_shape, problem.w_shape)
    assert spec.ndim == len(problem.size)


@given(problem=problems())
def test_padding_strings_mean_their_pairs(problem: Problem) -> None:
    assert spec_of(problem).window.padding == problem.pairs


@given(problem=problems(empty=False))
def test_same_gives_the_size_divided_by_the_stride_rounded_up(problem: Problem) -> None:
    expected = tuple(math.ceil(n / s) for n, s in zip(problem.size, problem.stride, strict=True))
    for string in ("same", "same_upper", "same_lower"):
        window = Window.over(problem.size, problem.kernel, problem.stride, string, problem.dilation)
        assert window.out == expected
        assert all(abs(lo - hi) <= 1 for lo, hi in window.padding)
        assert all(lo >= hi if string == "same_lower" else lo <= hi for lo, hi in window.padding)


@given(problem=problems(unit_stride=True, empty=False))
def test_full_covers_every_overlap_and_causal_never_looks_ahead(problem: Problem) -> None:
    full, causal = (
        Window.over(problem.size, problem.kernel, 1, string, problem.dilation) for string in ("full", "causal")
    )
    assert full.out == tuple(n + r for n, r in zip(problem.size, problem.reach, strict=True))
    assert causal.out == problem.size
    for axis, kernel in enumerate(problem.kernel):
        last_tap = (kernel - 1) * problem.dilation[axis]
        # The last tap of output p sits on input p.
        assert last_tap - causal.padding[axis][0] == 0


@given(problem=problems(empty=True))
def test_tap_slices_are_all_pairs_of_input_and_output_that_meet(problem: Problem) -> None:
    window = spec_of(problem).window
    listed: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    for tap, inputs, outputs in window.tap_slices():
        sources = np.stack(
            np.meshgrid(*(np.arange(n)[s] for n, s in zip(window.size, inputs, strict=True)), indexing="ij")
        )
        targets = np.stack(
            np.meshgrid(*(np.arange(n)[s] for n, s in zip(window.out, outputs, strict=True)), indexing="ij")
        )
        pairs = zip(sources.reshape(window.ndim, -1).T, targets.reshape(window.ndim, -1).T, strict=True)
        listed += [(tap, tuple(map(int, source)), tuple(map(int, target))) for source, target in pairs]
    met = []
    axes = tuple(zip(problem.stride, problem.dilation, problem.pairs, strict=True))
    for number, tap in enumerate(np.ndindex(*problem.kernel)):
        for target in np.ndindex(*problem.out):
            source = tuple(p * s + t * d - lo for p, t, (s, d, (lo, _)) in zip(target, tap, axes, strict=True))
            if all(0 <= i < n for i, n in zip(source, problem.size, strict=True)):
                met.append((number, source, target))
    assert sorted(listed) == sorted(met)


@given(problem=problems())
def test_work_is_counted_in_macs_and_twice_as_many_flops(problem: Problem) -> None:
    spec = spec_of(problem)
    y_elements = math.prod(problem.y_shape)
    assert spec.macs == y_elements * problem.terms
    assert spec.flops == 2 * spec.macs
    assert spec.parameters == math.prod(problem.w_shape)
    assert spec.bytes(2) == 2 * (math.prod(problem.x_shape) + spec.parameters + y_elements)


def test_the_lectures_layer_takes_1024_million_macs() -> None:
    spec = ConvSpec.of((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
    assert (spec.y_shape, spec.macs, spec.flops) == ((1, 100, 64, 64), 1_024_000_000, 2_048_000_000)


def test_the_lectures_strides_that_do_not_divide() -> None:
    assert ConvSpec.of((1, 8, 8), (1, 1, 3, 5), stride=(3, 4), padding=(0, 1)).y_shape == (1, 2, 2)


@pytest.mark.parametrize(
    "spelling",
    [
        {"stride": [2, 2], "padding": [1, 1], "dilation": np.array([1, 1])},
        {"stride": np.int8(2), "padding": np.int64(1), "dilation": np.array(1)},
        {"stride": (2, np.uint8(2)), "padding": [[1, 1], (1, 1)]},
        {"stride": 2, "padding": np.array([[1, 1], [1, 1]])},
        {"stride": 2, "padding": "same_lower", "groups": np.int16(1)},
    ],
    ids=["lists", "scalars", "mixed", "array of pairs", "string"],
)
def test_every_spelling_makes_the_same_hashable_spec(spelling: dict[str, Any]) -> None:
    plain = ConvSpec.of((1, 1, 5, 5), (1, 1, 3, 3), 2, 1)
    spec = ConvSpec.of([1, 1, np.int32(5), 5], np.array([1, 1, 3, 3]), **spelling)
    assert spec == plain
    assert hash(spec) == hash(plain)
    assert repr(spec) == repr(plain)


def test_a_spec_cannot_be_changed() -> None:
    spec = ConvSpec.of((1, 1, 5), (1, 1, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.batch = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.window.stride = (2,)  # type: ignore[misc]


@given(problem=problems())
def test_padding_first_leaves_the_same_positions(problem: Problem) -> None:
    window = spec_of(problem).window
    bare = window.without_padding()
    assert (bare.out, bare.size, bare.has_padding) == (window.out, problem.padded, False)


@given(problem=problems())
def test_transposing_returns_to_the_input_size(problem: Problem) -> None:
    axes = zip(problem.padded, problem.reach, problem.stride, strict=True)
    skipped = tuple((n - r - 1) % s for n, r, s in axes)
    keywords = {**problem.window, "padding": problem.pairs, "groups": problem.groups, "layout": problem.layout}
    spec, beyond = ConvSpec.transposed(problem.y_shape, problem.w_shape, output_padding=skipped, **keywords)
    assert tuple(n + extra for n, extra in zip(spec.window.size, beyond, strict=True)) == problem.size
    assert (spec.y_shape, spec.in_channels) == (problem.y_shape, problem.channels)


@given(problem=pool_problems())
def test_ceil_mode_adds_only_windows_that_start_inside(problem: PoolProblem) -> None:
    window = Window.over(
        problem.size, problem.kernel, problem.stride, problem.pairs, problem.dilation, problem.ceil_mode
    )
    assert window.out == problem.out
    for axis, n in enumerate(window.out):
        last_start = (n - 1) * problem.stride[axis] - problem.pairs[axis][0]
        assert last_start < problem.size[axis]


@given(problem=problems())
def test_a_plan_reports_the_specs_numbers(problem: Problem) -> None:
    plan = nc.plan(problem.x_shape, problem.w_shape, **problem.keywords)
    spec = spec_of(problem)
    assert (plan.spec, plan.macs, plan.bytes) == (spec, spec.macs, spec.bytes(4))


def test_the_strings_are_those_that_are_tested() -> None:
    from npconv import geometry

    assert set(PADDING_STRINGS) == set(geometry.PADDING_STRINGS)
