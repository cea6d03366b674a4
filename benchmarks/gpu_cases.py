"""What `benchmarks.gpu` measures on a GPU, and against what: every section yields a row a case.

A row is what JSON holds: the case's names, ``seconds`` by contestant, ``how`` each was timed, ``errors`` of those that
gave none, and by how much results differ from the first contestant's, relative to the largest element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu_timers import CupyTimer, Timer, TorchTimer, seconds
from benchmarks.layers import Layer, conv, select

Row = dict[str, Any]
Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]
"""A call, and what brings its result to the host, channels first."""

BATCH = 32
LAYERS = tuple(replace(layer, batch=BATCH) for layer in select(["resnet50", "mobilenet-v1", "convnext"]))
LECTURE = replace(conv("lecture", 100, 100, 64, 5), batch=64)

TIMERS: dict[str, Callable[[], Timer]] = {"npconv": CupyTimer, "PyTorch": TorchTimer, "cupyx": CupyTimer}
"""By the first word of a contestant's name."""

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference between two libraries' results, relative to the largest element, that is not a fault."""

PYTORCH = ("PyTorch", "PyTorch channels-last")


def numbers(shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32, the same in every run; a million of them, repeated."""
    drawn = np.random.default_rng(len(shape)).standard_normal(min(math.prod(shape), 2**20), np.float32)
    return np.resize(drawn * np.float32(scale), shape)


def operands(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, weights and the gradient of the result."""
    return numbers(layer.x_shape), numbers(layer.w_shape, layer.products**-0.5), numbers(layer.y_shape)


# --------------------------------------------------------------------------------------------------------------------
# Contestants
# --------------------------------------------------------------------------------------------------------------------


def npconv_call(layer: Layer, op: str, layout: str = "channels_first", fused: bool = False) -> Prepared:
    """A public function on CuPy arrays of float32."""
    import cupy

    import npconv as nc

    last = layout == "channels_last"

    def laid(value: np.ndarray) -> Any:
        return cupy.asarray(np.ascontiguousarray(np.moveaxis(value, 1, -1)) if last else value)

    def back(value: Any) -> np.ndarray:
        value = cupy.asnumpy(value)
        return np.moveaxis(value, -1, 1) if last and op != "weight_grad" else value

    x, w, dy = operands(layer)
    options: dict[str, Any] = {**layer.options, "layout": layout}
    if op == "input_grad":
        dy_, w_, shape = laid(dy), cupy.asarray(w), laid(x[:1]).shape
        return lambda: nc.conv_input_grad(dy_, w_, (layer.batch, *shape[1:]), **options), back
    if op == "weight_grad":
        x_, dy_ = laid(x), laid(dy)
        return lambda: nc.conv_weight_grad(x_, dy_, layer.w_shape, **options), back
    x_, w_ = laid(x), cupy.asarray(w)
    bias = cupy.asarray(numbers((layer.out_channels,))) if fused else None
    return lambda: nc.conv(x_, w_, bias, **options, activation="relu" if fused else None), back


def npconv_kernel(layer: Layer, op: str, element: str) -> Prepared:
    """The kernels themselves, in a dtype that the public functions widen."""
    import cupy

    from npconv.geometry import ConvSpec
    from npconv.kernels.cuda import depthwise, implicit_gemm, loader

    spec = ConvSpec.of(layer.x_shape, layer.w_shape, *layer.options.values())
    family = depthwise if spec.is_depthwise else implicit_gemm

    def laid(value: np.ndarray) -> Any:
        return cupy.asarray(upper_halves(value) if element == "bfloat16" else value.astype(element))

    def back(value: Any) -> np.ndarray:
        value = cupy.asnumpy(value)
        return (value.astype(np.uint32) << 16).view(np.float32) if element == "bfloat16" else value

    x, w, dy = map(laid, operands(layer))
    like = {"forward": dy, "input_grad": x, "weight_grad": w}[op]
    result = cupy.empty(like.shape, like.dtype)

    def call() -> Any:
        if op == "forward":
            loader.run(family.forward(spec, x, w, None, None, result, element))
        elif op == "input_grad":
            loader.run(family.input_grad(spec, dy, w, result, element))
        else:
            loader.run(*family.weight_grad(spec, x, dy, result, cupy.empty, element))
        return result

    return call, back


def upper_halves(value: np.ndarray) -> np.ndarray:
    """float32 cut to bfloat16, as bits."""
    return (value.view(np.uint32) >> 16).astype(np.uint16)


def pytorch_call(layer: Layer, op: str, dtype: str, layout: str, fused: bool = False) -> Prepared:
    """CuDNN's fastest, as ``benchmark=True`` finds it, without TF32."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_grad_enabled(False)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def laid(value: np.ndarray) -> Any:
        return torch.from_numpy(value).to("cuda", getattr(torch, dtype)).contiguous(memory_format=form)

    x, w, dy = map(laid, operands(layer))
    if op == "forward":
        bias = torch.from_numpy(numbers((layer.out_channels,))).to(x) if fused else None
        function, relu = torch.nn.functional.conv2d, torch.nn.functional.relu

        def forward() -> Any:
            y = function(x, w, bias, **layer.options)
            return relu(y) if fused else y

        return forward, lambda y: y.float().contiguous().cpu().numpy()
    wanted = [op == "input_grad", op == "weight_grad", False]
    options = ([layer.stride] * 2, layer.paddings, [layer.dilation] * 2, False, [0, 0], layer.groups, wanted)
    backward = torch.ops.aten.convolution_backward
    return (
        lambda: backward(dy, x, w, None, *options)[wanted.index(True)],
        lambda gradient: gradient.float().contiguous().cpu().numpy(),
    )


# --------------------------------------------------------------------------------------------------------------------
# A row
# --------------------------------------------------------------------------------------------------------------------


def measured(contestants: dict[str, Callable[[], Prepared]], tolerance: float, **names: Any) -> Row:
    """Every contestant's time and result; one that fails is written down and the next one's turn comes."""
    row: Row = {**names, "seconds": {}, "how": {}, "errors": {}, "differs": {}}
    first = None
    for name, prepare in contestants.items():
        try:
            call, back = prepare()
            timer = TIMERS[name.split()[0]]()
            result = kept(timer, call, back)
            row["seconds"][name], row["how"][name] = seconds(timer, call)
        except Exception as error:  # whatever it is, it is this contestant's answer
            row["errors"][name] = f"{type(error).__name__}: {error}"[:300]
            continue
        first = result if first is None else first
        distance = float(abs(result - first).max() / max(abs(first).max(), 1e-30))
        if not distance <= tolerance:
            row["differs"][name] = distance
    return row


def kept(timer: Timer, call: Callable[[], Any], back: Callable[[Any], np.ndarray]) -> np.ndarray:
    """The result of a first call, on the host."""
    results: list[Any] = []
    timer.elapsed(lambda: results.append(call()))
    return np.asarray(back(results.pop()), np.float64)


def convolution(layer: Layer, op: str, dtype: str = "float32", fused: bool = False) -> Row:
    """One operation on one layer: npconv in both layouts, or its kernels alone, and PyTorch in both."""
    contestants: dict[str, Callable[[], Prepared]] = {}
    if dtype == "float32":
        contestants["npconv"] = lambda: npconv_call(layer, op, fused=fused)
        contestants["npconv channels-last"] = lambda: npconv_call(layer, op, "channels_last", fused)
    else:
        contestants["npconv"] = lambda: npconv_kernel(layer, op, dtype)
    for name, layout in zip(PYTORCH, ("channels_first", "channels_last"), strict=True):
        contestants[name] = lambda layout=layout: pytorch_call(layer, op, dtype, layout, fused)  # type: ignore[misc]
    itemsize = 4 if dtype == "float32" else 2
    least = itemsize * sum(map(math.prod, (layer.x_shape, layer.w_shape, layer.y_shape)))
    return measured(
        contestants, TOLERANCE[dtype], case=layer.name, op=op, dtype=dtype, kind=kind(layer), bytes=least,
        flops=2 * layer.macs,
    )  # fmt: skip


def kind(layer: Layer) -> str:
    """Which of the goals a layer counts for."""
    if layer.depthwise:
        return "depthwise"
    return "3x3 stride 1" if layer.kernel == (3, 3) and layer.stride == 1 else "other"


# --------------------------------------------------------------------------------------------------------------------
# Sections
# --------------------------------------------------------------------------------------------------------------------


def device() -> Iterator[Row]:
    """Which GPU, which driver, and how fast it copies."""
    import cupy

    runtime = cupy.cuda.runtime
    facts = runtime.getDeviceProperties(runtime.getDevice())
    yield {
        "device": facts["name"].decode(), "capability": f"{facts['major']}.{facts['minor']}",
        "multiprocessors": facts["multiProcessorCount"], "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(), "cupy": cupy.__version__, **peer(),
    }  # fmt: skip
    source = cupy.zeros(2**27, "float32")
    target = cupy.empty_like(source)
    row = measured(
        {"npconv": lambda: (lambda: cupy.copyto(target, source), lambda _: np.zeros(1))}, 0, case="copy of 512 MiB"
    )
    yield {**row, "bandwidth": 2 * source.nbytes / row["seconds"]["npconv"]}


def peer() -> Row:
    """PyTorch's versions, or that it is missing."""
    try:
        import torch
    except ImportError as error:
        return {"torch": f"missing ({error}): npconv's own times only"}
    return {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}


def forward() -> Iterator[Row]:
    """float32 without TF32."""
    for layer in alternating(LAYERS):
        yield convolution(layer, "forward")


def fused() -> Iterator[Row]:
    """Convolution, bias and ReLU against eager PyTorch."""
    for layer in alternating(LAYERS)[::3]:
        yield convolution(layer, "forward", fused=True)


def gradients() -> Iterator[Row]:
    """Both gradients in float32."""
    for layer, op in itertools.product(alternating(LAYERS)[::2], ("input_grad", "weight_grad")):
        yield convolution(layer, op)


def narrow() -> Iterator[Row]:
    """float16 and bfloat16, of which npconv's kernels are called directly."""
    for layer, dtype in itertools.product(alternating(LAYERS)[::2], ("float16", "bfloat16")):
        yield convolution(layer, "forward", dtype)


def scipy() -> Iterator[Row]:
    """The same filters by `cupyx.scipy`."""
    import cupy
    import cupyx.scipy.ndimage as ndimage
    import cupyx.scipy.signal as signal

    import npconv as nc

    for name, size, kernel in (("image", (2048, 2048), (9, 9)), ("volume", (128, 128, 128), (5, 5, 5))):
        x, w = cupy.asarray(numbers(size)), cupy.asarray(numbers(kernel))
        contestants = {
            "npconv": lambda x=x, w=w: (lambda: nc.correlate(x, w, boundary="constant"), cupy.asnumpy),
            "cupyx ndimage": lambda x=x, w=w: (lambda: ndimage.correlate(x, w, mode="constant"), cupy.asnumpy),
            "cupyx signal": lambda x=x, w=w: (lambda: signal.correlate(x, w, mode="same"), cupy.asnumpy),
        }
        yield measured(contestants, 1e-4, case=f"{name} {size}, filter {kernel}", op="correlate", dtype="float32")


def lecture() -> Iterator[Row]:
    """Ten layers of 100 to 100 channels, 5x5, on a million samples of 64x64: from the time of one batch."""
    row = convolution(LECTURE, "forward")
    calls = 10 * 1_000_000 / LECTURE.batch
    yield {**row, "minutes": {name: value * calls / 60 for name, value in row["seconds"].items()}}


def alternating(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """One of each kind in turn, so that what time allows is some of everything."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(kind(layer), []).append(layer)
    turns = itertools.zip_longest(*kinds.values())
    return tuple(layer for turn in turns for layer in turn if layer is not None)
