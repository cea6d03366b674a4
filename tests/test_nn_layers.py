"""Layers that bend: activations, dropout, batch normalisation; gradients against differences, all against PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_nn import EPS, TOLERANCE, Make, case, central_difference, spread

from npconv import nn

pytestmark = pytest.mark.usefixtures("on_backend")

CURVED = [
    case(nn.Sigmoid, 3, 4),
    case(nn.SiLU, 2, 3, 2),
    case(nn.Hardswish, 5, 3),
    case(nn.ReLU6, 5, 3),
    case(lambda: nn.BatchNorm(3, dtype="float64"), 4, 3),
    case(lambda: nn.BatchNorm1d(2, affine=False), 3, 2, 4),
    case(lambda: nn.BatchNorm2d(2, eps=0.1, momentum=None, dtype="float64"), 2, 2, 2, 3),
    case(lambda: nn.BatchNorm3d(1, track_running_stats=False, dtype="float64"), 2, 1, 2, 2, 2),
]


def check_curved_gradients(layer: nn.Module, x: np.ndarray) -> None:
    """Compare all gradients of ``sum(r * layer(x))`` with central differences whose error is estimated beside them.

    The error of a central difference falls as the square of its step, so that of the half step is a third of what the
    two differ by, up to higher orders, and three times it is bounded by that difference. Rounding adds, as in
    `check_gradients` of test_nn.py with values below 8, at most 8 * m**2 * eps over the step.
    """
    y = layer(x)
    r = spread(y.shape, 2)
    dx = layer.backward(r)
    h = 2.0**-10

    def f() -> float:
        return float((r * layer(x)).sum())

    def check(grad: np.ndarray, array: np.ndarray, name: str) -> None:
        coarse, fine = central_difference(f, array, h), central_difference(f, array, h / 2)
        bound = abs(coarse - fine).max() + 16 * (x.size + y.size) ** 2 * EPS / h
        assert bound < 1e-4, "too coarse to see a wrong gradient"
        assert grad.shape == array.shape
        np.testing.assert_allclose(grad, fine, rtol=0, atol=bound, err_msg=name)

    check(dx, x, "x")
    for name, parameter in layer.named_parameters():
        check(parameter.grad, parameter.value, name)


@pytest.mark.parametrize(("make", "shape"), CURVED)
def test_gradients_equal_central_differences(make: Make, shape: tuple[int, ...]) -> None:
    layer, rng = make(), np.random.default_rng(1)
    for parameter in layer.parameters():
        parameter.value = rng.uniform(0.5, 1.5, parameter.value.shape)
    # Beyond the kinks at -3, 0, 3 and 6 on both sides, and from each of them by more than a step.
    x = 8 * spread(shape, 3) + 1 / 64
    assert abs(x[..., None] - [-3, 0, 3, 6]).min() > 2.0**-9
    check_curved_gradients(layer, x)


@pytest.mark.parametrize(("make", "shape"), CURVED)
def test_layers_write_into_nothing_and_serve_one_backward_pass(make: Make, shape: tuple[int, ...]) -> None:
    layer, x = make(), spread(shape, 3)
    with pytest.raises(RuntimeError, match="backward needs a forward pass in training mode"):
        layer.backward(x)
    x.setflags(write=False)
    for parameter in layer.parameters():
        parameter.value.setflags(write=False)
    dy = np.ones_like(layer(x))
    dy.setflags(write=False)
    with pytest.raises(ValueError, match="dy must have shape"):
        layer.backward(np.ones((1,) * dy.ndim))
    layer(x)
    assert layer.backward(dy).shape == shape
    with pytest.raises(RuntimeError, match="each forward pass serves one backward pass"):
        layer.backward(dy)
    layer.eval()(x)
    with pytest.raises(RuntimeError, match=r"in evaluation mode: call train\(\) first"):
        layer.backward(dy)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("make", "shape"), CURVED)
def test_layers_keep_the_dtype(make: Make, shape: tuple[int, ...], dtype: str) -> None:
    layer = make()
    for entry in [*layer.parameters()]:
        entry.value = entry.value.astype(dtype)
    y = layer(spread(shape, 0).astype(dtype))
    assert y.dtype == dtype
    assert layer.backward(y).dtype == dtype
    assert layer.eval()(spread(shape, 0).astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("Sigmoid", (), (3, 4, 5)),
        ("SiLU", (), (3, 4, 5)),
        ("ReLU6", (), (3, 4, 5)),
        ("Hardswish", (), (3, 4, 5)),
        ("BatchNorm1d", (4,), (6, 4)),
        ("BatchNorm1d", (4, 1e-3, 0.3), (3, 4, 5)),
        ("BatchNorm2d", (3, 1e-5, None), (2, 3, 4, 5)),
        ("BatchNorm2d", (3, 1e-5, 0.1, False), (2, 3, 4, 5)),
        ("BatchNorm2d", (3, 1e-5, 0.1, True, False), (2, 3, 4, 5)),
        ("BatchNorm3d", (2,), (2, 2, 3, 2, 4)),
    ],
)
def test_layers_equal_pytorch_in_both_modes(name: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, name)(*args).double()
    ours = getattr(nn, name)(*args, **({"dtype": "float64"} if "Norm" in name else {}))
    rng = np.random.default_rng(0)
    state = {
        k: np.asarray(rng.uniform(0.5, 2, v.shape)).astype(str(v.dtype)[6:]) for k, v in theirs.state_dict().items()
    }
    if "num_batches_tracked" in state:
        state["num_batches_tracked"] = np.array(0)
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    for _ in range(3):
        x, dy = 4 * rng.standard_normal(shape), rng.standard_normal(shape)
        tx = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        ours.zero_grad()
        ty = theirs(tx)
        ty.backward(torch.tensor(dy))
        np.testing.assert_allclose(ours(x), ty.detach().numpy(), **TOLERANCE)
        np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), **TOLERANCE)
        for (key, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            np.testing.assert_allclose(mine.grad, other.grad.numpy(), **TOLERANCE, err_msg=key)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), **TOLERANCE, err_msg=key)
    np.testing.assert_allclose(ours.eval()(x), theirs.eval()(torch.tensor(x)).detach().numpy(), **TOLERANCE)


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_sigmoid_is_right_for_every_number(value: float) -> None:
    # Two exponentials and a division, each right to about an ulp; the reference's too. exp(-746) is 0.
    layer = nn.Sigmoid()
    expected = 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
    got = layer(np.array([value]))
    np.testing.assert_allclose(got, expected, rtol=8 * EPS, atol=1e-323)
    np.testing.assert_allclose(got + layer(np.array([-value])), 1, rtol=4 * EPS)


# --------------------------------------------------------------------------------------------------------------------
# Dropout
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nothing_passes_where_a_rectifier_cut_off(make: Callable[[], nn.Module], dtype: str) -> None:
    layer = make()
    for order in (slice(None), slice(None, None, -1)):  # the second is no array in C order
        layer(np.array([-1, 0, 2, 3, -2], dtype)[order])
        dy = np.array([np.inf, np.nan, -5, np.inf, 1], dtype)[order]
        np.testing.assert_array_equal(layer.backward(dy), np.array([0, 0, -5, np.inf, 0], dtype)[order])


def test_a_mask_is_not_lost() -> None:
    with pytest.raises(TypeError, match=r"x is a masked array, whose mask would be lost; fill it first"):
        nn.ReLU()(np.ma.masked_less(np.ones(3), 2))


def test_dropout_drops_a_share_and_keeps_the_mean() -> None:
    n, p = 40_000, 0.3
    layer = nn.Dropout(p, rng=0)
    y = layer(np.ones(n))
    np.testing.assert_array_equal(np.unique(y), [0, 1 / (1 - p)])
    # A binomial share: 5 deviations, for a seed that is fixed.
    assert (y == 0).mean() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))
    dy = np.arange(1.0, n + 1)
    np.testing.assert_array_equal(layer.backward(dy), np.where(y == 0, 0, dy / (1 - p)))


def test_dropout_draws_anew_and_a_seed_repeats_it() -> None:
    x = np.ones((10, 10), "float32")
    a, b = nn.Dropout(rng=3), nn.Dropout(rng=3)
    first = a(x)
    np.testing.assert_array_equal(first, b(x))
    assert (first != a(x)).any()
    twin = copy.deepcopy(a)
    np.testing.assert_array_equal(twin(x), a(x))
    assert first.dtype == np.float32
    assert a.backward(x).dtype == np.float32


def test_dropout_at_its_ends_and_in_evaluation_mode() -> None:
    x = spread((5, 5), 0)
    np.testing.assert_array_equal(nn.Dropout(0.0)(x), x)
    all_gone = nn.Dropout(1.0)
    np.testing.assert_array_equal(all_gone(x), 0 * x)
    np.testing.assert_array_equal(all_gone.backward(x), 0 * x)
    assert nn.Dropout(0.9).eval()(x) is x
    assert repr(nn.Dropout(0.25)) == "Dropout(p=0.25)"
    with pytest.raises(RuntimeError, match="evaluation mode"):
        all_gone.eval().backward(x)


# --------------------------------------------------------------------------------------------------------------------
# Batch normalisation
# --------------------------------------------------------------------------------------------------------------------


def test_an_empty_batch_changes_no_statistics() -> None:
    layer = nn.BatchNorm2d(3)
    before = layer.state_dict()
    y = layer(np.zeros((0, 3, 4, 4), "float32"))
    assert y.shape == (0, 3, 4, 4)
    assert layer.backward(y).shape == y.shape
    assert (layer.weight.grad == 0).all()
    assert layer.eval()(y).shape == y.shape
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_running_statistics_survive_a_round_trip() -> None:
    layer, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for seed in range(3):
        layer(spread((4, 2), seed).astype("float32"))
    assert layer.num_batches_tracked.value == 3
    other.load_state_dict(layer.state_dict())
    x = spread((3, 2), 9).astype("float32")
    np.testing.assert_array_equal(other.eval()(x), layer.eval()(x))
    assert other.state_dict()["num_batches_tracked"].dtype == np.int64
    assert repr(nn.BatchNorm2d(8, momentum=None, affine=False)) == "BatchNorm2d(8, momentum=None, affine=False)"


def test_batch_norm_does_not_mind_an_offset() -> None:
    # The variance comes from centred numbers: those of sum(x**2) - mean**2 would be gone at 1e6 in float32.
    x = spread((64, 1, 4, 4), 0)
    near, far = nn.BatchNorm2d(1, dtype="float64"), nn.BatchNorm2d(1, dtype="float64")
    # x + 1e6 is rounded to 1e6 eps, and the deviation of x is above one half.
    np.testing.assert_allclose(far(x + 1e6), near(x), atol=1e6 * EPS * 100, rtol=0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3))
def test_batch_norm_normalises_and_its_gradient_is_orthogonal(seed: int, n: int, c: int, spatial: list[int]) -> None:
    shape = (n, c, *spatial)
    layer, rng = nn.BatchNorm(c, eps=0.0, dtype="float64"), np.random.default_rng(seed)
    y = layer(rng.standard_normal(shape))
    axes = (0, *range(2, len(shape)))
    m = math.prod(shape) // c
    # Two elements may lie close: what their difference lacks in digits, the result lacks.
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-6)
    np.testing.assert_allclose((y * y).mean(axis=axes), 1, rtol=1e-6)
    dx = layer.backward(rng.standard_normal(shape))
    # The result knows neither offset nor scale of its input, so the gradient has no part along either.
    scale = abs(dx).sum(axis=axes) + 1
    assert (abs(dx.sum(axis=axes)) <= 1e-6 * scale * m).all()
    assert (abs((dx * y).sum(axis=axes)) <= 1e-6 * scale * m).all()


# --------------------------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.Dropout(1.5), ValueError, "p must be from 0 to 1, got 1.5"),
        (lambda: nn.Dropout(-0.1), ValueError, "p must be finite and zero or more, got -0.1"),
        (lambda: nn.Dropout("half"), TypeError, "p must be a number"),
        (lambda: nn.Dropout(rng="seed"), TypeError, "rng must be None, a seed"),
        (lambda: nn.BatchNorm2d(0), ValueError, "num_features must be positive"),
        (lambda: nn.BatchNorm2d(2, eps=-1), ValueError, "eps must be finite and zero or more"),
        (lambda: nn.BatchNorm2d(2, momentum=2), ValueError, "momentum must be from 0 to 1, got 2"),
        (lambda: nn.BatchNorm2d(2, affine=1), TypeError, "affine must be True or False"),
        (lambda: nn.BatchNorm2d(2, track_running_stats=None), TypeError, "track_running_stats must be True or False"),
        (lambda: nn.BatchNorm2d(2, dtype="int8"), TypeError, "dtype must be float16, float32 or float64"),
    ],
)
def test_what_is_built_wrong_says_why(build: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("make", "x", "error", "match"),
    [
        (nn.Sigmoid, np.array([1]), TypeError, "x must be of a floating dtype, got int64"),
        (nn.SiLU, [1.0], TypeError, "x must be a NumPy or CuPy array"),
        (nn.Hardswish, np.array([1j]), TypeError, "x must be of a floating dtype, got complex128"),
        (nn.ReLU6, [1.0], TypeError, "x must be a NumPy or CuPy array"),
        (nn.Dropout, np.array([1]), TypeError, "x must be of a floating dtype, got int64"),
        (lambda: nn.BatchNorm2d(2), np.ones((2, 2)), ValueError, r"x must have 4 dimensions.* got shape \(2, 2\)"),
        (lambda: nn.BatchNorm1d(2), np.ones(2), ValueError, "x must have 2 or 3 dimensions"),
        (lambda: nn.BatchNorm(2), np.ones(2), ValueError, "x must have at least 2 dimensions"),
        (lambda: nn.BatchNorm1d(2), np.ones((4, 3)), ValueError, r"x must have 2 channels.* got shape \(4, 3\)"),
        (lambda: nn.BatchNorm1d(2), np.ones((4, 2), int), TypeError, "x must be of a floating dtype"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_does_not_fit_says_why(
    make: Make, x: Any, error: type[Exception], match: str, training: bool
) -> None:
    with pytest.raises(error, match=match):
        make().train(training)(x)


def test_one_element_has_no_variance() -> None:
    layer = nn.BatchNorm2d(2)
    with pytest.raises(ValueError, match="x must have more than one element per channel"):
        layer(np.ones((1, 2, 1, 1)))
    assert layer.eval()(np.ones((1, 2, 1, 1))).shape == (1, 2, 1, 1)
