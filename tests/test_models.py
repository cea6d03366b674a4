"""Networks known by name: the papers' counts, torchvision's names and results, small pictures, training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import npconv as nc
from npconv import models, nn


def parameters(net: nn.Module) -> int:
    return sum(parameter.value.size for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "millions"),
    [
        # Table 6 and 7 of arXiv:1704.04861, table 4 of arXiv:1801.04381, and torchvision's page of ResNet-18.
        (lambda: models.mobilenet_v1(), 4.2),
        (lambda: models.mobilenet_v1(width=0.75), 2.6),
        (lambda: models.mobilenet_v1(width=0.5), 1.3),
        (lambda: models.mobilenet_v1(width=0.25), 0.5),
        (lambda: models.mobilenet_v2(), 3.5),
        (lambda: models.resnet18(), 11.7),
    ],
)
def test_parameters_are_as_many_as_in_the_papers(net: Callable[[], nn.Module], millions: float) -> None:
    assert round(parameters(net()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        # Of lines "name shape" of the state_dict of torchvision 0.29.
        ("resnet18", "84fb10d9c6905a1cbb020b284537dc97c4f4ec55fb2a780a41152a23a2dd0e9d"),
        ("mobilenet_v2", "37bbbce8932fd0c49fe8e941719a7aa7b25b60c17b428749b72562f754135844"),
    ],
)
def test_names_and_shapes_are_torchvisions(name: str, digest: str) -> None:
    state = getattr(models, name)().state_dict()
    text = "\n".join(f"{key} {value.shape}" for key, value in state.items())
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_results_are_torchvisions(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(pytest.importorskip("torchvision").models, name)()
    ours = getattr(models, name)()
    ours.load_state_dict(theirs.state_dict())
    # In training mode batch normalisation keeps the numbers large, so that a wrong block shows; dropout is left out.
    for _, module in ours.named_modules():
        module.training = not isinstance(module, nn.Dropout)
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    x = np.random.default_rng(0).standard_normal((4, 3, 64, 64), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).numpy()
    assert abs(ours(x) - expected).max() < 1e-4 * abs(expected).max()


SMALL: list[Any] = [
    lambda size: models.lenet5(3, 2, size, rng=0),
    lambda size: models.mobilenet_v1(3, 2, size, width=0.25, rng=0),
    lambda size: models.mobilenet_v2(3, 2, size, width=0.25, rng=0),
    lambda size: models.resnet18(3, 2, size, rng=0),
]


@pytest.mark.parametrize("size", [8, 28])  # one pixel is left of the first; the second is odd half-way down
@pytest.mark.parametrize("make", SMALL, ids=["lenet5", "mobilenet_v1", "mobilenet_v2", "resnet18"])
def test_pictures_of_every_size_go_forward_and_backward(make: Callable[[int], nn.Sequential], size: int) -> None:
    net = make(size)
    x = np.random.default_rng(0).standard_normal((2, 2, size, size), dtype=np.float32)
    with nc.use_backend("numpy"):  # what is asked here is the shape of things; nothing has to be compiled for it
        y = net(x)
        assert y.shape == (2, 3)
        assert net.backward(np.ones_like(y)).shape == x.shape
    assert all(np.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_a_seed_makes_a_network() -> None:
    a, b = (models.mobilenet_v2(5, width=0.25, rng=3).state_dict() for _ in range(2))
    assert all((a[name] == b[name]).all() for name in a)
    assert (a["features.2.conv.0.0.weight"].ravel()[:8] != a["features.3.conv.0.0.weight"].ravel()[:8]).any()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: models.lenet5(size=3), ValueError, "size must be at least 4, got 3"),
        (lambda: models.lenet5(size=28.0), TypeError, "size must be an integer, got 28.0"),
        (lambda: models.lenet5(0), ValueError, "classes must be positive, got 0"),
        (lambda: models.mobilenet_v1(size=0), ValueError, "size must be positive, got 0"),
        (lambda: models.mobilenet_v1(width=0), ValueError, "width must be finite and above zero, got 0"),
        (lambda: models.mobilenet_v1(width=float("nan")), ValueError, "width must be finite"),
        (lambda: models.mobilenet_v2(width="1"), TypeError, "width must be a number, got '1'"),
        (lambda: models.mobilenet_v2(dropout=2), ValueError, "dropout must be from 0 to 1, got 2"),
        (lambda: models.resnet18(channels=True), TypeError, "channels must be an integer, got True"),
        (lambda: models.resnet18(dtype="int8"), TypeError, "dtype must be float16"),
    ],
)
def test_what_is_built_wrong_says_why(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
