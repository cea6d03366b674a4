"""The textbook's functions: its own numbers exactly, the definition, and clear words for what does not fit."""

# ruff: noqa: N803, N806 - the textbook writes X, K and Y

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npconv as nc
from npconv import d2l, reference

IMAGE, KERNEL = np.arange(9).reshape(3, 3), np.arange(4).reshape(2, 2)
IMAGES, KERNELS = np.stack([IMAGE, IMAGE + 1]), np.stack([KERNEL, KERNEL + 1])
DTYPES = ["int8", "uint16", "int64", "float32", "float64"]


def bar():
    """The textbook's image, ones with a bar of zeros, and its edges."""
    X = np.ones((6, 8))
    X[:, 2:6] = 0
    return X, d2l.corr2d(X, np.array([[1.0, -1.0]]))


# --------------------------------------------------------------------------------------------------------------------
# The textbook's numbers
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_channel(dtype):
    Y = d2l.corr2d(IMAGE.astype(dtype), KERNEL.astype(dtype))
    assert Y.dtype == dtype
    assert Y.tolist() == [[19, 25], [37, 43]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_input_channels(dtype):
    Y = d2l.corr2d_multi_in(IMAGES.astype(dtype), KERNELS.astype(dtype))
    assert Y.dtype == dtype
    assert Y.tolist() == [[56, 72], [104, 120]]


@pytest.mark.parametrize("dtype", ["uint8", *DTYPES[1:]])
def test_three_output_channels(dtype):
    K = np.stack([KERNELS, KERNELS + 1, KERNELS + 2])
    Y = d2l.corr2d_multi_in_out(IMAGES.astype(dtype), K.astype(dtype))
    assert Y.dtype == dtype
    assert Y.tolist() == [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]


def test_the_edges_of_a_bar():
    _, Y = bar()
    assert Y.tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6


@pytest.mark.parametrize(
    ("kernel", "options", "shape"),
    [
        ((3, 3), {"padding": 1}, (8, 8)),
        ((5, 3), {"padding": (2, 1)}, (8, 8)),
        ((3, 3), {"padding": 1, "stride": 2}, (4, 4)),
        ((3, 5), {"padding": (0, 1), "stride": (3, 4)}, (2, 2)),
    ],
)
def test_padding_and_stride(kernel, options, shape):
    X, K = np.random.default_rng(0).random((8, 8)), np.ones((1, 1, *kernel))
    Y = d2l.comp_conv2d(lambda x: nc.conv2d(x, K, **options), X)
    assert Y.shape == shape
    assert np.array_equal(Y, nc.conv2d(X[None], K, **options)[0])


# --------------------------------------------------------------------------------------------------------------------
# The definition
# --------------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_they_are_the_definition(data):
    c, o, kh, kw = (data.draw(st.integers(1, 3)) for _ in range(4))
    h, w = data.draw(st.integers(kh, 6)), data.draw(st.integers(kw, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    X, K = rng.integers(-9, 10, (c, h, w)), rng.integers(-9, 10, (o, c, kh, kw))
    Y = reference.conv(X[None], K, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)[0]
    assert np.array_equal(d2l.corr2d_multi_in_out(X, K), Y)
    assert np.array_equal(d2l.corr2d_multi_in(X, K[0]), Y[0])
    assert np.array_equal(sum(d2l.corr2d(x, k) for x, k in zip(X, K[0], strict=True)), Y[0])


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.sampled_from(DTYPES))
def test_a_1x1_convolution_is_a_matrix_product(c, o, h, w, dtype):
    rng = np.random.default_rng(0)
    X, K = rng.integers(0, 5, (c, h, w)).astype(dtype), rng.integers(0, 5, (o, c, 1, 1)).astype(dtype)
    Y, expected = d2l.corr2d_multi_in_out_1x1(X, K), d2l.corr2d_multi_in_out(X, K)
    assert np.array_equal(Y, expected)
    assert Y.dtype == expected.dtype


def test_a_1x1_convolution_of_no_channels_is_zero():
    Y = d2l.corr2d_multi_in_out_1x1(np.ones((0, 2, 3)), np.ones((4, 0, 1, 1)))
    assert np.array_equal(Y, np.zeros((4, 2, 3)))


@pytest.mark.parametrize("dtypes", ["int32 float32", "int8 int16", "float32 complex64", "bool int8"])
def test_dtypes_mix_as_numpys_do(dtypes):
    x, k = dtypes.split()
    pairs = [
        (d2l.corr2d, IMAGE, KERNEL),
        (d2l.corr2d_multi_in, IMAGES, KERNELS),
        (d2l.corr2d_multi_in_out, IMAGES, KERNELS[None]),
        (d2l.corr2d_multi_in_out_1x1, IMAGES, KERNELS[None, :, :1, :1]),
    ]
    for function, X, K in pairs:
        assert function(X.astype(x), K.astype(k)).dtype == np.result_type(x, k)


# --------------------------------------------------------------------------------------------------------------------
# Calling a layer on one image
# --------------------------------------------------------------------------------------------------------------------


class Layer:
    """Somebody's own layer: `forward`, and nothing that makes it callable."""

    def forward(self, x):
        assert x.shape == (1, 1, 8, 8)
        return nc.conv2d(x, np.ones((1, 1, 3, 3)), stride=2, padding=1)


def test_a_layer_with_forward():
    X = np.random.default_rng(0).random((8, 8))
    expected = nc.conv2d(X[None], np.ones((1, 1, 3, 3)), stride=2, padding=1)[0]
    assert np.array_equal(d2l.comp_conv2d(Layer(), X), expected)
    assert np.array_equal(d2l.comp_conv2d(Layer().forward, X), expected)


def test_a_layer_of_npconv():
    X = np.random.default_rng(0).random((8, 8), np.float32)
    layer = nc.nn.Conv2d(1, 1, (3, 5), stride=(3, 4), padding=(0, 1), rng=0)
    Y = d2l.comp_conv2d(layer, X)
    assert Y.shape == (2, 2)
    assert np.array_equal(Y, layer.forward(X[None, None])[0, 0])


@pytest.mark.parametrize(
    ("layer", "X", "error", "message"),
    [
        (3, np.ones((8, 8)), TypeError, "conv2d must be callable or have a method forward, got int"),
        (lambda x: x, np.ones((1, 8, 8)), ValueError, r"X must have shape \(h, w\), got \(1, 8, 8\)"),
        (lambda x: x, [[1.0]], TypeError, r"X must be an array of shape \(h, w\), got list"),
        (lambda x: x[0], np.ones((8, 8)), ValueError, r"conv2d must return .* got \(1, 8, 8\)"),
        (lambda x: x.repeat(2, 1), np.ones((8, 8)), ValueError, r"conv2d must return .* got \(1, 2, 8, 8\)"),
        (lambda _: None, np.ones((8, 8)), ValueError, "conv2d must return .* got NoneType"),
    ],
)
def test_what_is_no_layer_on_an_image_is_named(layer, X, error, message):
    with pytest.raises(error, match=message):
        d2l.comp_conv2d(layer, X)


# --------------------------------------------------------------------------------------------------------------------
# Learning a kernel
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_edge_detector_is_found(seed):
    K, losses = d2l.learn_kernel(*bar(), (1, 2), rng=seed)
    assert K.shape == (1, 2)
    assert np.allclose(K, [[1, -1]], rtol=0, atol=1e-12)
    assert losses[-1] < 1e-20


def test_the_textbooks_own_rate_and_steps():
    K, losses = d2l.learn_kernel(*bar(), (1, 2), lr=3e-2, steps=10, rng=0)
    assert len(losses) == 11
    assert np.allclose(K, [[1, -1]], rtol=0, atol=0.2)
    assert losses[-1] < 1e-2 * losses[0]


def test_the_rate_taken_by_default_is_half_of_where_steps_diverge():
    # The bar's eigenvalues are 30 and 6, so the largest curvature is 60.
    found, given = (d2l.learn_kernel(*bar(), (1, 2), lr=lr, steps=5, rng=0)[1] for lr in (None, 1 / 60))
    assert found == pytest.approx(given, rel=1e-9)


def test_each_step_is_one_of_gradient_descent():
    X, Y = bar()
    before, (start,) = d2l.learn_kernel(X, Y, (1, 2), lr=0.01, steps=0, rng=3)
    after, losses = d2l.learn_kernel(X, Y, (1, 2), lr=0.01, steps=1, rng=3)
    h = 1e-6
    slopes = [
        (((d2l.corr2d(X, before + d) - Y) ** 2).sum() - ((d2l.corr2d(X, before - d) - Y) ** 2).sum()) / (2 * h)
        for d in (np.array([[h, 0]]), np.array([[0, h]]))
    ]
    assert np.allclose(after, before - 0.01 * np.array([slopes]), atol=1e-7)
    assert losses == [start, pytest.approx(((d2l.corr2d(X, after) - Y) ** 2).sum())]


def test_any_kernel_is_found_from_several_images(backend):
    rng = np.random.default_rng(1)
    X, K = rng.standard_normal((4, 12, 11)), rng.standard_normal((3, 2))
    with nc.use_backend(backend):
        found, losses = d2l.learn_kernel(X, np.stack([d2l.corr2d(x, K) for x in X]), (3, 2), rng=rng)
    assert np.allclose(found, K, rtol=0, atol=1e-9)
    assert all(b <= a or b < 1e-20 * losses[0] for a, b in itertools.pairwise(losses))


@given(st.integers(0, 2**32), st.floats(0.01, 0.999), st.integers(-6, 6), st.integers(1, 3))
def test_no_rate_that_is_accepted_diverges(seed, share, magnitude, size):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((7, 6)) * 10.0**magnitude
    Y = rng.standard_normal((8 - size, 7 - size))
    columns = np.lib.stride_tricks.sliding_window_view(X, (size, size)).reshape(-1, size * size)
    # Two over the curvature, which is twice the square of the largest singular value.
    limit = 1 / np.linalg.norm(columns, 2) ** 2
    _, losses = d2l.learn_kernel(X, Y, size, lr=share * limit, steps=40, rng=rng)
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(losses))
    with pytest.raises(ValueError, match="lr must be positive and, for this X, smaller than"):
        d2l.learn_kernel(X, Y, size, lr=1.001 * limit)


def test_a_seed_repeats_and_integers_are_welcome():
    X, Y = bar()
    first, again = (d2l.learn_kernel(X.astype(int), Y.astype(int), (1, 2), steps=3, rng=7) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert first[0].dtype == np.float64
    assert not np.array_equal(first[0], d2l.learn_kernel(X, Y, (1, 2), steps=3, rng=8)[0])


def test_a_learned_kernel_leaves_its_examples_alone():
    X, Y = bar()
    copies = X.copy(), Y.copy()
    d2l.learn_kernel(X, Y, (1, 2), steps=3)
    assert np.array_equal(X, copies[0])
    assert np.array_equal(Y, copies[1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lr": 0.034}, ValueError, "lr must be positive and, for this X, smaller than 0.0333333, .* got 0.034"),
        ({"lr": -0.01}, ValueError, "lr must be positive"),
        ({"lr": 0}, ValueError, "lr must be positive"),
        ({"lr": float("nan")}, ValueError, "lr must be positive"),
        ({"lr": 1e308}, ValueError, "lr must be positive"),
        ({"lr": "fast"}, TypeError, "lr must be a number or None, got 'fast'"),
        ({"lr": True}, TypeError, "lr must be a number or None, got True"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"steps": True}, TypeError, "steps must be an integer, got True"),
        ({"kernel_size": (1, 2, 3)}, ValueError, r"kernel_size must be an integer or \(kh, kw\)"),
        ({"kernel_size": (1, 0)}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": "1x2"}, TypeError, "kernel_size must be an integer, got '1x2'"),
        ({"kernel_size": (7, 2)}, ValueError, r"kernel_size \(7, 2\) is larger than X of shape \(6, 8\)"),
        ({"kernel_size": 2}, ValueError, r"Y must have shape \(5, 7\), .* got \(6, 7\)"),
        ({"X": np.ones(8)}, ValueError, r"X must have shape \(h, w\) or \(n, h, w\), got \(8,\)"),
        ({"X": np.zeros((6, 8))}, ValueError, "X must not be zero everywhere"),
        ({"X": np.full((6, 8), np.nan)}, ValueError, "X must be finite"),
        ({"X": np.full((6, 8), 1e200)}, ValueError, "X must hold smaller numbers"),
        ({"X": np.ma.ones((6, 8))}, TypeError, "X is a masked array"),
        ({"rng": "seed"}, TypeError, "rng must be None, a seed or a numpy.random.Generator, got 'seed'"),
        ({"rng": -1}, ValueError, "rng must be None, a seed or a numpy.random.Generator, got -1"),
        ({"X": np.ones((6, 8), complex)}, TypeError, "X must hold real numbers, got an array of complex128"),
        ({"X": [[1.0, 2.0]]}, TypeError, "X must be an array of shape .* got list"),
        ({"Y": np.full((6, 7), np.inf)}, ValueError, "Y must be finite"),
        ({"Y": np.full((6, 7), 1e200)}, ValueError, "X and Y must hold smaller numbers"),
        ({"Y": np.full((6, 7), "a")}, TypeError, "Y must hold numbers, got an array of <U1"),
    ],
)
def test_what_cannot_be_learned_from_is_named(changes, error, message):
    X, Y = bar()
    with pytest.raises(error, match=message):
        d2l.learn_kernel(**{"X": X, "Y": Y, "kernel_size": (1, 2), **changes})


# --------------------------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "X", "K", "error", "message"),
    [
        (d2l.corr2d, (3,), (2, 2), ValueError, r"X must have shape \(h, w\), got \(3,\)"),
        (d2l.corr2d, (2, 3, 3), (2, 2), ValueError, r"X must have shape \(h, w\), got \(2, 3, 3\)"),
        (d2l.corr2d, (3, 3), (1, 2, 2), ValueError, r"K must have shape \(kh, kw\), got \(1, 2, 2\)"),
        (d2l.corr2d, (3, 3), (2, 4), ValueError, r"K of shape \(2, 4\) is larger than X of shape \(3, 3\)"),
        (d2l.corr2d_multi_in, (3, 3), (2, 2), ValueError, r"X must have shape \(channels, h, w\), got \(3, 3\)"),
        (d2l.corr2d_multi_in, (2, 3, 3), (2, 2), ValueError, r"K must have shape \(channels, kh, kw\)"),
        (d2l.corr2d_multi_in, (2, 3, 3), (3, 2, 2), ValueError, r"K must have shape \(2, kh, kw\), .* got \(3, 2, 2\)"),
        (d2l.corr2d_multi_in_out, (2, 3, 3), (2, 2, 2), ValueError, r"K must have shape \(out_channels, channels, kh"),
        (d2l.corr2d_multi_in_out, (2, 3, 3), (1, 3, 2, 2), ValueError, r"K must have shape \(out_channels, 2, kh"),
        (d2l.corr2d_multi_in_out, (2, 3, 3), (1, 2, 4, 1), ValueError, r"K of shape \(1, 2, 4, 1\) is larger than X"),
        (d2l.corr2d_multi_in_out_1x1, (2, 3, 3), (1, 3, 1, 1), ValueError, r"K must have shape \(out_channels, 2, kh"),
        (d2l.corr2d_multi_in_out_1x1, (2, 3, 3), (1, 2, 1, 2), ValueError, r"K must have .* 1, 1\), got \(1, 2, 1, 2"),
    ],
)
def test_shapes_that_do_not_fit_are_named(function, X, K, error, message):
    with pytest.raises(error, match=message):
        function(np.ones(X), np.ones(K))


@pytest.mark.parametrize("function", [d2l.corr2d_multi_in_out, d2l.corr2d_multi_in_out_1x1])
def test_what_is_no_array_of_numbers_is_named(function):
    X, K = np.ones((2, 3, 3)), np.ones((1, 2, 1, 1))
    with pytest.raises(TypeError, match=r"X must be an array of shape \(channels, h, w\), got list"):
        function(X.tolist(), K)
    with pytest.raises(TypeError, match=r"K must be an array of shape \(out_channels, .* got NoneType"):
        function(X, None)
    with pytest.raises(TypeError, match="X must hold numbers, got an array of <U1"):
        function(np.full(X.shape, "a"), K)
    with pytest.raises(TypeError, match="K must hold numbers, got an array of object"):
        function(X, K.astype(object))
    with pytest.raises(TypeError, match="X is a masked array, whose mask would be lost"):
        function(np.ma.array(X), K)
    with pytest.raises(TypeError, match="X and K must hold numbers, at least one of them; got two boolean arrays"):
        function(X.astype(bool), K.astype(bool))
