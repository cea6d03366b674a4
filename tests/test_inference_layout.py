"""Networks whose images lie channels-last: what runs so, that it changes no result, and how it is chosen."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npconv as nc
from npconv.inference import Graph, Model, regions
from npconv.inference.cut import Cut
from npconv.inference.operators import OPERATORS
from tests.test_inference import ONE, SAME, graph, node, normal, twice
from tests.test_nn_compile import lively


def agree(g: Graph, x: Any, backend: str = "numpy", **limit: Any) -> Model:
    """Run a graph in both layouts, compare, and return the channels-last model."""
    models = [Model(g, backend=backend, layout=layout, **limit) for layout in ("channels_first", "channels_last")]
    expected, _, found, again = (model.run({g.inputs[0]: x}) for model in models for _ in range(2))
    for name, value in found.items():
        assert_array_equal(again[name], value, err_msg=name)
    for name, value in expected.items():
        assert value.shape == found[name].shape
        assert value.dtype == found[name].dtype
        assert found[name].flags.c_contiguous
        assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * float(np.abs(value).max()), err_msg=name)
    return models[1]


def made(model: Model) -> list[str]:
    """The values that a model's steps make, in order; a value in the layout that it is turned to ends in it."""
    (program,) = model._programs.values()
    names = {number: name for name, number in program._number.items()}
    return [names[out].lstrip("\0") for _, _, _, (out, *_) in program._steps]


POOL = {"kernel_size": (3, 2), "stride": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 1), "ceil_mode": True}


def everything() -> Graph:
    """Branches, joins, a shuffle, pools, constants that broadcast, outputs on the way, and a matrix product."""
    table = {"shape": lambda s: (s[0], 2, s[1] // 2, *s[2:])}
    nodes = [
        node("conv", "x w b", "a", **SAME, activation=("relu",)),
        node("conv", "a depthwise", "d", **{**SAME, "groups": 6}),
        node("affine", "d scale shift", "e", activation=("hardswish",)),
        node("reshape", "e", "t1", **table),
        node("transpose", "t1", "t2", axes=(0, 2, 1, 3, 4)),
        node("reshape", "t2", "s", shape=lambda s: (s[0], s[1] * s[2], *s[3:])),
        node("add", "s a", "f", activation=("leaky_relu", 0.1)),
        node("concat", "f a", "g", axis=1),
        node("concat", "g g", "h", axis=-2),
        node("activation", "h", "i", activation=("sigmoid",)),
        node("mul", "per_channel i", "j"),
        node("add", "j one", "k"),
        node("mean", "k", "gate"),
        node("mul", "k gate", "m"),
        node("batch_norm", "m scale2 shift2 shift2 var", "n", eps=1e-3),
        node("reshape", "n", "same", shape=lambda s: s),
        node("max_pool", "same", "o", **POOL),
        node("avg_pool", "o", "p", **POOL, count_include_pad=False),
        node("avg_pool", "p", "q", **POOL, count_include_pad=True),
        node("lrn", "q", "r", size=3, alpha=0.1, beta=0.75, bias=1.0),
        node("conv", "r w2", "u", **ONE),
        node("global_max_pool", "u", "top"),
        node("mean", "u", "flat", axes=(2, 3), keepdims=False),
        node("reshape", "u", "rows", shape=lambda s: (s[0], s[1] * s[2] * s[3])),
        node("linear", "rows matrix", "y"),
    ]
    return graph(
        nodes, "y flat top g gate x",
        w=normal(6, 3, 3, 3), b=normal(6), depthwise=normal(6, 1, 3, 3), scale=normal(6), shift=normal(6),
        per_channel=normal(12, 1, 1), one=np.float32(0.5), scale2=normal(12), shift2=normal(12),
        var=np.abs(normal(12)) + 0.5, w2=normal(5, 12, 1, 1), matrix=normal(75, 4),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_every_operation_gives_the_same_in_both_layouts(backend: str) -> None:
    agree(everything(), normal(2, 3, 6, 5), backend)


@pytest.mark.parametrize("build", [
    lambda: nc.models.lenet5(),
    lambda: nc.models.mobilenet_v1(10, size=32, width=0.25),
    lambda: nc.models.mobilenet_v2(10, size=32, width=0.25),
    lambda: nc.models.resnet18(10, size=32)[:6],
])  # fmt: skip
def test_models_give_the_same_in_both_layouts(build: Any) -> None:
    with nc.use_backend("numpy"):
        net = lively(build())
        channels = next(net.parameters()).value.shape[1]
        size = 28 if channels == 1 else 32
        compiled = nc.nn.compile(net, (channels, size, size))
    model = agree(compiled.graph, normal(1, channels, size, size))
    images = [node for node in compiled.graph.nodes if node.op not in ("linear", "reshape")]
    assert sum("channels_last" in name for name in made(model)) >= len(images)


def test_shufflenet_gives_the_same_in_both_layouts() -> None:
    onnx = pytest.importorskip("onnx")
    model = nc.onnx.load(Path(onnx.__file__).parent / "backend/test/data/light/light_shufflenet.onnx")
    ((name, (shape, _)),) = model.inputs.items()
    softmax = model.graph.nodes[-1]  # of numbers so large that rounding decides everything
    assert softmax.op == "softmax"
    g = Graph([name], [softmax.inputs[0]], model.graph.constants, model.graph.nodes[:-1])
    x = normal(*shape)
    first, last = (Model(g, backend="numpy", layout=layout) for layout in ("channels_first", "channels_last"))
    expected = first(x)
    assert_allclose(last(x), expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))
    assert sum(name.endswith("channels_last") for name in made(last)) > 80


def test_a_region_is_entered_and_left_once() -> None:
    nodes = [
        node("conv", "x w", "a", **SAME),
        node("conv", "a w", "b", **SAME),
        node("add", "b a", "c"),
        node("lrn", "c", "d", size=3, alpha=0.1, beta=0.75, bias=1.0),
        node("add", "c x", "e"),
        node("mean", "e", "f"),
        node("reshape", "f", "g", shape=lambda s: s[:2]),
    ]
    model = agree(graph(nodes, "d c g", w=normal(4, 4, 3, 3)), normal(2, 4, 5, 6))
    turned = "/channels_last"
    assert made(model) == [f"x{turned}", *(f"{n}{turned}" for n in "abc"), "c", "d", *(f"{n}{turned}" for n in "ef")]


def test_the_rest_of_a_network_keeps_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("conv", f"{a} w", b, **SAME) for a, b in itertools.pairwise("xabcdy")]
    nodes[-1:] = [node("max_pool", "d", "p", **{**POOL, "ceil_mode": False}), node("add", "p p", "y")]
    g, x = graph(nodes, "y", w=normal(4, 4, 3, 3)), normal(1, 4, 8, 8)
    costs = {"a": (100, 900), "b": (9000, 100), "c": (400, 500), "d": (9000, 100), "p": (100, 100), "y": (100, 101)}
    monkeypatch.setattr(regions, "price", lambda part, *_: costs[part.output])
    expected = Model(g, backend="numpy", layout="channels_first")(x)
    model = Model(g, backend="numpy")
    assert_allclose(twice(model, x)["y"], expected, rtol=1e-4, atol=1e-4)
    turned = "/channels_last"
    assert made(model) == ["a", f"a{turned}", *(f"{name}{turned}" for name in "bcdp"), "p", "y"], "the smaller"
    monkeypatch.setattr(regions, "price", lambda *_: (100, 100))
    model = Model(g, backend="numpy")
    assert_array_equal(model(x), expected)
    assert made(model) == list("abcdpy"), "nothing is won, so nothing changes"


def test_images_of_one_pixel_or_one_channel_are_not_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        node("conv", "x one", "a", **ONE), node("mean", "a", "b"), node("conv", "b w", "c", **ONE),
        node("mul", "a c", "d"), node("mean", "d", "y"), node("softmax", "c", "z", axis=1),
    ]  # fmt: skip
    g = graph(nodes, "y z", one=normal(4, 1, 1, 1), w=normal(4, 4, 1, 1))
    monkeypatch.delitem(OPERATORS, "transpose")
    model = agree(g, normal(1, 1, 5, 5))
    assert made(model) == [*(f"{name}/channels_last" for name in "xabcdy"), "z"]


def test_what_does_not_fit_into_memory_stays_as_it_is() -> None:
    w, x = normal(64, 64, 3, 3), normal(1, 64, 4, 4)
    g = graph([node("conv", "x w", "a", **SAME), node("conv", "a w", "y", **SAME)], "y", w=w)
    limit = Model(g, backend="numpy", layout="channels_first")
    expected = limit(x)
    room = limit._budget.held + w.nbytes + w.nbytes // 2  # one more weight packed, but not two
    model = Model(g, backend="numpy", layout="channels_last", max_memory=room)
    assert_array_equal(twice(model, x)["y"], expected)
    assert made(model) == ["a", "y"]
    assert model._budget.held == limit._budget.held
    model = agree(g, x, max_memory=room + 2 * w.nbytes)
    (program,) = model._programs.values()
    assert model._budget.held == w.nbytes + program.nbytes, "what was packed before has been given back"


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layout must be one of 'auto', .* got 'NHWC'"):
        Model(graph([], "x"), layout="NHWC")


def test_a_cut_is_the_cheapest_division() -> None:
    for seed in range(100):
        rng = random.Random(seed)
        things = range(rng.randint(1, 6))
        places = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in things]
        pairs = [(rng.choice(things), rng.choice(things), rng.randint(0, 6)) for _ in range(rng.randint(0, 10))]
        cut = Cut()
        for thing, costs in zip(things, places, strict=True):
            cut.place(thing, *costs)
        for pair in pairs:
            cut.separate(*pair)
        divisions = (set(side) for count in range(len(things) + 1) for side in itertools.combinations(things, count))
        costs = [(_cost(side, places, pairs), len(side)) for side in divisions]
        side = cut.second_side()
        assert (_cost(side, places, pairs), len(side)) == min(costs), f"seed {seed}"


def _cost(side: Any, places: list[tuple[int, int]], pairs: list[tuple[int, int, int]]) -> int:
    placed = sum(costs[thing in side] for thing, costs in enumerate(places))
    return placed + sum(cost for a, b, cost in pairs if a not in side and b in side)
