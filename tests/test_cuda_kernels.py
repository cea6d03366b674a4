"""The CUDA kernels, executed on the CPU: every family in every dtype against the reference, on poisoned memory."""

from __future__ import annotations

import functools
import math

import cuda_on_cpu
import numpy as np
import pytest
from fake_cupy import device, download, poisoned, upload  # noqa: F401 - a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Problem, identical, problems, rounding_bound, values

from npconv import reference
from npconv.geometry import ConvSpec
from npconv.kernels.cuda import depthwise, implicit_gemm, launch, loader

pytestmark = pytest.mark.usefixtures("device")

ELEMENTS = tuple(launch.ELEMENTS)


def rounded(value: np.ndarray, element: str) -> np.ndarray:
    """Exact sums as an element holds them; bfloat16 as the upper halves of float32."""
    if element != "bfloat16":
        with np.errstate(over="ignore"):
            return value.astype(element)
    bits = value.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def memory(element: str) -> str:
    """The dtype of arrays that hold an element."""
    return "uint16" if element == "bfloat16" else element


def wide(element: str) -> str:
    """A dtype in which the reference's sums are exact, or wrap as they should."""
    return {"float16": "float64", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}.get(
        element, element
    )


def numbers(shape: tuple[int, ...], element: str, seed: int) -> np.ndarray:
    """Whole numbers that every element holds exactly, in `wide`; integers over their whole range."""
    return values(shape, wide(element), seed)


class Case:
    """A problem with its arrays, the reference's answers, and launches of one family."""

    def __init__(self, problem: Problem, element: str, family, offset: int = 0, **options) -> None:
        self.problem = problem
        self.spec = ConvSpec.of(
            problem.x_shape, problem.w_shape, problem.stride, problem.pairs, problem.dilation, problem.groups
        )
        spec, window = self.spec, self.spec.window
        self.element, self.family, self.offset, self.options = element, family, offset, options
        self.geometry = {
            "stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": spec.groups,
        }  # fmt: skip
        self.x_shape, self.y_shape = (
            (spec.batch, c, *size) for c, size in ((spec.in_channels, window.size), (spec.out_channels, window.out))
        )
        seeds = iter(range(problem.seed, problem.seed + 4))
        self.x, self.w, self.bias, self.dy = (
            numbers(shape, element, next(seeds))
            for shape in (self.x_shape, spec.w_shape, (spec.out_channels,), self.y_shape)
        )

    def up(self, value: np.ndarray):
        return upload(rounded(value, self.element), self.offset)

    def out(self, shape):
        return poisoned(shape, memory(self.element), self.offset)

    def forward(self, activation: str | None = None) -> np.ndarray:
        y = self.out(self.y_shape)
        x, w, bias = map(self.up, (self.x, self.w, self.bias))
        loader.run(self.family.forward(self.spec, x, w, bias, activation, y, self.element, **self.options))
        return download(y)

    def input_grad(self) -> np.ndarray:
        dx = self.out(self.x_shape)
        loader.run(
            self.family.input_grad(self.spec, self.up(self.dy), self.up(self.w), dx, self.element, **self.options)
        )
        return download(dx)

    def weight_grad(self) -> np.ndarray:
        dw = self.out(self.spec.w_shape)
        x, dy = self.up(self.x), self.up(self.dy)
        loader.run(*self.family.weight_grad(self.spec, x, dy, dw, poisoned, self.element, **self.options))
        return download(dw)

    def check(self) -> None:
        y, dx, dw = expected(self.problem, self.element)
        identical(self.forward(), y)
        identical(self.input_grad(), dx)
        identical(self.weight_grad(), dw)


@functools.lru_cache(maxsize=64)
def expected(problem: Problem, element: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference's answers, whose loops take longer than the kernels."""
    case = Case(problem, element, None)
    with np.errstate(over="ignore"):
        y = reference.conv(case.x, case.w, case.bias, **case.geometry)
        # The public gradients conjugate, the kernels do not.
        dx = reference.conv_input_grad(case.dy, np.conj(case.w), case.spec.window.size, **case.geometry)
        dw = reference.conv_weight_grad(np.conj(case.x), case.dy, case.spec.window.kernel, **case.geometry)
    return rounded(y, element), rounded(dx, element), rounded(dw, element)


def problem(channels, out_channels, groups, size, kernel, stride=1, padding=0, dilation=1, batch=2) -> Problem:
    """A problem in few words; numbers stand for one per axis."""
    ndim = len(size)
    stride, dilation = ((n,) * ndim if isinstance(n, int) else n for n in (stride, dilation))
    pairs = ((padding, padding),) * ndim if isinstance(padding, int) else padding
    return Problem(batch, channels, out_channels, groups, size, kernel, stride, dilation, pairs, pairs)


DEPTHWISE = {
    "as in most networks": problem(3, 3, 3, (9, 12), (3, 3), padding=1),
    "stride": problem(3, 3, 3, (9, 11), (3, 3), 2, 1),
    "wide rows, several channels from one": problem(2, 6, 2, (7, 16), (3, 5), 1, ((1, 1), (2, 2))),
    "a signal": problem(2, 2, 2, (37,), (5,), 1, ((4, 0),), 1),
    "a volume": problem(2, 2, 2, (4, 5, 6), (3, 2, 3), (1, 2, 3), 1, (1, 2, 3)),
    "a long kernel": problem(2, 2, 2, (11, 12), (9, 10), 1, 5),
    "a dilated kernel": problem(1, 2, 1, (13, 8), (3, 3), (1, 2), 3, (3, 2)),
    "more than one block": problem(1, 2, 1, (22, 26), (3, 2), padding=1, batch=4),
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name: str) -> None:
    Case(DEPTHWISE[name], "float32", depthwise).check()


@pytest.mark.parametrize("element", ELEMENTS)
def test_depthwise_in_every_dtype(element: str) -> None:
    Case(DEPTHWISE["wide rows, several channels from one"], element, depthwise).check()


@settings(max_examples=8)
@given(drawn=problems(depthwise=True, layouts=("channels_first",), batched=True, empty=False))
def test_depthwise_problems(drawn: Problem) -> None:
    Case(drawn, "float32", depthwise).check()


GEMM = {
    "as in most networks": problem(5, 7, 1, (9, 12), (3, 3), padding=1),
    "groups and a stride": problem(6, 10, 2, (9, 11), (3, 3), 2, 1),
    "every step different": problem(6, 4, 2, (9, 11), (3, 2), (2, 3), ((1, 0), (2, 1)), (2, 3)),
    "phases without a tap": problem(3, 2, 1, (7, 8), (1, 2), (3, 2), 0, (1, 2)),
    "pointwise": problem(13, 9, 1, (5, 7), (1, 1)),
    "pointwise, four positions at once": problem(12, 20, 2, (6, 6), (1, 1), batch=3),
    "a signal": problem(4, 3, 1, (13,), (5,), 3, 2, 2),
    "a volume": problem(4, 6, 2, (4, 5, 6), (3, 2, 3), (1, 2, 3), 1, (1, 2, 3)),
    "four dimensions": problem(2, 3, 1, (2, 3, 3, 2), (2, 1, 2, 2), (1, 2, 1, 2), 1),
    "several blocks and shares": problem(3, 18, 1, (8, 9), (3, 2), padding=1, batch=3),
}


@pytest.mark.parametrize("name", GEMM)
def test_implicit_gemm(name: str) -> None:
    Case(GEMM[name], "float32", implicit_gemm).check()


@pytest.mark.parametrize("element", ELEMENTS)
def test_implicit_gemm_in_every_dtype(element: str) -> None:
    Case(GEMM["every step different"], element, implicit_gemm).check()


@pytest.mark.parametrize(
    ("size", "tile"), [(size, tile) for size, tiles in implicit_gemm.TILES.items() for tile in tiles]
)
def test_every_tile(size: int, tile: implicit_gemm.Tile, monkeypatch) -> None:
    monkeypatch.setattr(implicit_gemm, "TILES", {size: (tile,)})
    element = {4: "float32", 8: "float64", 16: "complex128"}[size]
    # A row, a column and a slice more than the tile has; then the same with copies of 16 bytes.
    Case(problem(tile.k + 1, tile.m + 1, 1, (4, tile.n // 4 + 1), (1, 1), batch=1), element, implicit_gemm).check()
    Case(
        problem(2, tile.m + 1, 1, (5, tile.n // 8), (2, 2), 1, ((1, 1), (1, 1)), batch=1), element, implicit_gemm
    ).check()


@pytest.mark.parametrize("element", ["float32", "float64", "complex64", "float16", "complex128"])
def test_pointwise_in_vectors(element: str) -> None:
    case = Case(GEMM["pointwise, four positions at once"], element, implicit_gemm)
    plan = implicit_gemm.forward(case.spec, case.up(case.x), case.up(case.w), None, None, case.out(case.y_shape))
    width = {"float32": 4, "float64": 2, "complex64": 2, "float16": 1, "complex128": 1}[element]
    assert dict(plan.kernel.defines)["LOAD"] == width
    assert dict(plan.kernel.defines)["STORE"] == (4 if element == "float16" else width)
    case.check()


PRODUCTS = {"float16": "float16", "bfloat16": "bfloat16", "tf32": "float32", "3xtf32": "float32"}
"""What tensor cores multiply, and of which elements."""


@pytest.mark.parametrize(
    ("products", "name"),
    [
        *((products, "every step different") for products in PRODUCTS), ("float16", "as in most networks"),
        ("tf32", "pointwise, four positions at once"),
    ],
)  # fmt: skip
def test_tensor_cores(products: str, name: str) -> None:
    Case(GEMM[name], PRODUCTS[products], implicit_gemm, products=products).check()


@pytest.mark.parametrize(
    ("products", "number"), [("tf32", 0), ("tf32", 3), ("tf32", 4), ("bfloat16", 1), ("bfloat16", 2)]
)
def test_every_tile_of_tensor_cores(products: str, number: int, monkeypatch) -> None:
    element = PRODUCTS[products]
    size = implicit_gemm.itemsize(element)
    tile = implicit_gemm.TENSOR_TILES[size][number]
    monkeypatch.setattr(implicit_gemm, "TENSOR_TILES", {size: (tile,)})
    # Some rows and columns less than the tile has, and a slice more.
    given_ = problem(tile.k + 1, tile.m - 3, 1, (4, tile.n // 4 - 1), (1, 1), batch=1)
    Case(given_, element, implicit_gemm, products=products).check()


def test_vectors_of_tensor_cores() -> None:
    # Rows of A and of B that are multiples of 16 bytes, in all operations.
    case = Case(problem(16, 24, 1, (4, 8), (1, 1)), "float16", implicit_gemm, products="float16")
    plan = implicit_gemm.forward(
        case.spec, case.up(case.x), case.up(case.w), None, None, case.out(case.y_shape), **case.options
    )
    assert dict(plan.kernel.defines).items() >= {"LOAD_A": 8, "LOAD": 8, "STORE": 2}.items()
    case.check()


def rounded_to_tf32(value: np.ndarray) -> np.ndarray:
    """11 significant bits, halves away from zero, as float64."""
    bits = value.astype(np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32).astype(float)


@pytest.mark.parametrize("products", ["tf32", "3xtf32"])
def test_float32_on_tensor_cores_is_within_its_bound(products: str) -> None:
    case = Case(GEMM["several blocks and shares"], "float32", implicit_gemm, products=products)
    rng = np.random.default_rng(0)
    case.x, case.w = (rng.standard_normal(a.shape).astype(np.float32).astype(float) for a in (case.x, case.w))
    case.bias *= 0
    # The bound of docs/accuracy.md; for TF32 that of sums of rounded elements, which are exact products.
    n, eps = math.prod(case.spec.w_shape[1:]), float(np.finfo(np.float32).eps)
    rounding, terms = (rounded_to_tf32, n + 1) if products == "tf32" else (np.asarray, n / 16 + 16)
    right = reference.conv(rounding(case.x), rounding(case.w), **case.geometry)
    size = reference.conv(abs(rounding(case.x)), abs(rounding(case.w)), **case.geometry)
    runs = []
    for seed in range(2):
        with cuda_on_cpu.schedule("random", seed):
            runs.append(case.forward())
    assert np.array_equal(*runs)
    assert (abs(runs[0] - right) <= terms * eps * size).all()
    # Neither is the other: what TF32 loses is far beyond the bound of three products.
    exact = reference.conv(case.x, case.w, **case.geometry)
    assert (abs(runs[0] - exact) <= (n / 16 + 16) * eps * size).all() == (products == "3xtf32")


def test_what_is_infinite_stays_infinite_on_tensor_cores() -> None:
    case = Case(GEMM["pointwise"], "float32", implicit_gemm, products="3xtf32")
    case.x, case.w = abs(case.x) + 1, abs(case.w) + 1
    case.x[0, 3, 2, 2] = np.inf
    identical(case.forward(), reference.conv(case.x, case.w, case.bias, **case.geometry).astype(np.float32))


@settings(max_examples=12)
@given(drawn=problems(layouts=("channels_first",), batched=True, empty=False))
def test_implicit_gemm_problems(drawn: Problem) -> None:
    Case(drawn, "float32", implicit_gemm).check()


@pytest.mark.parametrize("order", cuda_on_cpu.ORDERS)
def test_results_do_not_depend_on_the_order_of_threads(order: str) -> None:
    for seed in range(2):
        with cuda_on_cpu.schedule(order, seed):
            Case(DEPTHWISE["more than one block"], "float32", depthwise).check()
            Case(GEMM["several blocks and shares"], "float32", implicit_gemm).check()


@pytest.mark.parametrize("family", [depthwise, implicit_gemm])
def test_sums_are_the_same_bits_in_every_run_and_within_the_bound(family) -> None:
    name, table = ("more than one block", DEPTHWISE) if family is depthwise else ("several blocks and shares", GEMM)
    case = Case(table[name], "float32", family)
    rng = np.random.default_rng(0)
    case.x, case.w, case.dy, case.bias = (
        rng.standard_normal(a.shape).astype(np.float32).astype(float) for a in (case.x, case.w, case.dy, 0 * case.bias)
    )
    spec = case.spec
    steps, window = case.geometry, spec.window
    for op, n, exact in (
        (
            "forward",
            math.prod(spec.w_shape[1:]) + 1,
            lambda f: reference.conv(f(case.x), f(case.w), f(case.bias), **steps),
        ),
        (
            "input_grad",
            spec.w_shape[0] // spec.groups * window.taps,
            lambda f: reference.conv_input_grad(f(case.dy), f(case.w), window.size, **steps),
        ),
        (
            "weight_grad",
            spec.batch * window.positions,
            lambda f: reference.conv_weight_grad(f(case.x), f(case.dy), window.kernel, **steps),
        ),
    ):
        runs = []
        for seed in range(3):
            with cuda_on_cpu.schedule("random", seed):
                runs.append(getattr(case, op)())
        assert all(np.array_equal(run, runs[0]) for run in runs), op
        right = exact(lambda a: a)
        assert (abs(runs[0] - right) <= rounding_bound("float32", n, right, exact(np.abs))).all(), op


@pytest.mark.parametrize("offset", [1, 2])
def test_arrays_that_begin_anywhere(offset: int) -> None:
    Case(DEPTHWISE["wide rows, several channels from one"], "float32", depthwise, offset).check()
    Case(GEMM["as in most networks"], "float32", implicit_gemm, offset).check()


def test_offsets_of_64_bits(monkeypatch) -> None:
    monkeypatch.setattr(launch, "_MOST_INT", 0)
    Case(DEPTHWISE["wide rows, several channels from one"], "float32", depthwise).check()
    Case(DEPTHWISE["stride"], "float32", depthwise).check()
    Case(GEMM["every step different"], "float32", implicit_gemm).check()


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
@pytest.mark.parametrize(("family", "given_"), [(depthwise, DEPTHWISE["stride"]), (implicit_gemm, GEMM["pointwise"])])
def test_bias_and_activation_are_part_of_the_store(family, given_: Problem, activation: str) -> None:
    case = Case(given_, "float32", family)
    case.x[0, 0, 0, 0] = np.nan
    before = reference.conv(case.x, case.w, case.bias, **case.geometry).astype(np.float32)
    clipped = np.clip(before, *{"relu": (0, np.inf), "relu6": (0, 6), "hardswish": (-3, 3)}[activation])
    expected = np.where(before >= 3, before, clipped * ((clipped + 3) / 6)) if activation == "hardswish" else clipped
    actual = case.forward(activation)
    assert np.isnan(actual).any()
    np.testing.assert_allclose(actual, expected, rtol=2 * np.finfo("float32").eps)


@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_what_a_share_or_a_tile_does_not_cover_is_never_multiplied(special: float) -> None:
    # A row of the image that no output sees, and columns beyond the last: they must not reach a sum, not even by zero.
    given_ = problem(2, 2, 2, (8, 10), (3, 3), (3, 4), 0)
    for family in (depthwise, implicit_gemm):
        case = Case(given_, "float32", family)
        seen = np.zeros(case.x_shape, bool)
        for i, j in np.ndindex(*case.spec.window.out):
            seen[:, :, 3 * i : 3 * i + 3, 4 * j : 4 * j + 3] = True
        case.x[~seen] = special
        assert not seen.all()
        identical(
            case.weight_grad(), reference.conv_weight_grad(case.x, case.dy, (3, 3), **case.geometry).astype(np.float32)
        )
        assert np.isfinite(case.forward()).all()


@settings(max_examples=30)
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=65, max_size=65))
def test_halves_are_rounded_as_numpy_rounds_them(bits: list[int]) -> None:
    # The emulation's own conversions stand in for instructions. A product of two halves is exact in float32.
    halves = np.array(bits, np.uint16).view(np.float16)
    x, w = halves[:64].reshape(1, 1, 8, 8), halves[64:].reshape(1, 1, 1, 1)
    y = poisoned(x.shape, np.float16)
    loader.run(depthwise.forward(ConvSpec.of(x.shape, w.shape), upload(x), upload(w), None, None, y))
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(download(y), (x.astype(np.float32) * w.astype(np.float32)).astype(np.float16))
