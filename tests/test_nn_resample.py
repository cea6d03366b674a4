"""Layers that change the size: transposed convolution, adaptive pooling, upsampling; differences, PyTorch, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_nn import EPS, TOLERANCE, Make, case, check_gradients, spread, wide

from npconv import nn

pytestmark = pytest.mark.usefixtures("on_backend")

LINEAR = [
    case(wide(nn.ConvTranspose1d, 2, 3, 3, stride=2, padding=1, output_padding=1), 2, 2, 4),
    case(wide(nn.ConvTranspose1d, 1, 2, 3, dilation=3, output_padding=2, bias=False), 2, 1, 3),
    case(wide(nn.ConvTranspose1d, 2, 2, 2, stride=3, output_padding=2), 2, 3),
    case(wide(nn.ConvTranspose2d, 2, 4, (3, 2), stride=(1, 2), padding=(2, 0), groups=2), 1, 2, 3, 2),
    case(wide(nn.ConvTranspose2d, 2, 1, 2, stride=2), 2, 2, 2, 2),
    case(wide(nn.ConvTranspose3d, 1, 2, 2, stride=2, padding=1), 1, 1, 2, 3, 2),
    case(wide(nn.ConvTranspose, 1, 1, (1, 2, 1, 2)), 1, 1, 2, 2, 1, 2),
    case(lambda: nn.GlobalAvgPool(), 2, 3, 2, 3),
    case(lambda: nn.AdaptiveAvgPool1d(3), 2, 2, 7),
    case(lambda: nn.AdaptiveAvgPool2d((2, 5)), 2, 2, 4, 3),
    case(lambda: nn.AdaptiveAvgPool3d(2), 1, 2, 3, 2, 4),
    case(lambda: nn.AdaptiveAvgPool(1), 1, 2, 3, 3),
    case(lambda: nn.Upsample(scale_factor=2), 1, 2, 2, 3),
    case(lambda: nn.Upsample(size=(5, 2)), 1, 2, 3, 3),
    case(lambda: nn.Upsample(scale_factor=3, mode="linear"), 2, 2, 3),
    case(lambda: nn.Upsample(size=(5, 2), mode="bilinear"), 1, 2, 3, 4),
    case(lambda: nn.Upsample(scale_factor=(2, 1), mode="bilinear", align_corners=True), 1, 2, 2, 3),
    case(lambda: nn.Upsample(scale_factor=2, mode="trilinear"), 1, 1, 2, 1, 2),
]


@pytest.mark.parametrize(("make", "shape"), LINEAR)
def test_gradients_equal_central_differences(backend: str, make: Make, shape: tuple[int, ...]) -> None:
    check_gradients(make(), spread(shape, 3), 0.5)


@pytest.mark.parametrize(("make", "shape"), LINEAR)
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
        layer.backward(np.ones((1,) * (dy.ndim + 1)))
    layer(x)
    assert layer.backward(dy).shape == shape
    with pytest.raises(RuntimeError, match="each forward pass serves one backward pass"):
        layer.backward(dy)
    y = layer(x)
    np.testing.assert_array_equal(layer.eval()(x), y)
    with pytest.raises(RuntimeError, match=r"in evaluation mode: call train\(\) first"):
        layer.backward(dy)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("make", "shape"), LINEAR)
def test_layers_keep_the_dtype(make: Make, shape: tuple[int, ...], dtype: str) -> None:
    layer = make()
    for parameter in layer.parameters():
        parameter.value = parameter.value.astype(dtype)
    y = layer(spread(shape, 0).astype(dtype))
    assert y.dtype == dtype
    assert layer.backward(y).dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"),
    [
        ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, (3, 4, 5)),
        ("ConvTranspose1d", (4, 6, 3, 1, 0, 2, 2, False, 3), {}, (4, 5)),
        ("ConvTranspose2d", (3, 5, (3, 4)), {"stride": (2, 3), "padding": (1, 2)}, (2, 3, 4, 5)),
        ("ConvTranspose2d", (4, 4, 3), {"padding": 3, "dilation": 2, "groups": 4}, (2, 4, 6, 5)),
        ("ConvTranspose3d", (2, 3, 2), {"stride": 2, "output_padding": (1, 0, 1)}, (1, 2, 2, 3, 2)),
        ("AdaptiveAvgPool1d", (3,), {}, (2, 3, 8)),
        ("AdaptiveAvgPool2d", ((4, 3),), {}, (2, 3, 6, 6)),
        ("AdaptiveAvgPool2d", (7,), {}, (2, 3, 5, 6)),
        ("AdaptiveAvgPool3d", ((2, 1, 3),), {}, (2, 3, 3, 4, 5)),
        ("Upsample", (), {"scale_factor": 3}, (2, 3, 5)),
        ("Upsample", ((7, 4),), {}, (2, 3, 4, 8)),
        ("Upsample", (), {"scale_factor": 2, "mode": "linear"}, (2, 3, 5)),
        ("Upsample", (), {"scale_factor": (2, 3), "mode": "bilinear"}, (2, 3, 4, 5)),
        ("Upsample", ((9, 3),), {"mode": "bilinear", "align_corners": False}, (2, 3, 4, 5)),
        ("Upsample", ((9, 1),), {"mode": "bilinear", "align_corners": True}, (2, 3, 4, 5)),
        ("Upsample", (), {"scale_factor": 2, "mode": "trilinear"}, (1, 2, 2, 3, 2)),
    ],
)
def test_layers_equal_pytorch(
    backend: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, name)(*args, **kwargs).double()
    ours = getattr(nn, name)(*args, **kwargs, **({"dtype": "float64"} if theirs.state_dict() else {}))
    ours.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    dy = rng.standard_normal(tuple(ty.shape))
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(ours(x), ty.detach().numpy(), **TOLERANCE)
    np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), **TOLERANCE)
    for (key, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), **TOLERANCE, err_msg=key)


@given(st.data())
def test_a_transposed_convolution_undoes_the_sizes_of_a_convolution(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    size, kernel, stride, padding, dilation = draw(4, 9), draw(1, 3), draw(1, 3), draw(0, 2), draw(1, 2)
    span = (kernel - 1) * dilation + 1
    down = nn.Conv1d(2, 3, kernel, stride, padding, dilation, bias=False, rng=0, dtype="float64")
    if size + 2 * padding < span:
        return
    x = spread((1, 2, size), 1)
    y = down(x)
    extra = (size + 2 * padding - span) % stride
    up = nn.ConvTranspose1d(3, 2, kernel, stride, padding, extra, 1, False, dilation, rng=0, dtype="float64")
    up.load_state_dict(down.state_dict())
    back = up(y)
    assert back.shape == x.shape
    # One is the adjoint of the other: <down(x), y> = <x, up(y)>, sums of at most 9 * 9 * 6 products below 10.
    np.testing.assert_allclose((y * y).sum(), (x * back).sum(), rtol=0, atol=500**2 * 10 * EPS)
    np.testing.assert_allclose(up.backward(x), down(x), rtol=0, atol=500**2 * EPS)
    down.backward(y)
    np.testing.assert_allclose(up.weight.grad, down.weight.grad, rtol=0, atol=500**2 * EPS)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["adaptive", "nearest", "linear", "corners"]))
def test_resampling_keeps_a_constant_and_the_sum_of_a_gradient(size: int, out: int, kind: str) -> None:
    layer = {
        "adaptive": lambda: nn.AdaptiveAvgPool1d(out),
        "nearest": lambda: nn.Upsample(out),
        "linear": lambda: nn.Upsample(out, mode="linear"),
        "corners": lambda: nn.Upsample(out, mode="linear", align_corners=True),
    }[kind]()
    # Weights of each element sum to 1: at most 9 roundings of numbers up to 1, and of sums up to 9.
    np.testing.assert_allclose(layer(np.ones((1, 1, size))), np.ones((1, 1, out)), rtol=0, atol=9 * EPS)
    dy = spread((1, 1, out), size)
    np.testing.assert_allclose(layer.backward(dy).sum(), dy.sum(), rtol=0, atol=9 * 9 * 9 * EPS)


def test_an_infinity_stays_where_it_is() -> None:
    x = np.array([[[1.0, np.inf, 2.0, 3.0]]])
    np.testing.assert_array_equal(nn.AdaptiveAvgPool1d(2)(x), [[[np.inf, 2.5]]])
    np.testing.assert_array_equal(nn.Upsample(scale_factor=2)(x), np.repeat(x, 2, axis=2))


def test_an_empty_batch_goes_through(backend: str) -> None:
    for make, shape in (case_.values for case_ in LINEAR):
        if len(shape) != 2:
            layer, x = make(), np.zeros((0, *shape[1:]))
            y = layer(x)
            assert y.shape[0] == 0
            assert layer.backward(y).shape == x.shape


def test_a_step_between_forward_and_backward_does_not_disturb_it() -> None:
    layer, x = nn.ConvTranspose2d(2, 3, 3, rng=0, dtype="float64"), spread((1, 2, 3, 3), 0)
    dy = np.ones_like(layer(x))
    expected = layer.backward(dy)
    layer(x)
    nn.SGD(layer.parameters(), 0.1).step()
    np.testing.assert_array_equal(layer.backward(dy), expected)


def test_layers_print_themselves() -> None:
    assert repr(nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, bias=False)) == (
        "ConvTranspose2d(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1), bias=False)"
    )
    assert repr(nn.ConvTranspose2d(2, 4, 3)) == "ConvTranspose2d(2, 4, kernel_size=(3, 3))"
    assert repr(nn.AdaptiveAvgPool2d(7)) == "AdaptiveAvgPool2d(output_size=(7, 7))"
    assert repr(nn.GlobalAvgPool()) == "GlobalAvgPool()"
    assert repr(nn.Upsample(scale_factor=2)) == "Upsample(scale_factor=2, mode='nearest')"
    assert repr(nn.Upsample(4, mode="bilinear")) == "Upsample(size=(4, 4), mode='bilinear')"


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.ConvTranspose(1, 1, 3), ValueError, "kernel_size must be a tuple.* for ConvTranspose"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, groups=2), ValueError, "groups must divide in_channels"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, padding=-1), ValueError, "padding must be zero or more, got -1"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, padding="same"), TypeError, "padding must be an integer, got 'same'"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, output_padding=1), ValueError, "output_padding must be smaller than"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, bias=1), TypeError, "bias must be True or False"),
        (lambda: nn.AdaptiveAvgPool2d(0), ValueError, "output_size must be positive"),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), ValueError, "output_size must be an integer or a tuple of 2"),
        (lambda: nn.Upsample(), ValueError, "either size or scale_factor must be given"),
        (lambda: nn.Upsample(2, 2), ValueError, "either size or scale_factor must be given"),
        (lambda: nn.Upsample(2, mode="cubic"), ValueError, "mode must be one of 'nearest', 'linear'.* got 'cubic'"),
        (lambda: nn.Upsample(scale_factor=1.5), TypeError, "scale_factor must be an integer, got 1.5"),
        (lambda: nn.Upsample(2, align_corners=False), ValueError, "align_corners is not for mode 'nearest'"),
        (lambda: nn.Upsample(2, mode="linear", align_corners=1), TypeError, "align_corners must be True or False"),
        (lambda: nn.Upsample((2, 2, 2), mode="bilinear"), ValueError, "size must be an integer or a tuple of 2"),
    ],
)
def test_what_is_built_wrong_says_why(build: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("make", "x", "error", "match"),
    [
        (lambda: nn.ConvTranspose2d(2, 3, 3), np.ones((1, 3, 5, 5)), ValueError, "x has 3 channels"),
        (lambda: nn.AdaptiveAvgPool2d(1), np.ones((3, 4, 4)), ValueError, "x must have 4 dimensions"),
        (lambda: nn.GlobalAvgPool(), np.ones((3, 4)), ValueError, "x must have at least 3 dimensions"),
        (lambda: nn.GlobalAvgPool(), np.ones((3, 4, 0)), ValueError, "x must not be empty along an axis"),
        (lambda: nn.GlobalAvgPool(), np.ones((3, 4, 2), int), TypeError, "x must be of a floating dtype"),
        (
            lambda: nn.AdaptiveAvgPool((2, 2)),
            np.ones((3, 4, 2)),
            ValueError,
            "output_size must be an integer or a tuple",
        ),
        (lambda: nn.Upsample(2, mode="bilinear"), np.ones((3, 4, 2)), ValueError, "x must have 2 axes after batch"),
        (lambda: nn.Upsample((2, 2)), np.ones((3, 4, 2)), ValueError, "size must be an integer or a tuple of 1"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_does_not_fit_says_why(
    make: Make, x: Any, error: type[Exception], match: str, training: bool
) -> None:
    with pytest.raises(error, match=match):
        make().train(training)(x)
