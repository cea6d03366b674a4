"""The public operations on arrays that are not NumPy's: CuPy's stand-in, and the CUDA kernels executed on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from fake_cupy import cupy, ndarray  # noqa: F401 - a fixture

import npconv as nc
from npconv.algorithms import ALGORITHMS, TRANSFORMED

RNG = np.random.default_rng(0)
X = RNG.integers(-3, 4, (2, 4, 7, 6)).astype("float32")
W = RNG.integers(-3, 4, (6, 2, 3, 2)).astype("float32")
B = RNG.integers(-3, 4, 6).astype("float32")
OPTIONS = {"stride": (2, 1), "padding": ((1, 2), (0, 3)), "dilation": (1, 2), "groups": 2}


def same(result, expected):
    assert type(result) is ndarray, "it came from the device, and it stays there"
    np.testing.assert_array_equal(result._value, expected)


@pytest.mark.parametrize(
    "algorithm", [name for name in ALGORITHMS if name not in {"pointwise", "depthwise"} | TRANSFORMED]
)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolution_and_gradients_stay_on_the_device(cupy, algorithm, mode):  # noqa: F811
    x, w, b = map(cupy.asarray, (X, W, B))
    for activation in (None, "relu", "relu6", "hardswish"):
        options = {**OPTIONS, "activation": activation, "padding_mode": mode}
        y, pullback = nc.conv_vjp(x, w, b, algorithm=algorithm, **options)
        expected, expected_back = nc.conv_vjp(X, W, B, algorithm=algorithm, backend="numpy", **options)
        same(y, expected)
        same(nc.conv(x, w, b, algorithm=algorithm, **options), expected)
        # Whole numbers, which every order of summation adds up to the same bits; hardswish would make fractions.
        dy = RNG.integers(-3, 4, expected.shape).astype("float32")
        if activation != "hardswish":
            for ours, theirs in zip(pullback(cupy.asarray(dy)), expected_back(dy), strict=True):
                same(ours, theirs)


@pytest.mark.parametrize("algorithm", ["pointwise", "depthwise"])
def test_special_forms_stay_on_the_device(cupy, algorithm):  # noqa: F811
    w = W[:4, :, :1, :1] if algorithm == "pointwise" else W[:4, :1]
    groups = 2 if algorithm == "pointwise" else 4
    y, pullback = nc.conv_vjp(cupy.asarray(X), cupy.asarray(w), groups=groups, stride=2, algorithm=algorithm)
    expected, expected_back = nc.conv_vjp(X, w, groups=groups, stride=2, algorithm=algorithm, backend="numpy")
    same(y, expected)
    for ours, theirs in zip(pullback(y)[:2], expected_back(expected)[:2], strict=True):
        same(ours, theirs)


def test_winograd_stays_on_the_device(cupy):  # noqa: F811
    # Not by the kernels, which test_cuda_winograd runs, but by what weight gradients take.
    options = {"padding": ((1, 2), (0, 1)), "groups": 2, "algorithm": "winograd"}
    dy = nc.conv(X, W, padding=options["padding"], groups=2)
    expected = nc.conv_weight_grad(X, dy, W.shape, backend="numpy", **options)
    same(nc.conv_weight_grad(cupy.asarray(X), cupy.asarray(dy), W.shape, **options), expected)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_the_other_operations_stay_on_the_device(cupy, layout):  # noqa: F811
    x = cupy.asarray(X)
    same(nc.unfold(x, (3, 2), stride=2, layout=layout), nc.unfold(X, (3, 2), stride=2, layout=layout))
    columns = nc.unfold(X, (3, 2), layout=layout)
    size = X.shape[2:] if layout == "channels_first" else X.shape[1:3]
    same(nc.fold(cupy.asarray(columns), size, (3, 2), layout=layout), nc.fold(columns, size, (3, 2), layout=layout))
    for pool in (nc.max_pool_vjp, nc.avg_pool_vjp):
        y, pullback = pool(x, (3, 2), stride=2, padding=1, layout=layout)
        expected, expected_back = pool(X, (3, 2), stride=2, padding=1, layout=layout, backend="numpy")
        same(y, expected)
        same(pullback(y), expected_back(expected))
    out = cupy.empty(expected.shape, np.float32)
    assert nc.avg_pool(x, (3, 2), stride=2, padding=1, layout=layout, out=out) is out
    same(out, expected)


def test_transposed_convolution_stays_on_the_device(cupy):  # noqa: F811
    w = W.reshape(4, 3, 3, 2)
    expected = nc.conv_transpose(X, w, B, stride=2, padding=1, output_padding=1, groups=2, backend="numpy")
    same(nc.conv_transpose(*map(cupy.asarray, (X, w, B)), stride=2, padding=1, output_padding=1, groups=2), expected)


def test_numpy_arrays_go_up_and_come_back(cupy):  # noqa: F811
    expected = nc.conv(X, W, B, backend="numpy", **OPTIONS)
    with nc.use_backend("cupy"):
        y = nc.conv(X, W, B, **OPTIONS)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, expected)
    out = np.empty_like(expected)
    assert nc.conv(X, W, B, backend="cupy", out=out, **OPTIONS) is out
    np.testing.assert_array_equal(out, expected)


def test_mixed_arrays_raise_and_name_both(cupy):  # noqa: F811
    with pytest.raises(TypeError, match=r"same device: x is a cupy\.ndarray, w is a numpy\.ndarray"):
        nc.conv(cupy.asarray(X), W, groups=2)
    with pytest.raises(TypeError, match=r"bias is a cupy\.ndarray"):
        nc.conv(X, W, cupy.asarray(B), groups=2)
    with pytest.raises(TypeError, match="out must live on the same device"):
        nc.conv(cupy.asarray(X), cupy.asarray(W), groups=2, out=np.empty((2, 6, 5, 5), np.float32))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_cpu_backend_refuses_device_arrays(cupy, backend):  # noqa: F811
    with pytest.raises(TypeError, match=f"the backend '{backend}' computes in the CPU's memory, but x is a CuPy array"):
        nc.conv(cupy.asarray(X), cupy.asarray(W), groups=2, backend=backend)


def test_the_device_counts_as_available(cupy):  # noqa: F811
    assert nc.available_backends() == ("numpy", "numba", "cupy")


def test_workspace_is_given_back(cupy) -> None:  # noqa: F811
    nc.conv2d(cupy.ones((1, 1, 3, 3)), cupy.ones((1, 1, 3, 3)))
    nc.free_workspace()
    assert cupy.frees == [True]
