"""What `benchmarks.gpu` measures on a GPU, and against what: a section is a series of cases, each a row when called.

A row is what JSON holds: the case's names, ``seconds`` by contestant, ``how`` each was timed, ``errors`` of those that
gave none (and their ``tracebacks``), and by how much results differ from the first contestant's, relative to the
largest element.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu_timers import CupyTimer, Timer, TorchTimer, seconds
from benchmarks.layers import Layer, conv, select

Row = dict[str, Any]
Case = Callable[[], Row]
Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]
"""A call, and what brings its result to the host, channels first."""

BATCH = 32
LAYERS = tuple(replace(layer, batch=BATCH) for layer in select(["resnet50", "mobilenet-v1", "convnext"]))
LECTURE = replace(conv("lecture", 100, 100, 64, 5), batch=64)

TIMERS: dict[str, Callable[[], Timer]] = {"npconv": CupyTimer, "PyTorch": TorchTimer, "cupyx": CupyTimer}
"""By the first word of a contestant's name."""

TOLERANCE = {"float32": 1e-4, "3xtf32": 1e-4, "tf32": 5e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference between two libraries' results, relative to the largest element, that is not a fault."""

ITEMSIZE = {"float16": 2, "bfloat16": 2}
"""Bytes of an element, where it is not of float32."""

CHECKED = 4
"""Images of a batch whose results are compared: the host would take longer for all than the GPU for the work."""

PEERS_DEVICE = "cuda"

PYTORCH = ("PyTorch", "PyTorch channels-last")


def numbers(shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32, the same in every run; a million of them, repeated."""
    drawn = np.random.default_rng(len(shape)).standard_normal(min(math.prod(shape), 2**20), np.float32)
    return np.resize(drawn * np.float32(scale), shape)


@functools.lru_cache(maxsize=2)
def operands(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, weights and the gradient of the result."""
    return numbers(layer.x_shape), numbers(layer.w_shape, layer.products**-0.5), numbers(layer.y_shape)


# --------------------------------------------------------------------------------------------------------------------
# Contestants
# --------------------------------------------------------------------------------------------------------------------


def npconv_call(
    layer: Layer, op: str, layout: str = "channels_first", fused: bool = False, dtype: str = "float32",
    algorithm: str = "auto",
) -> Prepared:  # fmt: skip
    """A public function on CuPy arrays; `dtype` may also say what float32 is multiplied as."""
    import cupy

    import npconv as nc

    last = layout == "channels_last"
    narrow = element(dtype)
    products = dtype if narrow == np.float32 and dtype != "float32" else None

    def laid(value: np.ndarray) -> Any:
        value = np.ascontiguousarray(np.moveaxis(value, 1, -1)) if last and value.ndim > 1 else value
        return cupy.asarray(value.astype(narrow, copy=False))

    def back(value: Any) -> np.ndarray:
        value = cupy.asnumpy(value).astype(np.float32)
        return np.moveaxis(value, -1, 1) if last and op != "weight_grad" else value

    x, w, dy = operands(layer)
    options: dict[str, Any] = {**layer.options, "layout": layout, "algorithm": algorithm}
    w_ = cupy.asarray(w.astype(narrow, copy=False))
    if op == "input_grad":
        dy_, shape = laid(dy), (layer.batch, *laid(x[:1]).shape[1:])
        call = functools.partial(nc.conv_input_grad, dy_, w_, shape, **options)
    elif op == "weight_grad":
        call = functools.partial(nc.conv_weight_grad, laid(x), laid(dy), layer.w_shape, **options)
    else:
        bias = laid(numbers((layer.out_channels,))) if fused else None
        call = functools.partial(nc.conv, laid(x), w_, bias, **options, activation="relu" if fused else None)

    def run() -> Any:
        with nc.float32_as(products) if products else contextlib.nullcontext():
            return call()

    return run, back


def element(dtype: str) -> np.dtype:
    """What arrays hold: bfloat16 is of the package ml_dtypes, and what float32 is multiplied as is float32."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("float16" if dtype == "float16" else "float32")


def pytorch_call(layer: Layer, op: str, dtype: str, layout: str, fused: bool = False) -> Prepared:
    """CuDNN's fastest, as ``benchmark=True`` finds it, with TF32 where `dtype` says that and not otherwise."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    torch.set_grad_enabled(False)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def laid(value: Any) -> Any:
        value = torch.from_numpy(value).to(PEERS_DEVICE, getattr(torch, dtype, torch.float32))
        return value.contiguous(memory_format=form)

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
            row.setdefault("tracebacks", {})[name] = traceback.format_exc()[-3000:]
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


def first_images(prepared: Prepared, op: str) -> Prepared:
    """A contestant of whose result only the first images are brought to the host."""
    call, back = prepared
    return prepared if op == "weight_grad" else (call, lambda value: back(value[:CHECKED]))


def convolution(
    layer: Layer, op: str, dtype: str = "float32", fused: bool = False, algorithm: str = "auto"
) -> Row:  # fmt: skip
    """One operation on one layer: npconv in both layouts, PyTorch in both."""

    def ours(**how: Any) -> Callable[[], Prepared]:
        return lambda: first_images(npconv_call(layer, op, fused=fused, dtype=dtype, algorithm=algorithm, **how), op)

    def theirs(layout: str) -> Callable[[], Prepared]:
        # Strict cuDNN is what float32's accuracy on tensor cores is measured against.
        kind_ = "float32" if dtype == "3xtf32" else dtype
        return lambda: first_images(pytorch_call(layer, op, kind_, layout, fused), op)

    contestants = {"npconv": ours(), "npconv channels-last": ours(layout="channels_last")}
    contestants |= zip(PYTORCH, map(theirs, ("channels_first", "channels_last")), strict=True)
    least = ITEMSIZE.get(dtype, 4) * sum(map(math.prod, (layer.x_shape, layer.w_shape, layer.y_shape)))
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


def device() -> Iterator[Case]:
    """Which GPU, which driver, and how fast it copies."""
    yield facts
    yield copying


def facts() -> Row:
    """The GPU, its driver, and the versions of what runs on it."""
    import cupy

    import npconv as nc

    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "device": found["name"].decode(), "capability": f"{found['major']}.{found['minor']}",
        "multiprocessors": found["multiProcessorCount"], "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(), "cupy": cupy.__version__, "numpy": np.__version__,
        "npconv": nc.__version__, **peer(),
    }  # fmt: skip


def copying() -> Row:
    """Bytes read and written a second, of 512 MiB."""
    import cupy

    source = cupy.zeros(2**27, "float32")
    target = cupy.empty_like(source)
    row = measured(
        {"npconv": lambda: (lambda: cupy.copyto(target, source), lambda _: np.zeros(1))}, 0, case="copy of 512 MiB"
    )
    return {**row, "bandwidth": 2 * source.nbytes / row["seconds"]["npconv"]}


def peer() -> Row:
    """PyTorch's versions, or that it is missing."""
    try:
        import torch
    except ImportError as error:
        return {"torch": f"missing ({error}): npconv's own times only"}
    return {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}


def definition() -> Iterator[Case]:
    """Every algorithm and operation against `npconv.reference`, which needs no other package."""
    from npconv.algorithms import ALGORITHMS, OPERATIONS
    from npconv.self_test import compared

    def row(name: str, op: str) -> Row:
        found = compared("cupy", name, op) or {"what": f"cupy {name} {op}: no case", "right": True}
        return {"case": found["what"], "right": found["right"]}

    for name, op in itertools.product(ALGORITHMS, OPERATIONS):
        yield functools.partial(row, name, op)


def forward() -> Iterator[Case]:
    """float32 without TF32."""
    for layer in alternating(LAYERS):
        yield functools.partial(convolution, layer, "forward")


def winograd() -> Iterator[Case]:
    """Winograd, which has to be asked for until its rate is known: its kernels take seconds to compile."""
    layers = [layer for layer in LAYERS if kind(layer) == "3x3 stride 1"]
    for op, layer in itertools.product(("forward", "input_grad"), layers):
        yield functools.partial(convolution, layer, op, algorithm="winograd")


def fused() -> Iterator[Case]:
    """Convolution, bias and ReLU against eager PyTorch."""
    for layer in alternating(LAYERS)[::3]:
        yield functools.partial(convolution, layer, "forward", fused=True)


def gradients() -> Iterator[Case]:
    """Both gradients in float32."""
    for layer, op in itertools.product(alternating(LAYERS)[::2], ("input_grad", "weight_grad")):
        yield functools.partial(convolution, layer, op)


def tensor() -> Iterator[Case]:
    """What tensor cores multiply: TF32 and narrow floats, and float32's accuracy by three products; no depthwise."""
    layers = [layer for layer in alternating(LAYERS) if kind(layer) != "depthwise"]
    for layer, dtype in itertools.product(layers[::3], ("tf32", "3xtf32", "float16", "bfloat16")):
        yield functools.partial(convolution, layer, "forward", dtype)
    for layer, op in itertools.product(layers[:4], ("input_grad", "weight_grad")):
        yield functools.partial(convolution, layer, op, "float16")


def narrow() -> Iterator[Case]:
    """Depthwise convolutions of float16 and bfloat16."""
    layers = [layer for layer in LAYERS if kind(layer) == "depthwise"]
    for layer, dtype in itertools.product(layers[::2], ("float16", "bfloat16")):
        yield functools.partial(convolution, layer, "forward", dtype)


def scipy() -> Iterator[Case]:
    """The same filters by `cupyx.scipy`."""
    for name, size, kernel in (
        ("image", (2048, 2048), (9, 9)), ("image", (2048, 2048), (31, 31)), ("volume", (128, 128, 128), (5, 5, 5)),
        ("signal", (2**22,), (65,)),
    ):  # fmt: skip
        yield functools.partial(filtered, name, size, kernel)


def filtered(name: str, size: tuple[int, ...], kernel: tuple[int, ...]) -> Row:
    """One filter by npconv and by both modules of `cupyx.scipy`."""
    import cupy
    import cupyx.scipy.ndimage as ndimage
    import cupyx.scipy.signal as signal

    import npconv as nc

    x, w = cupy.asarray(numbers(size)), cupy.asarray(numbers(kernel))
    contestants: dict[str, Callable[[], Prepared]] = {
        "npconv": lambda: (lambda: nc.correlate(x, w, boundary="constant"), cupy.asnumpy),
        "cupyx ndimage": lambda: (lambda: ndimage.correlate(x, w, mode="constant"), cupy.asnumpy),
        "cupyx signal": lambda: (lambda: signal.correlate(x, w, mode="same"), cupy.asnumpy),
    }
    return measured(contestants, 1e-4, case=f"{name} {size}, filter {kernel}", op="correlate", dtype="float32")


def lecture() -> Iterator[Case]:
    """Ten layers of 100 to 100 channels, 5x5, on a million samples of 64x64: from the time of one batch."""
    for dtype in ("float32", "tf32", "3xtf32", "float16"):
        yield functools.partial(lecture_in, dtype)


def lecture_in(dtype: str) -> Row:
    """The lecture's job in a dtype, or with what float32 is multiplied as."""
    row = convolution(LECTURE, "forward", dtype)
    calls = 10 * 1_000_000 / LECTURE.batch
    return {**row, "minutes": {name: value * calls / 60 for name, value in row["seconds"].items()}}


def alternating(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """One of each kind in turn, so that what time allows is some of everything."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(kind(layer), []).append(layer)
    turns = itertools.zip_longest(*kinds.values())
    return tuple(layer for turn in turns for layer in turn if layer is not None)
