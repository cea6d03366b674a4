"""Branches and blocks: residuals, joined kernels of several sizes, depthwise blocks; differences, PyTorch, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_nn import TOLERANCE, Make, case, check_gradients, spread, wide
from test_nn_layers import check_curved_gradients

import npconv as nc
from npconv import nn

pytestmark = pytest.mark.usefixtures("on_backend")

LINEAR = [
    case(lambda: nn.Add(wide(nn.Conv2d, 2, 2, 3, padding=1)(), nn.Sequential()), 1, 2, 3, 3),
    case(lambda: nn.Add(wide(nn.Linear, 3, 2)(), wide(nn.Linear, 3, 2)(), wide(nn.Linear, 3, 2)()), 2, 3),
    case(lambda: nn.Concat(wide(nn.Conv2d, 1, 2, 1)(), wide(nn.Conv2d, 1, 1, 3, padding=1)()), 2, 1, 3, 3),
    case(lambda: nn.Concat(nn.AvgPool1d(2), nn.Sequential(), axis=2), 2, 2, 4),
    case(lambda: nn.Concat(nn.Sequential(), nn.Add(nn.Sequential(), nn.Sequential()), axis=0), 3),
]


@pytest.mark.parametrize(("make", "shape"), LINEAR)
def test_gradients_equal_central_differences(backend: str, make: Make, shape: tuple[int, ...]) -> None:
    check_gradients(make(), spread(shape, 3), 0.5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        case(wide(nn.Depthwise, 2, activation=nn.SiLU), 2, 2, 3, 3),
        case(wide(nn.DepthwiseSeparable, 2, 3, stride=2, activation=None), 2, 2, 4, 4),
        case(wide(nn.DepthwiseSeparable, 2, 2, (3,), activation=nn.Sigmoid), 3, 2, 4),
    ],
)
def test_gradients_of_blocks_equal_central_differences(backend: str, make: Make, shape: tuple[int, ...]) -> None:
    check_curved_gradients(make(), 4 * spread(shape, 3))


@pytest.mark.parametrize(("make", "shape"), LINEAR)
def test_a_branch_serves_one_backward_pass(make: Make, shape: tuple[int, ...]) -> None:
    layer, x = make(), spread(shape, 3)
    x.setflags(write=False)
    y = layer(x)
    with pytest.raises(ValueError, match="dy must have shape"):
        layer.backward(np.ones((1,) * (y.ndim + 1)))
    y = layer(x)
    y.setflags(write=False)
    assert layer.backward(y).shape == shape
    with pytest.raises(RuntimeError, match="each forward pass serves one backward pass"):
        layer.backward(y)
    np.testing.assert_array_equal(layer.eval()(x), y)
    with pytest.raises(RuntimeError, match=r"in evaluation mode: call train\(\) first"):
        layer.backward(y)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 2))
def test_joining_is_concatenating(sizes: list[int], axis: int) -> None:
    class Repeat(nn.Module):
        def __init__(self, times: int) -> None:
            self.times = times

        def forward(self, x: Any) -> Any:
            return np.concatenate([x] * self.times, axis)

        def backward(self, dy: Any) -> Any:
            return sum(np.split(dy, self.times, axis))

    layer, x = nn.Concat(*map(Repeat, sizes), axis=axis), spread((2, 3, 2), 0)
    y = layer(x)
    np.testing.assert_array_equal(y, np.concatenate([x] * sum(sizes), axis))
    np.testing.assert_allclose(layer.backward(y), sum(sizes) * x, rtol=1e-14)


def test_a_residual_network_equals_pytorch(backend: str) -> None:
    torch = pytest.importorskip("torch")
    t = torch.nn
    ours = nn.Sequential(
        nn.DepthwiseSeparable(3, 4, stride=2, rng=0, dtype="float64"),
        nn.Add(nn.Depthwise(4, rng=1, dtype="float64"), nn.Sequential()),
        nn.GlobalAvgPool(),
        nn.Flatten(),
    )
    body = t.Sequential(t.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), t.BatchNorm2d(4), t.ReLU()).double()
    head = t.Sequential(
        t.Conv2d(3, 3, 3, 2, 1, groups=3, bias=False), t.BatchNorm2d(3), t.ReLU(),
        t.Conv2d(3, 4, 1, bias=False), t.BatchNorm2d(4), t.ReLU(),
    ).double()  # fmt: skip
    # The names are PyTorch's, so the weights move over as they are.
    ours[0].load_state_dict(head.state_dict())
    ours[1][0].load_state_dict(body.state_dict())
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 6, 7)), rng.standard_normal((2, 4))
    tx = torch.tensor(x, requires_grad=True)
    z = head(tx)
    y = (body(z) + z).mean(dim=(2, 3))
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(ours(x), y.detach().numpy(), **TOLERANCE)
    np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), **TOLERANCE)
    theirs = [*head.parameters(), *body.parameters()]
    for (name, mine), other in zip(ours.named_parameters(), theirs, strict=True):
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), **TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.ConvNorm(2, 3, rng=0), nn.Conv2d(3, 2, 3, rng=1)), nn.Linear(6, 4, rng=0)]
)
def test_gradients_of_parameters_alone_are_the_same(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 6), np.float32)
    asked: list[tuple[int, ...]] = []
    plain = nc.conv_input_grad

    def watched(dy: np.ndarray, w: np.ndarray, shape: tuple[int, ...], *rest: Any, **how: Any) -> np.ndarray:
        asked.append(shape)
        return plain(dy, w, shape, *rest, **how)

    def gradients(send: Callable[[np.ndarray], object]) -> list[np.ndarray]:
        model.zero_grad()
        send(np.ones_like(model(x)))
        return [parameter.grad for parameter in model.parameters()]

    monkeypatch.setattr(nc, "conv_input_grad", watched)
    with nc.use_backend("numpy"):
        expected, before = gradients(model.backward), asked.count(x.shape)
        found = gradients(model.backward_parameters)
    assert asked.count(x.shape) == before, "the input's gradient was computed"
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_backward_pass_of_ones_own_is_not_passed_over() -> None:
    called: list[object] = []

    class Mine(nn.Sequential):
        def backward(self, dy: np.ndarray) -> np.ndarray:
            called.append(self)
            return super().backward(dy)

    class Line(nn.Linear):
        def backward(self, dy: np.ndarray) -> np.ndarray:
            called.append(self)
            return super().backward(dy)

    line = Line(3, 2, rng=0)
    model = Mine(nn.Sequential(line))
    y = model(np.ones((1, 3), np.float32))
    model.backward_parameters(y)
    assert called == [model, line]


def test_slices_and_printing() -> None:
    mixed = nn.Concat(nn.ReLU(), nn.Sigmoid(), nn.SiLU(), axis=2)
    assert type(mixed[1:]) is nn.Concat
    assert mixed[1:].axis == 2
    assert mixed[1:][0] is mixed[1]
    block = nn.DepthwiseSeparable(4, 8, (3, 3, 3), activation=nn.ReLU6)
    assert type(block[:3]) is nn.Sequential
    assert [type(layer).__name__ for layer in block] == ["Conv", "BatchNorm", "ReLU6"] * 2
    assert block(np.ones((1, 4, 2, 3, 2), "float32")).shape == (1, 8, 2, 3, 2)
    assert repr(mixed[:1]) == "Concat(axis=2\n  (0): ReLU()\n)"
    assert repr(nn.Add(nn.ReLU())) == "Add(\n  (0): ReLU()\n)"


def test_layers_have_numbers_names_or_the_names_inside_them() -> None:
    first, last = nn.Linear(2, 3), nn.Linear(3, 2)
    net = nn.Sequential(first, nn.ReLU(), head=nn.Sequential(**{"": last, "act": nn.ReLU()}))
    assert list(net.state_dict()) == ["0.weight", "0.bias", "head.weight", "head.bias"]
    assert net.head[0] is last
    assert [len(net), len(net[1:]), len(net[:2])] == [3, 2, 2]
    assert list(net[1:].state_dict()) == ["head.weight", "head.bias"]
    x = np.ones((4, 2), "float32")
    before = net(x)
    net.head = nn.Sequential()
    assert net(x).shape == (4, 3), "another layer under the name takes the place"
    assert before.shape == (4, 2)
    assert next(nn.Concat(nn.ReLU(), wide=nn.ReLU(), axis=2)[1:].named_children())[0] == "wide"
    assert repr(nn.Add(wide=nn.ReLU())) == "Add(\n  (wide): ReLU()\n)"


def test_one_seed_makes_one_block() -> None:
    a, b = (nn.DepthwiseSeparable(3, 3, 1, padding=0, rng=5) for _ in range(2))
    for mine, other in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(mine.value, other.value)
    assert (a[0].weight.value.ravel() != a[3].weight.value.ravel()[:3]).all(), "its two convolutions differ"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: nn.Add(), ValueError, "layers must not be empty"),
        (lambda: nn.Concat(), ValueError, "layers must not be empty"),
        (lambda: nn.Add(nn.ReLU), TypeError, r"layers\[0\] must be a Module"),
        (lambda: nn.Concat(nn.ReLU(), axis=-1), ValueError, "axis must be zero or more, got -1"),
        (lambda: nn.Concat(nn.ReLU(), axis="1"), TypeError, "axis must be an integer"),
        (lambda: nn.Concat(nn.ReLU(), axis=2)(np.ones((2, 2))), ValueError, "axis is 2, but layers.0. gave shape"),
        (
            lambda: nn.Add(nn.Sequential(), nn.AvgPool1d(2))(np.ones((1, 1, 4))),
            ValueError,
            r"layers must give results of one shape; layers\[0\] gave \(1, 1, 4\) and layers\[1\] gave \(1, 1, 2\)",
        ),
        (
            lambda: nn.Concat(nn.Sequential(), nn.AvgPool1d(2))(np.ones((1, 1, 4))),
            ValueError,
            r"layers must give results of one shape but along axis 1",
        ),
        (lambda: nn.Depthwise(0), ValueError, "channels must be positive, got 0"),
        (lambda: nn.DepthwiseSeparable(0, 1), ValueError, "in_channels must be positive, got 0"),
        (lambda: nn.DepthwiseSeparable(1, 0), ValueError, "out_channels must be positive, got 0"),
        (lambda: nn.Depthwise(1, activation="relu"), TypeError, "activation must be None or make a Module, got 'relu'"),
        (lambda: nn.Depthwise(1, activation=int), TypeError, r"layers\[2\] must be a Module, got int"),
        (lambda: nn.Sequential(head=3), TypeError, "layer 'head' must be a Module, got int"),
        (lambda: nn.Sequential(forward=nn.ReLU()), ValueError, "layer 'forward' cannot have that name"),
        (lambda: nn.Sequential(**{"a.b": nn.ReLU()}), ValueError, "layer 'a.b' cannot have that name"),
        (lambda: nn.Sequential(nn.ReLU(), **{"0": nn.ReLU()}), ValueError, "'0'|layers.0. cannot have that name"),
        (
            lambda: nn.Add(**{"": nn.Sequential(head=nn.Linear(1, 1)), "head": nn.Linear(1, 1)}),
            ValueError,
            "two layers both have a 'head.weight'",
        ),
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
