"""Networks made ready for inference give what they gave before, with everything fused that can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import npconv as nc
from npconv import nn

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def numpy_backend() -> Any:
    with nc.use_backend("numpy"):
        yield


def lively(net: nn.Module) -> nn.Module:
    """The network with statistics and scales as if it had been trained."""
    for _, module in net.named_modules():
        if isinstance(module, nn.BatchNorm):
            for entry in (module.weight, module.bias, module.running_mean):
                entry.value = RNG.standard_normal(entry.value.shape).astype(entry.value.dtype)
            module.running_var.value = RNG.uniform(0.5, 2, module.running_var.value.shape).astype("float32")
    return net.eval()


def check(net: nn.Module, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 3)) -> Any:
    fast = nn.compile(lively(net), shape)
    for batch in batches:
        x = RNG.standard_normal((batch, *shape)).astype("float32")
        expected = net(x)
        for _ in range(2):
            y = fast(x)
            assert y.dtype == expected.dtype
            assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    return fast


@pytest.mark.parametrize(
    ("build", "size", "convolutions", "others"),
    [
        (lambda: nc.models.lenet5(), 28, 2, {"max_pool", "linear", "reshape"}),
        (lambda: nc.models.mobilenet_v1(10, size=32, width=0.25), 32, 27, {"mean", "reshape", "linear"}),
        (lambda: nc.models.mobilenet_v2(10, size=32, width=0.25), 32, 52, {"add", "mean", "reshape", "linear"}),
        (lambda: nc.models.resnet18(10, size=32), 32, 20, {"add", "max_pool", "mean", "reshape", "linear"}),
    ],
)
def test_models_are_fused_whole(build: Any, size: int, convolutions: int, others: set[str]) -> None:
    net = build()
    channels = next(net.parameters()).value.shape[1]
    fast = check(net, (channels, size, size), batches=(2,))  # the layers below are run with several
    ops = [node.op for node in fast.graph.nodes]
    assert ops.count("conv") == convolutions
    assert {op for op in ops if op != "conv"} == others


class Own(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, x: Any) -> Any:
        self.keep(x)
        return abs(x)


LAYERS = {
    "every activation": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1, rng=0), nn.ReLU6(), nn.Conv2d(4, 4, 1, rng=1), nn.Hardswish(), nn.Conv2d(4, 4, 1, rng=2),
        nn.SiLU(), nn.Sigmoid(), nn.ReLU(),
    ),
    "padding": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", rng=0),
        nn.Conv2d(4, 2, 3, padding=((2, 0), (0, 1)), rng=1),
    ),
    "pooling": lambda: nn.Sequential(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1, padding=1, count_include_pad=False),
        nn.AdaptiveAvgPool2d((2, 1)),
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1, groups=1, rng=0),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(2),
    ),
    "branches": lambda: nn.Concat(
        nn.Sequential(), nn.Add(nn.Conv2d(3, 5, 1, rng=0), nn.Conv2d(3, 5, 3, padding=1, rng=1)), nn.ReLU(),
    ),
    "norms": lambda: nn.Sequential(
        nn.BatchNorm2d(3, affine=False), nn.Dropout(0.5, rng=0), nn.BatchNorm2d(3, track_running_stats=False),
    ),
    "a layer of one's own": lambda: nn.Sequential(nn.Conv2d(3, 4, 1, rng=0), Own(), nn.Conv2d(4, 2, 1, rng=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    if name == "norms":
        net = LAYERS[name]()
        for _, module in net.named_modules():
            if isinstance(module, nn.BatchNorm) and module.running_mean is not None:
                module.running_mean.value = module.running_mean.value + 0.5
        net.eval()
        x = RNG.standard_normal((4, 3, 6, 7)).astype("float32")
        assert_allclose(nn.compile(net, (3, 6, 7), batch=4)(x), net(x), rtol=1e-5, atol=1e-5)
        return
    check(LAYERS[name](), (3, 6, 7))


def test_the_network_is_left_as_it_is_and_the_weights_are_those_of_now() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1, rng=0), nn.BatchNorm2d(3), Own(), nn.Linear(4, 2, rng=0))
    x = RNG.standard_normal((2, 2, 4, 4)).astype("float32")
    before = net.state_dict()
    fast = nn.compile(net, (2, 4, 4))
    assert all(module.training for _, module in net.named_modules())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    y = fast(x)
    for parameter in net.parameters():
        parameter.value[...] = 0
    np.testing.assert_array_equal(fast(x), y)
    np.testing.assert_array_equal(fast(np.concatenate([x, x]))[:2], y)


def test_bad_input() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1, rng=0), body=nn.Sequential(nn.Linear(5, 2, rng=0)))
    with pytest.raises(TypeError, match="model must be a Module, got function"):
        nn.compile(lambda x: x, (3,))  # type: ignore[arg-type]
    where = r"node model.body.0 \(linear\): x of shape"
    with pytest.raises(ValueError, match=r"^input_shape=\(2, 4, 4\), of one sample, does not fit the model: " + where):
        nn.compile(net, (2, 4, 4))
    with pytest.raises(ValueError, match=r"node model.0 \(conv\): .*channels"):
        nn.compile(net, (3, 4, 5))
    with pytest.raises(ValueError, match="max_memory=1,000"):
        nn.compile(net, (2, 40, 5), max_memory=1000)
    with pytest.raises(ValueError, match="input_shape"):
        nn.compile(net, (2, 0, 5))
    wrong: tuple[Any, ...] = (5, "abc", None, ())
    for shape in wrong:
        with pytest.raises(TypeError, match="input_shape must be a tuple"):
            nn.compile(net, shape)
    with pytest.raises(TypeError, match="max_memory must be an integer, got '4G'"):
        nn.compile(net, (2, 4, 5), max_memory="4G")  # type: ignore[arg-type]
    fast = nn.compile(net, (2, 4, 5))
    with pytest.raises(ValueError, match="input 'x' must be of shape any x 2 x 4 x 5, got 1 x 2 x 4 x 6"):
        fast(np.zeros((1, 2, 4, 6), "float32"))
    x = np.random.default_rng(0).random((1, 2, 4, 5), "float32")
    with pytest.raises(TypeError, match="feeds must map the names of inputs to arrays, got ndarray"):
        fast.run(x)  # type: ignore[arg-type]
    np.testing.assert_array_equal(fast(x.astype(">f4")), fast(x))
