"""npconv and its peers behind one face, and the process that each of them is measured in.

``python -m benchmarks.peers NAME`` prepares and times what it is told through its standard input. A peer is given every
advantage that a caller can give it: weights laid out beforehand where it can, results written to the same memory where
it can, arrays in its own layout where it has one.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks.cases import DTYPES, OPS, Case, Job, Unsupported


def npconv_functional(case: Case) -> Job:
    import npconv as nc

    nc.set_num_threads(case.threads)
    layer, options = case.layer, case.layer.options
    if case.op == "input_grad":
        return Job(lambda: nc.conv_input_grad(case.dy, case.w, layer.x_shape, **options))
    if case.op == "weight_grad":
        return Job(lambda: nc.conv_weight_grad(case.x, case.dy, layer.w_shape, **options))
    plan = nc.plan(layer.x_shape, layer.w_shape, **options, dtype=case.dtype)
    return Job(lambda: nc.conv(case.x, case.w, **options), note=plan.algorithm)


def npconv_packed(case: Case) -> Job:
    import npconv as nc

    layer = case.layer
    plan = nc.plan(layer.x_shape, layer.w_shape, **layer.options, dtype=case.dtype, threads=case.threads)
    packed = plan.pack(case.w)
    return Job(lambda: packed(case.x), note=plan.algorithm)


def peak(case: Case) -> Job:
    from benchmarks.peak import prepare

    return prepare(case)


def pytorch(case: Case) -> Job:
    return _pytorch(case, lambda array: array)


def pytorch_channels_last(case: Case) -> Job:
    """Images and weights lie in memory with the channels last, as PyTorch advises for CPUs."""
    import torch

    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    if len(case.layer.size) not in formats:
        raise Unsupported("PyTorch has no such layout for signals")
    return _pytorch(case, lambda array: array.contiguous(memory_format=formats[len(case.layer.size)]))


def _pytorch(case: Case, laid: Callable[[Any], Any]) -> Job:
    import torch

    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(False)
    layer, rank = case.layer, len(case.layer.size)
    w = laid(torch.from_numpy(case.w))
    if case.op == "forward":
        x = laid(torch.from_numpy(case.x))
        function = getattr(torch.nn.functional, f"conv{rank}d")
        return Job(lambda: function(x, w, **layer.options), lambda y: y.contiguous().numpy())
    x, dy = laid(torch.from_numpy(case.x)), laid(torch.from_numpy(case.dy))
    wanted = [case.op == "input_grad", case.op == "weight_grad", False]
    options = ([layer.stride] * rank, layer.paddings, [layer.dilation] * rank, False, [0] * rank, layer.groups, wanted)
    backward = torch.ops.aten.convolution_backward
    return Job(
        lambda: backward(dy, x, w, None, *options),
        lambda gradients: gradients[wanted.index(True)].contiguous().numpy(),
    )


def onnx_model(case: Case) -> bytes:
    """A model of one node, its weights part of it, so that an engine may lay them out when it loads."""
    from onnx import TensorProto, helper, numpy_helper

    layer, rank = case.layer, len(case.layer.size)
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        kernel_shape=layer.kernel,
        pads=layer.paddings * 2,
        strides=[layer.stride] * rank,
        dilations=[layer.dilation] * rank,
        group=layer.groups,
    )
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", layer.x_shape), ("y", layer.y_shape))
    )
    graph = helper.make_graph([node], "conv", [x], [y], [numpy_helper.from_array(case.w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def onnxruntime(case: Case) -> Job:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    y = ort.OrtValue.ortvalue_from_shape_and_type(case.layer.y_shape, np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(case.x))
    binding.bind_ortvalue_output("y", y)
    return Job(lambda: session.run_with_iobinding(binding), lambda _: y.numpy(), keeps=case)


def openvino(case: Case) -> Job:
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(onnx_model(case)), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(case.x, shared_memory=True))
    return Job(request.infer, lambda _: request.get_output_tensor().data, keeps=case)


def ncnn(case: Case) -> Job:
    """A batch goes image by image, because ncnn knows none."""
    import ncnn as library

    net = library.Net()
    net.opt.num_threads = case.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as folder:
        param, weights = Path(folder, "conv.param"), Path(folder, "conv.bin")
        param.write_text(_ncnn_param(case), encoding="ascii")
        weights.write_bytes(bytes(4) + case.w.tobytes())  # the four bytes say that what follows is float32
        if net.load_param(str(param)) or net.load_model(str(weights)):
            raise Unsupported("ncnn does not load this layer")
    images = [library.Mat(image) for image in case.x]

    def run() -> list[Any]:
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("x", image)
            code, y = extractor.extract("y")
            if code:
                raise Unsupported("ncnn does not run this layer")
            results.append(y)
        return results

    shape = case.layer.y_shape
    return Job(run, lambda results: np.stack([np.array(y) for y in results]).reshape(shape), keeps=case)


def _ncnn_param(case: Case) -> str:
    """The network as ncnn's text: numbered parameters, innermost axis first."""
    layer, rank = case.layer, len(case.layer.size)
    kind = ("ConvolutionDepthWise" if layer.groups > 1 else "Convolution") + {1: "1D", 2: "", 3: "3D"}[rank]
    values = {0: layer.out_channels, 5: 0, 6: case.w.size}
    if layer.groups > 1:
        values[7] = layer.groups
    numbers = {0: (1, 2, 3, 4, 15), 1: (11, 12, 13, 14, 16), 2: (21, 22, 23, 24, 17)}
    for axis in range(rank):
        size, padding = layer.kernel[rank - 1 - axis], layer.paddings[rank - 1 - axis]
        values |= zip(numbers[axis], (size, layer.dilation, layer.stride, padding, padding), strict=True)
    text = " ".join(f"{number}={value}" for number, value in sorted(values.items()))
    return f"7767517\n2 2\nInput x 0 1 x\n{kind} y 1 1 x y {text}\n"


def jax(case: Case) -> Job:
    """Channels last, where XLA is up to twice as fast on a CPU as with the channels first."""
    import jax as library

    library.config.update("jax_enable_x64", case.dtype == "float64")
    layer, rank = case.layer, len(case.layer.size)
    axes = "DHW"[-rank:]

    def conv(x: Any, w: Any) -> Any:
        return library.lax.conv_general_dilated(
            x,
            w,
            (layer.stride,) * rank,
            [(p, p) for p in layer.paddings],
            rhs_dilation=(layer.dilation,) * rank,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=layer.groups,
        )

    functions = {
        "forward": lambda x, w, _: conv(x, w),
        "input_grad": lambda x, w, dy: library.vjp(lambda x: conv(x, w), x)[1](dy)[0],
        "weight_grad": lambda x, w, dy: library.vjp(lambda w: conv(x, w), w)[1](dy)[0],
    }
    compiled = library.jit(functions[case.op])
    laid = (np.moveaxis(case.x, 1, -1), np.moveaxis(case.w, (1, 0), (-2, -1)), np.moveaxis(case.dy, 1, -1))
    x, w, dy = (library.device_put(np.ascontiguousarray(array)) for array in laid)
    back = ((-2, -1), (1, 0)) if case.op == "weight_grad" else (-1, 1)
    return Job(lambda: compiled(x, w, dy).block_until_ready(), lambda y: np.moveaxis(np.asarray(y), *back))


@dataclass(frozen=True)
class Contestant:
    """Who is measured: how it is made ready, the modules it needs, and what it offers."""

    prepare: Callable[[Case], Job]
    modules: tuple[str, ...]
    ops: tuple[str, ...] = OPS
    dtypes: tuple[str, ...] = DTYPES

    def refusal(self, op: str, dtype: str) -> str:
        """Why it cannot take part at all, or nothing."""
        for name in self.modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                return f"not installed ({error})"
        if op not in self.ops:
            return f"offers no {op}"
        return "" if dtype in self.dtypes else f"does not compute in {dtype}"


FORWARD, SINGLE = ("forward",), ("float32",)
OURS = {
    "npconv": Contestant(npconv_functional, ("npconv",)),
    "npconv-packed": Contestant(npconv_packed, ("npconv",), FORWARD),
}
PEERS = {
    "pytorch": Contestant(pytorch, ("torch",)),
    "pytorch-channels-last": Contestant(pytorch_channels_last, ("torch",)),
    "onnxruntime": Contestant(onnxruntime, ("onnx", "onnxruntime"), FORWARD, SINGLE),
    "openvino": Contestant(openvino, ("onnx", "openvino"), FORWARD, SINGLE),
    "ncnn": Contestant(ncnn, ("ncnn",), FORWARD, SINGLE),
    "jax": Contestant(jax, ("jax",)),
}
CONTESTANTS = {"peak": Contestant(peak, ("npconv",)), **OURS, **PEERS}


def sample(run: Callable[[], Any], seconds: float) -> list[float]:
    """Times of calls, at least one, after one that does not count because others have had the caches since."""
    run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def extra_memory(run: Callable[[], Any]) -> int:
    """Bytes that a call holds at most beyond what the process held before, its result included.

    Memory that an earlier call has left for the next is not seen.
    """
    status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not marks.exists():
        raise Unsupported("only Linux tells the peak of one call")
    ctypes.CDLL(None).malloc_trim(0)
    marks.write_text("5", encoding="ascii")  # the peak starts anew
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    result = run()
    after = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    del result
    return 1024 * (int(after["VmHWM"].split()[0]) - int(fields["VmRSS"].split()[0]))


def answer(contestant: Contestant, job: Job | None, verb: str, value: Any) -> tuple[Job | None, Any]:
    """Do what is asked; the job that was made ready last, and the reply."""
    if verb == "refusal":
        return job, contestant.refusal(*value)
    if verb == "prepare":
        job = contestant.prepare(value)
        return job, (job.note, np.ascontiguousarray(job.result(job.run())))
    assert job is not None
    if verb == "memory":
        return job, extra_memory(job.run)
    return job, sample(job.run, value)


def serve(contestant: Contestant, questions: BinaryIO, replies: BinaryIO) -> None:
    """Answer until there is nobody to ask: ``(True, reply)``, or ``(False, reason)`` where something went wrong."""
    job = None
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        try:
            job, reply = answer(contestant, job, *question)
            message = (True, reply)
        except Exception as error:
            # Whatever a library raises for a layer that it cannot do, the others go on.
            message = (False, str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}")
        pickle.dump(message, replies)
        replies.flush()


if __name__ == "__main__":
    # Libraries that print must not print into the replies.
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        serve(CONTESTANTS[sys.argv[1]], sys.stdin.buffer, channel)
