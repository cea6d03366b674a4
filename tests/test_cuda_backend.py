"""The public functions on CuPy's stand-in, with the CUDA kernels executed on the CPU, against the reference."""

from __future__ import annotations

import re
from types import ModuleType

import cuda_on_cpu
import numpy as np
import pytest
from fake_cupy import device, download, installed, upload  # noqa: F401 - fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import COMPLEX, DTYPES, Problem, identical, pool_problems, problems, values

import npconv as nc
from npconv.arrays import require
from npconv.kernels import cuda
from npconv.kernels.cuda import loader
from npconv.kernels.cuda.launch import Launch
from npconv.planning import measurements, tuning

pytestmark = pytest.mark.usefixtures("device")

FEW = settings(max_examples=6)


def same(actual, expected: np.ndarray) -> None:
    """Assert equal elements, on the device."""
    identical(download(actual), expected)


def test_the_backend_has_kernels() -> None:
    assert require("cupy").kernels is cuda
    spec = nc.plan((1, 4, 8, 8), (8, 4, 3, 3), backend="cupy")
    assert (spec.algorithm, spec.kernel) == ("direct", "tiles")


@pytest.mark.parametrize(
    ("groups", "algorithm", "how"),
    [
        (1, "direct", r"tile +16x64 in slices of 8, multiply-adds, 2 blocks of 64 threads"),
        (4, "depthwise", r"patch +4x4 results a thread, 3x3 weights in registers"),
        (1, "im2col", r"blocks +1 of 1 images"),
        (1, "winograd", r"tile +\dx\d outputs from"),
        (1, "fft", r"blocks +\d+ transforms"),
    ],
)
def test_a_plan_says_what_a_block_or_a_thread_computes(groups: int, algorithm: str, how: str) -> None:
    plan = nc.plan((1, 4, 12, 10), (8, 4 // groups, 3, 3), groups=groups, algorithm=algorithm, backend="cupy")
    assert re.search(how, str(plan))
    assert re.search("backend +cupy\n", str(plan)), "threads are the processor's"
    assert "cupy" in plan._repr_html_()


def test_algorithms_are_measured_on_the_device(monkeypatch) -> None:
    monkeypatch.setattr(tuning, "RUNS", 1)
    plan = nc.autotune((1, 2, 5, 5), (2, 2, 3, 3), backend="cupy", dtype="float64")
    assert plan.measured_seconds > 0
    measurements.forget()


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution_and_gradients_in_every_dtype(dtype: str) -> None:
    for problem in (
        Problem(2, 4, 6, 2, (7, 6), (3, 2), (2, 1), (1, 2), ((1, 2), (0, 3)), ((1, 2), (0, 3)), layout="channels_last"),
        Problem(None, 3, 3, 3, (7, 8), (3, 3), (1, 1), (1, 1), 1, ((1, 1), (1, 1))),
    ):
        x, w, b, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
        same(problem.conv(upload(x), upload(w), upload(b), algorithm="direct"), problem.expected(x, w, b))
        same(problem.input_grad(upload(dy), upload(w), algorithm="direct"), problem.expected_input_grad(dy, w))
        same(problem.weight_grad(upload(x), upload(dy), algorithm="direct"), problem.expected_weight_grad(x, dy))


@given(problem=problems(modes=("zeros", "reflect", "replicate", "circular")))
def test_problems(problem: Problem) -> None:
    dtype = "float32"
    x, w, b, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    same(problem.conv(upload(x), upload(w), upload(b), algorithm="direct"), problem.expected(x, w, b))
    same(problem.input_grad(upload(dy), upload(w), algorithm="direct"), problem.expected_input_grad(dy, w))
    same(problem.weight_grad(upload(x), upload(dy), algorithm="direct"), problem.expected_weight_grad(x, dy))


@FEW
@given(problem=problems(empty=False), algorithm=st.sampled_from(("im2col", "auto")))
def test_other_forms(problem: Problem, algorithm: str) -> None:
    x, w, dy = problem.x("float64"), problem.w("float64"), problem.dy("float64")
    results = (
        (problem.conv(upload(x), upload(w), algorithm=algorithm), problem.expected(x, w)),
        (problem.input_grad(upload(dy), upload(w), algorithm=algorithm), problem.expected_input_grad(dy, w)),
        (problem.weight_grad(upload(x), upload(dy), algorithm=algorithm), problem.expected_weight_grad(x, dy)),
    )
    for actual, expected in results:
        identical(np.rint(download(actual)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_and_patches_in_every_dtype(dtype: str) -> None:
    x = values((2, 3, 7, 8), dtype)
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": ((1, 0), (0, 1)), "dilation": (1, 2)}
    y, pullback = nc.max_pool_vjp(upload(x), **options)
    expected, expected_back = nc.max_pool_vjp(x, backend="numpy", **options)
    same(y, expected)
    dy = values(expected.shape, dtype, 1)
    same(pullback(upload(dy)), expected_back(dy))
    columns = nc.unfold(x, backend="numpy", **options)
    same(nc.unfold(upload(x), **options), columns)
    folded = nc.fold(columns, x.shape[2:], backend="numpy", **options)
    same(nc.fold(upload(columns), x.shape[2:], **options), folded)


@given(problem=pool_problems())
def test_pooling_problems(problem) -> None:
    x, dy = problem.x("float32"), problem.dy("float32")
    for pool in (nc.max_pool_vjp, nc.avg_pool_vjp):
        y, pullback = pool(upload(x), **problem.keywords)
        expected, expected_back = pool(x, backend="numpy", **problem.keywords)
        np.testing.assert_allclose(download(y), expected, rtol=1e-6)
        np.testing.assert_allclose(download(pullback(upload(dy))), expected_back(dy), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", *COMPLEX])
def test_the_largest_element_of_a_window_may_be_nan(dtype: str) -> None:
    x = values((1, 1, 6, 6), dtype)
    x[0, 0, 2, 3] = np.nan
    y, pullback = nc.max_pool_vjp(upload(x), 3, 1)
    expected, expected_back = nc.max_pool_vjp(x, 3, 1, backend="numpy")
    same(y, expected)
    same(pullback(upload(np.ones_like(expected))), expected_back(np.ones_like(expected)))


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 0, 5)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    x, w = np.zeros(shape, np.float32), np.ones((6, 2, 3, 3), np.float32)
    y, pullback = nc.conv_vjp(upload(x), upload(w), padding=2, groups=2)
    expected, expected_back = nc.conv_vjp(x, w, padding=2, groups=2, backend="numpy")
    same(y, expected)
    for ours, theirs in zip(pullback(y)[:2], expected_back(expected)[:2], strict=True):
        same(ours, theirs)


LAST = {
    "four channels at once": Problem(2, 8, 8, 8, (9, 8), (3, 3), (1, 1), (1, 1), 1, ((1, 1), (1, 1))),
    "every step different": Problem(2, 4, 4, 4, (9, 11), (3, 2), (2, 3), (2, 3), ((1, 0), (2, 1)), ((1, 0), (2, 1))),
    "odd channels, no batch": Problem(None, 3, 3, 3, (7, 6), (3, 2), (1, 2), (1, 1), 0, ((0, 0), (0, 0))),
    "a signal": Problem(2, 2, 2, 2, (13,), (5,), (2,), (1,), 2, ((2, 2),)),
    "a volume": Problem(1, 2, 2, 2, (4, 5, 6), (3, 2, 3), (1, 2, 1), (1, 1, 2), 1, ((1, 1),) * 3),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("four channels at once", "float32"), ("every step different", "complex64"), ("odd channels, no batch", "int8"),
        ("a signal", "float16"), ("a volume", "float32"),
    ],
)  # fmt: skip
def test_depthwise_arrays_with_channels_last_are_read_as_they_are(monkeypatch, name: str, dtype: str) -> None:
    problem = LAST[name].but(layout="channels_last")
    launched: list[str] = []
    run = loader.run
    monkeypatch.setattr(cuda, "run", lambda *plans: (launched.extend(plan.kernel.name for plan in plans), run(*plans)))
    x, w, b, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    activation = "relu" if dtype == "float32" else None
    right = problem.expected(x, w, b)
    right = np.maximum(right, 0) if activation else right
    same(problem.conv(upload(x), upload(w), upload(b), activation=activation), right)
    same(problem.input_grad(upload(dy), upload(w)), problem.expected_input_grad(dy, w))
    same(problem.weight_grad(upload(x), upload(dy)), problem.expected_weight_grad(x, dy))
    kernels = ["depthwise_last", "depthwise_last_input_grad", "depthwise_last_weight_grad"]
    assert launched == kernels + ["sum_shares"] * (problem.x_shape[:1] == (2,) and problem.out == (9, 8))


LAST_DENSE = {
    "vectors": Problem(2, 8, 16, 1, (6, 5), (3, 3), (1, 1), (1, 1), 1, ((1, 1), (1, 1))),
    "groups, every step different": Problem(
        2, 6, 4, 2, (9, 11), (3, 2), (2, 3), (2, 3), ((1, 0), (2, 1)), ((1, 0), (2, 1))
    ),
    "a slice and a tile more": Problem(1, 17, 18, 1, (9, 8), (1, 1), (1, 1), (1, 1), 0, ((0, 0), (0, 0))),
    "a signal without a batch": Problem(None, 3, 5, 1, (13,), (5,), (2,), (1,), 2, ((2, 2),)),
    "vectors in groups": Problem(1, 16, 32, 2, (5, 6), (2, 2), (2, 1), (1, 1), 1, ((1, 1), (1, 1))),
}


@pytest.mark.parametrize(
    ("name", "dtype", "products"),
    [
        ("vectors", "float32", "float32"), ("groups, every step different", "complex64", "float32"),
        ("a slice and a tile more", "float32", "float32"), ("a signal without a batch", "int16", "float32"),
        ("vectors", "float32", "tf32"), ("vectors in groups", "float16", "float32"),
        ("groups, every step different", "float16", "float32"),
    ],
)  # fmt: skip
def test_images_with_channels_last_are_read_as_they_are(monkeypatch, name: str, dtype: str, products: str) -> None:
    problem = LAST_DENSE[name].but(layout="channels_last")
    launched: list[Launch] = []
    run = loader.run
    monkeypatch.setattr(cuda, "run", lambda *plans: (launched.extend(plans), run(*plans)))
    x, w, b, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    with nc.float32_as(products):
        same(problem.conv(upload(x), upload(w), upload(b), algorithm="direct"), problem.expected(x, w, b))
        same(problem.input_grad(upload(dy), upload(w), algorithm="direct"), problem.expected_input_grad(dy, w))
    defines = [dict(plan.kernel.defines) for plan in launched]
    assert [define["LAST"] for define in defines] == [1, 1]
    wide = name.startswith("vectors") and (dtype == "float16" or products == "tf32")
    width = {"float16": 8, "float32": 4}[dtype] if wide else 1
    assert {(define["LOAD_A"], define["LOAD"]) for define in defines} == {(width, width)}


def test_sums_of_shares_with_channels_last_are_the_same_bits_in_every_order_of_threads() -> None:
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((2, 9, 8, 8)).astype(np.float32) for _ in range(2))
    results = []
    for order in cuda_on_cpu.ORDERS:
        with cuda_on_cpu.schedule(order, 1):
            dw = nc.conv_weight_grad(upload(x), upload(dy), (8, 1, 3, 3), padding=1, groups=8, layout="channels_last")
            results.append(download(dw))
    assert all(np.array_equal(result, results[0]) for result in results)
    packed = nc.plan((2, 9, 8, 8), (8, 1, 3, 3), groups=8, layout="channels_last", backend="cupy").pack(
        upload(results[0])
    )
    expected = nc.conv(x, results[0], groups=8, layout="channels_last", backend="numpy")
    np.testing.assert_allclose(download(packed(upload(x))), expected, rtol=1e-5, atol=1e-4)


def test_a_numpy_program_runs_on_the_device() -> None:
    problem = Problem(2, 4, 6, 2, (7, 6), (3, 2), (2, 1), (1, 2), 1, ((1, 1), (1, 1)))
    x, w = problem.x("float32"), problem.w("float32")
    with nc.use_backend("cupy"):
        y = problem.conv(x, w)
    assert type(y) is np.ndarray
    identical(y, problem.expected(x, w))


def test_a_gradient_that_is_asked_for_again_goes_to_the_device_again() -> None:
    problem = Problem(2, 2, 3, 1, (5, 6), (3, 2), (1, 1), (1, 1), 1, ((1, 1), (1, 1)))
    x, w, dy = problem.x("float32"), problem.w("float32"), problem.dy("float32")
    with nc.use_backend("cupy"):
        for _ in range(2):
            identical(problem.input_grad(dy, w), problem.expected_input_grad(dy, w))
            identical(problem.weight_grad(x, dy), problem.expected_weight_grad(x, dy))


def test_a_network_moves_to_the_device_and_back(device: ModuleType) -> None:  # noqa: F811 - the fixture
    nn = nc.nn
    net = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3, rng=1))
    x = np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype("float32")
    y = net(x)
    dx = net.backward(np.ones_like(y))
    assert net.to("cupy") is net
    assert all(type(p.value) is device.ndarray and p.grad is None for p in net.parameters())
    there = net(upload(x))
    assert type(there) is device.ndarray
    back = net.backward(upload(np.ones_like(y)))
    np.testing.assert_allclose(download(there), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(download(back), dx, rtol=1e-5, atol=1e-6)
    identical(net.to("numpy")(x), y)
    with pytest.raises(ValueError, match="backend must be one of"):
        net.to("cuda")


def products_of(run, *, capability: str = "90") -> set[int]:
    """The formats that the kernels of a call were compiled for."""
    with installed() as fake:
        fake.capability, made, module = capability, [], fake.RawModule
        fake.RawModule = lambda **how: made.append(how["options"]) or module(**how)
        run()
    return {int(option[6:]) for options in made for option in options if option.startswith("-DMMA=")}


def test_float32_is_multiplied_on_tensor_cores_only_where_asked_for(device: ModuleType) -> None:  # noqa: F811
    if not hasattr(device, "capability"):
        pytest.skip("what kernels are compiled for is asked of the stand-in")
    problem = Problem(2, 5, 6, 1, (5, 6), (3, 2), (1, 1), (1, 1), 1, ((1, 1), (1, 1)))
    x, w, dy = problem.x("float32"), problem.w("float32"), problem.dy("float32")

    def forward() -> None:
        same(problem.conv(upload(x), upload(w), algorithm="direct"), problem.expected(x, w))

    def gradients() -> None:
        same(problem.input_grad(upload(dy), upload(w), algorithm="direct"), problem.expected_input_grad(dy, w))
        same(problem.weight_grad(upload(x), upload(dy), algorithm="direct"), problem.expected_weight_grad(x, dy))

    assert products_of(forward) == {0}
    with nc.float32_as("tf32"):
        assert products_of(forward) == products_of(gradients) == {3}
        assert products_of(forward, capability="75") == {0}
        with nc.strict():
            assert products_of(forward) == {0}
        with nc.float32_as("3xtf32"):
            assert products_of(forward) == {4}
    with pytest.raises(ValueError, match=r"name must be one of .*got 'half'"), nc.float32_as("half"):
        pass


NARROW = {"float16": 1, "bfloat16": 2}
"""Dtypes that are multiplied as they are, with the format that their kernels are compiled for."""


def narrow(dtype: str) -> np.dtype:
    if dtype == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(dtype)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_floats_are_multiplied_as_they_are_and_rounded_once(device: ModuleType, dtype: str) -> None:  # noqa: F811
    if not hasattr(device, "capability"):
        pytest.skip("what kernels are compiled for is asked of the stand-in")
    kind = narrow(dtype)
    problem = Problem(2, 5, 6, 1, (5, 6), (3, 2), (1, 1), (1, 1), 1, ((1, 1), (1, 1)))
    # So large that sums need more digits than the dtype has.
    x, w, b, dy = (scale * values for scale, values in zip((7, 9, 5, 11), (
        problem.x("float32"), problem.w("float32"), problem.bias("float32"), problem.dy("float32")
    ), strict=True))  # fmt: skip
    wide = {
        "y": problem.expected(x, w, b), "dx": problem.expected_input_grad(dy, w),
        "dw": problem.expected_weight_grad(x, dy),
    }  # fmt: skip
    right = {name: value.astype(kind) for name, value in wide.items()}
    assert all((right[name].astype(np.float32) != wide[name]).any() for name in wide), "they need rounding"
    x, w, b, dy = (upload(value.astype(kind)) for value in (x, w, b, dy))

    def forward() -> None:
        same(problem.conv(x, w, b), right["y"])

    def run() -> None:
        forward()
        y, pullback = problem.vjp(x, w, b)
        dx, dw, db = pullback(dy)
        for actual, name in ((y, "y"), (dx, "dx"), (dw, "dw")):
            same(actual, right[name])
        assert db.dtype == kind
        same(problem.input_grad(dy, w), right["dx"])
        same(problem.weight_grad(x, dy), right["dw"])

    assert products_of(run) == {NARROW[dtype]}
    assert products_of(forward, capability="75") == {0}
    plan = nc.plan(problem.x_shape, problem.w_shape, padding=1, dtype=kind, backend="cupy")
    assert (plan.algorithm, plan.kernel) == ("direct", "tensor_tiles")
    assert f"{dtype} on tensor cores" in str(plan)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_added_or_bent_after_a_narrow_convolution_sees_unrounded_sums(dtype: str) -> None:
    kind = narrow(dtype)
    rng = np.random.default_rng(0)
    x, w = (rng.uniform(-1, 1, shape).astype(kind) for shape in ((1, 2, 4, 4), (2, 2, 2, 2)))
    b = rng.uniform(-1, 1, 2).astype(kind)
    x_, w_, b_ = (value.astype(np.float32) for value in (x, w, b))
    eps = float(np.spacing(np.float32(1)) * 2 ** (23 - (10 if dtype == "float16" else 7)))
    for actual, expected in (
        (nc.conv_vjp(*map(upload, (x, w, b)), activation="hardswish")[0], nc.conv(x_, w_, b_, activation="hardswish")),
        (nc.conv_transpose(*map(upload, (x, w, b))), nc.conv_transpose(x_, w_, b_)),
        (nc.conv(*map(upload, (x, w, b)), padding=1, padding_mode="reflect"),
         nc.conv(x_, w_, b_, padding=1, padding_mode="reflect")),
    ):  # fmt: skip
        actual = download(actual).astype(np.float32)
        # Half a unit in the last place for the one rounding, and room for the order of a sum of eight.
        assert (abs(actual - expected) <= (0.5 * eps + 1e-5) * np.maximum(abs(expected), 2.0**-10)).all()


def test_bfloat16_is_for_gpus_and_convolutions() -> None:
    kind = narrow("bfloat16")
    x, w = np.ones((1, 1, 4, 4), kind), np.ones((1, 1, 2, 2), kind)
    with pytest.raises(TypeError, match=r"x has dtype bfloat16, .* on a GPU only .* backend is 'numba'"):
        nc.conv(x, w)
    with pytest.raises(TypeError, match="x has dtype bfloat16; supported are"):
        nc.max_pool(upload(x), 2)
    with pytest.raises(TypeError, match="dtype must be one of"):
        nc.plan((1, 1, 4, 4), (1, 1, 2, 2), dtype=kind)
    with pytest.raises(TypeError, match="out must have the dtype of the result, bfloat16"):
        nc.conv(upload(x), upload(w), out=upload(np.zeros((1, 1, 3, 3), np.float16)))
    y = nc.conv(x, w, backend="cupy")
    assert y.dtype == kind
    assert (y == 4).all()
    assert nc.conv(upload(x), upload(w.astype(np.float32))).dtype == np.float32
