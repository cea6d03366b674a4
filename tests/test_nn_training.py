"""Losses, optimisers and schedules: against differences, against PyTorch step by step, their state, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_nn import EPS, central_difference, spread

from npconv import nn

LOSSES = [
    pytest.param(lambda: nn.MSELoss(), "mse_loss", {}, id="MSE"),
    pytest.param(lambda: nn.MSELoss(reduction="sum"), "mse_loss", {"reduction": "sum"}, id="MSE-sum"),
    pytest.param(lambda: nn.BCEWithLogitsLoss(), "binary_cross_entropy_with_logits", {}, id="BCE"),
    pytest.param(
        lambda: nn.BCEWithLogitsLoss(reduction="sum"),
        "binary_cross_entropy_with_logits",
        {"reduction": "sum"},
        id="BCE-sum",
    ),
    pytest.param(
        lambda: nn.CrossEntropyLoss(label_smoothing=0.2), "cross_entropy", {"label_smoothing": 0.2}, id="smoothed"
    ),
    pytest.param(
        lambda: nn.CrossEntropyLoss(label_smoothing=1.0), "cross_entropy", {"label_smoothing": 1.0}, id="smooth"
    ),
]


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a target."""
    prediction = 3 * spread((4, 5), 0)
    if name == "cross_entropy":
        return prediction, np.array([0, 4, 2, 2])
    return prediction, np.random.default_rng(0).random((4, 5))


@pytest.mark.parametrize(("make", "name", "options"), LOSSES)
def test_losses_equal_central_differences(make: Callable[[], nn.Loss], name: str, options: dict[str, Any]) -> None:
    # Third derivatives are below 0.1 times a weight of at most 1 (see test_nn.py; a squared error has none); the loss
    # is below 20 squared errors of 16, and its rounding a few eps of that.
    h = 1e-3
    loss, (prediction, target) = make(), pair(name)
    loss(prediction, target)
    gradient = loss.backward()
    numeric = central_difference(lambda: loss(prediction, target), prediction, h)
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=0.1 * h**2 / 6 + 4 * 320 * EPS / h)


@pytest.mark.parametrize(("make", "name", "options"), LOSSES)
def test_losses_equal_pytorch(make: Callable[[], nn.Loss], name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    loss, (prediction, target) = make(), pair(name)
    theirs = torch.tensor(prediction, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(theirs, torch.tensor(target), **options)
    expected.backward()
    assert loss(prediction, target) == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(loss.backward(), theirs.grad.numpy(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("make", [nn.MSELoss, nn.BCEWithLogitsLoss])
def test_losses_keep_the_dtype_and_serve_one_backward_pass(make: Callable[[], nn.Loss], dtype: str) -> None:
    loss = make()
    assert type(loss(np.full((3, 7), 300.0, dtype), np.zeros((3, 7)))) is float
    assert loss.backward().dtype == dtype
    with pytest.raises(RuntimeError, match="needs a forward pass"):
        loss.backward()


@given(st.floats(-1e300, 1e300), st.sampled_from([0.0, 1.0]))
def test_binary_cross_entropy_is_right_for_every_logit(x: float, target: float) -> None:
    # log(1 + exp(-z)) with z = x for target 1 and -x for target 0.
    loss = nn.BCEWithLogitsLoss()
    z = x if target else -x
    expected = math.log1p(math.exp(-z)) if z >= 0 else -z + math.log1p(math.exp(z))
    assert loss(np.array([x]), np.array([target])) == pytest.approx(expected, rel=8 * EPS, abs=1e-322)
    slope = -(math.exp(-z) / (1 + math.exp(-z)) if z >= 0 else 1 / (1 + math.exp(z)))
    assert loss.backward()[0] == pytest.approx(slope if target else -slope, rel=8 * EPS, abs=1e-322)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: nn.MSELoss(reduction="none"), ValueError, "reduction must be 'mean' or 'sum', got 'none'"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=1.1), ValueError, "label_smoothing must be from 0 to 1"),
        (lambda: nn.MSELoss()(np.ones((2, 1)), np.ones(2)), ValueError, r"target must have shape \(2, 1\)"),
        (lambda: nn.MSELoss()(np.ones(0), np.ones(0)), ValueError, "prediction must not be empty"),
        (lambda: nn.MSELoss()(np.ones(2, int), np.ones(2)), TypeError, "prediction must be of a floating dtype"),
        (lambda: nn.MSELoss()(np.ones(2), [1, 2]), TypeError, "target must be a NumPy or CuPy array"),
        (lambda: nn.BCEWithLogitsLoss()(np.ones(2), np.array([0, 1.5])), ValueError, "target must be from 0 to 1"),
        (lambda: nn.BCEWithLogitsLoss()(np.ones(1), np.array([np.nan])), ValueError, "target must be from 0 to 1"),
    ],
)
def test_losses_name_what_is_wrong(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


# --------------------------------------------------------------------------------------------------------------------
# Optimisers
# --------------------------------------------------------------------------------------------------------------------

OPTIMISERS = [
    pytest.param(name, options, id=f"{name}-" + ",".join(f"{k}={v}" for k, v in options.items()))
    for name, options in [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("Adam", {}),
        ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
        ("Adam", {"lr": 0.05, "betas": (0.0, 0.0)}),
        ("AdamW", {}),
        ("AdamW", {"lr": 0.05, "weight_decay": 0.3}),
        ("RMSprop", {}),
        ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1, "momentum": 0.9}),
        ("RMSprop", {"centered": True, "momentum": 0.5}),
    ]
]


def quadratic_gradient(value: np.ndarray, step: int) -> np.ndarray:
    """A gradient that follows the value, and changes with the step."""
    return value - np.cos(np.arange(value.size).reshape(value.shape) + step)


@pytest.mark.parametrize(("name", "options"), OPTIMISERS)
def test_trajectories_equal_pytorch(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    start = [spread((3, 4), 0), spread((5,), 1)]
    ours = [nn.Parameter(value.copy()) for value in start]
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    optimiser, other = getattr(nn, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(30):
        for mine, their in zip(ours, theirs, strict=True):
            mine.grad = quadratic_gradient(mine.value, step)
            their.grad = torch.tensor(quadratic_gradient(their.detach().numpy(), step))
        optimiser.step()
        other.step()
        for mine, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.value, their.detach().numpy(), rtol=0, atol=1e-10, err_msg=f"step {step}")


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_half_precision_steps_are_those_of_single_precision_rounded(name: str) -> None:
    # The square of such a gradient is zero in float16, and eps as well.
    half, single = (nn.Parameter(np.ones(3, dtype)) for dtype in ("float16", "float32"))
    optimisers = [getattr(nn, name)([parameter], lr=0.25) for parameter in (half, single)]
    gradient = np.array([1e-4, -1e-4, 0])
    for parameter, optimiser in zip((half, single), optimisers, strict=True):
        parameter.grad = gradient.astype("float16").astype(parameter.value.dtype)
        optimiser.step()
    assert half.value.dtype == np.float16
    np.testing.assert_array_equal(half.value, single.value.astype("float16"))
    assert abs(1 - half.value[0]) > 0.1
    other = getattr(nn, name)([nn.Parameter(np.ones(3, "float16"))], lr=0.25)
    other.load_state_dict(optimisers[0].state_dict())
    for key, value in optimisers[0].state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key], value)


@pytest.mark.parametrize(("name", "options"), OPTIMISERS)
def test_a_saved_optimiser_goes_on_to_the_same_bits(name: str, options: dict[str, Any]) -> None:
    def make(values: list[np.ndarray]) -> tuple[list[nn.Parameter], nn.Optimizer]:
        parameters = [nn.Parameter(value) for value in values]
        return parameters, getattr(nn, name)(parameters, **{"lr": 0.01, **options})

    def run(parameters: list[nn.Parameter], optimiser: nn.Optimizer, steps: range) -> None:
        for step in steps:
            for parameter in parameters[:2]:
                parameter.grad = quadratic_gradient(parameter.value, step)
            optimiser.step()

    ours, optimiser = make([spread((3, 4), 0), spread((5,), 1), spread((2,), 2)])
    optimiser.lr = 0.03
    run(ours, optimiser, range(5))
    state = optimiser.state_dict()
    assert {name.partition(".")[0] for name in state} == {"lr", "0", "1"}, "the third has taken no step"
    twins, other = make([parameter.value for parameter in ours])
    other.load_state_dict(state)
    for value in state.values():
        value[...] = 0  # it was copied
    assert other.lr == 0.03
    run(ours, optimiser, range(5, 9))
    run(twins, other, range(5, 9))
    for mine, twin in zip(ours, twins, strict=True):
        np.testing.assert_array_equal(mine.value, twin.value)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda s: s.pop("lr"), ValueError, "'lr' is missing"),
        (lambda s: s.pop("0.step"), ValueError, "'0.step' is missing"),
        (lambda s: s.update({"0.step": np.array(0)}), ValueError, "'0.step' must be positive, got 0"),
        (lambda s: s.update({"0.step": np.array(1.5)}), TypeError, "'0.step' in state has dtype float64"),
        (lambda s: s.update({"1.step": np.array(1)}), ValueError, "'1.step' is unknown"),
        (lambda s: s.update({"0.exp_avg": np.ones(1)}), ValueError, r"'0.exp_avg' has shape \(1,\) where \(2,\)"),
        (lambda s: s.update({"lr": np.array(-1.0)}), ValueError, "lr must be finite and zero or more, got -1.0"),
        (lambda s: s.update({"lr": np.array(1j)}), TypeError, "'lr' in state has dtype complex128"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(
    change: Callable[[dict[str, Any]], object], error: type[Exception], match: str
) -> None:
    p = nn.Parameter(np.ones(2))
    p.accumulate(np.ones(2))
    adam = nn.Adam([p])
    adam.step()
    state = adam.state_dict()
    change(state)
    before = adam.state_dict()
    with pytest.raises(error, match=match):
        adam.load_state_dict(state)
    for name, value in adam.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(TypeError, match="state must be a mapping"):
        adam.load_state_dict([1])


@pytest.mark.parametrize("make", [nn.Adam, nn.AdamW, nn.RMSprop, lambda p: nn.RMSprop(p, momentum=0.9, centered=True)])
def test_a_step_keeps_the_dtype_and_writes_into_nothing(make: Callable[..., nn.Optimizer]) -> None:
    value, grad = np.ones(2, "float32"), np.ones(2, "float32")
    for array in (value, grad):
        array.setflags(write=False)
    p, still = nn.Parameter(value), nn.Parameter(value)
    optimiser = make([p, still])
    p.accumulate(grad)
    for _ in range(2):
        optimiser.step()
    assert p.value.dtype == np.float32
    assert (p.value < 1).all()
    assert still.value is value


P = nn.Parameter(np.ones(1))


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.Adam([P], betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be from 0 to 1, 1 excluded, got 1.0"),
        (lambda: nn.Adam([P], betas=0.9), ValueError, "betas must be two numbers, got 0.9"),
        (lambda: nn.Adam([P], eps=-1), ValueError, "eps must be finite and zero or more"),
        (lambda: nn.AdamW([P], weight_decay=-1), ValueError, "weight_decay must be finite and zero or more"),
        (lambda: nn.RMSprop([P], alpha=2), ValueError, "alpha must be from 0 to 1, got 2"),
        (lambda: nn.RMSprop([P], centered=1), TypeError, "centered must be True or False"),
        (lambda: nn.StepLR(P, 2), TypeError, "optimizer must be an Optimizer, got Parameter"),
        (lambda: nn.StepLR(nn.SGD([P], 0.1), 0), ValueError, "step_size must be positive"),
        (lambda: nn.StepLR(nn.SGD([P], 0.1), 1, gamma=-1), ValueError, "gamma must be finite and zero or more"),
        (lambda: nn.CosineAnnealingLR(nn.SGD([P], 0.1), 0), ValueError, "T_max must be positive"),
        (lambda: nn.CosineAnnealingLR(nn.SGD([P], 0.1), 1, eta_min=-1), ValueError, "eta_min must be finite"),
        (lambda: nn.LinearLR(nn.SGD([P], 0.1), start_factor=-1), ValueError, "start_factor must be finite"),
        (lambda: nn.LinearLR(nn.SGD([P], 0.1), total_iters=1.5), TypeError, "total_iters must be an integer"),
        (lambda: nn.SequentialLR(nn.SGD([P], 0.1), [], []), ValueError, "schedulers must not be empty"),
        (lambda: nn.SequentialLR(nn.SGD([P], 0.1), [1], []), TypeError, r"schedulers\[0\] must be an LRScheduler"),
    ],
)
def test_what_is_built_wrong_says_why(build: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


# --------------------------------------------------------------------------------------------------------------------
# Schedules
# --------------------------------------------------------------------------------------------------------------------


def warm_up_then_cosine(lib: Any, optimiser: Any) -> Any:
    parts = [lib.LinearLR(optimiser, 0.1, total_iters=5), lib.CosineAnnealingLR(optimiser, 12, 0.001)]
    return lib.SequentialLR(optimiser, parts, milestones=[5])


SCHEDULES = [
    pytest.param(lambda lib, opt: lib.StepLR(opt, 3, 0.5), id="step"),
    pytest.param(lambda lib, opt: lib.CosineAnnealingLR(opt, 7, 0.01), id="cosine"),
    pytest.param(lambda lib, opt: lib.LinearLR(opt), id="linear"),
    pytest.param(lambda lib, opt: lib.LinearLR(opt, 0.0001, 0.5, 4), id="linear-4"),
    pytest.param(warm_up_then_cosine, id="warm-up"),
]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.filterwarnings("ignore")
def test_schedules_equal_pytorch(make: Callable[[Any, Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    ours = nn.SGD([nn.Parameter(np.ones(1))], 0.2)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.2)
    schedule, other = make(nn, ours), make(torch.optim.lr_scheduler, theirs)
    for step in range(20):
        # PyTorch multiplies its way from step to step: 20 roundings, the largest while the rate is near 0.2.
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-10, abs=1e-12), f"step {step}"
        schedule.step()
        theirs.step()
        other.step()


@pytest.mark.parametrize("make", SCHEDULES)
def test_a_saved_schedule_goes_on_where_it_stood(make: Callable[[Any, Any], Any]) -> None:
    ours, twin = nn.SGD([P], 0.2), nn.SGD([P], 0.7)
    schedule, other = make(nn, ours), make(nn, twin)
    for _ in range(6):
        schedule.step()
    other.load_state_dict(schedule.state_dict())
    for _ in range(6):
        assert twin.lr == ours.lr
        schedule.step()
        other.step()
    before = other.last_epoch, twin.lr
    for state, error, match in [
        ({"last_epoch": np.array(1)}, ValueError, "state must have the names"),
        ({"last_epoch": np.array(1.5), "base_lr": np.array(1.0)}, TypeError, "'last_epoch' in state has dtype"),
        ({"last_epoch": np.array(-1), "base_lr": np.array(1.0)}, ValueError, "'last_epoch' in state must be a number"),
        ({"last_epoch": np.array(1), "base_lr": np.ones(2)}, ValueError, "'base_lr' in state must be a number"),
        (None, TypeError, "state must be a mapping"),
    ]:
        with pytest.raises(error, match=match):
            other.load_state_dict(state)
    assert before == (other.last_epoch, twin.lr)


def test_milestones_and_owners() -> None:
    sgd = nn.SGD([P], 0.2)
    a, b, c = (nn.StepLR(sgd, 2) for _ in range(3))
    for milestones in ([], [1], [2, 2], [3, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="milestones must be 2 increasing numbers"):
            nn.SequentialLR(sgd, [a, b, c], milestones)
    with pytest.raises(ValueError, match=r"schedulers\[0\] must belong to the same optimizer"):
        nn.SequentialLR(nn.SGD([P], 0.2), [a, b], [1])
    with pytest.raises(NotImplementedError, match="LRScheduler must define at"):
        nn.LRScheduler(sgd)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_step_replaces_values_and_leaves_the_arrays_it_was_given(name):
    value, grad = np.array([1.0, -2.0]), np.array([0.5, -0.25])
    p = nn.Parameter(value)
    optimizer = getattr(nn, name)([p], lr=0.1, weight_decay=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    for _ in range(3):
        p.grad = grad
        before = p.value.copy()
        given = p.value
        optimizer.step()
        np.testing.assert_array_equal(given, before)
        np.testing.assert_array_equal(grad, [0.5, -0.25])
        assert (p.value != before).all()
