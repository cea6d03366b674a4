"""A model file is untrusted: whatever is wrong with it is a clear error, and takes neither memory nor liberties."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import npconv as nc

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

LIMIT = 50 * 2**20
"""Bytes that the models here may hold."""


@pytest.fixture(autouse=True)
def numpy_backend() -> Iterator[None]:
    with nc.use_backend("numpy"):
        yield


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """No test here may take much more than it is allowed."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * LIMIT


def model(
    *nodes: Any, inputs: Any = (("x", [1, 2, 4, 4]),), output: str = "y", opset: int = 17, **constants: Any
) -> Any:
    graph = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def load(proto: Any) -> Any:
    return nc.onnx.load(proto if isinstance(proto, bytes) else proto.SerializeToString(), max_memory=LIMIT)


X = np.ones((1, 2, 4, 4), "float32")


def conv(**attributes: Any) -> Any:
    return helper.make_node("Conv", ["x", "w"], ["y"], **attributes)


CONV = conv(name="mine")
W = np.ones((2, 2, 1, 1), "float32")


# --------------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"\x00" * 100, b"PK\x03\x04", b"\x80\x04\x95pickle", b"\xff" * 64]
)
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(ValueError, match="no ONNX model"):
        load(data)


def test_a_truncated_model_at_every_length() -> None:
    whole = model(CONV, w=W).SerializeToString()
    for length in range(len(whole)):
        try:
            found = load(whole[:length])
        except (ValueError, NotImplementedError, TypeError):
            continue
        # What is cut off between two fields can be a model still, if a smaller one.
        assert found.graph.outputs


def test_a_model_with_any_byte_changed_raises_or_runs() -> None:
    whole = model(CONV, w=W).SerializeToString()
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] = int(rng.integers(256))
        try:
            load(bytes(changed)).run({"x": X})
        except (ValueError, NotImplementedError, TypeError):
            continue


def test_a_file_that_is_not_there_and_arguments_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        nc.onnx.load(tmp_path / "nothing.onnx")
    with pytest.raises(TypeError, match="model must be a path or bytes, got int"):
        nc.onnx.load(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_memory must be a positive number of bytes, got 0"):
        nc.onnx.load(b"", max_memory=0)


# --------------------------------------------------------------------------------------------------------------------
# Graphs
# --------------------------------------------------------------------------------------------------------------------


def relu(source: str, result: str, name: str) -> Any:
    return helper.make_node("Relu", [source], [result], name=name)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model(relu("b", "a", "first"), relu("a", "b", "second"), output="b"), r"node first \(Relu\) reads 'b'.*cycle"),
        (model(relu("y", "y", "self")), r"node self \(Relu\) reads 'y'.*cycle"),
        (model(relu("ghost", "y", "lost")), r"node lost \(Relu\) reads 'ghost', which nothing makes"),
        (model(relu("x", "y", "one"), relu("x", "y", "two")), r"node two \(Relu\) makes 'y', which is there already"),
        (model(relu("x", "x", "over"), output="x"), r"node over \(Relu\) makes 'x', which is there already"),
        (model(relu("x", "z", "one")), "output 'y' is made by no node"),
        (model(helper.make_node("Relu", ["x", "x"], ["y"], name="wide")), r"node wide \(Relu\)"),
        (model(helper.make_node("MaxPool", ["x"], ["y"], name="bare")), r"node bare \(MaxPool\).*kernel_shape"),
        (model(helper.make_node("MaxPool", ["x"], ["y"], kernel_shape="no", name="word")), r"node word \(MaxPool\)"),
        (model(conv(name="few", pads=[1]), w=W), r"node few \(Conv\): pads must"),
        (model(conv(name="k", kernel_shape=[3, 3]), w=W), r"node k \(Conv\).*kernel"),
        (model(conv(name="pad", auto_pad="AWAY"), w=W), r"node pad \(Conv\).*auto_pad"),
        (model(CONV, inputs=(("x", [1]), ("x", [1])), w=W), "two inputs of the graph have the same name"),
    ],
)  # fmt: skip
def test_graphs_that_are_none(proto: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(proto)


@pytest.mark.parametrize("op", ["Teleport", "ConvButFaster"])
def test_unknown_operators(op: str) -> None:
    node = helper.make_node(op, ["x"], ["y"], name="odd")
    with pytest.raises(NotImplementedError, match=rf"node odd \({op}\).*has no operator '{op}'"):
        load(model(node))


def test_operators_of_foreign_domains() -> None:
    node = helper.make_node("Os", ["x"], ["y"], name="odd", domain="com.evil")
    with pytest.raises(ValueError, match=r"node odd \(Os\) is of the domain 'com.evil', of which the model names no"):
        load(model(node))
    proto = model(node)
    proto.opset_import.append(helper.make_opsetid("com.evil", 1))
    with pytest.raises(NotImplementedError, match=r"node odd \(Os\).*com.evil"):
        load(proto)


@pytest.mark.parametrize("version", [0, -3, 9999])
def test_unknown_operator_sets(version: int) -> None:
    with pytest.raises(ValueError, match=rf"operator set {version}"):
        load(model(CONV, w=W, opset=version))


def test_wrong_shapes_are_found_when_the_model_runs() -> None:
    proto = model(CONV, inputs=(("x", [1, 3, 4, 4]),), w=W)
    with pytest.raises(ValueError, match=r"node mine \(Conv\).*channels"):
        load(proto)(np.ones((1, 3, 4, 4), "float32"))


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (("Squeeze", {}), {"a": np.array([4])}, r"axes \[4\] are not all those"),
        (("Squeeze", {}), {"a": np.array([-5])}, r"axes \[-5\] are not all those"),
        (("AveragePool", {"kernel_shape": [0, 1]}), {}, "kernel_shape must be positive"),
        (("MaxPool", {"kernel_shape": [2]}), {}, r"a window of \(2,\) does not fit an array of shape"),
        (("LRN", {"size": 0}), {}, "size must be positive"),
        (
            ("BatchNormalization", {}),
            {"s": W[0, :, 0, 0], "b": W[0, :, 0, 0], "m": W[0, :, 0, 0], "v": np.ones(7, "f4")},
            "must be of one shape",
        ),
    ],
)
def test_attributes_and_constants_that_fit_no_input(node: Any, constants: dict[str, Any], words: str) -> None:
    op, attributes = node
    proto = model(helper.make_node(op, ["x", *constants], ["y"], name="odd", **attributes), **constants)
    with pytest.raises(ValueError, match=rf"node odd \({op}\): .*{words}"):
        load(proto)(X)


def test_a_product_of_integers_is_scaled_after_it() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)
    proto = model(node, inputs=(("x", [1, 4]),), w=np.full((4, 1), 3))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    assert load(proto)(np.ones((1, 4), int)).tolist() == [[6]]


# --------------------------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [[2**62, 2**62], [10**9], [-1, 4], [3]])
def test_tensors_whose_data_are_not_what_the_shape_says(dims: list[int]) -> None:
    proto = model(CONV, w=W)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with pytest.raises(ValueError, match="'w'"):
        load(proto)
    typed = model(CONV, w=W)
    typed.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=1, dims=dims, float_data=[1.0, 2.0]))
    with pytest.raises(ValueError, match="'w'"):
        load(typed)


def test_attributes_hold_tensors_too() -> None:
    node = helper.make_node("Constant", [], ["w"], name="big", value=TensorProto(data_type=1, dims=[10**12]))
    with pytest.raises(ValueError, match=r"attribute 'value' of node big"):
        load(model(node, CONV))


def sparse(dims: list[int], indices: list[int]) -> Any:
    proto = model(CONV)
    values = numpy_helper.from_array(np.ones(len(indices), "float32"), "w")
    places = numpy_helper.from_array(np.array(indices), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))
    return proto


def test_sparse_tensors() -> None:
    np.testing.assert_array_equal(load(sparse([2, 2, 1, 1], [0, 3]))(X), X)
    for dims, indices in (([2**40, 2], [0]), ([2, 2], [4]), ([2, 2], [-1]), ([-2, 2], [0])):
        with pytest.raises(ValueError, match="'w'"):
            load(sparse(dims, indices))


HUGE = 10**13
GROWING = {
    "ConstantOfShape": (["s"], {"s": np.array([HUGE])}, {}),
    "Expand": (["x", "s"], {"s": np.array([HUGE, 1, 1, 1, 1])}, {}),
    "Tile": (["x", "s"], {"s": np.array([1, 1, HUGE, 1])}, {}),
    "Pad": (["x", "s"], {"s": np.array([0, 0, 0, 0, 0, 0, 0, HUGE])}, {}),
    "Range": (["a", "s", "b"], {"a": np.float32(0), "b": np.float32(1), "s": np.float32(HUGE)}, {}),
    "Resize": (["x", "", "s"], {"s": np.array([1, 1, 1e6, 1e6], "float32")}, {}),
    "OneHot": (["i", "d", "v"], {"i": np.array([1]), "d": np.array(HUGE), "v": np.array([0, 1.0])}, {}),
    "RandomNormal": ([], {}, {"shape": [HUGE]}),
    "MatMul": (["a", "b"], {"a": np.ones((10**4, 1), "float32"), "b": np.ones((1, 10**4), "float32")}, {}),
    "Add": (["a", "b"], {"a": np.ones((10**4, 1), "float32"), "b": np.ones((1, 10**4), "float32")}, {}),
    "Einsum": (["a", "b"], {"a": np.ones(10**4, "float32"), "b": np.ones(10**4, "float32")}, {"equation": "i,j->ij"}),
    "HannWindow": (["s"], {"s": np.array(HUGE)}, {}),
    "Conv": (["x", "w"], {"w": W}, {"pads": [10**6] * 4}),
    "ConvTranspose": (["x", "w"], {"w": W}, {"strides": [10**5, 10**5]}),
    "AveragePool": (["x"], {}, {"kernel_shape": [10**6] * 2, "pads": [10**6 - 1] * 4}),
    "Col2Im": (
        ["c", "s", "k"],
        {"c": np.ones((1, 1, 1), "float32"), "s": np.array([10**6] * 2), "k": np.array([1, 1])}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("known", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize("op", GROWING)
def test_results_beyond_the_limit_are_refused(op: str, known: bool) -> None:
    """By folding constants, and by running: a graph can hide a constant from folding behind its own input."""
    inputs, constants, attributes = GROWING[op]
    if known or "x" in inputs or not inputs:
        nodes = [helper.make_node(op, inputs, ["y"], name="grow", **attributes)]
    else:
        hidden, *rest = inputs
        dtype = helper.np_dtype_to_tensor_dtype(np.asarray(constants[hidden]).dtype)
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["zero"], keepdims=0),
            helper.make_node("Sub", ["zero", "zero"], ["nothing"]),
            helper.make_node("Cast", ["nothing"], ["typed"], to=dtype),
            helper.make_node("Add", [hidden, "typed"], ["hidden"]),
            helper.make_node(op, ["hidden", *rest], ["y"], name="grow", **attributes),
        ]
    with pytest.raises(ValueError, match=rf"node grow.*({op}|needs [\d,]+ bytes)"):
        load(model(*nodes, opset=19, **constants))(X)


def test_graphs_in_attributes_keep_to_the_limit() -> None:
    info = helper.make_tensor_value_info

    def loop(body: list[Any], outputs: list[str], trips: int) -> Any:
        kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "still": TensorProto.BOOL}
        graph = helper.make_graph(
            body, "body",
            [info(name, kinds.get(name, TensorProto.FLOAT), None) for name in ("i", "go", "v")],
            [info(name, kinds.get(name, TensorProto.FLOAT), None) for name in outputs],
        )  # fmt: skip
        results = ["y", "all"][: len(outputs) - 1]
        node = helper.make_node("Loop", ["trips", "true", "x"], results, body=graph, name="again")
        constants = {"trips": np.array(trips), "true": np.array(True)}
        constants |= {"s": np.array([HUGE]), "two": np.array([1, 2, 1, 1])}
        return model(node, inputs=(("x", None),), **constants)

    still = helper.make_node("Identity", ["go"], ["still"])
    big = helper.make_node("ConstantOfShape", ["s"], ["w"], name="inner")
    with pytest.raises(ValueError, match=r"node again \(Loop\).*inner|node inner"):
        load(loop([still, big], ["still", "w"], 3))(X)
    twice = helper.make_node("Tile", ["v", "two"], ["w"], name="double")
    with pytest.raises(ValueError, match="bytes"):
        load(loop([still, twice], ["still", "w"], 60))(X)
    keep = helper.make_node("Identity", ["v"], ["w"])
    again = helper.make_node("Identity", ["v"], ["out"])
    with pytest.raises(ValueError, match="a graph inside a node"):
        load(loop([still, keep, again], ["still", "w", "out"], 10**9))(np.ones((1, 2, 400, 400), "float32"))


def test_a_function_may_not_call_itself() -> None:
    inner = helper.make_node("F", ["a"], ["b"], domain="own")
    function = helper.make_function("own", "F", ["a"], ["b"], [inner], [helper.make_opsetid("own", 1)])
    proto = model(helper.make_node("F", ["x"], ["y"], domain="own", name="loop"))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises((NotImplementedError, ValueError), match=r"node loop \(F\)"):
        load(proto)(X)


# --------------------------------------------------------------------------------------------------------------------
# External data
# --------------------------------------------------------------------------------------------------------------------


def external(location: str, **entries: Any) -> Any:
    proto = model(CONV, w=W)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


def saved(folder: Path, proto: Any) -> Path:
    home = folder / "model"
    home.mkdir(exist_ok=True)
    (home / "m.onnx").write_bytes(proto.SerializeToString())
    (home / "w.bin").write_bytes(b"\0" * 8 + (2 * W).tobytes())
    (folder / "secret.bin").write_bytes(b"secret" * 10)
    return home / "m.onnx"


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    found = nc.onnx.load(saved(tmp_path, external("w.bin", offset=8, length=16)))
    np.testing.assert_array_equal(found(X), 4 * X)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "{}/secret.bin", "sub/../../secret.bin", "link.bin", "", ".", "w\0.bin"]
)
def test_external_data_elsewhere(tmp_path: Path, location: str) -> None:
    path = saved(tmp_path, external(location.format(tmp_path)))
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ValueError, match=r"initializer 'w' is in .*outside the model's folder"):
        nc.onnx.load(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 9}, "needs 16 bytes"),
        ({"offset": -1}, "needs 16 bytes"),
        ({"offset": 0, "length": 10**15}, "needs 16 bytes"),
        ({"offset": "ten"}, "no number"),
    ],
)
def test_external_data_that_are_not_all_there(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"initializer 'w' .*{message}"):
        nc.onnx.load(saved(tmp_path, external("w.bin", **entries)))


def test_external_data_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'missing.bin', which is not there"):
        nc.onnx.load(saved(tmp_path, external("missing.bin")))
    with pytest.raises(ValueError, match="only a model that is loaded from a path"):
        load(external("w.bin"))


def foreign(tensor: Any) -> Any:
    """A tensor whose data are in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def test_external_data_of_sparse_constants_and_of_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which `onnx` would look for in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    values = foreign(numpy_helper.from_array(np.ones(1, "float32"), "w"))
    hidden = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0]), "i"), [2, 2, 1, 1])
    with pytest.raises(ValueError, match=r"attribute 'sparse_value' of node c is in the file 'w\.bin', which only"):
        load(model(helper.make_node("Constant", [], ["w"], name="c", sparse_value=hidden), CONV))
    opsets = [helper.make_opsetid("", 17)]
    default = helper.make_attribute("v", foreign(numpy_helper.from_array(np.ones(1, "float32"))))
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [relu("a", "b", "in")], opsets, attribute_protos=[default]
    )
    proto = model(helper.make_node("F", ["x"], ["y"], domain="own"))
    proto.functions.append(function)
    with pytest.raises(ValueError, match=r"attribute 'v' of the function 'F' is in the file 'w\.bin', which only"):
        load(proto)


# --------------------------------------------------------------------------------------------------------------------
# What onnx's own rules leave open
# --------------------------------------------------------------------------------------------------------------------


def test_sparse_constants() -> None:
    def constant(dims: list[int]) -> Any:
        value = sparse(dims, [0, 3]).graph.sparse_initializer[0]
        return model(helper.make_node("Constant", [], ["w"], name="c", sparse_value=value), CONV)

    np.testing.assert_array_equal(load(constant([2, 2, 1, 1]))(X), X)
    with pytest.raises(ValueError, match=r"node c \(Constant\) needs [\d,]+ bytes"):
        load(constant([2**40, 2]))


WORDS = np.array(["a" * 1000] * 2000, object)
HIDDEN: dict[str, tuple[Any, int, dict[str, Any], Any]] = {
    "Attention": (["x", "x", "x"], 23, {}, np.ones((1, 1, 5000, 1), "float32")),
    "LabelEncoder": (["x"], 17, {"keys_int64s": [1], "values_strings": ["b" * 10**5]}, np.ones(1000, int)),
    "LinearRegressor": (
        ["x"], 17, {"targets": 10**4, "coefficients": [1.0] * 10**4}, np.ones((1000, 1), "float32"),
    ),
    "NonZero": (["x"], 17, {}, np.ones((*[1] * 30, 300_000), bool)),
    "STFT": (["x", "one", "", "far"], 17, {}, np.ones((1, 100, 1), "float32")),
    "StringConcat": (["x", "x"], 20, {}, np.concatenate([WORDS, ["b" * 10**5]])),
    "StringSplit": (["x"], 20, {"delimiter": ","}, np.concatenate([WORDS, ["," * 10**4]])),
}  # fmt: skip


@pytest.mark.parametrize("op", HIDDEN)
def test_what_an_operator_needs_besides_and_strings_keep_to_the_limit(op: str) -> None:
    inputs, opset, attributes, x = HIDDEN[op]
    learned = op in ("LabelEncoder", "LinearRegressor")
    node = helper.make_node(
        op, inputs, ["y", "n"][: 1 + (op == "StringSplit")], name="odd",
        domain="ai.onnx.ml" if learned else "", **attributes,
    )  # fmt: skip
    proto = model(node, inputs=(("x", None),), opset=opset, one=np.array(1), far=np.array(2**40))
    proto.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    with pytest.raises(ValueError, match=r"node odd needs [\d,]+ bytes"):
        load(proto)(x)


def test_a_split_into_more_parts_than_there_are_outputs() -> None:
    node = helper.make_node("Split", ["x"], ["y"], name="odd", num_outputs=2**40)
    with pytest.raises(ValueError, match=r"node odd \(Split\): num_outputs must be 1"):
        load(model(node, opset=18))(X)


def test_a_model_does_not_set_the_locale() -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], locale="C", case_change_action="UPPER")
    proto = model(node, inputs=(("x", [1]),))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with mock.patch("locale.setlocale") as called:
        assert load(proto)(np.array(["a"], object)).tolist() == ["A"]
    assert all(arguments.args[1:] in ((), (None,)) for arguments in called.call_args_list)


# --------------------------------------------------------------------------------------------------------------------
# Names, attributes and inputs that are none
# --------------------------------------------------------------------------------------------------------------------


def test_names_that_npconv_makes_up_meet_none_of_the_models() -> None:
    flat = helper.make_node("Flatten", ["x"], ["f"])
    product = helper.make_node("Gemm", ["f", "q"], ["g"], alpha=2.0)
    total = helper.make_node("Add", ["g", "g/w"], ["y"])
    constants = {"q": np.ones((32, 2), "float32"), "g/w": np.array([[100, 200]], "float32")}
    assert load(model(flat, product, total, **constants))(X).tolist() == [[164, 264]]
    with pytest.raises(ValueError, match=r"the name '.x00a' starts with"):
        load(model(relu("x", "\0a", "one"), relu("\0a", "y", "two")))


@pytest.mark.parametrize("name", [b"inner", b"nameless", b"Relu"])
def test_a_name_that_is_no_text(name: bytes) -> None:
    whole = model(relu("x", "inner", "nameless"), relu("inner", "y", "last")).SerializeToString()
    with pytest.raises(ValueError, match=r"node .* has a name that is no UTF-8, b'.xff"):
        load(whole.replace(name, b"\xff" * len(name)))


def test_an_axis_of_minus_one_is_open() -> None:
    assert load(model(relu("x", "y", "one"), inputs=(("x", [-1, 2]),))).inputs["x"][0] == (None, 2)


def test_two_initializers_of_one_name_and_a_graph_without_outputs() -> None:
    proto = model(CONV, w=W)
    proto.graph.initializer.append(numpy_helper.from_array(2 * W, "w"))
    with pytest.raises(ValueError, match="two initializers of the graph have the name 'w'"):
        load(proto)
    proto = model(CONV, w=W)
    del proto.graph.output[:]
    with pytest.raises(ValueError, match="the graph has no output"):
        load(proto)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data_type": 1, "dims": [4], "float_data": [1.0] * 16}, "needs 4 elements and has 16"),
        ({"data_type": 8, "dims": [1], "string_data": [b"\xff\xfe"]}, "no UTF-8"),
        ({"data_type": 1, "dims": [0, 2**62]}, "impossible shape"),
        ({"data_type": 1, "dims": [1] * 65, "float_data": [1.0]}, "impossible shape"),
        ({"data_type": 1, "dims": [1], "raw_data": b"1234", "segment": TensorProto.Segment(end=9)}, "a segment"),
    ],
)
def test_tensors_that_no_array_can_hold(fields: dict[str, Any], words: str) -> None:
    proto = model(CONV)
    proto.graph.initializer.append(TensorProto(name="w", **fields))
    with pytest.raises(ValueError, match=rf"initializer 'w' .*{words}"):
        load(proto)


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (("MaxPool", {"kernel_shape": [2, 2], "strides": [0, 0]}), {}, r"strides must be positive, got \(0, 0\)"),
        (("AveragePool", {"kernel_shape": [2, 2], "strides": [-1, 1]}), {}, r"strides must be positive, got \(-1, 1\)"),
        (("ConvTranspose", {"strides": [-1, -1]}), {"w": W}, "strides must be positive"),
        (("ConvTranspose", {}), {"w": W[..., 0]}, "equally many axes"),
        (("Sum", {}), {"": W}, "input 1 has no name"),
        (("Concat", {"axis": 0}), {"": W}, "input 1 has no name"),
        (("Clip", {}), {"low": np.array("a", object)}, "unsupported type"),
        (("Reshape", {}), {"s": np.array([[1, 32]])}, "a shape must be integers in one axis"),
        (("Reshape", {}), {"s": np.array(32)}, "a shape must be integers in one axis"),
    ],
)
def test_strides_left_out_inputs_and_shapes_that_are_none(node: Any, constants: Any, words: str) -> None:
    op, attributes = node
    proto = model(helper.make_node(op, ["x", *constants], ["y"], name="odd", **attributes), **constants)
    with pytest.raises(ValueError, match=rf"node odd \({op}\): .*{words}"):
        load(proto)(X)


def test_a_window_of_channels_far_beyond_them_all_is_as_wide_as_they_are() -> None:
    wide, narrow = (
        load(model(helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.1 * size)))(X) for size in (2**40, 3)
    )
    np.testing.assert_array_equal(wide, narrow)
