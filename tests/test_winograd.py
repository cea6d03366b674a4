"""Winograd convolution: exact transforms, the proven bound, what it refuses and hands over, and `npconv.strict`."""

from __future__ import annotations

import threading
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from guards import Guarded
from hypothesis import given
from hypothesis import strategies as st
from strategies import BACKENDS, Problem, identical, rounding_bound

import npconv as nc
from npconv.algorithms import ALGORITHMS, TRANSFORMED, winograd
from npconv.algorithms.base import largest, turned
from npconv.algorithms.cook_toom import (
    GROWTH_LIMIT,
    POINTS,
    SIZES,
    Tile,
    accurate_enough,
    exact_transforms,
    growth,
    overflow_growth,
    transforms,
)
from npconv.algorithms.planar import planar
from npconv.arrays import require
from npconv.geometry import ConvSpec

TABLE = [(m, r) for r, sizes in SIZES.items() for m in sizes]
OPERATIONS = ("forward", "input_grad", "weight_grad")


# The transforms


@pytest.mark.parametrize(("m", "r"), TABLE)
@given(data=st.data())
def test_transforms_compute_the_correlation_exactly(m: int, r: int, data: st.DataObject) -> None:
    fractions = st.fractions(max_denominator=50)
    g = data.draw(st.lists(fractions, min_size=r, max_size=r))
    d = data.draw(st.lists(fractions, min_size=m + r - 1, max_size=m + r - 1))
    at, gs, bt = (np.array(rows, object) for rows in exact_transforms(m, r))
    y = at @ ((gs @ np.array(g, object)) * (bt @ np.array(d, object)))
    assert list(y) == [sum((g[j] * d[i + j] for j in range(r)), Fraction(0)) for i in range(m)]


@pytest.mark.parametrize(("m", "r"), TABLE)
def test_only_g_holds_rounded_numbers(m: int, r: int) -> None:
    at, g, bt = exact_transforms(m, r)
    f = transforms(m, r)
    for rows, matrix in ((at, f.at), (bt, f.bt)):
        assert [[Fraction(v) for v in row] for row in matrix.astype("float32").tolist()] == rows
    np.testing.assert_array_max_ulp(f.g, np.array([[float(v) for v in row] for row in g]), 0)


def test_data_is_transformed_alike_for_all_kernels_of_one_number_of_points() -> None:
    for n in set(POINTS) - {1}:
        first, *rest = [transforms(m, r).bt for m, r in TABLE if m + r - 1 == n]
        for other in rest:
            identical(other, first)


def test_rows_are_balanced() -> None:
    for m, r in TABLE:
        f = transforms(m, r)
        # The row of infinity has one weight, the others one whose point has the power 0.
        weights = np.abs(np.append(f.g[:-1, 0], f.g[-1, -1]))
        ratios = np.abs(f.bt).sum(1) / weights
        assert ((ratios >= 0.5) & (ratios <= 2)).all()


@pytest.mark.parametrize(
    ("tile", "size"),
    [
        (((2, 3),) * 2, 16),
        (((3, 3),) * 2, 128),
        (((4, 3),) * 2, 307),
        (((6, 3),) * 2, 1604),
        (((2, 5),) * 2, 397),
        (((4, 5),) * 2, 1769),
    ],
)
def test_growth_is_that_of_the_documentation(tile: Tile, size: int) -> None:
    assert round(growth(tile)) == size <= GROWTH_LIMIT
    assert accurate_enough(tile)


def test_growth_decides_what_is_accurate_enough() -> None:
    assert not accurate_enough(((4, 3),) * 3)
    assert accurate_enough(((2, 3), (4, 3), (4, 3)))
    assert accurate_enough(((2, 7), (1, 1)))
    assert not accurate_enough(((2, 7), (2, 7)))


# Rounding


def operands(spec: ConvSpec, op: str, rng: np.random.Generator, dtype: str, spread: float) -> list[np.ndarray]:
    """Normal numbers times powers of ten from ``-spread`` to `spread`."""
    shapes = {"x": spec.x_shape, "w": spec.w_shape, "dy": spec.y_shape}
    names = {"forward": "x w", "input_grad": "dy w", "weight_grad": "x dy"}[op].split()
    return [
        (rng.standard_normal(shapes[name]) * 10 ** rng.uniform(-spread, spread, shapes[name])).astype(dtype)
        for name in names
    ]


def run(algorithm: str, backend: str, spec: ConvSpec, op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    row, where = ALGORITHMS[algorithm], require(backend)
    if op == "forward":
        return row.forward(spec, where, a, row.pack(spec, where, b, False), None, None)
    return getattr(row, op)(spec, where, a, b)


def measured(backend: str, spec: ConvSpec, op: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every element's error, and the bound."""
    exact = run("direct", "numpy", spec, op, a.astype("longdouble"), b.astype("longdouble"))
    actual = run("winograd", backend, spec, op, a, b)
    assert actual.dtype == a.dtype
    return np.abs(actual - exact), winograd.error_bound(spec, op, a, b, a.dtype)


_KERNELS = st.one_of(
    st.tuples(st.integers(2, 7)),
    st.tuples(st.integers(1, 6), st.integers(2, 6)),
    st.tuples(st.integers(1, 3), st.integers(2, 3), st.integers(1, 3)),
)


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    kernel = draw(_KERNELS)
    groups, per_group, out = draw(st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 4)))
    dilation = tuple(draw(st.sampled_from((1, 1, 1, 2, 3))) for _ in kernel)
    reaches = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pairs = tuple((draw(st.integers(0, reach)), draw(st.integers(0, reach))) for reach in reaches)
    # At least as many results as there are phases.
    size = tuple(
        draw(st.integers(reach + d, reach + d + 13 // len(kernel))) for reach, d in zip(reaches, dilation, strict=True)
    )
    shapes = (draw(st.integers(1, 2)), groups * per_group, *size), (groups * out, per_group, *kernel)
    return ConvSpec.of(*shapes, padding=pairs, dilation=dilation, groups=groups)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPERATIONS)
@given(spec=specs(), seed=st.integers(0, 2**32), spread=st.sampled_from((0, 3, 12, 30)))
def test_errors_stay_within_the_proven_bound(
    backend: str, op: str, dtype: str, spec: ConvSpec, seed: int, spread: float
) -> None:
    """Down to magnitudes whose products underflow, and up to those that the direct form takes over, with its bound."""
    a, b = operands(spec, op, np.random.default_rng(seed), dtype, min(spread, 15))
    a *= a.dtype.type(10.0 ** (min(spread, 15) - spread))
    error, bound = measured(backend, spec, op, a, b)
    if not fits(spec, op, a, b):
        absolute = run("direct", "numpy", spec, op, np.abs(a).astype("longdouble"), np.abs(b).astype("longdouble"))
        channels = spec.out_channels if op == "input_grad" else spec.in_channels
        terms = (
            spec.batch * spec.window.positions if op == "weight_grad" else spec.window.taps * channels // spec.groups
        )
        bound = rounding_bound(dtype, terms, absolute, absolute) + terms * float(np.finfo(dtype).tiny)
    assert (error <= bound).all()


def fits(spec: ConvSpec, op: str, *values: np.ndarray) -> bool:
    spec, op = (turned(spec), "forward") if op == "input_grad" else (spec, op)
    spec = planar(spec).spec
    return winograd._is_tame(
        spec, winograd.tile_sizes(spec, op), op, values[0], *(largest(require("numpy"), v) for v in values)
    )


TILES = [((m, r), (m, r)) for m, r in TABLE if r in (2, 3, 5) and accurate_enough(((m, r), (m, r)))]


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_the_bound_holds_for_every_tile_and_is_not_absurdly_loose(
    monkeypatch: pytest.MonkeyPatch, tile: Tile, op: str
) -> None:
    monkeypatch.setattr(winograd, "tile_sizes", lambda *_: tile)
    spec = ConvSpec.of((1, 8, 24, 24), (8, 8, *(r for _, r in tile)), padding="same")
    a, b = operands(spec, op, np.random.default_rng(0), "float32", 0)
    error, bound = measured("numpy", spec, op, a, b)
    assert (error <= bound).all()
    assert (error / bound).max() >= 1e-4


@pytest.mark.parametrize(
    ("tile", "rms", "largest"),
    [
        (((2, 3),) * 2, 2.1, 13),
        (((3, 3),) * 2, 4.9, 37),
        (((4, 3),) * 2, 9.1, 100),
        (((6, 3),) * 2, 26, 380),
        (((2, 5),) * 2, 10, 69),
        (((4, 5),) * 2, 25, 250),
        (((2, 7),), 6.7, 64),
        (((6, 3),), 6.0, 60),
    ],
    ids=str,
)
def test_errors_are_as_large_as_documented(
    monkeypatch: pytest.MonkeyPatch, tile: Tile, rms: float, largest: float
) -> None:
    monkeypatch.setattr(winograd, "tile_sizes", lambda *_: tile)
    check_errors("winograd", "numpy", tuple(r for _, r in tile), rms, largest)


@pytest.mark.parametrize(("backend", "rms", "largest"), [("numpy", 1.2, 8), ("numba", 1.6, 11)])
def test_errors_of_the_direct_form_are_as_large_as_documented(backend: str, rms: float, largest: float) -> None:
    if backend not in BACKENDS:
        pytest.skip(f"{backend} is not here")
    check_errors("direct", backend, (3, 3), rms, largest)


def check_errors(algorithm: str, backend: str, kernel: tuple[int, ...], rms: float, largest: float) -> None:
    """Errors in the unit of docs/accuracy.md, its table's first column of errors and its second.

    As many outputs along one axis as along two: products with eight columns a BLAS may sum in vector lanes, which
    halves their rounding.
    """
    size = (48, 48) if len(kernel) == 2 else (48 * 48,)
    spec = ConvSpec.of((1, 64, *size), (64, 64, *kernel), padding="same")
    x, w = operands(spec, "forward", np.random.default_rng(0), "float32", 0)
    exact = run("direct", "numpy", spec, "forward", x.astype("float64"), w.astype("float64"))
    error = np.abs(run(algorithm, backend, spec, "forward", x, w) - exact)
    unit = np.finfo("float32").eps * np.sqrt((exact**2).mean())
    # The order in which a processor sums differs, and the largest error is one number of many.
    assert 0.8 * rms <= np.sqrt((error**2).mean()) / unit <= 1.25 * rms
    assert error.max() / unit <= 2 * largest


def test_the_bound_is_at_most_its_normwise_form() -> None:
    """``gamma * kappa * sum over channels of max |x| * sum |w|``."""
    spec = ConvSpec.of((1, 5, 20, 20), (3, 5, 3, 3))
    x, w = operands(spec, "forward", np.random.default_rng(0), "float32", 1)
    tile = winograd.tile_sizes(spec, "forward")
    factor = winograd.error_factor(tile, 5, x.dtype)
    normwise = factor * growth(tile) * (np.abs(w).sum((2, 3)).astype(float) @ np.abs(x[0]).max((1, 2)).astype(float))
    bound = winograd.error_bound(spec, "forward", x, w, x.dtype)[0]
    assert (bound <= normwise[:, None, None] * (1 + 1e-6) + 1e-30).all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_gradients_are_adjoint_but_for_rounding(backend: str, spec: ConvSpec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = operands(spec, "forward", rng, "float64", 2)
    dy, _ = operands(spec, "input_grad", rng, "float64", 2)
    values = [(run("winograd", backend, spec, "forward", x, w), dy, "forward", (x, w))]
    values += [(run("winograd", backend, spec, "input_grad", dy, w), x, "input_grad", (dy, w))]
    values += [(run("winograd", backend, spec, "weight_grad", x, dy), w, "weight_grad", (x, dy))]
    products = [np.vdot(value, other) for value, other, *_ in values]
    sums = [np.vdot(np.abs(value), np.abs(other)) * value.size * np.finfo("float64").eps for value, other, *_ in values]
    bounds = [np.vdot(winograd.error_bound(spec, op, *ab, x.dtype), np.abs(other)) for _, other, op, ab in values]
    assert max(products) - min(products) <= 2 * max(sums) + bounds[0] + max(bounds[1:])


# What is handed to the direct form


def wide(groups: int = 1) -> Problem:
    return Problem(2, 4, 6, groups, (19, 23), (3, 3), (1, 1), (1, 1), 1, ((1, 1), (1, 1)))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e37])
@pytest.mark.parametrize("spoilt", ["x", "w", "dy"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_numbers_that_would_spread_or_overflow_are_left_to_the_direct_form(
    backend: str, spoilt: str, number: float
) -> None:
    problem = wide(2)
    x, w, dy = problem.x("float32"), problem.w("float32"), problem.dy("float32")
    {"x": x, "w": w, "dy": dy}[spoilt].flat[7] = number
    ours, direct = ({"algorithm": name, "backend": backend} for name in ("winograd", "direct"))
    if spoilt != "dy":
        identical(problem.conv(x, w, **ours), problem.conv(x, w, **direct))
        plan = nc.plan(problem.x_shape, problem.w_shape, **problem.keywords, **ours, activation="relu")
        identical(plan.pack(w)(x), problem.conv(x, w, **direct, activation="relu"))
    if spoilt != "x":
        identical(problem.input_grad(dy, w, **ours), problem.input_grad(dy, w, **direct))
    if spoilt != "w":
        identical(problem.weight_grad(x, dy, **ours), problem.weight_grad(x, dy, **direct))


def test_a_nan_reaches_no_more_outputs_than_its_windows(backend: str) -> None:
    problem = wide()
    x, w = problem.x("float32"), problem.w("float32")
    x[0, 1, 8, 9] = np.nan
    y = problem.conv(x, w, algorithm="winograd", backend=backend)
    assert np.isnan(y[0, :, 7:10, 8:11]).all()
    assert np.isnan(y).sum() == 9 * problem.out_channels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPERATIONS)
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_numbers_up_to_the_limit_do_not_overflow(op: str, dtype: str, spec: ConvSpec, seed: int) -> None:
    kind = np.dtype(dtype)
    inner = planar(turned(spec) if op == "input_grad" else spec).spec
    inner_op = "forward" if op == "input_grad" else op
    tile = winograd.tile_sizes(inner, inner_op)
    limit = np.sqrt(np.finfo(kind).max / overflow_growth(tile, winograd._terms(inner, tile, inner_op)))
    a, b = operands(spec, op, np.random.default_rng(seed), dtype, 0)
    a, b = np.sign(a) * kind.type(limit * 0.999), np.sign(b) * kind.type(limit * 0.999)
    assert fits(spec, op, a, b)
    assert np.isfinite(run("winograd", "numpy", spec, op, a, b)).all()


# What it refuses


@pytest.mark.parametrize(
    ("w_shape", "how", "reason"),
    [
        ((1, 1, 3, 3), {"stride": 2}, "stride 1"),
        ((1, 1, 3, 3), {"dilation": (1, 9)}, "larger than the result"),
        ((1, 1, 1, 1), {}, "kernels of 2 to 7"),
        ((1, 1, 8, 1), {}, "kernels of 2 to 7"),
        ((1, 1, 7, 7), {}, "round too much"),
        ((1, 1, 3, 3), {"dtype": "int32"}, "not for int64"),
        ((1, 1, 3, 3), {"dtype": "complex64"}, "not for complex64"),
    ],
)
def test_a_refusal_says_why(w_shape: tuple[int, ...], how: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"algorithm 'winograd' cannot run this convolution: .*{reason}"):
        nc.plan((1, 1, 19, 19), w_shape, **how, algorithm="winograd")
    assert reason in nc.plan((1, 1, 19, 19), w_shape, **how).rejected["winograd"]


def test_only_the_input_gradient_needs_padding_within_the_kernel(backend: str) -> None:
    x, w = np.ones((1, 1, 9)), np.ones((1, 1, 3))
    how = {"padding": 3, "algorithm": "winograd", "backend": backend}
    y = nc.conv(x, w, **how)
    np.testing.assert_allclose(y, nc.conv(x, w, padding=3, algorithm="direct"), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="padding within the kernel"):
        nc.conv_input_grad(y, w, x.shape, **how)


def test_float16_is_computed_in_float32(backend: str) -> None:
    problem = wide()
    x, w = problem.x("float16"), problem.w("float16")
    how = {"algorithm": "winograd", "backend": backend}
    expected = problem.conv(x.astype("float32"), w.astype("float32"), **how).astype("float16")
    identical(problem.conv(x, w, **how), expected)


# Tiles and their cost


def test_tiles_follow_the_output_and_the_channels() -> None:
    def tile(size: int, channels: int, kernel: int = 3) -> Tile:
        shapes = (1, channels, size, size), (channels, channels, kernel, kernel)
        return winograd.tile_sizes(ConvSpec.of(*shapes, padding="same"), "forward")

    assert tile(56, 64, 5) == ((4, 5), (4, 5))
    assert tile(2, 512) == ((2, 3), (2, 3))
    assert tile(12, 256) == ((3, 3), (3, 3))
    assert tile(96, 256) == ((6, 3), (6, 3))
    assert tile(56, 64) == ((4, 3), (4, 3))


def test_the_cost_counts_whole_tiles() -> None:
    spec = ConvSpec.of((2, 8, 11, 9), (6, 4, 3, 3), groups=2)  # an output of 9 by 7
    products, *transforming = winograd.operations(spec, ((4, 3), (2, 3)), "forward")
    assert products == 2 * (6 * 4) * (2 * 3 * 4) * 6 * 4
    assert min(transforming) > 0


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("size", [(200, 120), (40, 40)], ids=str)
def test_memory_stays_within_the_planned_workspace(op: str, size: tuple[int, int]) -> None:
    spec = ConvSpec.of((3, 24, *size), (40, 24, 3, 3), padding=1)
    a, b = operands(spec, op, np.random.default_rng(0), "float32", 0)
    run("winograd", "numpy", spec, op, a, b)
    tracemalloc.start()
    result = run("winograd", "numpy", spec, op, a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= result.nbytes + ALGORITHMS["winograd"].cost(spec, op, 4).workspace + 2**16


def test_a_small_workspace_rules_it_out() -> None:
    shapes = (1, 64, 56, 56), (64, 64, 3, 3)
    assert "workspace" in nc.plan(*shapes, max_workspace=1000).rejected["winograd"]
    with pytest.raises(ValueError, match="workspace"):
        nc.plan(*shapes, max_workspace=1000, algorithm="winograd")


# Strict arithmetic

LAYER = (8, 100, 64, 64), (100, 100, 5, 5)


@pytest.mark.parametrize("name", sorted(TRANSFORMED & set(ALGORITHMS)))
def test_strict_arithmetic_sums_products(backend: str, name: str) -> None:
    shapes = (1, 4, 16, 16), (4, 4, 3, 3)
    with nc.strict():
        assert nc.plan(*shapes, backend=backend).rejected[name] == "strict arithmetic was asked for"
        with pytest.raises(ValueError, match=f"'{name}' cannot run.*strict arithmetic was asked for"):
            nc.plan(*shapes, backend=backend, algorithm=name)
        with pytest.raises(ValueError, match="strict"):
            nc.conv(np.ones(shapes[0]), np.ones(shapes[1]), algorithm=name, backend=backend)
    assert nc.plan(*shapes, backend=backend, algorithm=name).algorithm == name


def test_strict_holds_for_its_block_alone() -> None:
    def strict() -> bool:
        return nc.plan(*LAYER, backend="numpy").algorithm not in TRANSFORMED

    seen: list[bool] = []
    assert not strict()
    with nc.strict():
        with nc.strict():
            assert strict()
        assert strict()
        other = threading.Thread(target=lambda: seen.append(strict()))
        other.start()
        other.join()
    assert not strict()
    assert seen == [False]


def test_strict_sums_are_exact_where_numbers_are(backend: str) -> None:
    problem = Problem(1, 24, 24, 1, (64, 64), (5, 5), (1, 1), (1, 1), 2, ((2, 2), (2, 2)))
    x, w, dy = problem.x("float32"), problem.w("float32"), problem.dy("float32")
    with nc.strict():
        results = problem.conv(x, w, backend=backend), *problem.vjp(x, w, backend=backend)[1](dy)[:2]
    how = {"algorithm": "im2col", "backend": backend}
    expected = problem.conv(x, w, **how), problem.input_grad(dy, w, **how), problem.weight_grad(x, dy, **how)
    for actual, wanted in zip(results, expected, strict=True):
        identical(actual, wanted)


def test_what_was_planned_outside_keeps_its_algorithm() -> None:
    problem = wide()
    x, w = problem.x("float32"), problem.w("float32")
    plan = nc.plan(problem.x_shape, problem.w_shape, **problem.keywords, algorithm="winograd")
    expected = plan(x, w)
    with nc.strict():
        identical(plan(x, w), expected)


# The compiled form


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "how"),
    [
        ((1, 16, 29, 31), (14, 16, 3, 3), {"padding": 1}),
        ((3, 20, 31, 19), (48, 10, 3, 3), {"padding": (1, 0), "groups": 2}),
        ((2, 9, 700), (33, 9, 3), {"padding": 2}),
        ((1, 12, 6, 97), (40, 12, 5, 5), {"padding": 2}),
        ((1, 30, 40, 3), (31, 30, 7, 1), {"padding": (3, 0)}),
        ((1, 12, 4, 13, 20), (10, 12, 3, 3, 3), {"padding": 1}),
        ((2, 16, 33, 35), (14, 8, 3, 3), {"padding": (5, 7), "dilation": (5, 7), "groups": 2}),
    ],
    ids=str,
)
def test_the_compiled_form_stays_within_the_bound(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], how: dict[str, object], dtype: str
) -> None:
    spec = ConvSpec.of(x_shape, w_shape, **how)
    for op in ("forward", "input_grad"):
        a, b = operands(spec, op, np.random.default_rng(0), dtype, 0)
        inner = turned(spec) if op == "input_grad" else spec
        assert winograd.is_compiled(inner, "forward", require("numba"))
        errors, bound = measured("numba", spec, op, a, b)
        assert (errors <= bound).all()
    for activation in ("relu6", "hardswish"):
        x, w = operands(spec, "forward", np.random.default_rng(1), dtype, 0)
        bias = np.linspace(-1, 1, spec.out_channels, dtype=dtype)
        y, expected = (
            nc.conv(x, w, bias, **how, activation=activation, algorithm=name, backend="numba")
            for name in ("winograd", "direct")
        )
        np.testing.assert_allclose(y, expected, atol=1e-3 if dtype == "float32" else 1e-11)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "how", "dtype"),
    [
        # Edges on all sides and two blocks of tiles; groups; parts of the gradient; a signal; leads; phases.
        ((5, 17, 29, 27), (14, 17, 3, 3), {"padding": 1}, "float32"),
        ((3, 20, 31, 19), (48, 10, 3, 3), {"padding": ((1, 0), (0, 2)), "groups": 2}, "float32"),
        ((2, 300, 9, 7), (262, 300, 3, 3), {"padding": 2}, "float32"),
        ((2, 9, 700), (33, 9, 3), {"padding": 2}, "float64"),
        ((2, 12, 4, 13, 20), (10, 12, 3, 3, 3), {"padding": 1}, "float32"),
        ((2, 16, 33, 35), (14, 8, 3, 3), {"padding": (5, 7), "dilation": (5, 7), "groups": 2}, "float32"),
    ],
    ids=str,
)
def test_the_compiled_weight_gradient_stays_within_the_bound_inside_its_arrays(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    how: dict[str, object],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And gives the same bits with one thread and with three, however these divide the gradient."""
    spec, guard, numba = ConvSpec.of(x_shape, w_shape, **how), Guarded(), require("numba")
    x, dy, dw = (guard.array(shape, None, dtype) for shape in (x_shape, spec.y_shape, w_shape))
    x[...], dy[...] = operands(spec, "weight_grad", np.random.default_rng(0), dtype, 1)
    assert winograd.is_compiled(spec, "weight_grad", numba)
    form, found = planar(spec), []
    tile = ((4, 3),) * min(2, spec.ndim)  # one for all, because each is code of its own
    monkeypatch.setattr(winograd, "tile_sizes", lambda *_: tile)
    fs = winograd.matrices(tile)
    exact = run("direct", "numpy", spec, "weight_grad", x.astype("longdouble"), dy.astype("longdouble"))
    bound = winograd.error_bound(spec, "weight_grad", x, dy, x.dtype)
    try:
        for count in (1, 3):
            nc.set_num_threads(count)
            dw[...] = np.nan
            parts = form.split(numba, x), form.split_result(numba, dy)
            numba.kernels.winograd_weight_grad(form.spec, fs, form.planes, *parts, dw)
            guard.check()
            assert (np.abs(dw - exact) <= bound).all()
            found.append(dw.copy())
    finally:
        nc.set_num_threads(None)
    identical(*found)
    identical(run("winograd", "numba", spec, "weight_grad", x, dy), found[0])


def test_a_weight_gradient_is_divided_among_threads_but_not_summed_in_other_parts() -> None:
    from npconv.kernels.cpu.blocking import Tile
    from npconv.kernels.cpu.winograd_grad import parts_for

    tile = Tile(6, 2, 8)
    one, four = (parts_for(512, 512, 784, 36 * 4, tile, tasks) for tasks in (1, 8))
    assert one.tiles == four.tiles == 112
    assert -(-512 // four.outputs) * -(-512 // four.planes) >= 8 > -(-512 // one.outputs) * -(-512 // one.planes)
    # All of a part's sums must be held until the last tile; of a few tiles, only what stays in L2.
    assert (four.some_outputs, four.some_planes) == (four.outputs, four.planes)
    few = parts_for(512, 512, 16, 36 * 4, tile, 1)
    assert few.some_outputs * few.some_planes * 36 * 4 <= 256 * 1024
