"""Whole networks on one core, batch 1, against ONNX Runtime: `taskset -c 0 python -m benchmarks.models`.

The networks that ship with the package `onnx`, with random weights in place of their constant ones, and MobileNet v1
and ResNet-18 of `npconv.models`. Every time is the median of several runs, those of the two sides taking turns; the
ratio is ONNX Runtime's time over npconv's, so more than 1 is faster than it. `--check` compares results alone, also
with those that `onnx` expects. `--reference` measures onnx's own evaluator, which is slow, on the networks that it
names. `--write` keeps the table in benchmarks/results/, from where docs/inference.md takes it: what a person has to
say of it stands there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import npconv as nc
from benchmarks.tables import grid, machine, stem, versions

RESULTS = Path(__file__).parent / "results"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = (
    "squeezenet", "shufflenet", "inception_v1", "inception_v2", "bvlc_alexnet", "zfnet512", "resnet50", "densenet121",
    "vgg19",
)  # fmt: skip
OURS: dict[str, Callable[..., Any]] = {"mobilenet_v1": nc.models.mobilenet_v1, "resnet18": nc.models.resnet18}


def light(name: str, random: bool) -> Any:
    """A model of the package onnx; its constant weights tell little, so `random` ones take their place."""
    proto = onnx.load(LIGHT / f"light_{name}.onnx")
    if not random:
        return proto
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    kept = []
    for node in proto.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            shape = tuple(int(n) for n in shapes[node.input[0]])
            fan = max(int(np.prod(shape[1:])), 1)
            value = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan))
            if len(shape) < 2:
                value = np.abs(value) + np.float32(0.5)
            proto.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    proto.ir_version = max(proto.ir_version, 4)
    return proto


def exported(model: nc.nn.Module, shape: tuple[int, ...]) -> Any:
    """A network of ours as ONNX, as another exporter would write it: nothing is folded or fused."""
    graph = nc.nn.compile(model, shape, fuse=False).graph
    words = {"relu": "Relu", "add": "Add", "mean": "GlobalAveragePool", "reshape": "Flatten"}
    nodes = []
    for node in graph.nodes:
        attributes: dict[str, Any] = {}
        inputs, op = list(node.inputs), node.op
        if op == "conv":
            op = "Conv"
            attributes = {"strides": node.attributes["stride"], "group": node.attributes["groups"]}
            ndim = len(attributes["strides"])
            pads = node.attributes["padding"]
            attributes["pads"] = [pads] * 2 * ndim if isinstance(pads, int) else [*pads, *pads]
        elif op == "batch_norm":
            op, attributes = "BatchNormalization", {"epsilon": node.attributes["eps"]}
        elif op == "max_pool":
            op, pairs = "MaxPool", node.attributes["padding"]
            attributes = {"kernel_shape": node.attributes["kernel_size"], "strides": node.attributes["stride"]}
            attributes["pads"] = [low for low, _ in pairs] + [high for _, high in pairs]
        elif op == "linear":
            op = "Gemm"
        elif op == "activation":
            op = words[node.attributes["activation"][0]]
        else:
            op = words[op]
        nodes.append(helper.make_node(op, inputs, list(node.outputs), **attributes))
    info = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in graph.constants.items()]
    made = helper.make_graph(
        nodes, "exported", [info("x", TensorProto.FLOAT, [1, *shape])],
        [info(graph.outputs[0], TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def trained(model: nc.nn.Module) -> nc.nn.Module:
    """The network with statistics as if it had been trained."""
    rng = np.random.default_rng(0)
    for _, layer in model.named_modules():
        if isinstance(layer, nc.nn.BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            count = layer.num_features
            layer.running_mean.value = rng.standard_normal(count).astype("float32") / 10
            layer.running_var.value = rng.uniform(0.5, 1.5, count).astype("float32")
    return model.eval()


def case(name: str) -> tuple[Callable[[Any], Any], Any, Any]:
    """Our model, the same as ONNX, and an input."""
    if name in OURS:
        network = trained(OURS[name](rng=0))
        shape = (3, 224, 224)
        return nc.nn.compile(network, shape), exported(network, shape), image((1, *shape))
    proto = light(name, random=True)
    model = nc.onnx.load(proto.SerializeToString())
    ((shape, _),) = model.inputs.values()
    return model, proto, image(shape)


def image(shape: Any) -> Any:
    """A picture of noise."""
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def session(proto: Any) -> Callable[[Any], Any]:
    """ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    runtime = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {tensor.name for tensor in proto.graph.initializer}
    (name,) = (value.name for value in proto.graph.input if value.name not in given)
    return lambda x: runtime.run(None, {name: x})[0]


def times(functions: dict[str, Callable[[Any], Any]], x: Any, seconds: float) -> dict[str, float]:
    """Median time of each, taking turns."""
    for run in functions.values():
        run(x)
    found: dict[str, list[float]] = {name: [] for name in functions}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(next(iter(found.values()))) < 5:
        for name, run in functions.items():
            start = time.perf_counter()
            run(x)
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def check(name: str) -> None:
    """Print how far our result is from what it should be."""
    model, proto, x = case(name)
    y, expected = model(x), session(proto)(x)
    error = float(np.abs(y - expected).max() / np.abs(expected).max())
    text = f"{name:14} largest error against ONNX Runtime, relative to the largest output: {error:.1e}"
    if name in NAMES:
        plain = nc.onnx.load(LIGHT / f"light_{name}.onnx")
        ((shape, _),) = plain.inputs.values()
        x = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
        expected = numpy_helper.to_array(onnx.load_tensor(LIGHT / f"light_{name}_output_0.pb"))
        agrees = np.allclose(plain(x), expected, rtol=2e-3 if name == "densenet121" else 1e-3, atol=1e-7)
        text += f"; the expected output of the package onnx: {'agrees' if agrees else 'DIFFERS'}"
    print(text, flush=True)


HEAD = ["network", "npconv, ms", "ONNX Runtime, ms", "ratio"]


def measure(name: str, seconds: float, reference: bool) -> list[str]:
    """One row of the table."""
    model, proto, x = case(name)
    found = times({"npconv": model, "runtime": session(proto)}, x, seconds)
    ratio = found["runtime"] / found["npconv"]
    row = [name, f"{found['npconv'] * 1e3:.2f}", f"{found['runtime'] * 1e3:.2f}", f"{ratio:.2f}"]
    return [*row, f"{evaluator(proto, x) / found['npconv']:.0f}"] if reference else row


def evaluator(proto: Any, x: Any) -> float:
    """Seconds that onnx's own evaluator takes, once."""
    from onnx.reference import ReferenceEvaluator

    plain, given = ReferenceEvaluator(proto), {t.name for t in proto.graph.initializer}
    (key,) = (value.name for value in proto.graph.input if value.name not in given)
    start = time.perf_counter()
    plain.run(None, {key: x})
    return time.perf_counter() - start


def report(rows: list[list[str]]) -> str:
    """What `--write` keeps: where it was measured, the table, and how much slower onnx's own evaluator is."""
    about = f"One core of an {machine()}, float32; {versions(['npconv', 'numpy', 'numba', 'onnx', 'onnxruntime'])}."
    what = "Medians; the ratio is ONNX Runtime's time over npconv's: above 1, npconv is the faster one."
    parts = ["# Whole networks, one core, batch 1", f"{about} {what}", grid(HEAD, [row[: len(HEAD)] for row in rows])]
    slow = [f"{row[-1]} times as long as npconv on {row[0]}" for row in rows if len(row) > len(HEAD)]
    if slow:
        parts.append(f"`onnx`'s own evaluator takes {', '.join(slow)}.")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run what the command line names."""
    every = [*OURS, *NAMES]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=every, help=f"of {', '.join(every)}")
    parser.add_argument("--check", action="store_true", help="compare results, measure nothing")
    parser.add_argument("--reference", nargs="+", default=[], metavar="NAME", help="measure onnx's own evaluator, too")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each network (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/")
    options = parser.parse_args()
    unknown = sorted({*options.names, *options.reference} - {*every})
    if unknown:
        parser.error(f"there is no network {', '.join(unknown)}; known are {', '.join(every)}")
    if options.write and options.check:
        parser.error("--check measures nothing that --write could keep")
    nc.set_num_threads(1)
    rows = []
    for name in options.names:
        if options.check:
            check(name)
            continue
        rows.append(measure(name, options.seconds, name in options.reference))
        print("  ".join(rows[-1]), flush=True)
    if options.write:
        chosen = options.names if set(options.names) != set(every) else None
        (RESULTS / f"{stem('models', chosen)}.md").write_text(report(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
