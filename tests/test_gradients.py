"""Gradients, vector-Jacobian products and transposed convolutions: adjoints of the forward convolution."""

from __future__ import annotations

import functools
import math
from typing import Any

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

MODES = tuple(PAD_MODES)

SLOPES = {
    "relu": lambda y: np.where(y > 0, 1, 0),
    "relu6": lambda y: np.where((y > 0) & (y < 6), 1, 0),
    # Inside, the derivative of y * (y + 3) / 6.
    "hardswish": lambda y: np.where(y <= -3, 0, np.where(y >= 3, 1, (2 * y + 3) / 6)),
}


# The definition


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_gradients_equal_the_reference(algorithm: str, dtype: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, dtype))
    x, w, dy = problem.x(dtype), problem.w(dtype), problem.dy(dtype)
    dx, dw = problem.expected_input_grad(dy, w), problem.expected_weight_grad(x, dy)
    for backend in BACKENDS:
        how = {"algorithm": algorithm, "backend": backend}
        agree(algorithm, problem.input_grad(dy, w, **how), dx)
        agree(algorithm, problem.weight_grad(x, dy, **how), dw)


@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_gradients_through_padding_modes_equal_the_reference(
    backend: str, algorithm: str, data: st.DataObject, dtype: str
) -> None:
    assume(can_compute(algorithm, dtype))
    problem = data.draw(problems_for(algorithm, modes=MODES[1:]))
    x, w, dy = problem.x(dtype), problem.w(dtype), problem.dy(dtype)
    how = {"algorithm": algorithm, "backend": backend}
    agree(algorithm, problem.input_grad(dy, w, **how), problem.expected_input_grad(dy, w))
    agree(algorithm, problem.weight_grad(x, dy, **how), problem.expected_weight_grad(x, dy))


@given(data=st.data(), dtype=st.sampled_from(("float64", "complex128", "int32", "uint64")))
def test_gradients_are_adjoint_to_the_convolution(
    backend: str, algorithm: str, data: st.DataObject, dtype: str
) -> None:
    assume(can_compute(algorithm, dtype))
    problem = data.draw(problems_for(algorithm, modes=MODES))
    x, w, dy = problem.x(dtype), problem.w(dtype), problem.dy(dtype)
    how = {"algorithm": algorithm, "backend": backend}
    results = problem.conv(x, w, **how), problem.input_grad(dy, w, **how), problem.weight_grad(x, dy, **how)
    y, dx, dw = (np.rint(result) if dtype in FLOATS + COMPLEX else result for result in results)
    product = np.vdot(dy, y)
    assert product == np.vdot(dx, x)
    assert product == np.vdot(dw, w)


# Differences. A convolution is linear in each argument, so central differences at any step, here 1, are exact but for
# rounding. By `rounding_bound` each value of `height`, and the gradient itself, is off by at most n * eps
# times the sum of the absolute values of all its products, and n is at most the number of these products.


@given(data=st.data(), seed=st.integers(0, 2**32))
def test_gradients_equal_central_differences(backend: str, algorithm: str, data: st.DataObject, seed: int) -> None:
    problem = data.draw(problems_for(algorithm, modes=MODES, empty=False))
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.standard_normal(shape) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    how = {"algorithm": algorithm, "backend": backend}

    def height(x: np.ndarray, w: np.ndarray) -> float:
        return float(np.vdot(problem.conv(x, w, **how), dy))

    n = problem.terms * dy.size + 4
    largest = problem.conv(np.abs(x) + 1, np.abs(w) + 1, **how)
    tolerance = 2 * n * np.finfo("float64").eps * float(np.vdot(largest, np.abs(dy)))
    dx, dw = problem.input_grad(dy, w, **how), problem.weight_grad(x, dy, **how)
    for index in some_indices(rng, x.shape):
        step = unit(x.shape, index)
        assert abs((height(x + step, w) - height(x - step, w)) / 2 - dx[index]) <= tolerance
    for index in some_indices(rng, w.shape):
        step = unit(w.shape, index)
        assert abs((height(x, w + step) - height(x, w - step)) / 2 - dw[index]) <= tolerance


def some_indices(rng: np.random.Generator, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Up to 8 different places in an array."""
    chosen = rng.permutation(math.prod(shape))[:8]
    return [tuple(int(i) for i in np.unravel_index(flat, shape)) for flat in chosen]


def unit(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    step = np.zeros(shape)
    step[index] = 1
    return step


@given(data=st.data(), seed=st.integers(0, 2**32), dtype=st.sampled_from(FLOATS))
def test_rounding_errors_of_gradients_stay_within_their_bound(
    backend: str, algorithm: str, data: st.DataObject, seed: int, dtype: str
) -> None:
    assume(can_compute(algorithm, dtype))
    problem = data.draw(problems_for(algorithm, empty=False))
    rng = np.random.default_rng(seed)
    x, w, dy = (
        rng.standard_normal(shape).astype(dtype) for shape in (problem.x_shape, problem.w_shape, problem.y_shape)
    )
    how = {"algorithm": algorithm, "backend": backend}
    x64, w64, dy64 = x.astype("float64"), w.astype("float64"), dy.astype("float64")
    results = (
        ("input_grad", problem.expected_input_grad, (dy, w), (dy64, w64), w.size // problem.channels),
        ("weight_grad", problem.expected_weight_grad, (x, dy), (x64, dy64), dy.size // w.shape[0]),
    )
    for op, expected, given_, wide, n in results:
        actual = getattr(problem, op)(*given_, **how)
        exact, absolute = expected(*wide), expected(*(np.abs(operand) for operand in wide))
        # Where the reference too sums in float64, both may be off.
        bound = problem.rounding_bound(algorithm, op, dtype, n, wide, exact, absolute) * (
            2 if dtype == "float64" else 1
        )
        assert (np.abs(actual - exact) <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize(("algorithm", "name"), LARGE_FOR)
def test_gradients_of_large_problems_are_exact_too(algorithm: str, name: str, dtype: str) -> None:
    skip_unless_computed(algorithm, dtype)
    x, w, dy, dx, dw = large(name)
    x, w, dy = (value.astype(dtype) for value in (x, w, dy))
    for backend in BACKENDS:
        how = {"algorithm": algorithm, "backend": backend}
        agree(algorithm, LARGE[name].input_grad(dy, w, **how), dx.astype(dtype))
        agree(algorithm, LARGE[name].weight_grad(x, dy, **how), dw.astype(dtype))


@functools.cache
def large(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Integers up to 4, whose sums of products are exact in float32, and their gradients, tap by tap."""
    problem = LARGE[name]
    x, w, dy = problem.x(), problem.w(), problem.dy()
    padded = problem.pad(x).reshape(len(x), problem.groups, -1, *problem.padded)
    weights = w.reshape(problem.groups, -1, *w.shape[1:])
    grads = dy.reshape(len(dy), problem.groups, weights.shape[1], -1)
    dpadded, dw = np.zeros_like(padded), np.zeros_like(weights)
    for tap, seen in problem.taps():
        part = padded[:, :, :, *seen]
        flat = part.reshape(*part.shape[:3], -1)
        dpadded[:, :, :, *seen] += (weights[:, :, :, *tap].swapaxes(1, 2) @ grads).reshape(part.shape)
        dw[:, :, :, *tap] = (grads @ flat.swapaxes(2, 3)).sum(0)
    return (
        x,
        w,
        dy,
        problem.pad_adjoint(dpadded.reshape(len(x), problem.channels, *problem.padded)),
        dw.reshape(w.shape),
    )


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("spoilt", ["x", "w", "dy"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_not_finite_spread_as_in_the_definition(algorithm: str, spoilt: str, number: float) -> None:
    one = Problem(1, 1, 1, 1, (3, 3), (2, 2), (1, 1), (1, 1), 1, ((1, 1), (1, 1)))
    if algorithm == "pointwise":
        one = one.but(kernel=(1, 1), padding=0, pairs=((0, 0), (0, 0)))
    for problem in (one, one.but(channels=4, out_channels=4), one.but(channels=4, out_channels=4, groups=4)):
        if algorithm != "auto" and not problem.supported_by(algorithm):
            continue
        x, w, dy = (value + 9 for value in (problem.x("float32"), problem.w("float32"), problem.dy("float32")))
        {"x": x, "w": w, "dy": dy}[spoilt].flat[0] = number
        for backend in BACKENDS:
            how = {"algorithm": algorithm, "backend": backend}
            agree(algorithm, problem.input_grad(dy, w, **how), problem.expected_input_grad(dy, w))
            agree(algorithm, problem.weight_grad(x, dy, **how), problem.expected_weight_grad(x, dy))


# Structure


@given(data=st.data())
def test_gradients_of_both_layouts_agree(backend: str, algorithm: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, modes=MODES, layouts=("channels_first",), batched=True))
    last = problem.but(layout="channels_last")
    x, w, dy = problem.x(), problem.w(), problem.dy()
    how = {"algorithm": algorithm, "backend": backend}
    dx = last.input_grad(np.moveaxis(dy, 1, -1), w, **how)
    identical(np.moveaxis(dx, -1, 1), problem.input_grad(dy, w, **how))
    dw = last.weight_grad(np.moveaxis(x, 1, -1), np.moveaxis(dy, 1, -1), **how)
    identical(dw, problem.weight_grad(x, dy, **how))


@given(data=st.data())
def test_gradients_of_an_unbatched_image_equal_those_of_a_batch_of_one(
    backend: str, algorithm: str, data: st.DataObject
) -> None:
    problem = data.draw(problems_for(algorithm, modes=MODES)).but(batch=None)
    batch = problem.but(batch=1)
    x, w, dy = problem.x(), problem.w(), problem.dy()
    how = {"algorithm": algorithm, "backend": backend}
    identical(problem.input_grad(dy, w, **how)[None], batch.input_grad(dy[None], w, **how))
    identical(problem.weight_grad(x, dy, **how), batch.weight_grad(x[None], dy[None], **how))


@given(problem=problems(modes=MODES, batched=True, empty=False))
def test_the_weight_gradient_of_a_batch_is_the_sum_over_its_images(backend: str, problem: Problem) -> None:
    x, dy = problem.x(), problem.dy()
    parts = [problem.weight_grad(x[n : n + 1], dy[n : n + 1], backend=backend) for n in range(len(x))]
    identical(problem.weight_grad(x, dy, backend=backend), sum(parts))


@given(
    problem=problems(dims=st.just(1), empty=False),
    types=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
)
def test_gradients_of_mixed_dtypes_follow_result_type(backend: str, problem: Problem, types: tuple[str, str]) -> None:
    x, w, dy = ((values(s, "float32", 7) ** 2) for s in (problem.x_shape, problem.w_shape, problem.y_shape))
    common = np.result_type(*types)
    dx = problem.input_grad(dy.astype(types[0]), w.astype(types[1]), backend=backend)
    identical(dx, problem.expected_input_grad(dy.astype(common), w.astype(common)))
    dw = problem.weight_grad(x.astype(types[0]), dy.astype(types[1]), backend=backend)
    identical(dw, problem.expected_weight_grad(x.astype(common), dy.astype(common)))


# conv_vjp


@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_vjp_agrees_with_the_separate_functions(backend: str, algorithm: str, data: st.DataObject, dtype: str) -> None:
    problem = data.draw(problems_for(algorithm, dtype, modes=MODES))
    x, w, bias, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    how = {"algorithm": algorithm, "backend": backend}
    y, pullback = problem.vjp(x, w, bias, **how)
    identical(y, problem.conv(x, w, bias, **how))
    for _ in range(2):
        dx, dw, db = pullback(dy)
        identical(dx, problem.input_grad(dy, w, **how))
        identical(dw, problem.weight_grad(x, dy, **how))
        identical(db, sum_over_all_but_channels(problem, dy))


def sum_over_all_but_channels(problem: Problem, dy: np.ndarray) -> np.ndarray:
    images = problem.channels_first(dy)
    axes = (0, *range(2, images.ndim))
    exact = images.astype("float64") if dy.dtype.kind == "f" else images
    return exact.sum(axes, dtype=exact.dtype).astype(dy.dtype)


@given(problem=problems())
def test_vjp_without_a_bias_has_no_gradient_for_it(backend: str, problem: Problem) -> None:
    _, pullback = problem.vjp(problem.x(), problem.w(), backend=backend)
    dx, dw, db = pullback(problem.dy())
    assert (dx.shape, dw.shape, db) == (problem.x_shape, problem.w_shape, None)


@pytest.mark.parametrize("activation", SLOPES)
@given(problem=problems(modes=MODES), dtype=st.sampled_from(("float32", "float64")))
@example(problem=Problem(1, 1, 1, 1, (9,), (1,), (1,), (1,), 0, ((0, 0),)), dtype="float64")
def test_vjp_of_an_activation_is_the_chain_rule(backend: str, activation: str, problem: Problem, dtype: str) -> None:
    x, w, bias, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    # Halves keep the linear part off the corners, where derivatives are a convention; tests of that are below.
    bias = bias + bias.dtype.type(0.5)
    y, pullback = problem.vjp(x, w, bias, activation=activation, backend=backend)
    identical(y, problem.conv(x, w, bias, activation=activation, backend=backend))
    # Thirds, the slopes of hardswish, are rounded thrice before they are multiplied and summed.
    slope = SLOPES[activation](problem.conv(x, w, bias, backend=backend))
    dz = (dy * slope).astype(dtype)
    tolerance = (problem.terms * dz.size + 8) * np.finfo(dtype).eps if activation == "hardswish" else 0
    expected = (
        problem.input_grad(dz, w, backend=backend),
        problem.weight_grad(x, dz, backend=backend),
        sum_over_all_but_channels(problem, dz),
    )
    sizes = (
        problem.input_grad(np.abs(dz), np.abs(w), backend=backend),
        problem.weight_grad(np.abs(x), np.abs(dz), backend=backend),
        sum_over_all_but_channels(problem, np.abs(dz)),
    )
    for actual, wanted, size in zip(pullback(dy), expected, sizes, strict=True):
        assert actual.dtype == wanted.dtype
        assert (np.abs(actual - wanted) <= tolerance * size).all()


@given(problem=problems(modes=MODES), dtype=st.sampled_from(INTEGERS), activation=st.sampled_from(("relu", "relu6")))
def test_vjp_of_an_activation_of_integers_wraps_and_stays_exact(
    backend: str, problem: Problem, dtype: str, activation: str
) -> None:
    x, w, bias, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    y, pullback = problem.vjp(x, w, bias, activation=activation, backend=backend)
    identical(y, problem.conv(x, w, bias, activation=activation, backend=backend))
    dz = dy * SLOPES[activation](problem.conv(x, w, bias, backend=backend)).astype(dtype)
    dx, dw, db = pullback(dy)
    identical(dx, problem.input_grad(dz, w, backend=backend))
    identical(dw, problem.weight_grad(x, dz, backend=backend))
    identical(db, sum_over_all_but_channels(problem, dz))


@pytest.mark.parametrize(
    ("activation", "slopes"), [("relu", [0, 0, 0, 1, 1]), ("relu6", [0, 0, 0, 1, 0]), ("hardswish", [0, 0, 0.5, 1, 1])]
)
def test_slopes_at_the_corners(backend: str, activation: str, slopes: list[float]) -> None:
    """Those of PyTorch: the flat side's, and at 3 the straight side's of hardswish."""
    corners = np.array([[[-4.0, -3, 0, 3, 6]]])
    _, pullback = nc.conv_vjp(corners, np.ones((1, 1, 1)), activation=activation, backend=backend)
    identical(pullback(np.ones((1, 1, 5)))[0], np.array([[slopes]], "float64"))


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_flat_activation_stops_infinite_gradients(backend: str, activation: str) -> None:
    _, pullback = nc.conv_vjp(-np.ones((1, 1, 2)), np.ones((1, 1, 1)), activation=activation, backend=backend)
    dx, dw, _ = pullback(np.array([[[np.inf, np.nan]]]))
    identical(dx, np.zeros((1, 1, 2)))
    identical(dw, np.zeros((1, 1, 1)))


@given(problem=problems(), dtype=st.sampled_from(FLOATS + INTEGERS[:2]))
def test_a_complex_gradient_of_a_real_convolution(backend: str, problem: Problem, dtype: str) -> None:
    x, w, dy = problem.x(dtype), problem.w(dtype), problem.dy("complex128")
    _, pullback = problem.vjp(x, w, backend=backend)
    dx, dw, _ = pullback(dy)
    identical(dx, problem.input_grad(dy, w, backend=backend))
    identical(dw, problem.weight_grad(x, dy, backend=backend))


def test_the_result_of_vjp_is_the_callers_own(backend: str) -> None:
    x, w = values((1, 1, 6), "float32"), values((1, 1, 2), "float32", 1)
    y, pullback = nc.conv_vjp(x, w, activation="relu", backend=backend)
    dy = np.ones_like(y)
    before = pullback(dy)
    y[...] = -1
    for a, b in zip(pullback(dy)[:2], before[:2], strict=True):
        identical(a, b)


# Transposed convolution


def transposed(problem: Problem) -> dict[str, Any]:
    """Parameters of the transposed convolution that returns to a problem's input size.

    A stride may skip elements at the high end; as many are asked back as output padding.
    """
    axes = zip(problem.padded, problem.reach, problem.stride, strict=True)
    return {
        "stride": problem.stride,
        "padding": problem.pairs,
        "dilation": problem.dilation,
        "groups": problem.groups,
        "layout": problem.layout,
        "output_padding": tuple((n - r - 1) % s for n, r, s in axes),
    }


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int8", "uint64"])
@given(data=st.data())
def test_transposed_convolution_is_the_adjoint(algorithm: str, dtype: str, data: st.DataObject) -> None:
    problem = data.draw(problems_for(algorithm, dtype))
    dy, w = problem.dy(dtype), problem.w(dtype)
    expected = problem.expected_input_grad(dy, w)
    for backend in BACKENDS:
        how = {"algorithm": algorithm, "backend": backend}
        # Nothing is conjugated, as in PyTorch, but the adjoint's weights are.
        agree(algorithm, nc.conv_transpose(dy, w.conj(), **transposed(problem), **how), expected)


@given(problem=problems(), extra=st.integers(0, 4))
@example(problem=Problem(1, 1, 1, 1, (1,), (1,), (5,), (1,), 2, ((2, 2),)), extra=4)
def test_padding_cuts_and_output_padding_extends_a_transposed_convolution(
    backend: str, problem: Problem, extra: int
) -> None:
    keywords = {**transposed(problem), "layout": "channels_first"}
    dy, w = problem.channels_first(problem.dy()), problem.w()
    keywords["output_padding"] = tuple(
        min(extra, max(s, d) - 1) for s, d in zip(problem.stride, problem.dilation, strict=True)
    )
    # The whole overlap, which padding cuts and output padding extends by zeros.
    whole = nc.conv_transpose(dy, w, **{**keywords, "padding": 0, "output_padding": 0}, backend=backend)
    cut = np.pad(whole, ((0, 0), (0, 0), *((0, op) for op in keywords["output_padding"])))
    ends = [n - hi for n, (_, hi) in zip(cut.shape[2:], problem.pairs, strict=True)]
    expected = cut[:, :, *(slice(lo, end) for (lo, _), end in zip(problem.pairs, ends, strict=True))]
    if any(end < lo for (lo, _), end in zip(problem.pairs, ends, strict=True)):
        with pytest.raises(ValueError, match="output"):
            nc.conv_transpose(dy, w, **keywords, backend=backend)
    else:
        identical(nc.conv_transpose(dy, w, **keywords, backend=backend), expected)


@given(problem=problems(layouts=("channels_first",), batched=True), string=st.sampled_from(("same", "same_lower")))
def test_transposed_same_multiplies_the_size_by_the_stride(backend: str, problem: Problem, string: str) -> None:
    dy, w = problem.dy(), problem.w()
    size = tuple(n * s for n, s in zip(problem.out, problem.stride, strict=True))
    # It returns to the input of the "same" convolution whose strides divide that input.
    forward = problem.but(size=size, padding=string)
    y = nc.conv_transpose(dy, w, None, problem.stride, string, groups=problem.groups, dilation=problem.dilation)
    assert y.shape == forward.x_shape
    identical(y, forward.input_grad(dy, w, backend=backend))


@given(problem=problems(dims=st.sampled_from((1, 2, 3))), activation=st.sampled_from((None, *SLOPES)))
def test_transposed_takes_bias_activation_and_any_rank_by_name(
    backend: str, problem: Problem, activation: str | None
) -> None:
    by_rank = {1: nc.conv_transpose1d, 2: nc.conv_transpose2d, 3: nc.conv_transpose3d}[len(problem.size)]
    dy, w, keywords = problem.dy("float32"), problem.w("float32"), transposed(problem)
    bias = values((problem.channels,), "float32", 4)
    how = {"backend": backend}
    y = problem.channels_first(nc.conv_transpose(dy, w, **keywords, **how))
    y = y + bias.reshape(-1, *[1] * len(problem.size))
    if activation == "hardswish":
        y = y * np.clip(y + 3, 0, 6) / 6
    elif activation is not None:
        y = np.clip(y, 0, {"relu": None, "relu6": 6}[activation])
    identical(by_rank(dy, w, bias, **keywords, **how, activation=activation), problem.as_given(y))


# Threads


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_gradients_do_not_depend_on_the_number_of_threads(
    algorithm: str, dtype: str, padding_mode: str, threads: list[int]
) -> None:
    from npconv.kernels.cpu.blocking import processor

    skip_unless_computed(algorithm, dtype)
    kernel, groups, in_group = {"pointwise": (1, 1, 24), "depthwise": (5, 24, 1)}.get(algorithm, (3, 2, 12))
    # More than a tile has columns, so that a gradient of the weights is more than one task.
    outputs = max(48, 6 * processor().register_bytes // 4)
    padding = (kernel - 1) // 2
    geometry = ((43, 31), (kernel,) * 2, (1, 1), (1, 1), padding, ((padding,) * 2,) * 2, padding_mode)
    problem = Problem(1, groups * in_group, outputs, groups, *geometry)
    rng = np.random.default_rng(0)
    real, imaginary = (
        [rng.standard_normal(shape) for shape in (problem.x_shape, problem.w_shape, problem.y_shape)] for _ in "ri"
    )
    x, w, dy = ((a + 1j * b if dtype == "complex64" else a).astype(dtype) for a, b in zip(real, imaginary, strict=True))
    how = {"algorithm": algorithm, "backend": "numba"}

    def run(n: int) -> list[np.ndarray]:
        nc.set_num_threads(n)
        dx, dw, db = problem.vjp(x, w, w[:, 0, 0, 0].copy(), **how)[1](dy)
        transposed = nc.conv_transpose(dy, w, padding=padding, groups=groups, **how)
        return [problem.input_grad(dy, w, **how), problem.weight_grad(x, dy, **how), transposed, dx, dw, db]

    alone = run(1)
    assert threads == []
    for n in (2, 3, 7):
        threads.clear()
        for result, expected in zip(run(n), alone, strict=True):
            identical(result, expected)
        assert algorithm == "fft" or (max(threads) == n - 1 and len(threads) >= 6)
