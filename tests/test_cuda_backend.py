"""The public functions on CuPy's stand-in, with the CUDA kernels executed on the CPU, against the reference."""

from __future__ import annotations

import re
from types import ModuleType

import numpy as np
import pytest
from fake_cupy import cupy, device, download, installed, upload  # noqa: F401 - fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import COMPLEX, DTYPES, Problem, identical, pool_problems, problems, values

import npconv as nc
from npconv.arrays import require
from npconv.kernels import cuda
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


def test_a_numpy_program_runs_on_the_device() -> None:
    problem = Problem(2, 4, 6, 2, (7, 6), (3, 2), (2, 1), (1, 2), 1, ((1, 1), (1, 1)))
    x, w = problem.x("float32"), problem.w("float32")
    with nc.use_backend("cupy"):
        y = problem.conv(x, w)
    assert type(y) is np.ndarray
    identical(y, problem.expected(x, w))


def test_workspace_is_given_back(cupy) -> None:  # noqa: F811
    nc.conv2d(cupy.ones((1, 1, 3, 3)), cupy.ones((1, 1, 3, 3)))
    nc.free_workspace()
    assert cupy.frees == [True]


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
