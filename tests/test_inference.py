"""The executor of fused graphs: what it computes, what it fuses, and how values share memory."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import npconv as nc
from npconv.inference import Graph, Model, Node, optimise
from npconv.inference.activation import ACTIVATIONS, BLOCK, activate
from npconv.inference.memory import ALIGNMENT, Block, layout
from npconv.inference.operators import OPERATORS

RNG = np.random.default_rng(0)
ONE = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
SAME = {**ONE, "padding": 1}


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype("float32")


def node(op: str, inputs: str, output: str, **attributes: Any) -> Node:
    return Node(op, tuple(inputs.split()), (output,), attributes)


def graph(nodes: list[Node], outputs: str, **constants: Any) -> Graph:
    return Graph(["x"], outputs.split(), constants, nodes)


def twice(model: Model, x: Any) -> Any:
    """The result of the run that makes the program, after checking that of the program itself."""
    first = model.run({"x": x})
    second = model.run({"x": x})
    for name, value in first.items():
        assert_array_equal(second[name], value)
    return first


@pytest.fixture(autouse=True)
def numpy_backend() -> Any:
    with nc.use_backend("numpy"):
        yield


def residual() -> tuple[Graph, Any]:
    """relu(bn(conv(x)) + x) and what it is by npconv's functions."""
    w, bias = normal(4, 4, 3, 3), normal(4)
    scale, shift, mean = normal(4), normal(4), normal(4)
    var = np.abs(normal(4)) + 0.5
    g = graph(
        [
            node("conv", "x w bias", "a", **SAME),
            node("batch_norm", "a scale shift mean var", "b", eps=1e-3),
            node("add", "b x", "c"),
            node("activation", "c", "y", activation=("relu",)),
        ],
        "y", w=w, bias=bias, scale=scale, shift=shift, mean=mean, var=var,
    )  # fmt: skip

    def expected(x: Any) -> Any:
        each = (4, 1, 1)
        y = nc.conv2d(x, w, bias, padding=1)
        y = (y - mean.reshape(each)) / np.sqrt(var.reshape(each) + 1e-3) * scale.reshape(each) + shift.reshape(each)
        return np.maximum(y + x, 0)

    return g, expected


def test_batch_norm_and_activations_are_fused_and_change_nothing() -> None:
    g, expected = residual()
    short = optimise(g)
    assert [n.op for n in short.nodes] == ["conv", "add"]
    assert short.nodes[1].attributes["activation"] == ("relu",)
    assert [n.op for n in g.nodes] == ["conv", "batch_norm", "add", "activation"], "the graph that was given stays"
    x = normal(2, 4, 6, 5)
    for model in (Model(g), Model(short)):
        assert_allclose(twice(model, x)["y"], expected(x), rtol=1e-5, atol=1e-5)


def test_batch_norm_of_statistics_that_are_computed() -> None:
    g, _ = residual()
    g.constants.pop("mean")
    g.nodes.insert(0, Node("call", ("x",), ("mean",), {"function": lambda x: (x.mean(axis=(0, 2, 3)),)}))
    x = normal(2, 4, 3, 3)
    short = optimise(g)
    assert [n.op for n in short.nodes] == ["call", "conv", "batch_norm", "add"]
    assert_array_equal(twice(Model(short), x)["y"], Model(g).run({"x": x})["y"])


@pytest.mark.parametrize("what", ["two readers", "an output", "activation before"])
def test_what_others_read_is_not_fused(what: str) -> None:
    nodes = [node("conv", "x w", "a", **ONE), node("affine", "a s t", "y")]
    if what == "two readers":
        nodes.append(node("add", "a y", "z"))
    if what == "activation before":
        nodes[0] = node("conv", "x w", "a", **ONE, activation=("relu",))
    outputs = {"two readers": "z", "an output": "a y", "activation before": "y"}[what]
    g = graph(nodes, outputs, w=normal(3, 2, 1, 1), s=normal(3), t=normal(3))
    short = optimise(g)
    assert [n.op for n in short.nodes][:2] == ["conv", "affine"]
    x = normal(1, 2, 4, 4)
    for name, value in Model(g).run({"x": x}).items():
        assert_array_equal(twice(Model(short), x)[name], value)


def test_products_and_sums_per_channel_move_into_the_weights() -> None:
    nodes = [node("conv", "x w", "a", **ONE), node("mul", "s a", "b"), node("add", "b t", "y")]
    g = graph(nodes, "y", w=normal(3, 2, 1, 1), s=normal(1, 3, 1, 1), t=normal(3, 1, 1))
    short = optimise(g)
    assert [n.op for n in short.nodes] == ["conv"]
    x = normal(2, 2, 4, 4)
    assert_allclose(twice(Model(short), x)["y"], Model(g).run({"x": x})["y"], rtol=1e-5, atol=1e-6)


def test_a_product_per_column_is_none_per_channel() -> None:
    g = graph([node("conv", "x w", "a", **ONE), node("mul", "a s", "y")], "y", w=normal(3, 2, 1, 1), s=normal(3))
    short = optimise(g)
    assert [n.op for n in short.nodes] == ["conv", "mul"]
    x = normal(1, 2, 5, 3)
    assert_array_equal(twice(Model(short), x)["y"], nc.conv2d(x, g.constants["w"]) * g.constants["s"])


@pytest.mark.parametrize(("gate", "joint"), [(("sigmoid",), "silu"), (("hardsigmoid", 1 / 6, 0.5), "hardswish")])
def test_gates_become_activations(gate: Any, joint: str) -> None:
    g = graph(
        [node("conv", "x w", "a", **ONE), node("activation", "a", "b", activation=gate), node("mul", "a b", "y")],
        "y", w=normal(3, 2, 1, 1),
    )  # fmt: skip
    short = optimise(g)
    assert [(n.op, n.attributes["activation"]) for n in short.nodes] == [("conv", (joint,))]
    x = 4 * normal(1, 2, 8, 8)
    assert_allclose(twice(Model(short), x)["y"], Model(g).run({"x": x})["y"], rtol=1e-5, atol=1e-6)


PARAMETERS: dict[str, tuple[float, ...]] = {"clip": (-0.5, 1.5), "hardsigmoid": (0.2, 0.5), "leaky_relu": (0.1,)}
DEFINITIONS: dict[str, Any] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "clip": lambda x: np.clip(x, -0.5, 1.5),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x < 0, 0.1 * x, x),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    y = np.linspace(-9, 9, BLOCK + 7)
    got = activate(np, y.copy(), (name, *PARAMETERS.get(name, ())))
    assert_allclose(got, DEFINITIONS[name](y), rtol=1e-12, atol=1e-15)
    far = activate(np, np.array([-1e30, 1e30, np.nan], "float32"), (name, *PARAMETERS.get(name, ())))
    assert np.isfinite(far[:2]).all()
    assert np.isnan(far[2])


def test_lrn_is_its_definition() -> None:
    x = normal(2, 7, 3, 4)
    for beta in (0.75, 0.6):
        g = graph([node("lrn", "x", "y", size=4, alpha=0.3, beta=beta, bias=1.5)], "y")
        squares = np.stack([(x[:, max(0, c - 1) : c + 3] ** 2).sum(axis=1) for c in range(7)], axis=1)
        assert_allclose(twice(Model(g), x)["y"], x / (1.5 + 0.3 / 4 * squares) ** beta, rtol=1e-5)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("padding", [((1, 0), (0, 1)), "same_lower"])
def test_pooled_shapes_are_known_beforehand(op: str, ceil_mode: bool, padding: Any) -> None:
    window = {"kernel_size": (3, 2), "stride": (2, 3), "padding": padding, "dilation": (1, 2), "ceil_mode": ceil_mode}
    counts = {"count_include_pad": False} if op == "avg_pool" else {}
    for size in ((6, 7), (7, 9), (4, 4)):
        x = normal(1, 2, *size)
        got = twice(Model(graph([node(op, "x", "y", **window, **counts)], "y")), x)["y"]
        assert_allclose(got, getattr(nc, op)(x, **window, **counts), rtol=1e-5, atol=1e-6)


def test_every_operator_is_documented_by_its_function() -> None:
    assert all(build.__doc__ for name, build in OPERATORS.items() if name not in ("add", "mul"))


# --------------------------------------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------------------------------------

SPANS = st.tuples(st.integers(0, 300), st.integers(0, 12), st.integers(0, 4))


@given(st.lists(SPANS, max_size=12))
def test_blocks_that_live_at_the_same_time_never_overlap(spans: list[tuple[int, int, int]]) -> None:
    blocks = {str(i): Block(nbytes, first, first + more) for i, (nbytes, first, more) in enumerate(spans)}
    offsets, size = layout(blocks)
    taken: dict[tuple[int, int], str] = {}
    for name, block in blocks.items():
        assert offsets[name] % ALIGNMENT == 0
        assert offsets[name] + block.nbytes <= size
        for step in range(block.first, block.last + 1):
            for byte in range(offsets[name], offsets[name] + block.nbytes, 16):
                assert taken.setdefault((step, byte), name) == name


def dense_block(w: Any, v: Any) -> Graph:
    """Concatenations of concatenations, views, results in place, an output inside the arena: all kinds of sharing."""
    return graph(
        [
            node("conv", "x w", "a", **SAME),
            node("activation", "a", "b", activation=("tanh",)),
            node("concat", "a b", "c", axis=1),
            node("conv", "c v", "d", **SAME),
            node("activation", "d", "e", activation=("relu",)),
            node("concat", "c e a", "f", axis=1),
            node("reshape", "f", "g", shape=lambda shape: (shape[0], shape[1] * shape[2], shape[3])),
            node("softmax", "g", "h", axis=-1),
            node("add", "h g", "i"),
            node("reshape", "i", "y", shape=lambda shape: shape[::-1]),
            node("mul", "e e", "z"),
            node("reshape", "c", "k", shape=lambda shape: shape),
        ],
        "y z k", w=w, v=v,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
def test_shared_memory_changes_no_value(batch: int) -> None:
    x, w, v = normal(batch, 2, 5, 4), normal(2, 2, 3, 3), normal(3, 4, 3, 3)
    found = twice(Model(dense_block(w, v)), x)
    a = nc.conv2d(x, w, padding=1)
    c = np.concatenate([a, np.tanh(a)], axis=1)
    e = np.maximum(nc.conv2d(c, v, padding=1), 0)
    g = np.concatenate([c, e, a], axis=1).reshape(batch, 45, 4)
    h = np.exp(g - g.max(axis=-1, keepdims=True))
    assert_allclose(found["y"], (h / h.sum(axis=-1, keepdims=True) + g).reshape(4, 45, batch), rtol=1e-5, atol=1e-6)
    assert_allclose(found["z"], e * e, rtol=1e-6)
    assert_allclose(found["k"], c, rtol=1e-6)


def test_parts_of_a_concatenation_are_made_in_place() -> None:
    model = Model(dense_block(normal(2, 2, 3, 3), normal(3, 4, 3, 3)))
    model.run({"x": normal(1, 2, 5, 4)})
    (program,) = model._programs.values()
    a, b, c, e, f = (program._slots[program._number[name]] for name in "abcef")
    for part in (a, b, c, e):
        assert np.shares_memory(part, f)
    assert c.ctypes.data == f.ctypes.data
    made = {place for _, _, _, outs in program._steps for place in outs}
    assert program._number["c"] not in made, "nothing is left to join"
    assert program._number["f"] in made, "a stands in it twice"


def test_packed_weights_count() -> None:
    w, x = normal(32, 32, 3, 3), normal(1, 32, 8, 8)
    layer = graph([node("conv", "x w", "y", **SAME)], "y", w=w)
    model = Model(layer)
    model.run({"x": x})
    assert model._budget.held >= 2 * w.nbytes, "the constant, and what a plan made of it"
    before = model._budget.held
    for size in (4, 5, 6, 7, 8, 9):  # one program makes room for another
        model.run({"x": normal(1, 32, size, size)})
    (*programs,) = model._programs.values()
    assert model._budget.held == w.nbytes + sum(program.nbytes for program in programs) < 6 * before
    with pytest.raises(ValueError, match=r"node .* needs .* more than max_memory=50,000 allows"):
        Model(layer, max_memory=50_000).run({"x": x})


def test_memory_is_used_again() -> None:
    names = [f"v{i}" for i in range(10)]
    nodes = [node("conv", f"{i} w", o, **SAME) for i, o in zip(["x", *names], [*names, "y"], strict=True)]
    model = Model(graph(nodes, "y", w=normal(2, 2, 3, 3)))
    x = normal(1, 2, 16, 16)
    model.run({"x": x})
    (program,) = model._programs.values()
    assert program._arena.nbytes == 2 * x.nbytes


def test_results_belong_to_the_caller() -> None:
    model = Model(graph([node("conv", "x w", "a", **SAME), node("reshape", "a", "y", shape=lambda s: s)], "a y x",
                        w=normal(2, 2, 3, 3)))  # fmt: skip
    x = normal(1, 2, 4, 4)
    for _ in range(2):
        found = model.run({"x": x})
        kept = {name: value.copy() for name, value in found.items()}
        model.run({"x": x + 1})
        for name, value in found.items():
            assert_array_equal(value, kept[name])
            assert not any(np.shares_memory(value, other) for key, other in found.items() if key != name)
        assert not np.shares_memory(found["x"], x)


def test_what_a_foreign_function_returns_from_the_arena_is_copied() -> None:
    nodes = [node("conv", "x w", "a", **SAME), node("call", "a", "b", function=lambda a: (a[:, ::-1],))]
    nodes += [node("conv", "a w", "c", **SAME), node("conv", "c w", "d", **SAME), node("add", "d b", "y")]
    g = graph(nodes, "y", w=(w := normal(2, 2, 3, 3)))
    x = normal(1, 2, 6, 6)

    def conv(value: Any) -> Any:
        return nc.conv2d(value, w, padding=1)

    assert_allclose(twice(Model(g), x)["y"], conv(conv(conv(x))) + conv(x)[:, ::-1], rtol=1e-4, atol=1e-4)


def test_results_whose_shape_changes_from_run_to_run() -> None:
    nodes = [node("call", "x", "a", function=lambda x: (x[x > 0],)), node("activation", "a", "y", activation=("tanh",))]
    model = Model(graph(nodes, "y"))
    for x in (np.array([1.0, -2.0, 3.0]), np.array([1.0, 2.0, 3.0]), np.array([-1.0, 2.0, -3.0])):
        assert_array_equal(model(x), np.tanh(x[x > 0]))


def test_what_depends_on_shapes_alone_is_computed_once() -> None:
    calls = []

    def double(value: Any) -> Any:
        calls.append(value)
        return (2 * value,)

    nodes = [node("shape", "x", "s", start=0, stop=None), node("call", "s", "y", function=double, pure=True)]
    model = Model(graph(nodes, "y"))
    for _ in range(3):
        assert model(normal(3, 4)).tolist() == [6, 8]
    assert len(calls) == 1
    assert model(normal(5)).tolist() == [10]


def test_threads_may_share_a_model() -> None:
    model = Model(residual()[0])
    images = [normal(1, 4, 6, 6) for _ in range(8)]
    alone = [model(x) for x in images]
    wrong: list[int] = []

    def work(number: int) -> None:
        if not all(np.array_equal(model(images[number]), alone[number]) for _ in range(20)):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_programs_are_kept_for_a_few_shapes_and_their_memory_is_given_back() -> None:
    model = Model(residual()[0])
    for batch in range(1, 8):
        model(normal(batch, 4, 3, 3))
    assert len(model._programs) == 4
    assert model._budget.held == sum(p.nbytes for p in model._programs.values()) + sum(
        value.nbytes for value in model.graph.constants.values()
    )


# --------------------------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------------------------


def test_inputs_are_checked() -> None:
    model = Model(residual()[0], {"x": ((None, 4, 3, 3), np.dtype("float32"))})
    with pytest.raises(TypeError, match="takes 1 inputs"):
        model()
    with pytest.raises(ValueError, match="feeds must be named x; got y"):
        model.run({"y": normal(1, 4, 3, 3)})
    with pytest.raises(TypeError, match="input 'x' must be of dtype float32, got float64"):
        model(np.zeros((1, 4, 3, 3)))
    with pytest.raises(ValueError, match="input 'x' must be of shape any x 4 x 3 x 3, got 1 x 4 x 3 x 2"):
        model(normal(1, 4, 3, 2))
    with pytest.raises(TypeError, match="input 'x' must be a NumPy array, got list"):
        model([1.0])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node("conv", ("x", "w"), ("y",), ONE, "first")], "node first: .*channels"),
        ([Node("concat", ("x", "w"), ("y",), {"axis": 0}, "join")], "node join: arrays of shapes"),
        ([Node("linear", ("x", "w"), ("y",), {}, "fc")], "node fc: x of shape"),
        ([Node("reshape", ("x",), ("y",), {"shape": lambda _: (7,)}, "view")], "node view: an array of shape"),
        ([Node("softmax", ("x",), ("y",), {"axis": 4}, "soft")], "node soft: axis 4"),
        ([Node("transpose", ("x",), ("y",), {"axes": (0, 0, 1, 2)}, "turn")], "node turn: axes"),
    ],
)
def test_errors_name_the_node(nodes: list[Node], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Model(graph(nodes, "y", w=normal(2, 3, 1, 1)))(normal(1, 2, 4, 4))


def test_more_memory_than_allowed_is_refused_before_it_is_taken() -> None:
    wide = {**ONE, "padding": 10_000}
    model = Model(graph([Node("conv", ("x", "w"), ("y",), wide, "huge")], "y", w=normal(2, 2, 1, 1)), max_memory=10**6)
    with pytest.raises(ValueError, match=r"node huge needs 3,20\d,\d{3},\d{3} bytes .* max_memory=1,000,000"):
        model(normal(1, 2, 4, 4))
    with pytest.raises(ValueError, match="the model's constants needs 4,000 bytes"):
        Model(graph([], "w", w=np.zeros(1000, "float32")), max_memory=100)
    held = model._budget.held
    with pytest.raises(ValueError, match="node huge"):
        model(normal(1, 2, 4, 4))
    assert model._budget.held == held


def test_a_model_is_not_pickled() -> None:
    """Its weights are laid out for one processor, and another one would read them otherwise."""
    model = nc.nn.compile(nc.nn.Linear(3, 2, rng=0), (3,))
    for refused in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied: save the network it was made of"):
            refused(model)
