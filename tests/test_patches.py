"""unfold and fold: a definition, adjointness, and a convolution made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Problem, identical, problems, values

import npconv as nc


def unfolded(problem: Problem, x: np.ndarray) -> np.ndarray:
    """The definition: an element of the padded image for every channel, tap and position."""
    images = problem.channels_first(x)
    padded = np.pad(images, ((0, 0), (0, 0), *problem.pairs))
    columns = np.zeros((*images.shape[:2], *problem.kernel, *problem.out), x.dtype)
    for tap in np.ndindex(*problem.kernel):
        for position in np.ndindex(*problem.out):
            axes = zip(position, tap, problem.stride, problem.dilation, strict=True)
            columns[:, :, *tap, *position] = padded[:, :, *(p * s + t * d for p, t, s, d in axes)]
    rows = problem.channels * int(np.prod(problem.kernel))
    columns = columns.reshape(len(images), rows, int(np.prod(problem.out)))
    return columns[0] if problem.batch is None else columns


def unfold(problem: Problem, x: np.ndarray, **how: Any) -> np.ndarray:
    return nc.unfold(x, problem.kernel, **problem.window, layout=problem.layout, **how)


def fold(problem: Problem, columns: np.ndarray, **how: Any) -> np.ndarray:
    return nc.fold(columns, problem.size, problem.kernel, **problem.window, layout=problem.layout, **how)


@pytest.mark.parametrize("dtype", DTYPES)
@given(problem=problems())
def test_unfold_is_its_definition(backend: str, dtype: str, problem: Problem) -> None:
    x = problem.x(dtype)
    identical(unfold(problem, x, backend=backend), unfolded(problem, x))


@pytest.mark.parametrize("dtype", DTYPES)
@given(problem=problems())
def test_fold_adds_every_element_back_where_it_came_from(backend: str, dtype: str, problem: Problem) -> None:
    size = int(np.prod(problem.x_shape))
    # Unfolding the places' own numbers, counted from one, tells where every element belongs; zero is padding.
    places = unfolded(problem, np.arange(1, size + 1).reshape(problem.x_shape))
    columns = values(places.shape, dtype, problem.seed)
    total = np.zeros(size + 1, dtype)
    np.add.at(total, places.ravel(), columns.ravel())
    identical(fold(problem, columns, backend=backend), total[1:].reshape(problem.x_shape))


@given(problem=problems(), dtype=st.sampled_from(("float64", "complex128", "int64", "uint8")))
def test_fold_is_the_adjoint_of_unfold(backend: str, problem: Problem, dtype: str) -> None:
    x = problem.x(dtype)
    columns = unfold(problem, x, backend=backend)
    other = values(columns.shape, dtype, problem.seed + 1)
    assert np.vdot(columns, other) == np.vdot(x, fold(problem, other, backend=backend))


@given(problem=problems(layouts=("channels_first",), batched=True).filter(lambda p: p.groups == 1))
def test_a_convolution_is_a_matrix_product_of_unfolded_patches(backend: str, problem: Problem) -> None:
    x, w = problem.x(), problem.w()
    product = w.reshape(len(w), problem.terms) @ unfold(problem, x, backend=backend)
    identical(problem.conv(x, w, backend=backend), product.reshape(problem.y_shape))


@given(problem=problems(layouts=("channels_first",), batched=True, unit_stride=True, empty=False))
def test_disjoint_patches_fold_back_to_the_image(backend: str, problem: Problem) -> None:
    size = tuple(n * k for n, k in zip(problem.out, problem.kernel, strict=True))
    x = values((2, 3, *size), "float32", problem.seed)
    window = {"stride": problem.kernel, "backend": backend}
    identical(nc.fold(nc.unfold(x, problem.kernel, **window), size, problem.kernel, **window), x)


def test_the_papers_names_are_the_same_functions() -> None:
    assert nc.im2col is nc.unfold
    assert nc.col2im is nc.fold


@pytest.mark.parametrize("spell", [tuple, list, np.array], ids=["tuple", "list", "array"])
def test_sizes_may_be_any_sequence_or_one_integer(spell: Any) -> None:
    x = values((2, 3, 5, 5), "float32")
    columns = nc.unfold(x, 2)
    identical(nc.unfold(x, spell((2, 2))), columns)
    image = nc.fold(columns, (5, 5), (2, 2))
    identical(nc.fold(columns, spell((5, 5)), 2), image)
    identical(nc.fold(columns, 5, spell((2, 2))), image)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "int8"])
def test_patches_do_not_depend_on_the_number_of_threads(dtype: str, threads: list[int]) -> None:
    rng = np.random.default_rng(0)
    x = (100 * rng.standard_normal((3, 8, 97, 101))).astype(dtype)
    window = {"kernel_size": (3, 3), "padding": 1, "backend": "numba"}

    def run(n: int) -> tuple[np.ndarray, np.ndarray]:
        nc.set_num_threads(n)
        columns = nc.unfold(x, **window)
        return columns, nc.fold(columns, x.shape[2:], **window)

    alone = run(1)
    assert threads == []
    for n in (2, 3, 7):
        threads.clear()
        for result, expected in zip(run(n), alone, strict=True):
            identical(result, expected)
        assert set(threads) == {n - 1}
        assert len(threads) >= 2
