"""Summaries of networks: the papers' counts, and receptive fields that a gradient really reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import npconv as nc
from npconv import models, nn


@pytest.fixture(autouse=True, scope="module")
def without_a_compiler() -> Any:
    with nc.use_backend("numpy"):
        yield


@pytest.mark.parametrize(
    ("net", "size", "millions"),
    [
        # Tables 6 and 7 of arXiv:1704.04861, table 4 of arXiv:1801.04381, table 1 of arXiv:1512.03385.
        (lambda: models.mobilenet_v1(), 224, (569, 569)),
        (lambda: models.mobilenet_v1(), 128, (186, 186)),
        (lambda: models.mobilenet_v1(width=0.5), 224, (149, 150)),
        (lambda: models.mobilenet_v2(), 224, (300, 301)),
        (lambda: models.resnet18(), 224, (1810, 1820)),
    ],
)
def test_macs_are_as_many_as_in_the_papers(net: Callable[[], nn.Module], size: int, millions: tuple[int, int]) -> None:
    macs = net().summary((3, size, size)).macs
    assert millions[0] <= round(macs / 1e6) <= millions[1]


NETS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Conv1d(1, 1, 3, 2, 1, 2), (1, 41)),
    (lambda: nn.Sequential(nn.Conv2d(1, 2, (3, 5)), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 1, 3)), (1, 21, 25)),
    (lambda: nn.Sequential(nn.Conv1d(1, 1, 3, 2), nn.ConvTranspose1d(1, 1, 5, 2), nn.Conv1d(1, 1, 3)), (1, 41)),
    (lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv1d(1, 1, 6)), (1, 21)),
    (lambda: nn.Concat(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 7, padding=3)), (1, 21)),
    (lambda: nn.Add(nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.BatchNorm1d(1)), nn.Sequential()), (1, 21)),
    (lambda: nn.Sequential(nn.Conv1d(1, 1, 3), nn.AdaptiveAvgPool1d(3)), (1, 23)),
    (lambda: nn.Sequential(nn.AvgPool(2, 3), nn.Flatten(), nn.Linear(7, 2)), (1, 20)),
]


@pytest.mark.parametrize(("make", "shape"), NETS)
def test_a_receptive_field_is_what_a_gradient_reaches(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net = make()
    summary = net.summary(shape)
    # Weights of one sign, so that nothing cancels.
    for parameter in net.parameters():
        parameter.value = np.abs(parameter.value) + 0.1
    for _, module in net.named_modules():
        if isinstance(module, nn.BatchNorm):
            module.forward = lambda x: x  # it mixes the batch, which a receptive field leaves out
            module.backward = lambda dy: dy
    y = net(np.ones((1, *shape), "float32"))
    assert summary.rows[-1].shape == y.shape[1:]
    reached = np.zeros(len(shape) - 1, int)
    for position in np.ndindex(y.shape[1:]):
        net(np.ones((1, *shape), "float32"))
        dy = np.zeros_like(y)
        dy[(0, *position)] = 1
        found = np.argwhere(net.backward(dy)[0] != 0)[:, 1:]
        reached = np.maximum(reached, found.max(axis=0) - found.min(axis=0) + 1)
    assert summary.rows[-1].receptive_field == tuple(reached)


def test_a_summary_is_data_and_a_table() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            self.scale = nn.Parameter(np.ones(1, "float32"))

        def forward(self, x: Any) -> Any:
            return x * self.scale.value

    shared = nn.Conv2d(3, 3, 1, bias=False)
    twin = nn.Conv2d(3, 3, 1, bias=False)
    twin.weight = shared.weight
    net = nn.Sequential(shared, twin, own=Own(), last=nn.Conv2d(3, 2, 3))
    net(np.ones((1, 3, 4, 4), "float32"))
    summary = net.summary((3, 4, 4))
    assert net.training, "the network is left as it was"
    assert [row.macs for row in summary] == [144, 144, None, 216]
    assert summary.parameters == 9 + 1 + 56, "what is shared counts once"
    assert [row.receptive_field for row in summary] == [(1, 1), (1, 1), None, None]
    text = str(summary)
    assert "504 and more" in text
    assert "?" in text
    assert "FLOP" not in text
    assert "downsample.0" in str(models.resnet18(3, 1, 8).summary((1, 8, 8)))


@pytest.mark.parametrize(
    ("shape", "error", "match"),
    [
        (3, TypeError, "input_shape must be a tuple"),
        ((), TypeError, "input_shape must be a tuple"),
        ((3, 0, 8), ValueError, r"input_shape\[1\] must be positive"),
        ((1, 8, 8), ValueError, "x has 1 channel"),
    ],
)
def test_a_shape_that_does_not_fit_says_why(shape: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        models.resnet18(3, 3, 8).summary(shape)
