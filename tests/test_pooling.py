"""Max and average pooling and their gradients, against loops over windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import COMPLEX, DTYPES, FLOATS, INTEGERS, PoolProblem, identical, meaning_of, pool_problems, values

import npconv as nc

ORDERED = FLOATS + INTEGERS


Place = tuple[int, ...]


def max_by_hand(problem: PoolProblem, x: np.ndarray) -> tuple[np.ndarray, list[tuple[Place, Place]]]:
    """The largest element of every window, and where it came from: the first NaN, else the first of the largest."""
    y = np.zeros(problem.y_shape, x.dtype)
    winners = []
    for lead in np.ndindex(*problem.y_shape[: -len(problem.kernel)]):
        for position, places in problem.windows():
            best = None
            for place in filter(problem.inside, places):
                value = x[*lead, *place]
                if best is None or (best == best and (value > best or value != value)):
                    best, winner = value, place
            y[*lead, *position] = best
            winners.append(((*lead, *position), (*lead, *winner)))
    return y, winners


def counts(problem: PoolProblem, count_include_pad: bool) -> np.ndarray:
    """How many elements each window averages over."""
    found = np.zeros(problem.out, "int64")
    for position, places in problem.windows():
        found[position] = sum(problem.inside(place, margins=count_include_pad) for place in places)
    return found


@pytest.mark.parametrize("dtype", ORDERED)
@given(problem=pool_problems())
def test_max_pool_takes_the_largest_of_every_window(backend: str, dtype: str, problem: PoolProblem) -> None:
    x = problem.x(dtype)
    identical(nc.max_pool(x, **problem.keywords, backend=backend), max_by_hand(problem, x)[0])


@pytest.mark.parametrize("dtype", ORDERED)
@given(problem=pool_problems())
def test_max_pool_gradients_go_to_the_first_of_the_largest(backend: str, dtype: str, problem: PoolProblem) -> None:
    x, dy = problem.x(dtype), problem.dy(dtype)
    y, winners = max_by_hand(problem, x)
    dx = np.zeros_like(x)
    with np.errstate(over="ignore"):
        for position, place in winners:
            dx[place] += dy[position]
    result, pullback = nc.max_pool_vjp(x, **problem.keywords, backend=backend)
    identical(result, y)
    identical(pullback(dy), dx)
    identical(pullback(dy), dx)


@given(problem=pool_problems(), dtype=st.sampled_from(FLOATS), share=st.floats(0.1, 0.9))
def test_the_first_nan_wins_its_window(backend: str, problem: PoolProblem, dtype: str, share: float) -> None:
    x = problem.x(dtype)
    x[np.random.default_rng(problem.seed).random(x.shape) < share] = np.nan
    dy = np.abs(problem.dy(dtype)) + 1
    y, winners = max_by_hand(problem, x)
    result, pullback = nc.max_pool_vjp(x, **problem.keywords, backend=backend)
    identical(result, y)
    dx = np.zeros_like(x)
    for position, place in winners:
        dx[place] += dy[position]
    identical(pullback(dy), dx)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@given(problem=pool_problems())
def test_complex_numbers_are_ordered_as_numpy_orders_them(backend: str, dtype: str, problem: PoolProblem) -> None:
    x = problem.x(dtype)
    # NumPy's own order of complex numbers: rank them, and the ranks are a problem of real numbers.
    _, ranks = np.unique(x, return_inverse=True)
    ranks = ranks.reshape(x.shape)
    how = {**problem.keywords, "backend": backend}
    best = nc.max_pool(ranks, **how)
    identical(nc.max_pool(x, **how), np.unique(x)[best] if x.size else best.astype(dtype))
    dy = problem.dy(dtype)
    real, imaginary = (nc.max_pool_vjp(ranks, **how)[1](part) for part in (dy.real.copy(), dy.imag.copy()))
    identical(nc.max_pool_vjp(x, **how)[1](dy), (real + 1j * imaginary).astype(dtype))


@pytest.mark.parametrize("value", [-np.inf, np.finfo("float32").min])
def test_the_lowest_numbers_win_over_the_padding(backend: str, value: float) -> None:
    x = np.full((1, 1, 3), value, "float32")
    y, pullback = nc.max_pool_vjp(x, 3, 1, 1, backend=backend)
    identical(y, x)
    identical(pullback(np.ones_like(x)), np.array([[[2, 1, 0]]], "float32"))


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite_goes_to_the_winner_alone(backend: str, number: float) -> None:
    _, pullback = nc.max_pool_vjp(np.array([[[1.0, 2, 3, 0]]]), 2, backend=backend)
    identical(pullback(np.array([[[number, 1]]])), np.array([[[0, number, 1, 0]]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_without_any_element_gives_the_lowest_value(backend: str, dtype: str) -> None:
    """Dilation may carry a window across the image: of the taps -3 and 1 around one element neither touches it."""
    lowest = {
        "f": -np.inf,
        "c": complex(-np.inf, -np.inf),
        "i": np.iinfo(dtype).min if dtype in INTEGERS else None,
        "u": 0,
    }[np.dtype(dtype).kind]
    x = np.ones((1, 1, 1), dtype)
    y, pullback = nc.max_pool_vjp(x, 2, 1, 3, 4, backend=backend)
    identical(y, np.full((1, 1, 3), lowest, dtype))
    identical(pullback(np.ones_like(y)), np.zeros_like(x))


# Averages. Small integers are summed exactly and only divided, which IEEE rounds correctly. Otherwise n roundings of
# the sum and one of the quotient stay within (n + 1) * eps of the mean of the absolute values; see `rounding_bound`.


@pytest.mark.parametrize("dtype", [name for name in DTYPES if not name.endswith("int64")])
@given(problem=pool_problems(), count_include_pad=st.booleans())
def test_avg_pool_is_the_mean_of_every_window(
    backend: str, dtype: str, problem: PoolProblem, count_include_pad: bool
) -> None:
    x = problem.x(dtype)
    wide = np.float32 if dtype == "float16" else np.float64 if dtype in INTEGERS else np.dtype(dtype)
    total = np.zeros(problem.y_shape, wide)
    for index, elements in elements_by_hand(problem, x):
        total[index] = elements.astype(wide).sum()
    mean = total / counts(problem, count_include_pad).astype(wide)
    y = nc.avg_pool(x, **problem.keywords, count_include_pad=count_include_pad, backend=backend)
    identical(y, mean.astype("float64" if dtype in INTEGERS else dtype))


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@given(problem=pool_problems())
def test_avg_pool_of_64_bit_integers_does_not_wrap(backend: str, dtype: str, problem: PoolProblem) -> None:
    x = problem.x(dtype)
    y = nc.avg_pool(x, **problem.keywords, backend=backend)
    assert y.dtype == "float64"
    found = counts(problem, True)
    for index, elements in elements_by_hand(problem, x):
        exact = [int(element) for element in elements]
        n = int(found[index[-len(problem.kernel) :]])
        bound = (len(exact) + 1) * np.finfo("float64").eps * (sum(map(abs, exact)) / n)
        assert abs(y[index] - sum(exact) / n) <= bound


def elements_by_hand(problem: PoolProblem, x: np.ndarray) -> Iterator[tuple[Place, np.ndarray]]:
    """The elements inside every window."""
    for lead in np.ndindex(*problem.y_shape[: -len(problem.kernel)]):
        for position, places in problem.windows():
            yield (*lead, *position), np.array([x[*lead, *p] for p in places if problem.inside(p)], x.dtype)


@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
@given(problem=pool_problems(), count_include_pad=st.booleans())
def test_avg_pool_gradient_is_the_adjoint(
    backend: str, dtype: str, problem: PoolProblem, count_include_pad: bool
) -> None:
    x, dy = problem.x(dtype), problem.dy(dtype)
    y, pullback = nc.avg_pool_vjp(x, **problem.keywords, count_include_pad=count_include_pad, backend=backend)
    identical(y, nc.avg_pool(x, **problem.keywords, count_include_pad=count_include_pad, backend=backend))
    # Multiplying by a count first makes every quotient whole, so both sides are exact.
    found = counts(problem, count_include_pad).astype(dy.real.dtype)
    dx = pullback(dy * found)
    expected = np.zeros_like(x)
    for lead in np.ndindex(*problem.y_shape[: -len(problem.kernel)]):
        for position, places in problem.windows():
            for place in filter(problem.inside, places):
                expected[*lead, *place] += dy[*lead, *position]
    identical(dx, expected)
    identical(pullback(dy * found), expected)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_gradients_of_integers_are_float64_for_the_mean(backend: str, dtype: str) -> None:
    x = np.arange(4, dtype=dtype).reshape(1, 1, 4)
    y, pullback = nc.avg_pool_vjp(x, 2, backend=backend)
    identical(y, np.array([[[0.5, 2.5]]]))
    identical(pullback(np.array([[[2, 4]]], dtype)), np.array([[[1.0, 1, 2, 2]]]))


@given(problem=pool_problems(), dtype=st.sampled_from(("float32", "float64")), seed=st.integers(0, 2**32))
def test_rounding_errors_of_means_stay_within_their_bound(
    backend: str, problem: PoolProblem, dtype: str, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal(problem.x_shape).astype(dtype)
    y = nc.avg_pool(x, **problem.keywords, backend=backend)
    found = counts(problem, True)
    for index, elements in elements_by_hand(problem, x.astype("longdouble")):
        n = found[index[-len(problem.kernel) :]]
        bound = (len(elements) + 1) * np.finfo(dtype).eps * np.abs(elements).sum() / n
        assert abs(y[index] - elements.sum() / n) <= bound


# Both


POOLS = {"max": (nc.max_pool, nc.max_pool_vjp), "avg": (nc.avg_pool, nc.avg_pool_vjp)}


@pytest.mark.parametrize("kind", POOLS)
@given(problem=pool_problems())
def test_pooling_in_both_layouts_agrees(backend: str, kind: str, problem: PoolProblem) -> None:
    pool, pool_vjp = POOLS[kind]
    channels = len(problem.x_shape) - len(problem.kernel) - 1
    x, dy = problem.x("float32"), problem.dy("float32")
    y, pullback = pool_vjp(x, **problem.keywords, backend=backend)
    last = {**problem.keywords, "layout": "channels_last", "backend": backend}
    y_last, pullback_last = pool_vjp(np.moveaxis(x, channels, -1), **last)
    identical(np.moveaxis(y_last, -1, channels), y)
    identical(np.moveaxis(pool(np.moveaxis(x, channels, -1), **last), -1, channels), y)
    identical(np.moveaxis(pullback_last(np.moveaxis(dy, channels, -1)), -1, channels), pullback(dy))


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((24, 21), {"kernel_size": 3, "stride": 2, "padding": ((1, 0), (1, 1)), "ceil_mode": True}),
        ((9, 15), {"kernel_size": (9, 15)}),
    ],
    ids=["windows", "whole"],
)
def test_channels_last_images_are_read_as_they_are(size: tuple[int, int], window: dict[str, Any]) -> None:
    """Large enough for every loop: sums of whole numbers and means of them are the definition's to the bit."""
    x = np.random.default_rng(0).integers(-9, 9, (2, *size, 300)).astype("float32")
    first, last = np.ascontiguousarray(np.moveaxis(x, -1, 1)), {"layout": "channels_last", "backend": "numba"}
    for count_include_pad in (True, False):
        expected = nc.avg_pool(first, **window, count_include_pad=count_include_pad, backend="numpy")
        y = nc.avg_pool(x, **window, count_include_pad=count_include_pad, **last)
        identical(np.moveaxis(y, -1, 1), expected)
    expected = nc.max_pool(first, **window, backend="numpy")
    y = np.empty((2, *expected.shape[2:], 300), "float32")
    assert nc.max_pool(x, **window, **last, out=y) is y
    identical(np.moveaxis(y, -1, 1), expected)
    x[1, 2, 3, 299], x[0, 0, 0, 0] = np.nan, np.inf
    for pool in (nc.max_pool, nc.avg_pool):
        found = pool(x, **window, **last)
        identical(np.moveaxis(found, -1, 1), pool(np.moveaxis(x, -1, 1), **window, backend="numpy"))


@pytest.mark.parametrize("kind", POOLS)
def test_the_stride_defaults_to_the_kernel_size(backend: str, kind: str) -> None:
    pool, _ = POOLS[kind]
    x = values((2, 3, 7, 8), "float32")
    identical(pool(x, (2, 3), backend=backend), pool(x, (2, 3), (2, 3), backend=backend))
    identical(pool(x, 2, backend=backend), pool(x, (2, 2), 2, backend=backend))


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("padding", ["valid", "same", "same_upper", "same_lower", "full", "causal"])
def test_pools_take_padding_strings(backend: str, kind: str, padding: str) -> None:
    pool, _ = POOLS[kind]
    x = values((2, 3, 7, 8), "float32")
    pairs = meaning_of(padding, size=(7, 8), reach=(2, 1), stride=(2, 1))
    identical(pool(x, (3, 2), (2, 1), padding, backend=backend), pool(x, (3, 2), (2, 1), pairs, backend=backend))


def test_a_max_is_not_touched_by_what_ceil_mode_adds_and_a_mean_does_not_count_it(backend: str) -> None:
    x = -np.arange(1.0, 6).reshape(1, 1, 5)
    identical(nc.max_pool(x, 2, ceil_mode=True, backend=backend), np.array([[[-1.0, -3, -5]]]))
    identical(nc.avg_pool(x, 2, ceil_mode=True, backend=backend), np.array([[[-1.5, -3.5, -5]]]))


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_pooling_does_not_depend_on_the_number_of_threads(kind: str, dtype: str, threads: list[int]) -> None:
    rng = np.random.default_rng(0)
    pool, pool_vjp = POOLS[kind]
    real, imaginary = rng.standard_normal((2, 3, 8, 203, 101))
    x = (real + 1j * imaginary if dtype == "complex64" else real).astype(dtype)
    window: dict[str, Any] = {"kernel_size": (3, 3), "stride": 1, "padding": 1, "backend": "numba"}

    def run(n: int) -> list[np.ndarray]:
        nc.set_num_threads(n)
        y, pullback = pool_vjp(x, **window)
        return [pool(x, **window), y, pullback(x)]

    alone = run(1)
    assert threads == []
    for n in (2, 3):
        threads.clear()
        for result, expected in zip(run(n), alone, strict=True):
            identical(result, expected)
        assert max(threads) == n - 1
        assert len(threads) >= 3


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_indices_say_where_the_maxima_are(backend: str, layout: str) -> None:
    x = np.random.default_rng(0).integers(-3, 3, (2, 3, 6, 7)).astype("float32")
    given = x if layout == "channels_first" else np.moveaxis(x, 1, -1)
    window = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 2), "ceil_mode": True}
    y, place = nc.max_pool(given, **window, layout=layout, backend=backend, return_indices=True)
    assert place.dtype == np.int64
    if layout == "channels_last":
        y, place = np.moveaxis(y, -1, 1), np.moveaxis(place, -1, 1)
    np.testing.assert_array_equal(
        np.take_along_axis(x.reshape(2, 3, 42), place.reshape(2, 3, -1), 2), y.reshape(2, 3, -1)
    )
    np.testing.assert_array_equal(y, nc.max_pool(x, **window, backend=backend))
    torch = pytest.importorskip("torch")
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(x), *window.values(), return_indices=True)
    np.testing.assert_array_equal(place, pooled[1].numpy())


def test_a_window_of_padding_alone_has_no_index() -> None:
    y, place = nc.max_pool(np.array([[[1.0]]]), 2, 1, 1, 2, return_indices=True)
    assert y.tolist() == [[[-np.inf]]]
    assert place.tolist() == [[[-1]]]


def test_a_nan_wins_its_window_on_every_road() -> None:
    x = np.array([[[[1.0, np.nan, 3.0, 0.0], [5.0, 2.0, np.nan, 7.0]]]])
    for backend in ("numpy", "numba"):
        for indices in (False, True):
            y = nc.max_pool(x, 2, 1, backend=backend, return_indices=indices)
            np.testing.assert_array_equal((y[0] if indices else y)[0, 0, 0], [np.nan] * 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((3, 3), (2, 2), (1, 1), 1), ((2, 2), 2, 0, 1), ((7, 4), (3, 2), (2, 1), (1, 3)), ((1, 5), (5, 2), 0, 1)],
)
def test_rows_of_whole_vectors_agree_with_numpy_and_go_into_out(
    dtype: str, kernel: tuple[int, int], stride: Any, padding: Any, dilation: Any
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 37, 49)).astype(dtype)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[:, 1] = -np.inf
    expected = nc.max_pool(x, kernel, stride, padding, dilation, backend="numpy")
    out = np.zeros_like(expected)
    assert nc.max_pool(x, kernel, stride, padding, dilation, backend="numba", out=out) is out
    identical(out, expected)
    one = np.zeros_like(expected[0])
    assert nc.max_pool(x[0], kernel, stride, padding, dilation, backend="numba", out=one) is one
    identical(one, expected[0])
