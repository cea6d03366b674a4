"""Properties of the forward convolution, for every algorithm, backend and dtype."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import (
    BACKENDS,
    COMPLEX,
    DTYPES,
    FLOATS,
    INTEGERS,
    LARGE,
    LARGE_FOR,
    PAD_MODES,
    Problem,
    agree,
    can_compute,
    identical,
    problems,
    problems_for,
    skip_unless_computed,
    values,
)

import npconv as nc
from npconv.algorithms import ALGORITHMS, TRANSFORMED

PADDED = tuple(PAD_MODES)[1:]

ACTIVATIONS = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.minimum(np.maximum(y, 0), 6),
    "hardswish": lambda y: y * np.minimum(np.maximum(y + 3, 0), 6) / 6,
}


@pytest.mark.parametrize("dtype", DTYPES)
@given(problem=problems("pointwise", layouts=("channels_first",), unit_stride=True))
def test_1x1_equals_the_matrix_product(backend: str, dtype: str, problem: Problem) -> None:
    problem = problem.but(groups=1)
    x, w = problem.x(dtype), problem.w(dtype)
    images = problem.channels_first(x)
    product = w.reshape(w.shape[:2]) @ images.reshape(*images.shape[:2], math.prod(problem.size))
    for algorithm in filter(problem.supported_by, ALGORITHMS):
        identical(problem.conv(x, w, algorithm=algorithm, backend=backend), product.reshape(problem.y_shape))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_equals_the_reference(algorithm: str, dtype: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, dtype))
    x, w, bias = problem.x(dtype), problem.w(dtype), problem.bias(dtype) if data.draw(st.booleans()) else None
    expected = problem.expected(x, w, bias)
    for backend in BACKENDS:
        agree(algorithm, problem.conv(x, w, bias, algorithm=algorithm, backend=backend), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64", "int16"])
@given(data=st.data())
def test_padding_modes_equal_numpy_pad_and_then_valid(algorithm: str, dtype: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, dtype, modes=PADDED))
    x, w = problem.x(dtype), problem.w(dtype)
    padded = problem.as_given(problem.pad(problem.channels_first(x)))
    valid = {**problem.keywords, "padding": "valid", "padding_mode": "zeros"}
    for backend in BACKENDS:
        how = {"algorithm": algorithm, "backend": backend}
        identical(problem.conv(x, w, **how), nc.conv(padded, w, **valid, **how))


@given(
    types=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    problem=problems(dims=st.just(1), empty=False),
)
@example(types=("int8", "float16", "uint8"), problem=None)
@example(types=("uint64", "int64", "int64"), problem=None)
@example(types=("float32", "int64", "complex64"), problem=None)
def test_mixed_dtypes_follow_result_type(backend: str, types: tuple[str, str, str], problem: Problem | None) -> None:
    problem = problem or Problem(1, 2, 2, 1, (4,), (2,), (1,), (1,), 0, ((0, 0),))
    operands = [
        (values(shape, "float32", seed) ** 2).astype(dtype)
        for seed, (dtype, shape) in enumerate(
            zip(types, (problem.x_shape, problem.w_shape, (problem.out_channels,)), strict=True)
        )
    ]
    expected = problem.expected(*(operand.astype(np.result_type(*operands)) for operand in operands))
    identical(problem.conv(*operands, backend=backend), expected)


@given(data=st.data())
def test_grouped_equals_the_concatenation_of_its_groups(backend: str, algorithm: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, layouts=("channels_first",)))
    x, w = problem.x(), problem.w()
    axis = 0 if problem.batch is None else 1
    single = {**problem.keywords, "groups": 1}
    parts = [
        nc.conv(x_part, w_part, **single, backend=backend)
        for x_part, w_part in zip(np.split(x, problem.groups, axis), np.split(w, problem.groups), strict=True)
    ]
    agree(algorithm, problem.conv(x, w, algorithm=algorithm, backend=backend), np.concatenate(parts, axis))


@given(problem=problems("depthwise", layouts=("channels_first",), batched=True))
def test_depthwise_equals_every_channel_on_its_own(backend: str, problem: Problem) -> None:
    x, w = problem.x(), problem.w()
    y = problem.conv(x, w, algorithm="depthwise", backend=backend)
    multiplier = problem.out_channels // problem.channels
    for o in range(problem.out_channels):
        c = o // multiplier
        alone = nc.conv(x[:, c : c + 1], w[o : o + 1], **problem.window, backend=backend)
        identical(y[:, o : o + 1], alone)


@given(data=st.data(), dtype=st.sampled_from(("float32", "complex128", "int8", "uint64")))
def test_linear_in_x_and_in_w(backend: str, algorithm: str, data: st.DataObject, dtype: str) -> None:
    assume(can_compute(algorithm, dtype))
    problem = data.draw(problems_for(algorithm, modes=tuple(PAD_MODES)))
    a, b = np.array(3, dtype), np.array(2, dtype)
    x1, x2, w1, w2 = problem.x(dtype), problem.x(dtype, 5), problem.w(dtype), problem.w(dtype, 6)

    def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        y = problem.conv(x, w, algorithm=algorithm, backend=backend)
        return np.rint(y) if y.dtype.kind in "fc" else y

    identical(conv(a * x1 + b * x2, w1), a * conv(x1, w1) + b * conv(x2, w1))
    identical(conv(x1, a * w1 + b * w2), a * conv(x1, w1) + b * conv(x1, w2))


@given(data=st.data(), shift=st.integers(1, 3))
def test_shift_equivariant_at_stride_1(backend: str, algorithm: str, data: st.DataObject, shift: int) -> None:
    problem = data.draw(problems_for(algorithm, layouts=("channels_first",), unit_stride=True, empty=False))
    # Room to shift, and no padding, which would stay where it is.
    size = (*problem.padded[:-1], problem.padded[-1] + shift)
    problem = problem.but(size=size, padding="valid", pairs=((0, 0),) * len(size))
    x, w = problem.x(), problem.w()
    y = problem.conv(x, w, algorithm=algorithm, backend=backend)
    shifted = problem.conv(np.roll(x, shift, -1), w, algorithm=algorithm, backend=backend)
    agree(algorithm, shifted[..., shift:], np.rint(y[..., :-shift]))


@given(data=st.data(), shift=st.integers(1, 5))
def test_circular_padding_makes_rotation_commute(backend: str, algorithm: str, data: st.DataObject, shift: int) -> None:
    problem = data.draw(
        problems_for(algorithm, layouts=("channels_first",), unit_stride=True, modes=("circular",), empty=False)
    )
    # As many padded elements as the kernel reaches, so that output and input have one size.
    pairs = (*problem.pairs[:-1], (0, problem.reach[-1]))
    problem = problem.but(padding=pairs, pairs=pairs)
    x, w = problem.x(), problem.w()
    y = problem.conv(x, w, algorithm=algorithm, backend=backend)
    rotated = problem.conv(np.roll(x, shift, -1), w, algorithm=algorithm, backend=backend)
    agree(algorithm, rotated, np.rint(np.roll(y, shift, -1)))


@given(data=st.data())
def test_both_layouts_agree(backend: str, algorithm: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, modes=tuple(PAD_MODES), layouts=("channels_first",), batched=True))
    x, w, bias = problem.x("float32"), problem.w("float32"), problem.bias("float32")
    how = {"algorithm": algorithm, "backend": backend, "activation": "relu"}
    y = problem.conv(x, w, bias, **how)
    last = problem.but(layout="channels_last").conv(np.moveaxis(x, 1, -1), w, bias, **how)
    identical(np.moveaxis(last, -1, 1), y)


@given(data=st.data())
def test_unbatched_equals_a_batch_of_one(backend: str, algorithm: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, modes=tuple(PAD_MODES))).but(batch=None)
    x, w, bias = problem.x("float32"), problem.w("float32"), problem.bias("float32")
    how = {"algorithm": algorithm, "backend": backend}
    identical(problem.conv(x, w, bias, **how)[None], problem.but(batch=1).conv(x[None], w, bias, **how))


@given(problem=problems(batched=True, empty=False))
def test_images_of_a_batch_do_not_see_each_other(backend: str, problem: Problem) -> None:
    x, w = problem.x("float32"), problem.w("float32")
    alone = [problem.conv(x[n : n + 1], w, backend=backend) for n in range(len(x))]
    identical(problem.conv(x, w, backend=backend), np.concatenate(alone))


@given(data=st.data())
def test_a_bias_is_added_to_every_channel(backend: str, algorithm: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm))
    x, w, bias = problem.x(), problem.w(), problem.bias()
    y = problem.channels_first(problem.conv(x, w, algorithm=algorithm, backend=backend))
    added = problem.as_given(y + bias.reshape(-1, *[1] * len(problem.size)))
    identical(problem.conv(x, w, bias, algorithm=algorithm, backend=backend), added)


@given(data=st.data(), activation=st.sampled_from(tuple(ACTIVATIONS)), dtype=st.sampled_from(("float32", "float64")))
def test_an_activation_equals_its_formula_applied_afterwards(
    backend: str, algorithm: str, data: st.DataObject, activation: str, dtype: str
) -> None:
    problem = data.draw(problems_for(algorithm))
    x, w, bias = problem.x(dtype), problem.w(dtype), problem.bias(dtype)
    how = {"algorithm": algorithm, "backend": backend}
    after = ACTIVATIONS[activation](problem.conv(x, w, bias, **how))
    actual = problem.conv(x, w, bias, activation=activation, **how)
    # hardswish of a number that is not an integer is rounded, up to thrice on either side.
    exact = activation != "hardswish" or (algorithm != "auto" and algorithm not in TRANSFORMED)
    np.testing.assert_allclose(actual, after, rtol=0 if exact else 4 * np.finfo(dtype).eps, atol=0, strict=True)


@given(problem=problems(), activation=st.sampled_from(tuple(ACTIVATIONS)))
def test_an_activation_of_float16_is_computed_in_float32(backend: str, problem: Problem, activation: str) -> None:
    x, w = problem.x("float16"), problem.w("float16")
    wide = problem.conv(x.astype("float32"), w.astype("float32"), activation=activation, backend=backend)
    identical(problem.conv(x, w, activation=activation, backend=backend), wide.astype("float16"))


@given(data=st.data(), dtype=st.sampled_from(INTEGERS), activation=st.sampled_from(("relu", "relu6")))
def test_an_activation_of_integers_is_applied_to_the_wrapped_sum(
    algorithm: str, data: st.DataObject, dtype: str, activation: str
) -> None:
    problem = data.draw(problems_for(algorithm, dtype))
    x, w = problem.x(dtype), problem.w(dtype)
    for backend in BACKENDS:
        how = {"algorithm": algorithm, "backend": backend}
        after = ACTIVATIONS[activation](problem.conv(x, w, **how))
        identical(problem.conv(x, w, activation=activation, **how), after)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_takes_nan_infinity_and_large_numbers(backend: str, activation: str) -> None:
    x = np.array([[[np.nan, np.inf, 1e38, -1e38]]], "float32")
    y = nc.conv(x, np.ones((1, 1, 1), "float32"), activation=activation, backend=backend)
    expected = [np.nan, 6, 6, 0] if activation == "relu6" else [np.nan, np.inf, 1e38, 0]
    identical(y, np.array([[expected]], "float32"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_all_algorithms_and_backends_agree_on_an_activation_of_minus_infinity(activation: str) -> None:
    x, w = np.array([[[-np.inf, 1]]], "float32"), np.ones((1, 1, 1), "float32")
    ways = [(name, backend) for name in ALGORITHMS if name not in TRANSFORMED for backend in BACKENDS]
    results = [nc.conv(x, w, activation=activation, algorithm=name, backend=backend) for name, backend in ways]
    for result in results[1:]:
        identical(result, results[0])


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("spoilt", ["x", "w"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_not_finite_spread_as_in_the_definition(algorithm: str, spoilt: str, number: float) -> None:
    """A weight meets the zeros of the padding, and zero times infinity is NaN, whoever computes it."""
    for problem in spreading(algorithm):
        x, w = problem.x("float32") + 9, problem.w("float32") + 9
        {"x": x, "w": w}[spoilt].flat[0] = number
        for backend in BACKENDS:
            identical(problem.conv(x, w, algorithm=algorithm, backend=backend), problem.expected(x, w))


def spreading(algorithm: str) -> list[Problem]:
    """Small problems with padding, few and many channels."""
    one = Problem(1, 1, 1, 1, (3, 3), (2, 2), (1, 1), (1, 1), 1, ((1, 1), (1, 1)))
    if algorithm == "pointwise":
        one = one.but(kernel=(1, 1), padding=0, pairs=((0, 0), (0, 0)))
    every = [one, one.but(channels=4, out_channels=4), one.but(channels=4, out_channels=4, groups=4)]
    return [problem for problem in every if algorithm == "auto" or problem.supported_by(algorithm)]


# Rounding


@given(data=st.data(), dtype=st.sampled_from(FLOATS + COMPLEX), seed=st.integers(0, 2**32))
def test_rounding_errors_stay_within_their_bound(
    backend: str, algorithm: str, data: st.DataObject, dtype: str, seed: int
) -> None:
    assume(can_compute(algorithm, dtype))
    problem = data.draw(problems_for(algorithm, empty=False))
    rng = np.random.default_rng(seed)
    shapes = (problem.x_shape, problem.w_shape, (problem.out_channels,))
    operands = [random_values(rng, shape, dtype) for shape in shapes]
    y = problem.conv(*operands, algorithm=algorithm, backend=backend)
    exact = conv_by_taps(problem, *(v.astype("clongdouble" if dtype in COMPLEX else "longdouble") for v in operands))
    absolute = conv_by_taps(problem, *(np.abs(v).astype("longdouble") for v in operands))
    bound = problem.rounding_bound(algorithm, "forward", dtype, problem.terms + 1, operands[:2], exact, absolute)
    assert (np.abs(y - exact) <= bound).all()


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    numbers = rng.standard_normal(shape)
    return (numbers + 1j * rng.standard_normal(shape) if dtype in COMPLEX else numbers).astype(dtype)


def conv_by_taps(problem: Problem, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The convolution, in whatever precision comes in."""
    padded = problem.pad(problem.channels_first(x))
    padded = padded.reshape(len(padded), problem.groups, -1, *problem.padded)
    weights = w.reshape(problem.groups, -1, *w.shape[1:])
    y = np.zeros((len(padded), problem.groups, weights.shape[1], math.prod(problem.out)), x.dtype)
    for tap, seen in problem.taps():
        part = padded[:, :, :, *seen]
        y += weights[:, :, :, *tap] @ part.reshape(*part.shape[:3], -1)
    y = y.reshape(len(padded), problem.out_channels, *problem.out)
    return problem.as_given(y + bias.reshape(-1, *[1] * len(problem.size)))


# Sizes that fill tiles and blocks, beside what is left over


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize(("algorithm", "name"), LARGE_FOR)
def test_large_problems_are_exact_too(algorithm: str, name: str, dtype: str) -> None:
    skip_unless_computed(algorithm, dtype)
    x, w, bias, expected = large(name)
    operands = [value.astype(dtype) for value in (x, w, bias)]
    for backend in BACKENDS:
        y = LARGE[name].conv(*operands, activation="relu", algorithm=algorithm, backend=backend)
        agree(algorithm, y, expected.astype(dtype))


@functools.cache
def large(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Integers up to 4, whose sums of products are exact in float32, and their convolution."""
    operands = LARGE[name].x(), LARGE[name].w(), LARGE[name].bias()
    return *operands, np.maximum(conv_by_taps(LARGE[name], *operands), 0)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@given(data=st.data())
def test_a_batch_may_be_worked_through_in_parts(backend: str, algorithm: str, dtype: str, data: st.DataObject) -> None:
    """As it is where the columns of all images would take too much memory."""
    problem = data.draw(problems_for(algorithm, dtype, batched=True)).but(batch=3)
    x, w, dy = problem.x(dtype), problem.w(dtype), problem.dy(dtype)
    how = {"algorithm": algorithm, "backend": backend}
    whole = problem.conv(x, w, **how), problem.input_grad(dy, w, **how), problem.weight_grad(x, dy, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npconv.algorithms.im2col.WORKSPACE", 1)
        patch.setattr("npconv.algorithms.winograd_steps.WORKSPACE", 1)
        patch.setattr("npconv.algorithms.fft_blocks.STEP", 1)
        parts = problem.conv(x, w, **how), problem.input_grad(dy, w, **how), problem.weight_grad(x, dy, **how)
    for actual, expected in zip(parts, whole, strict=True):
        agree(algorithm, actual, np.rint(expected))


# Spelling


@given(problem=problems(dims=st.sampled_from((1, 2, 3)), modes=tuple(PAD_MODES)))
def test_conv1d_2d_and_3d_are_conv(problem: Problem) -> None:
    by_rank = {1: nc.conv1d, 2: nc.conv2d, 3: nc.conv3d}[len(problem.size)]
    x, w, bias = problem.x("float32"), problem.w("float32"), problem.bias("float32")
    identical(by_rank(x, w, bias, **problem.keywords, activation="relu"), problem.conv(x, w, bias, activation="relu"))


@given(problem=problems())
def test_a_padding_string_means_its_pairs(problem: Problem) -> None:
    x, w = problem.x("float32"), problem.w("float32")
    identical(problem.conv(x, w), problem.but(padding=problem.pairs).conv(x, w))


@pytest.mark.parametrize(
    "spell", [list, np.array, lambda v: tuple(np.int8(i) for i in v)], ids=["list", "array", "int8"]
)
def test_integers_may_come_as_lists_arrays_or_numpy_integers(spell: object) -> None:
    x, w = values((1, 1, 7, 8), "float32"), values((1, 1, 2, 3), "float32")
    plain = nc.conv(x, w, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    identical(nc.conv(x, w, stride=spell((2, 1)), padding=spell((1, 2)), dilation=spell((1, 2))), plain)


@given(problem=problems(), activation=st.sampled_from((None, "relu")), dtype=st.sampled_from(DTYPES[:3] + INTEGERS))
def test_a_plan_computes_what_conv_computes(backend: str, problem: Problem, activation: str | None, dtype: str) -> None:
    x, w, bias = problem.x(dtype), problem.w(dtype), problem.bias(dtype)
    plan = nc.plan(
        problem.x_shape, problem.w_shape, **problem.keywords, activation=activation, dtype=dtype, backend=backend
    )
    expected = problem.conv(x, w, bias, activation=activation, backend=backend)
    identical(plan(x, w, bias), expected)
    packed = plan.pack(w, bias)
    identical(packed(x), expected)
    identical(packed(x), expected)


# Threads


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_results_do_not_depend_on_the_number_of_threads(
    algorithm: str, dtype: str, padding_mode: str, threads: list[int]
) -> None:
    skip_unless_computed(algorithm, dtype)
    w_shape, groups = {"pointwise": ((24, 12, 1, 1), 1), "depthwise": ((48, 1, 5, 5), 24)}.get(
        algorithm, ((16, 12, 3, 3), 2)
    )
    rng = np.random.default_rng(0)
    x = random_values(rng, (3, w_shape[1] * groups, 47, 41), dtype)
    w, bias = random_values(rng, w_shape, dtype), random_values(rng, w_shape[:1], dtype)
    padding = 0 if w_shape[2] == 1 else 1

    def run(n: int) -> np.ndarray:
        nc.set_num_threads(n)
        how = {"algorithm": algorithm, "backend": "numba", "padding": padding, "padding_mode": padding_mode}
        return nc.conv(x, w, bias, groups=groups, **how)

    alone = run(1)
    assert threads == []
    for n in (2, 3, 7):
        identical(run(n), alone)
        # These images make one step of an FFT; tests/test_fft.py has more of them.
        assert algorithm == "fft" or threads[-1] == n - 1


@given(
    x_shape=st.tuples(st.integers(1, 4), st.sampled_from((1, 4, 16)), st.integers(8, 64), st.integers(8, 64)),
    out_channels=st.sampled_from((1, 4, 16, 64)),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 2),
)
@example(x_shape=(1, 4, 16, 16), out_channels=4, kernel=3, stride=1)
def test_the_number_of_threads_does_not_decide_the_algorithm(
    backend: str, x_shape: tuple[int, ...], out_channels: int, kernel: int, stride: int
) -> None:
    w_shape = (out_channels, x_shape[1], kernel, kernel)
    chosen = {nc.plan(x_shape, w_shape, stride, backend=backend, threads=n).algorithm for n in (1, 2, 8, 64)}
    assert len(chosen) == 1


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [
        ((1, 3, 2160, 3840), (16, 3, 15, 15)),
        ((1, 1, 1024, 1024), (8, 1, 256, 256)),
        ((1, 64, 512, 512), (64, 64, 7, 7)),
    ],
    ids=["photograph", "large kernels", "many channels"],
)
def test_auto_stays_within_a_gigabyte_of_workspace(
    backend: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
) -> None:
    """The direct form needs none; a fast algorithm that does not fit into memory is not fast."""
    assert nc.plan(x_shape, w_shape, padding="same", backend=backend).workspace <= 2**30
