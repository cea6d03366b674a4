"""Layers, losses and optimisers: gradients against differences, everything against PyTorch, state, modes, errors."""

from __future__ import annotations

import ast
import copy
import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npconv import nn

EPS = np.finfo(np.float64).eps
Make = Callable[[], nn.Module]


pytestmark = pytest.mark.usefixtures("on_backend")


def case(make: Make, *shape: int) -> Any:
    """One layer and the shape of its input; named as the layer prints."""
    return pytest.param(make, shape, id=f"{make()!r}".replace("\n", "")[:70] + "-" + "x".join(map(str, shape)))


def wide(layer: type[nn.Module], *args: Any, **kwargs: Any) -> Make:
    return lambda: layer(*args, rng=1, dtype="float64", **kwargs)


SMOOTH = [
    case(wide(nn.Conv1d, 2, 3, 3), 2, 2, 7),
    case(wide(nn.Conv1d, 2, 4, 3, stride=2, padding=((2, 1),), groups=2, bias=False), 2, 2, 6),
    case(wide(nn.Conv1d, 1, 2, 3, dilation=2, padding="causal"), 2, 1, 6),
    case(wide(nn.Conv2d, 2, 3, 3, padding=1), 2, 2, 4, 5),
    case(wide(nn.Conv2d, 3, 2, 1), 2, 3, 3, 4),
    case(wide(nn.Conv2d, 3, 3, 3, groups=3, padding="same"), 1, 3, 4, 4),
    case(wide(nn.Conv2d, 2, 2, (3, 2), stride=(1, 2), dilation=(1, 2)), 2, 6, 5),
    case(wide(nn.Conv2d, 2, 2, 3, padding=1, padding_mode="reflect"), 1, 2, 4, 4),
    case(wide(nn.Conv2d, 2, 2, 3, padding=(1, 2), padding_mode="replicate"), 1, 2, 3, 3),
    case(wide(nn.Conv2d, 1, 2, 3, padding=2, padding_mode="circular"), 1, 1, 4, 4),
    case(wide(nn.Conv3d, 2, 2, 2, padding=1, stride=2), 1, 2, 3, 4, 3),
    case(wide(nn.Conv, 1, 2, (2, 1, 2, 1)), 1, 1, 2, 2, 3, 2),
    case(wide(nn.Linear, 5, 3), 4, 5),
    case(wide(nn.Linear, 5, 3, bias=False), 2, 3, 5),
    case(wide(nn.Linear, 5, 3), 5),
    case(lambda: nn.AvgPool1d(3, stride=2, padding=1), 2, 2, 7),
    case(lambda: nn.AvgPool2d((2, 3), padding=(1, 0), ceil_mode=True, count_include_pad=False), 2, 2, 5, 7),
    case(lambda: nn.AvgPool3d(2, stride=1), 2, 3, 3, 4),
    case(lambda: nn.AvgPool(2), 1, 2, 4, 4),
    case(lambda: nn.Flatten(), 2, 3, 2, 2),
    case(
        lambda: nn.Sequential(
            wide(nn.Conv2d, 1, 2, 3)(), nn.AvgPool2d(2), nn.Sequential(nn.Flatten(), wide(nn.Linear, 8, 3)())
        ),
        *(2, 1, 6, 6),
    ),
]

KINKED = [
    case(lambda: nn.ReLU(), 3, 4, 2),
    case(lambda: nn.MaxPool1d(3, stride=2, padding=1), 2, 2, 7),
    case(lambda: nn.MaxPool2d((2, 3), stride=1, padding=(1, 0), dilation=(1, 2)), 2, 2, 4, 7),
    case(lambda: nn.MaxPool2d(2, ceil_mode=True), 3, 5, 5),
    case(lambda: nn.MaxPool3d((1, 2, 2)), 1, 2, 3, 4, 4),
    case(lambda: nn.MaxPool(2), 1, 2, 4, 4),
]


def spread(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """All different numbers within (-1, 1): neighbours `2 / n` apart, none nearer to 0 than `1 / (2 n)`."""
    n = math.prod(shape)
    return ((2 * np.random.default_rng(seed).permutation(n) - n + 0.5) / n).reshape(shape)


def central_difference(f: Callable[[], float], array: np.ndarray, h: float) -> np.ndarray:
    """The gradient of `f` in `array`, which is changed in place and restored, one element at a time."""
    grad = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + h
        above = f()
        array[index] = kept - h
        grad[index] = (above - f()) / (2 * h)
        array[index] = kept
    return grad


def check_gradients(layer: nn.Module, x: np.ndarray, h: float) -> None:
    """Compare the gradients of ``sum(r * layer(x))`` in `x` and in every parameter with central differences.

    In any one element that sum is a straight line over the step, so the difference quotient has no truncation error,
    and a step may be as long as the line. What is left is rounding. All numbers are below 1 in size (the moved one is
    below 2, but a rounding is eps / 2), so with `m` the elements of input and result, the sum has at most m**2 products
    below 1, in chains of at most m additions; its error is at most m**3 eps, the quotient's m**3 eps / h. A gradient
    with a wrong sign, place or factor is off by hundredths at least.
    """
    y = layer(x)
    r = spread(y.shape, 2)
    dx = layer.backward(r)
    layer.eval()

    def f() -> float:
        return float((r * layer(x)).sum())

    bound = (x.size + y.size) ** 3 * EPS / h
    assert bound < 1e-4, "too coarse to see a wrong gradient"
    assert dx.shape == x.shape
    np.testing.assert_allclose(dx, central_difference(f, x, h), rtol=0, atol=bound)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.value.shape
        numeric = central_difference(f, parameter.value, h)
        np.testing.assert_allclose(parameter.grad, numeric, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(("make", "shape"), SMOOTH)
def test_gradients_equal_central_differences(backend: str, make: Make, shape: tuple[int, ...]) -> None:
    check_gradients(make(), spread(shape, 3), 0.5)


@pytest.mark.parametrize(("make", "shape"), KINKED)
def test_gradients_beside_kinks_equal_central_differences(backend: str, make: Make, shape: tuple[int, ...]) -> None:
    # A step of a quarter of 1 / n reaches neither 0 nor, with both moved, a neighbour: the line has no kink on it.
    check_gradients(make(), spread(shape, 3), 0.25 / math.prod(shape))


def test_the_gradient_of_relu_is_0_at_0() -> None:
    layer = nn.ReLU()
    np.testing.assert_array_equal(layer(np.array([0.0, -0.0, np.nan])), [0.0, 0.0, np.nan])
    np.testing.assert_array_equal(layer.backward(np.array([1.0, np.inf, 1.0]))[:2], [0.0, 0.0])


@pytest.mark.parametrize(("make", "shape"), SMOOTH + KINKED)
def test_a_layer_writes_into_nothing_it_is_given(make: Make, shape: tuple[int, ...]) -> None:
    layer, x = make(), spread(shape, 3)
    x.setflags(write=False)
    for parameter in layer.parameters():
        parameter.value.setflags(write=False)
    dy = np.ones_like(layer(x))
    dy.setflags(write=False)
    layer.backward(dy)
    layer(x)
    layer.backward(dy)  # adds to gradients


# --------------------------------------------------------------------------------------------------------------------
# Cross-entropy
# --------------------------------------------------------------------------------------------------------------------


def test_cross_entropy_gradient_equals_central_differences() -> None:
    # log-sum-exp has a third derivative of at most 1 / (6 sqrt 3) < 0.1 in any one logit (a Bernoulli variable's third
    # cumulant), so the truncation error is below 0.1 h**2 / 6; rounding adds a few eps of a loss below 4, over h.
    h = 1e-4
    logits, labels = spread((4, 5), 0), np.array([0, 4, 2, 2], np.uint8)
    loss = nn.CrossEntropyLoss()
    loss(logits, labels)
    gradient = loss.backward()
    numeric = central_difference(lambda: loss(logits, labels), logits, h)
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=0.1 * h**2 / 6 + 40 * EPS / h)
    # Softmax sums to 1: so does what a row of the gradient, times the batch, lacks at the label.
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=10 * EPS)


def test_cross_entropy_does_not_overflow() -> None:
    loss = nn.CrossEntropyLoss()
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], "float32")
    # Exactly: (0 + log 2) / 2 for the likely labels, and 2e4 for the one of probability 0.
    assert loss(logits, np.array([0, 1])) == pytest.approx(math.log(2) / 2, rel=1e-6)
    np.testing.assert_allclose(loss.backward(), [[0, 0, 0], [0, -0.25, 0.25]], atol=1e-7)
    assert loss(logits[:1], np.array([1])) == 2e4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_cross_entropy_keeps_the_dtype(dtype: str) -> None:
    loss = nn.CrossEntropyLoss()
    value = loss(np.full((3, 7), 60000.0, dtype), np.array([0, 1, 6]))
    assert type(value) is float
    # Equal logits: log 7, up to the rounding of a sum and a logarithm in float32.
    assert value == pytest.approx(math.log(7), rel=1e-6)
    assert loss.backward().dtype == dtype


@pytest.mark.parametrize(
    ("logits", "labels", "error", "match"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), ValueError, "labels must be from 0 to 2, got 3 at index 1"),
        (np.zeros((2, 3)), np.array([-100, 0]), ValueError, "labels must be from 0 to 2, got -100 at index 0"),
        (np.zeros((2, 3)), np.array([[0], [1]]), ValueError, r"labels must have shape \(2,\).*got \(2, 1\)"),
        (np.zeros((2, 3)), np.array([0]), ValueError, r"labels must have shape \(2,\)"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), TypeError, "labels must be integers, got float64"),
        (np.zeros((2, 3)), np.array([True, False]), TypeError, "labels must be integers, got bool"),
        (np.zeros((2, 3)), [0, 1], TypeError, "labels must be a NumPy or CuPy array"),
        (np.zeros(3), np.array([0]), ValueError, r"logits must have shape \(N, classes\)"),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, r"logits must have shape .* got \(0, 3\)"),
        (np.zeros((2, 3), int), np.array([0, 1]), TypeError, "logits must be of a floating dtype, got int64"),
        ([[0.0]], np.array([0]), TypeError, "logits must be a NumPy or CuPy array"),
    ],
)
def test_cross_entropy_names_what_is_wrong(logits: Any, labels: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        nn.CrossEntropyLoss()(logits, labels)


def test_a_loss_serves_one_backward_pass() -> None:
    loss = nn.CrossEntropyLoss()
    with pytest.raises(RuntimeError, match=r"CrossEntropyLoss\.backward needs a forward pass"):
        loss.backward()
    loss(np.zeros((1, 2)), np.array([0]))
    loss.backward()
    with pytest.raises(RuntimeError, match=r"CrossEntropyLoss\.backward needs a forward pass"):
        loss.backward()


# --------------------------------------------------------------------------------------------------------------------
# PyTorch
# --------------------------------------------------------------------------------------------------------------------

# Both libraries sum the same products in another order. Here one sum has at most 300 of them, of size about 1, so the
# two differ by at most 300 * 300 * eps = 2e-11, whatever the orders.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def torch_pairs() -> list[Any]:
    """One layer in both libraries; PyTorch's is built when the test runs."""
    return [
        pytest.param(ours, theirs, shape, id=f"{ours}{args}{kwargs}")
        for ours, shape, *rest in [
            ("Conv1d", (3, 4, 11), (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}),
            ("Conv2d", (2, 3, 9, 8), (3, 5, (3, 2)), {"padding": (1, 2), "dilation": (2, 1), "bias": False}),
            ("Conv2d", (2, 3, 9, 8), (3, 5, 3), {"padding": "same", "padding_mode": "reflect"}),
            ("Conv2d", (2, 3, 9, 8), (3, 5, 3), {"padding": 2, "padding_mode": "circular"}),
            ("Conv2d", (2, 3, 9, 8), (3, 5, 5), {"padding": (2, 1), "stride": 2, "padding_mode": "replicate"}),
            ("Conv2d", (8, 9, 9), (8, 8, 3), {"padding": 1, "groups": 8}),
            ("Conv3d", (2, 2, 5, 6, 4), (2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
            ("Linear", (4, 3, 7), (7, 5), {}),
            ("Linear", (7,), (7, 5), {"bias": False}),
            ("ReLU", (3, 4), (), {}),
            ("Flatten", (2, 3, 4, 5), (), {}),
            ("MaxPool1d", (2, 3, 10), (3,), {"stride": 2, "padding": 1, "dilation": 2}),
            ("MaxPool2d", (2, 3, 10, 9), (3, 2, 1), {"ceil_mode": True}),
            ("MaxPool2d", (3, 10, 9), (2,), {}),
            ("MaxPool3d", (2, 3, 6, 5, 4), (2,), {"stride": 1}),
            ("AvgPool1d", (2, 3, 10), (4, 3, 2), {"ceil_mode": True}),
            ("AvgPool2d", (2, 3, 10, 9), (3, 2, 1), {"count_include_pad": False, "ceil_mode": True}),
            ("AvgPool2d", (3, 10, 9), ((2, 3),), {"padding": 1}),
            ("AvgPool3d", (2, 3, 6, 5, 4), (2, 1, 1), {}),
        ]
        for args, kwargs in [rest]
        for theirs in [(args, kwargs)]
    ]


@pytest.mark.parametrize(("name", "arguments", "shape"), torch_pairs())
def test_layers_equal_pytorch(backend: str, name: str, arguments: Any, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    args, kwargs = arguments
    theirs = getattr(torch.nn, name)(*args, **kwargs).double()
    ours = getattr(nn, name)(*args, **kwargs, **({"dtype": "float64"} if theirs.state_dict() else {}))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
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
    ours.eval()
    np.testing.assert_allclose(ours(x), ty.detach().numpy(), **TOLERANCE)


def test_cross_entropy_equals_pytorch() -> None:
    torch = pytest.importorskip("torch")
    logits, labels = np.random.default_rng(0).standard_normal((6, 10)) * 5, np.array([0, 9, 3, 3, 1, 7])
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    expected.backward()
    loss = nn.CrossEntropyLoss()
    assert loss(logits, labels) == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(loss.backward(), theirs.grad.numpy(), rtol=0, atol=1e-14)


STEPS = [
    pytest.param(options, id=",".join(f"{k}={v}" for k, v in options.items()))
    for options in [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.02},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    ]
]


def lenet(rng: Any, dtype: str = "float64") -> nn.Sequential:
    """LeNet-5's shape, for images of 12 x 12."""
    more = {"rng": nn.init.generator(rng), "dtype": dtype}
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, **more), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, **more), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 12, **more), nn.ReLU(),
        nn.Linear(12, 3, **more),
    )  # fmt: skip


@pytest.mark.parametrize("options", STEPS)
def test_training_follows_pytorch_step_by_step(backend: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    t = torch.nn
    theirs = t.Sequential(
        t.Conv2d(1, 4, 3, padding=1), t.ReLU(), t.MaxPool2d(2), t.Conv2d(4, 6, 3), t.ReLU(), t.AvgPool2d(2),
        t.Flatten(), t.Linear(24, 12), t.ReLU(), t.Linear(12, 3),
    ).double()  # fmt: skip
    ours = lenet(0)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    our_sgd, their_sgd = nn.SGD(ours.parameters(), **options), torch.optim.SGD(theirs.parameters(), **options)
    loss, rng = nn.CrossEntropyLoss(), np.random.default_rng(1)
    for step in range(8):
        x, labels = rng.standard_normal((5, 1, 12, 12)), rng.integers(0, 3, 5)
        their_loss = t.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(labels))
        assert loss(ours(x), labels) == pytest.approx(their_loss.item(), abs=1e-10), f"step {step}"
        for optimiser in (our_sgd, their_sgd):
            optimiser.zero_grad()
        their_loss.backward()
        ours.backward(loss.backward())
        our_sgd.step()
        their_sgd.step()
        for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            np.testing.assert_allclose(
                mine.value, other.detach().numpy(), rtol=0, atol=1e-10, err_msg=f"{name}, {step}"
            )


# --------------------------------------------------------------------------------------------------------------------
# Optimisers
# --------------------------------------------------------------------------------------------------------------------


def test_sgd_leaves_alone_what_has_no_gradient() -> None:
    moved, still = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    moved.accumulate(np.ones(2))
    sgd = nn.SGD([moved, still], 0.5, momentum=0.9, weight_decay=0.1)
    sgd.step()
    assert (moved.value < 1).all()
    assert (still.value == 1).all()
    sgd.zero_grad()
    assert moved.grad is None


def test_a_step_replaces_values_and_keeps_their_dtype() -> None:
    before = np.ones(2, "float32")
    p = nn.Parameter(before)
    sgd = nn.SGD([p], np.float64(0.5), momentum=np.float64(0.9), nesterov=True, weight_decay=np.float64(0.1))
    sgd.lr = np.float64(0.25)
    for _ in range(2):
        p.accumulate(np.ones(2))
        sgd.step()
    assert p.grad.dtype == p.value.dtype == np.float32
    assert (before == 1).all()
    assert (p.value < 1).all()


P = nn.Parameter(np.ones(1))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"lr": -0.1}, ValueError, "lr must be finite and zero or more, got -0.1"),
        ({"lr": math.nan}, ValueError, "lr must be finite"),
        ({"lr": math.inf}, ValueError, "lr must be finite"),
        ({"lr": "0.1"}, TypeError, "lr must be a number"),
        ({"lr": None}, TypeError, "lr must be a number"),
        ({"lr": 0.1, "momentum": -1}, ValueError, "momentum must be finite and zero or more, got -1"),
        ({"lr": 0.1, "weight_decay": -1e-4}, ValueError, "weight_decay must be finite and zero or more"),
        ({"lr": 0.1, "nesterov": True}, ValueError, "nesterov needs a positive momentum"),
        ({"lr": 0.1, "nesterov": 0.9, "momentum": 0.9}, TypeError, "nesterov must be True or False, got 0.9"),
        ({"lr": 0.1, "parameters": []}, ValueError, "parameters must not be empty"),
        ({"lr": 0.1, "parameters": [P, P]}, ValueError, "parameters must be all different"),
        ({"lr": 0.1, "parameters": [np.ones(1)]}, TypeError, r"parameters\[0\] must be a Parameter, got ndarray"),
        ({"lr": 0.1, "parameters": nn.ReLU()}, TypeError, "parameters must be an iterable of Parameter.*got ReLU"),
    ],
)
def test_sgd_names_what_is_wrong(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        nn.SGD(**{"parameters": [P], **arguments})


def test_a_schedule_cannot_set_a_wrong_learning_rate() -> None:
    sgd = nn.SGD([P], 0.1)
    with pytest.raises(ValueError, match="lr must be finite and zero or more, got -1"):
        sgd.lr = -1
    assert sgd.lr == 0.1


# --------------------------------------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------------------------------------


def bars(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of a horizontal bar, a vertical bar, or both: labels 0, 1, 2."""
    rng = np.random.default_rng(5)
    x, labels = rng.normal(0, 0.1, (n, 1, 12, 12)).astype("float32"), np.arange(n) % 3
    for image, label, (row, column) in zip(x[:, 0], labels, rng.integers(1, 10, (n, 2)), strict=True):
        if label != 1:
            image[row : row + 2] += 1
        if label != 0:
            image[:, column : column + 2] += 1
    return x, labels


def train(seed: int, steps: int = 60) -> tuple[nn.Sequential, list[float]]:
    x, labels = bars(24)
    net, loss = lenet(seed, "float32"), nn.CrossEntropyLoss()
    sgd = nn.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        losses.append(loss(net(x), labels))
        net.zero_grad()
        net.backward(loss.backward())
        sgd.step()
    return net, losses


def test_lenet_learns_bars_the_same_way_each_time(backend: str) -> None:
    net, losses = train(seed=0)
    x, labels = bars(24)
    assert losses[0] == pytest.approx(math.log(3), abs=0.3), "an untrained network guesses"
    assert losses[-1] < 0.1 * losses[0]
    assert (net.eval()(x).argmax(axis=1) == labels).all()
    assert train(seed=0, steps=5)[1] == losses[:5]
    assert train(seed=1, steps=5)[1] != losses[:5]


def test_gradients_add_up_until_zero_grad(backend: str) -> None:
    net, rng = lenet(0), np.random.default_rng(0)
    batches = [(rng.standard_normal((2, 1, 12, 12)), rng.standard_normal((2, 3))) for _ in range(2)]

    def gradients(*some: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        net.zero_grad()
        assert all(parameter.grad is None for parameter in net.parameters())
        for x, dy in some:
            net(x)
            net.backward(dy)
        return {name: parameter.grad for name, parameter in net.named_parameters()}

    first, second, both = gradients(batches[0]), gradients(batches[1]), gradients(*batches)
    assert len(both) == 8
    for name, sum_ in both.items():
        np.testing.assert_array_equal(sum_, first[name] + second[name], err_msg=name)
        assert (sum_ != first[name]).any()


def test_float32_stays_float32(backend: str) -> None:
    net = lenet(0, "float32")
    y = net(np.ones((2, 1, 12, 12), "float32"))
    dx = net.backward(np.ones_like(y))
    assert {y.dtype, dx.dtype, *(p.grad.dtype for p in net.parameters())} == {np.dtype("float32")}
    # Gradients of a wider input are summed in the parameter's dtype.
    net.backward(net(np.ones((2, 1, 12, 12))))
    assert {p.grad.dtype for p in net.parameters()} == {np.dtype("float32")}


def test_an_empty_batch_goes_through(backend: str) -> None:
    net = lenet(0)
    y = net(np.zeros((0, 1, 12, 12)))
    assert y.shape == (0, 3)
    assert net.backward(y).shape == (0, 1, 12, 12)
    assert all((parameter.grad == 0).all() for parameter in net.parameters())


def test_sequential_is_a_sequence() -> None:
    net = lenet(0)
    layers = list(net)
    assert len(net) == len(layers) == 10
    assert net[0] is layers[0]
    assert net[-1] is layers[-1]
    assert list(net[3:6]) == layers[3:6]
    assert type(net[:2]) is nn.Sequential
    with pytest.raises(IndexError):
        net[10]
    x = np.ones(3)
    assert nn.Sequential()(x) is x
    assert nn.Sequential().backward(x) is x


def test_names_are_dotted_paths() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.body = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2, bias=False)))
            self.scale = nn.Parameter(np.ones(1))
            self.mean = nn.Buffer(np.zeros(1))

    net = Net()
    # As in PyTorch: a module's own state before its children's.
    assert list(net.state_dict()) == ["scale", "mean", "body.0.weight", "body.0.bias", "body.1.1.weight"]
    assert [name for name, _ in net.named_parameters()] == ["scale", "body.0.weight", "body.0.bias", "body.1.1.weight"]
    assert [name for name, _ in net.named_modules()] == ["", "body", "body.0", "body.1", "body.1.0", "body.1.1"]
    net.eval()
    assert not any(module.training for _, module in net.named_modules())
    net.train()
    assert all(module.training for _, module in net.named_modules())


def test_a_shared_parameter_gets_both_gradients_and_counts_once() -> None:
    a, b = nn.Linear(2, 2, bias=False, dtype="float64"), nn.Linear(2, 2, bias=False, dtype="float64")
    b.weight = a.weight
    net = nn.Sequential(a, b)
    assert [name for name, _ in net.named_parameters()] == ["0.weight"]
    assert list(net.state_dict()) == ["0.weight", "1.weight"]
    check_gradients_of_square(net)


def check_gradients_of_square(net: nn.Module) -> None:
    # y = x W^T W^T is quadratic in any one weight, where a central difference is still exact: see `check_gradients`.
    x, dy = spread((3, 2), 0), spread((3, 2), 1)
    net(x)
    net.backward(dy)
    (parameter,) = net.parameters()
    net.eval()
    numeric = central_difference(lambda: float((dy * net(x)).sum()), parameter.value, 0.5)
    np.testing.assert_allclose(parameter.grad, numeric, rtol=0, atol=12**3 * EPS / 0.5)


def test_a_network_prints_itself() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, "same", groups=2, bias=False, padding_mode="reflect"),
        nn.Sequential(nn.MaxPool(2, 1, dilation=2), nn.AvgPool2d(2, count_include_pad=False)),
        nn.Linear(2, 1, bias=False),
    )
    assert repr(net) == (
        "Sequential(\n"
        "  (0): Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding='same', groups=2, padding_mode='reflect', "
        "bias=False)\n"
        "  (1): Sequential(\n"
        "    (0): MaxPool(kernel_size=2, stride=1, dilation=2)\n"
        "    (1): AvgPool2d(kernel_size=(2, 2), count_include_pad=False)\n"
        "  )\n"
        "  (2): Linear(2, 1, bias=False)\n"
        ")"
    )


# --------------------------------------------------------------------------------------------------------------------
# What a layer keeps
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), SMOOTH + KINKED)
def test_backward_needs_a_forward_pass_in_training_mode(make: Make, shape: tuple[int, ...]) -> None:
    layer, x = make(), spread(shape, 0)
    with pytest.raises(RuntimeError, match=r"backward needs a forward pass in training mode before it"):
        layer.backward(x)
    y = layer(x)
    layer.backward(y)
    with pytest.raises(RuntimeError, match="each forward pass serves one backward pass"):
        layer.backward(y)
    layer(x)
    layer.eval()
    with pytest.raises(RuntimeError, match=r"in evaluation mode: call train\(\) first"):
        layer.backward(y)
    layer(x)
    layer.train()
    with pytest.raises(RuntimeError, match="needs a forward pass in training mode"):
        layer.backward(y)
    layer(x)
    assert layer.backward(y).shape == x.shape


@pytest.mark.parametrize("make", [wide(nn.Conv2d, 2, 2, 1), wide(nn.Linear, 4, 3)], ids=["Conv2d", "Linear"])
def test_evaluation_mode_keeps_nothing_alive(make: Make) -> None:
    layer, x = make(), np.ones((2, 4, 4))
    alive = weakref.ref(x)
    layer(x)
    del x
    assert alive() is not None, "training mode keeps it"
    layer.eval()
    assert alive() is None, "eval() lets it go"
    x = np.ones((2, 4, 4))
    alive = weakref.ref(x)
    layer(x)
    del x
    assert alive() is None


@pytest.mark.parametrize(("make", "shape"), SMOOTH + KINKED)
def test_both_modes_give_the_same_result(backend: str, make: Make, shape: tuple[int, ...]) -> None:
    layer, x = make(), spread(shape, 0)
    np.testing.assert_array_equal(layer(x), layer.eval()(x))


def test_a_layer_in_two_places_is_refused() -> None:
    relu = nn.ReLU()
    with pytest.raises(ValueError, match=r"layers\[2\] uses the same ReLU as layers\[0\].*make one for every place"):
        nn.Sequential(relu, nn.Flatten(), nn.Sequential(relu))


def test_a_layer_that_runs_twice_raises_where_a_gradient_would_be_wrong() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.layer(self.layer(x))

        def backward(self, dy: Any) -> Any:
            return self.layer.backward(self.layer.backward(dy))

    net = Twice()
    y = net(np.ones((1, 2)))
    with pytest.raises(RuntimeError, match="each forward pass serves one backward pass"):
        net.backward(y)


def test_a_step_between_forward_and_backward_does_not_disturb_it(backend: str) -> None:
    net, x = lenet(0), np.random.default_rng(0).standard_normal((2, 1, 12, 12))
    dy = np.ones_like(net(x))
    expected = net.backward(dy)
    sgd = nn.SGD(net.parameters(), 0.1)
    net(x)
    sgd.step()
    np.testing.assert_array_equal(net.backward(dy), expected)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_networks_can_be_copied_after_a_forward_pass(clone: Callable[[nn.Sequential], nn.Sequential]) -> None:
    net, x = lenet(0), np.ones((1, 1, 12, 12))
    y = net(x)
    twin = clone(net)
    np.testing.assert_array_equal(twin(x), y)
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert not np.shares_memory(mine.value, other.value)
    assert net.backward(y).shape == x.shape


# --------------------------------------------------------------------------------------------------------------------
# State
# --------------------------------------------------------------------------------------------------------------------


def test_state_moves_from_one_network_to_another() -> None:
    a, b = lenet(0), lenet(1)
    x = np.ones((1, 1, 12, 12))
    assert (a(x) != b(x)).all()
    state = a.state_dict()
    b.load_state_dict(state)
    np.testing.assert_array_equal(a(x), b(x))
    # Both ways it is a copy.
    state["0.weight"][:] = 0
    np.testing.assert_array_equal(a(x), b(x))
    assert (a[0].weight.value != 0).all()


def test_state_takes_the_dtype_of_the_network() -> None:
    a, b = nn.Linear(3, 2, rng=0, dtype="float64"), nn.Linear(3, 2, rng=1)
    b.load_state_dict(a.state_dict())
    assert b.weight.value.dtype == np.float32
    np.testing.assert_array_equal(b.weight.value, a.weight.value.astype("float32"))


def test_buffers_are_state_but_not_parameters() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            self.mean = nn.Buffer(np.zeros(2))
            self.count = nn.Buffer(np.array(0))

    net = Mean()
    assert list(net.parameters()) == []
    net.load_state_dict({"mean": np.array([1.0, 2.0]), "count": np.array(3)})
    np.testing.assert_array_equal(net.mean.value, [1.0, 2.0])
    with pytest.raises(TypeError, match=r"'count' in state has dtype float64, which does not convert to int64"):
        net.load_state_dict({"mean": np.zeros(2), "count": np.array(3.0)})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda s: s.pop("0.bias"), ValueError, "'0.bias' is missing"),
        (lambda s: s.update(extra=np.ones(1)), ValueError, "'extra' is unknown"),
        (lambda s: s.update({"9.bias": np.ones(4)}), ValueError, r"'9.bias' has shape \(4,\) where \(3,\) is expected"),
        (lambda s: s.update({"9.bias": np.ones((1, 3))}), ValueError, r"'9.bias' has shape \(1, 3\)"),
        (lambda s: s.update({"9.bias": np.ones(3) * 1j}), TypeError, "'9.bias' in state has dtype complex128"),
        (lambda s: s.update({"9.bias": ["a", "b", "c"]}), TypeError, "'9.bias' in state has dtype <U1"),
        (lambda s: s.update({"9.bias": [[1.0], [1.0, 2.0]]}), TypeError, "'9.bias' in state cannot be read"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(
    change: Callable[[dict[str, Any]], object], error: type[Exception], match: str
) -> None:
    net, other = lenet(0), lenet(1).state_dict()
    before = net.state_dict()
    change(other)
    with pytest.raises(error, match=match):
        net.load_state_dict(other)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_all_that_is_wrong_with_a_state_is_named_at_once() -> None:
    with pytest.raises(
        ValueError,
        match=r"does not fit this Linear: 'bias' is missing; 'b' is unknown; 'weight' has shape \(1,\) where \(2, 3\)",
    ):
        nn.Linear(3, 2).load_state_dict({"weight": np.ones(1), "b": np.ones(2)})
    with pytest.raises(TypeError, match="state must be a mapping of names to arrays, got list"):
        nn.Linear(3, 2).load_state_dict([np.ones(1)])


# --------------------------------------------------------------------------------------------------------------------
# Initial values
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda **more: nn.Conv2d(6, 50, 5, groups=2, **more), 3 * 25),
        (lambda **more: nn.Conv1d(64, 64, 3, **more), 64 * 3),
        (lambda **more: nn.Linear(100, 64, **more), 100),
    ],
    ids=["Conv2d", "Conv1d", "Linear"],
)
def test_initial_values_are_uniform_within_pytorchs_bound(make: Callable[..., Any], fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    layer = make(rng=0, dtype="float64")
    weight, bias = layer.weight.value, layer.bias.value
    assert abs(weight).max() <= bound
    assert abs(bias).max() <= bound
    # The seed is fixed. Over seeds, the mean square of n numbers has mean b**2 / 3 and standard deviation
    # b**2 * sqrt(4 / 45 / n), the mean b / sqrt(3 n): 5 deviations allow less than one seed in a million to fail.
    n = weight.size
    assert (weight**2).mean() == pytest.approx(bound**2 / 3, abs=5 * bound**2 * math.sqrt(4 / 45 / n))
    assert abs(weight.mean()) < 5 * bound / math.sqrt(3 * n)
    # One of 50 numbers is beyond 0.7 b but for a chance of 0.7**50 = 2e-8.
    assert abs(bias).max() > 0.7 * bound


def test_seeds_and_generators() -> None:
    def weights(rng: Any, dtype: str = "float32") -> np.ndarray:
        return nn.Conv2d(2, 3, 3, rng=rng, dtype=dtype).weight.value

    np.testing.assert_array_equal(weights(7), weights(7))
    np.testing.assert_array_equal(weights(7), weights(np.random.default_rng(7)))
    np.testing.assert_array_equal(weights(7), weights(7, "float64").astype("float32"))
    assert weights(7).dtype == np.float32
    shared = np.random.default_rng(7)
    assert (weights(shared) != weights(shared)).all()
    assert (weights(None) != weights(None)).any()
    layer = nn.Linear(9, 9, rng=0)
    assert (layer.weight.value[0] != layer.bias.value).all()


# --------------------------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.Conv2d(0, 1, 3), ValueError, "in_channels must be positive, got 0"),
        (lambda: nn.Conv2d(1, 2.0, 3), TypeError, r"out_channels must be an integer, got 2.0 \(float\)"),
        (lambda: nn.Conv2d(True, 1, 3), TypeError, "in_channels must be an integer, got True"),
        (lambda: nn.Conv2d(1, 1, 0), ValueError, r"kernel_size must be positive, got 0"),
        (lambda: nn.Conv2d(1, 1, (3, 3, 3)), ValueError, "kernel_size must be an integer or a tuple of 2"),
        (lambda: nn.Conv2d(1, 1, (3, -1)), ValueError, r"kernel_size\[1\] must be positive, got -1"),
        (lambda: nn.Conv(1, 1, 3), ValueError, "kernel_size must be a tuple, one integer per dimension"),
        (lambda: nn.Conv2d(1, 1, 3, stride=0), ValueError, "stride must be positive, got 0"),
        (lambda: nn.Conv2d(1, 1, 3, dilation=(1,)), ValueError, "dilation must be an integer or a tuple of 2"),
        (lambda: nn.Conv2d(1, 1, 3, padding=-1), ValueError, "padding must be zero or more, got -1"),
        (lambda: nn.Conv2d(1, 1, 3, padding="some"), ValueError, "padding must be one of"),
        (lambda: nn.Conv2d(1, 1, 3, padding_mode="edge"), ValueError, "padding_mode must be one of"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups must divide in_channels.*groups=2.*in_channels=3"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "groups must divide out_channels"),
        (lambda: nn.Conv2d(1, 1, 3, bias=0), TypeError, "bias must be True or False, got 0"),
        (lambda: nn.Conv2d(1, 1, 3, rng="0"), TypeError, "rng must be None, a seed .* got '0'"),
        (lambda: nn.Conv2d(1, 1, 3, rng=-1), ValueError, "rng must be None, a seed .* got -1"),
        (
            lambda: nn.Conv2d(1, 1, 3, dtype="int32"),
            TypeError,
            "dtype must be float16, float32 or float64, got 'int32'",
        ),
        (lambda: nn.Linear(1, 1, dtype="floaty"), TypeError, "dtype must be float16, float32 or float64, got 'floaty'"),
        (lambda: nn.Linear(1, 1, dtype=None), TypeError, "dtype must be .* got None"),
        (lambda: nn.Linear(-1, 1), ValueError, "in_features must be positive, got -1"),
        (lambda: nn.Linear(1, "2"), TypeError, "out_features must be an integer, got '2'"),
        (lambda: nn.MaxPool2d((2, 2, 2)), ValueError, "kernel_size must be an integer or a tuple of 2"),
        (lambda: nn.MaxPool(0), ValueError, "kernel_size must be positive"),
        (lambda: nn.MaxPool2d(2, stride=0), ValueError, "stride must be positive"),
        (lambda: nn.MaxPool2d(2, dilation=0), ValueError, "dilation must be positive"),
        (lambda: nn.AvgPool1d(2, ceil_mode=2), TypeError, "ceil_mode must be True or False"),
        (lambda: nn.AvgPool1d(2, count_include_pad=None), TypeError, "count_include_pad must be True or False"),
        (lambda: nn.Sequential(nn.ReLU(), nn.ReLU), TypeError, r"layers\[1\] must be a Module, got type"),
        (
            lambda: nn.Sequential([nn.ReLU()]),
            TypeError,
            r"layers\[0\] must be a Module, got list; write Sequential\(\*",
        ),
        (lambda: nn.Parameter([1.0]), TypeError, "value must be a NumPy or CuPy array"),
        (lambda: nn.Buffer(1.0), TypeError, "value must be a NumPy or CuPy array"),
        (lambda: nn.Parameter(np.ones(2)).accumulate(np.ones(1)), ValueError, r"grad must have shape \(2,\)"),
    ],
)
def test_what_is_built_wrong_says_why(build: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("make", "x", "error", "match"),
    [
        (lambda: nn.Conv2d(2, 3, 3), np.ones((1, 3, 5, 5)), ValueError, "x has 3 channels"),
        (lambda: nn.Conv2d(2, 3, 3), np.ones((2, 5)), ValueError, "x must have 4 dimensions"),
        (lambda: nn.Conv2d(2, 3, 3), [[1.0]], TypeError, "x must be an array"),
        (lambda: nn.MaxPool2d(2), np.ones((4, 4)), ValueError, "x must have 4 dimensions"),
        (lambda: nn.MaxPool2d(2, padding=2), np.ones((1, 4, 4)), ValueError, "padding must be smaller than the window"),
        (lambda: nn.AvgPool1d(5), np.ones((1, 4)), ValueError, "larger than the padded input"),
        (lambda: nn.Linear(3, 2), np.ones((1, 4)), ValueError, r"x must have 3 features.* got shape \(1, 4\)"),
        (lambda: nn.Linear(3, 2), np.float64(1), TypeError, "x must be a NumPy or CuPy array"),
        (lambda: nn.Linear(3, 2), np.array(1.0), ValueError, "x must have 3 features"),
        (lambda: nn.Flatten(), np.ones(3), ValueError, "x must have at least 2 dimensions"),
        (lambda: nn.Flatten(), [[1.0]], TypeError, "x must be a NumPy or CuPy array"),
        (lambda: nn.ReLU(), [1.0], TypeError, "x must be a NumPy or CuPy array, got .* \\(list\\)"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_does_not_fit_says_why(
    make: Make, x: Any, error: type[Exception], match: str, training: bool
) -> None:
    with pytest.raises(error, match=match):
        make().train(training)(x)


@pytest.mark.parametrize(("make", "shape"), SMOOTH + KINKED)
def test_a_gradient_of_another_shape_is_refused_even_where_it_would_broadcast(
    make: Make, shape: tuple[int, ...]
) -> None:
    layer = make()
    y = layer(spread(shape, 0))
    with pytest.raises(ValueError, match="dy must have shape"):
        layer.backward(np.ones((1,) * y.ndim))
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_what_a_subclass_must_define() -> None:
    with pytest.raises(NotImplementedError, match=r"Module must define forward\(x\)"):
        nn.Module()(np.ones(1))
    with pytest.raises(NotImplementedError, match=r"Module must define backward\(dy\)"):
        nn.Module().backward(np.ones(1))
    with pytest.raises(NotImplementedError, match=r"Loss must define forward"):
        nn.Loss()(np.ones(1), np.ones(1))
    with pytest.raises(NotImplementedError, match=r"Loss must define backward"):
        nn.Loss().backward()
    P.accumulate(np.ones(1))
    with pytest.raises(NotImplementedError, match=r"Optimizer must define update"):
        nn.Optimizer([P], 0.1).step()


# --------------------------------------------------------------------------------------------------------------------
# The room
# --------------------------------------------------------------------------------------------------------------------


def test_public_names_are_documented() -> None:
    classes = {n for n, v in vars(nn).items() if isinstance(v, type) and n[0].isupper()}
    assert set(nn.__all__) == classes | {"compile", "fit", "init", "load", "predict", "save"}
    for name in nn.__all__:
        text = getattr(nn, name).__doc__
        assert text, name
        assert name in ("init", "load") or ">>>" in text, f"{name} has no example"


@pytest.mark.parametrize("path", sorted(Path(nn.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_data_is_left_to_its_own_namespace(path: Path) -> None:
    """NumPy is imported only where arrays are told apart, where random numbers are drawn, and where files are read."""
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
    }
    assert "numpy" not in names or path.name in ("arguments.py", "init.py", "files.py")
