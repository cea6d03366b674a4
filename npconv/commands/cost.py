"""``npconv cost``: what a convolution, a stack of them, a network or a job costs, and how long it takes where."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import npconv as nc
from npconv.commands import UsageError, recipes
from npconv.commands.arguments import add_geometry, add_json, describe, geometry, positive
from npconv.machine import NAMED, Machine
from npconv.units import duration

EXAMPLES = """
npconv cost 1x100x64x64 100x100x5x5 --padding same             one layer
npconv cost --layers 10 --samples 1e6 100 100 5 5 64 64        the lecture's job: channels in and out, kernel, size
npconv cost 1x64x56x56 64x64x3x3 --padding 1 --training        forward and backward
npconv cost --separable 512 512 3 3 14 14                      what a depthwise separable layer saves
npconv cost --vary 64 64 3 3 56 56                             no padding, half the image, twice the channels
npconv cost 1x64x56x56 64x64x3x3 --machines h100 a100 --count 8
npconv cost model.onnx                                         a network, step by step
npconv cost model.onnx 8x3x224x224 --samples 1e6               on eight pictures at a time, a million times
npconv cost mobilenet_v1 16x3x224x224 --training               a network of npconv.models, or of npconv train
"""

FILES = (".onnx", ".safetensors", ".npz")


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "cost", run, "what a convolution, a network or a job costs", EXAMPLES)
    parser.add_argument(
        "what", nargs="+", metavar="WHAT",
        help="shapes X and W as for plan; or channels in and out, kernel and image, padded to the same size: "
        "100 100 5 5 64 64; or a network "
        "(MODEL.onnx, a file that npconv train wrote, a name such as mobilenet_v1) and the shape of its input",
    )  # fmt: skip
    add_geometry(parser, shapes=False)
    parser.add_argument("--layers", type=_count, default=None, metavar="N", help="so many equal layers")
    parser.add_argument("--samples", type=_count, default=None, metavar="N", help="on so many samples, such as 1e6")
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--backward", dest="step", action="store_const", const="backward", help="the gradients")
    step.add_argument("--training", dest="step", action="store_const", const="training", help="forward and backward")
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--separable", action="store_true", help="beside the depthwise separable pair")
    beside.add_argument("--vary", action="store_true", help="without padding, half the image, twice the channels")
    parser.add_argument(
        "--machines",
        nargs="+",
        choices=[*NAMED, "this"],
        metavar="NAME",
        help=f"of {', '.join([*NAMED, 'this'])} (default: the lecture's two and this one)",
    )
    parser.add_argument("--count", type=positive, default=1, metavar="N", help="so many of each machine")
    add_json(parser)
    parser.set_defaults(step="forward")


def run(options: argparse.Namespace) -> None:
    """Print multiply-accumulates (MACs), floating-point operations (two for each), parameters and bytes.

    Beside them the least time on each machine, from its peak and its bandwidth: this machine's are measured once.
    """
    costs = _network(options) if _is_network(options.what[0]) else _costs(options, *_shapes(options))
    machines = [machine if options.count == 1 else machine.times(options.count) for machine in _machines(options)]
    rows = [nc.cost.Row(cost, tuple(machines)) for cost in costs]
    if options.json:
        print(json.dumps([_values(row) for row in rows], indent=2))
    elif len(rows) == 1:
        _print_one(rows[0])
    else:
        print(nc.cost.table(rows))
    if options.separable and not options.json:
        _print_saving(rows)


# --------------------------------------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------------------------------------


def _is_network(what: str) -> bool:
    return what in nc.models.__all__ or Path(what).suffix in FILES


def _network(options: argparse.Namespace) -> list[nc.cost.Cost]:
    """Costs of a network's layers, their sum, and that of a job."""
    name, *shapes = options.what
    wrong = [f"--{flag}" for flag, unset in _OF_A_LAYER.items() if getattr(options, flag) != unset] + shapes[1:]
    if wrong:
        raise UsageError(f"a network takes the shape of its input and nothing of a layer, got {' '.join(wrong)}")
    x_shape = _shape(shapes[0]) if shapes else None
    rows = nc.cost.model(*_loaded(name, x_shape), step=options.step)
    step = {"forward": "all", "backward": "all, backward", "training": "all, training step"}[options.step]
    whole = nc.cost.stack(rows, step)
    return [*rows, whole] if options.samples is None else [*rows, whole, whole.samples(options.samples)]


_OF_A_LAYER = {
    "layers": None, "separable": False, "vary": False, "padding": None, "stride": (1,), "dilation": (1,), "groups": 1,
    "dtype": "float32",
}  # fmt: skip
"""Arguments of a layer, and what they are where nobody gives them."""


def _loaded(name: str, x_shape: tuple[int, ...] | None) -> tuple[Any, Any]:
    """A network, and the shape of its input."""
    if name.endswith(".onnx"):
        return nc.onnx.load(name), x_shape
    if name in nc.models.__all__:
        if x_shape is None:
            raise UsageError(f"{name} takes pictures of more than one size: give the shape, such as 1x3x224x224")
        if len(x_shape) != 4:
            raise UsageError(f"{name} takes pictures, (N, C, H, W), got the shape {'x'.join(map(str, x_shape))}")
        _, channels, height, width = x_shape
        return getattr(nc.models, name)(channels=channels, size=min(height, width)), x_shape
    network, model = recipes.load(Path(name))
    return model, x_shape or (1, *network.shape)


# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise UsageError(
            f"sizes must be numbers or shapes such as 1x64x56x56, a network a file {', '.join(FILES)} or one of "
            f"{', '.join(nc.models.__all__)}; got {text}"
        ) from None


def _shapes(options: argparse.Namespace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the input and the weights, from either way of writing them."""
    written = [_shape(text) for text in options.what]
    if len(written) == 2:
        return written[0], written[1]
    if len(written) < 4 or len(written) % 2 or any(len(size) != 1 for size in written):
        raise UsageError(
            f"give two shapes, or channels in, channels out, a kernel and an image size: 100 100 5 5 64 64; "
            f"got {' '.join(options.what)}"
        )
    c_in, c_out, *rest = (size for (size,) in written)
    kernel, image = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    if options.padding is None:
        options.padding = "same"
    return (1, c_in, *image), (c_out, c_in // max(options.groups, 1), *kernel)


def _costs(options: argparse.Namespace, x: tuple[int, ...], w: tuple[int, ...]) -> list[nc.cost.Cost]:
    """Costs of what was asked, each for the step that was asked."""
    costs = _forward(options, x, w)
    return costs if options.step == "forward" else [getattr(cost, options.step)() for cost in costs]


def _forward(options: argparse.Namespace, x: tuple[int, ...], w: tuple[int, ...]) -> list[nc.cost.Cost]:
    arguments = geometry(options)
    if (options.separable or options.vary) and (options.layers or options.samples):
        raise UsageError(
            "--separable and --vary are of one layer and sample, so they take no --layers and no --samples"
        )
    if options.separable and options.groups != 1:
        raise UsageError("--separable compares with a layer of one group, so it takes no --groups")
    layer = nc.cost.conv(x, w, **arguments)
    if options.separable:
        del arguments["groups"]
        pair = nc.cost.separable(w[1], w[0], w[2:], x[-len(w) + 2 :], **arguments)
        batch = x[0] if len(x) == len(w) else 1
        return [
            row if batch == 1 else row.samples(batch) for row in (pair.dense, pair.depthwise, pair.pointwise, pair.pair)
        ]
    if options.vary:
        return list(nc.cost.variations(x, w, **arguments))
    if options.layers is None and options.samples is None:
        return [layer]
    layers = 1 if options.layers is None else options.layers
    stack = nc.cost.job(layer, layers, 1)
    costs = [layer, nc.cost.stack([layer] * layers)] if layers <= 1000 else [layer, stack]
    return costs if options.samples is None else [*costs, nc.cost.job(layer, layers, options.samples)]


# --------------------------------------------------------------------------------------------------------------------
# Machines, and what is printed
# --------------------------------------------------------------------------------------------------------------------


def _machines(options: argparse.Namespace) -> list[Machine]:
    names = options.machines or ["lecture-cpu", "lecture-gpu", "this"]
    dtype = options.dtype if options.dtype in ("float32", "float64", "float16") else "float32"
    return [nc.this_machine(dtype) if name == "this" else NAMED[name] for name in names]


def _print_one(row: nc.cost.Row) -> None:
    cost = row.cost
    print(f"MACs        {cost.macs:,}")
    print(f"FLOPs       {cost.flops:,}")
    print(f"parameters  {cost.parameters:,}")
    print(f"bytes       {cost.bytes:,}")
    print(f"intensity   {cost.intensity:.4g} FLOP/B")
    for machine, seconds in zip(row.machines, row.seconds, strict=True):
        print(f"{duration(seconds):<11} on {machine.name}")


def _print_saving(rows: list[nc.cost.Row]) -> None:
    dense, *_, pair = (row.cost for row in rows)
    if pair.macs:
        macs, parameters, moved = (
            f"{getattr(dense, name) / getattr(pair, name):.3g}" for name in ("macs", "parameters", "bytes")
        )
        print(
            f"\nThe dense layer has {macs} times the MACs, {parameters} times the parameters, {moved} times the bytes."
        )


def _values(row: nc.cost.Row) -> dict[str, Any]:
    cost = row.cost
    times = {machine.name: seconds for machine, seconds in zip(row.machines, row.seconds, strict=True)}
    return {
        "name": cost.name,
        "macs": cost.macs,
        "flops": cost.flops,
        "parameters": cost.parameters,
        "bytes": cost.bytes,
        "intensity": cost.intensity,
        "seconds": times,
    }


def _count(text: str) -> int:
    try:
        value = float(text)
        if value != int(value) or value < 1:
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a whole number such as 10 or 1e6, got {text!r}") from None
    return int(value)
