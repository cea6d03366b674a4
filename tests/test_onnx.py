"""ONNX models: the operators' own tests, by the evaluator and by `load`, and a network whose result is known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npconv as nc
from npconv import cli

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

OURS = {name.__name__ for name in nc.onnx.ops}
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


@pytest.fixture(autouse=True)
def numpy_backend() -> Iterator[None]:
    """Nothing is compiled for the many shapes and dtypes here; the loops have tests of their own."""
    with nc.use_backend("numpy"):
        yield


def evaluator(model: Any, **options: Any) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model, **options)


def model_of(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], opset: int = 17, **constants: Any) -> Any:
    """A model with inputs of the given shapes, float32."""
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def cases() -> list[Any]:
    """The backend tests of `onnx` that use one of our operators, or one that `load` knows besides."""
    import warnings

    from onnx.backend.test.loader import load_node_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the cases overflows here and there
        tests = load_node_model_tests()
    return [test for test in tests if {node.op_type for node in test.model.graph.node} & OURS]


CASES = cases()


def check(test: Any, run: Any) -> None:
    """Run a backend test the way that `onnx` judges it."""
    from onnx.backend.test.runner import Runner

    def plain(value: Any) -> Any:
        return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value

    for inputs, outputs in test.data_sets:
        feeds = dict(zip([value.name for value in test.model.graph.input], map(plain, inputs), strict=False))
        Runner.assert_similar_outputs([*map(plain, outputs)], run(feeds), test.rtol, test.atol)


def test_there_are_backend_tests_of_all_operators() -> None:
    assert {node.op_type for test in CASES for node in test.model.graph.node} >= OURS
    assert len(CASES) >= 70


@pytest.mark.parametrize("test", CASES, ids=lambda test: test.name)
def test_backend_tests_of_the_evaluator(test: Any) -> None:
    model = evaluator(test.model, new_ops=nc.onnx.ops)
    check(test, lambda feeds: model.run(None, feeds))


@pytest.mark.parametrize("test", CASES, ids=lambda test: test.name)
def test_backend_tests_of_loaded_models(test: Any) -> None:
    model = nc.onnx.load(test.model.SerializeToString())
    for _ in range(2):
        check(test, lambda feeds: list(model.run(feeds).values()))


KNOWN = (
    "add", "concat", "clip", "dropout", "flatten", "gemm", "globalmaxpool", "hardsigmoid", "hardswish", "identity",
    "leakyrelu", "lrn", "matmul", "mul", "reduce_mean", "relu", "reshape", "shape", "sigmoid", "softmax", "squeeze",
    "sum", "tanh", "transpose", "unsqueeze",
)  # fmt: skip


def test_backend_tests_of_what_load_knows_besides() -> None:
    from onnx.backend.test.loader import load_node_model_tests

    count = 0
    for test in load_node_model_tests():
        words = test.name.removeprefix("test_")
        sequences = any(not value.type.HasField("tensor_type") for value in test.model.graph.input)
        if not words.startswith(KNOWN) or sequences or "expanded" in words:
            continue
        model = nc.onnx.load(test.model.SerializeToString())
        check(test, lambda feeds, model=model: list(model.run(feeds).values()))
        count += 1
    assert count > 140


# --------------------------------------------------------------------------------------------------------------------
# What the backend tests leave out
# --------------------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("auto", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
def test_geometry_is_that_of_the_runtime(op: str, auto: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    geometry: dict[str, Any] = {"strides": [2, 3]}
    if auto == "NOTSET":
        geometry |= {"pads": [1, 0, 2, 1], "dilations": [2, 1]}
        if op == "ConvTranspose":
            geometry |= {"output_padding": [1, 2], "group": 2}
        elif op != "Conv":
            geometry |= {"ceil_mode": 1}
    else:
        # Where the stride exceeds the kernel, the runtime's transposed convolution gives less than the definition says.
        geometry |= {"auto_pad": auto, "strides": [2, 2]}
    constants = {"w": normal(4, 3, 3, 2), "b": normal(6 if op == "ConvTranspose" and auto == "NOTSET" else 3)}
    if op == "Conv":
        constants = {"w": normal(3, 4, 3, 2), "b": normal(3)}
    if op.endswith("Pool"):
        geometry, constants = {**geometry, "kernel_shape": [3, 2]}, {}
    node = helper.make_node(op, ["x", *constants], ["y"], **geometry)
    model = model_of([node], {"x": [2, 4, 8, 7]}, ["y"], opset=19, **constants)
    x = normal(2, 4, 8, 7)
    (expected,) = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert_allclose(nc.onnx.load(model.SerializeToString())(x), expected, rtol=1e-4, atol=1e-5)
    assert_allclose(evaluator(model, new_ops=nc.onnx.ops).run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)


def test_indices_in_columns_first_order() -> None:
    runtime = pytest.importorskip("onnxruntime")
    node = helper.make_node(
        "MaxPool", ["x"], ["y", "i"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], storage_order=1
    )
    model = model_of([node], {"x": [2, 3, 6, 5]}, ["y"])
    model.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, None))
    x = normal(2, 3, 6, 5)
    expected = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    for got, wanted in zip(nc.onnx.load(model.SerializeToString()).run({"x": x}).values(), expected, strict=True):
        assert_array_equal(got, wanted)


def test_integer_convolutions_are_exact() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (1, 64, 9, 9), "uint8"), rng.integers(-128, 128, (5, 64, 3, 3), "int8")
    x_zero, w_zero = np.uint8(131), rng.integers(-9, 9, 5).astype("int8")
    (conv,) = (op for op in nc.onnx.ops if op.__name__ == "ConvInteger")
    got = conv.eval(x, w, x_zero, w_zero, pads=[1, 1, 1, 1])
    wide = w.astype("int64") - w_zero.astype("int64").reshape(-1, 1, 1, 1)
    assert got.dtype == np.int32
    assert_array_equal(got, nc.conv2d(x.astype("int64") - 131, wide, padding=1))


def test_quantized_results_are_rounded_half_to_even_before_the_zero_point() -> None:
    (conv,) = (op for op in nc.onnx.ops if op.__name__ == "QLinearConv")
    x, w = np.array([[[1, 3, 5, 255]]], "uint8"), np.ones((1, 1, 1), "uint8")
    one, half = np.float32(1), np.float32(2)
    zero, three = np.uint8(0), np.uint8(3)
    got = conv.eval(x, one, zero, w, one, zero, half, three)
    assert got.tolist() == [[[3, 5, 5, 131]]]  # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 127.5 -> 128


# --------------------------------------------------------------------------------------------------------------------
# Whole networks
# --------------------------------------------------------------------------------------------------------------------


def small_network() -> Any:
    """Everything that is fused, a shape that is computed, and two operators that npconv leaves to the evaluator."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2], name="first"),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["e"], group=4),
        helper.make_node("Elu", ["e"], ["f"], alpha=0.7),
        helper.make_node("Add", ["f", "d"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Concat", ["h", "d"], ["i"], axis=1),
        helper.make_node("MaxPool", ["i"], ["j"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["j"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["j", "to"], ["k"]),
        helper.make_node("Gemm", ["k", "w3", "b3"], ["l"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("LogSoftmax", ["l"], ["y"], axis=1),
    ]
    constants = {
        "w1": normal(4, 3, 3, 3), "s": normal(4, seed=1), "b": normal(4, seed=2), "m": normal(4, seed=3),
        "v": np.abs(normal(4, seed=4)) + 0.5, "w2": normal(4, 1, 1, 1, seed=5), "zero": np.array([0]),
        "rest": np.array([-1]), "w3": normal(10, 128, seed=6), "b3": normal(10, seed=7),
    }  # fmt: skip
    return model_of(nodes, {"x": ["n", 3, 16, 16]}, ["y"], **constants)


def test_a_network_agrees_with_the_evaluator_for_every_batch(tmp_path: Path) -> None:
    proto = small_network()
    onnx.save(proto, tmp_path / "small.onnx")
    model = nc.onnx.load(tmp_path / "small.onnx")
    assert [node.op for node in model.graph.nodes].count("conv") == 2
    assert not {"batch_norm", "activation"} & {node.op for node in model.graph.nodes}
    for batch in (1, 4):
        x = normal(batch, 3, 16, 16, seed=8)
        (expected,) = evaluator(proto).run(None, {"x": x})
        for _ in range(2):
            assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
            assert_allclose(model.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_graphs_in_attributes_read_the_graph_around_them() -> None:
    body = helper.make_graph(
        [helper.make_node("Conv", ["a", "w"], ["z"])], "then", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["z2"])], "else", [],
        [helper.make_tensor_value_info("z2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=body, else_branch=other),
    ]
    proto = model_of(nodes, {"x": [1, 2, 3, 3]}, ["y"], w=normal(2, 2, 1, 1), zero=np.float32(0).reshape(()))
    model = nc.onnx.load(proto.SerializeToString())
    for x in (np.ones((1, 2, 3, 3), "float32"), -np.ones((1, 2, 3, 3), "float32")):
        for _ in range(2):
            assert_allclose(model(x), evaluator(proto).run(None, {"x": x})[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_models_that_ship_with_onnx(name: str) -> None:
    model = nc.onnx.load(LIGHT / f"light_{name}.onnx")
    ((shape, dtype),) = model.inputs.values()
    x = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(dtype)
    expected = numpy_helper.to_array(onnx.load_tensor(LIGHT / f"light_{name}_output_0.pb"))
    for _ in range(2):
        assert_allclose(model(x), expected, rtol=1e-3, atol=1e-7)


def test_without_the_package_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\nimport npconv as nc\n"
        "for use in (lambda: nc.onnx.load(b''), lambda: nc.onnx.ops):\n"
        "    try: use()\n    except ImportError as error: assert 'npconv[onnx]' in str(error)\n"
        "    else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


def test_run_prints_the_largest_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(small_network(), tmp_path / "small.onnx")
    x = normal(1, 3, 16, 16, seed=8)
    np.save(tmp_path / "x.npy", x)
    assert cli.main(["run", str(tmp_path / "small.onnx"), str(tmp_path / "x.npy"), "--top", "3"]) == 0
    text = capsys.readouterr().out
    y = nc.onnx.load(tmp_path / "small.onnx")(x)
    assert str(int(y.argmax())) in text
    assert cli.main(["run", str(tmp_path / "small.onnx"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 0
    assert_array_equal(np.load(tmp_path / "y.npy"), y)
    assert capsys.readouterr().out == f"1 array written to {tmp_path / 'y.npy'}\n"


def test_run_and_cost_say_it_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(small_network(), tmp_path / "small.onnx")
    x = normal(2, 3, 16, 16, seed=8)
    np.save(tmp_path / "x.npy", x)
    y = nc.onnx.load(tmp_path / "small.onnx")(x)
    assert cli.main(["run", str(tmp_path / "small.onnx"), str(tmp_path / "x.npy"), "--top", "1", "--json"]) == 0
    largest = [{"place": int(y.argmax()), "value": float(y.max())}]
    assert json.loads(capsys.readouterr().out) == {"y": {"shape": [2, 10], "dtype": "float32", "largest": largest}}
    call = ["cost", str(tmp_path / "small.onnx"), "2x3x16x16", "--machines", "h100", "--json"]
    assert cli.main([*call, "--samples", "1e3"]) == 0
    *steps, whole, job = json.loads(capsys.readouterr().out)
    macs = {step["name"]: step["macs"] for step in steps if step["macs"]}
    assert list(macs.values()) == [2 * 4 * 64 * 27, 2 * 4 * 64, 2 * 10 * 128]
    assert next(iter(macs)) == "first (Conv)"
    # Two kernels, their biases (one is made of the batch normalisation), a matrix and its bias.
    assert whole["parameters"] == 4 * 27 + 4 + 4 + 10 * 128 + 10
    assert (whole["macs"], job["macs"]) == (sum(macs.values()), 1000 * sum(macs.values()))
    assert cli.main([*call, "--training"]) == 0
    *steps, whole = json.loads(capsys.readouterr().out)
    assert whole["macs"] == 3 * sum(macs.values()) - macs["first (Conv)"], "nobody needs the picture's gradient"
    assert cli.main([*call, "--stride", "2"]) == 2
    assert "got --stride" in capsys.readouterr().err


def test_what_a_loop_costs_nobody_knows() -> None:
    one, many = normal(1, 5, 6), normal(1, 5, 5)
    node = helper.make_node("RNN", ["x", "w", "r"], ["", "y"], hidden_size=5)
    model = nc.onnx.load(model_of([node], {"x": [2, 3, 6]}, ["y"], w=one, r=many).SerializeToString())
    assert [row.macs for row in model.summary()] == [None]
    with pytest.raises(ValueError, match=r"work is known, which is not so of .*RNN"):
        nc.cost.model(model)


def test_matrix_products_that_the_evaluator_makes_are_counted() -> None:
    node = helper.make_node("Gemm", ["x", "z"], ["y"], transA=1)
    model = nc.onnx.load(model_of([node], {"x": [4, 3], "z": [4, 7]}, ["y"]).SerializeToString())
    assert [(row.kind, row.macs) for row in model.summary()] == [("Gemm", 3 * 4 * 7)]


def test_run_takes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    onnx.save(small_network(), tmp_path / "small.onnx")
    image.fromarray(np.full((40, 60, 3), 200, "uint8")).save(tmp_path / "x.png")
    assert cli.main(["run", str(tmp_path / "small.onnx"), str(tmp_path / "x.png")]) == 0
    assert "y  1 x 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "image", "message"),
    [
        ("missing.onnx", "x.npy", "missing.onnx"),
        ("small.onnx", "missing.npy", "missing.npy"),
        ("x.npy", "x.npy", "no ONNX model"),
        ("small.onnx", "wrong.npy", "input 'x' must be of shape"),
        ("small.onnx", "small.onnx", "small.onnx"),
        ("small.onnx", "text.npy", "text.npy is no array"),
    ],
)
def test_run_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, image: str, message: str
) -> None:
    onnx.save(small_network(), tmp_path / "small.onnx")
    np.save(tmp_path / "x.npy", normal(1, 3, 16, 16))
    np.save(tmp_path / "wrong.npy", normal(1, 3, 16, 17))
    (tmp_path / "text.npy").write_text("no array")
    assert cli.main(["run", str(tmp_path / model), str(tmp_path / image)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_run_gives_programs_json_without_nan_and_infinity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (3,)}, ["y"]), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.array([np.inf, 1, np.nan], "float32"))
    assert cli.main(["run", str(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {row["place"]: row["value"] for row in answer["y"]["largest"]} == {0: "inf", 1: 1.0, 2: "nan"}


def test_run_makes_no_picture_beyond_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    network = small_network()
    for dim in network.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 10**6
    onnx.save(network, tmp_path / "large.onnx")
    image.new("L", (3, 3)).save(tmp_path / "x.png")
    assert cli.main(["run", str(tmp_path / "large.onnx"), str(tmp_path / "x.png")]) == 2
    assert "needs 12,000,000,000,000 bytes, more than --max-memory allows" in capsys.readouterr().err


@pytest.mark.parametrize("gib", ["inf", "nan", "-1", "0", "1e300"])
def test_run_takes_no_impossible_limit(capsys: pytest.CaptureFixture[str], gib: str) -> None:
    assert cli.main(["run", "small.onnx", "x.npy", "--max-memory", gib]) == 2
    assert "--max-memory must be finite and above zero, got" in capsys.readouterr().err
