"""``npconv cost``: what a convolution, a stack of them, or a job costs, and how long it takes where."""

from __future__ import annotations

import argparse
import json
from typing import Any

import npconv as nc
from npconv.commands import UsageError
from npconv.commands.arguments import add_geometry, describe, geometry
from npconv.machine import NAMED, Machine
from npconv.units import duration

EXAMPLES = """
npconv cost 1x100x64x64 100x100x5x5 --padding same             one layer
npconv cost --layers 10 --samples 1e6 100 100 5 5 64 64        the lecture's job: channels in and out, kernel, size
npconv cost 1x64x56x56 64x64x3x3 --padding 1 --training        forward and backward
npconv cost --separable 512 512 3 3 14 14                      what a depthwise separable layer saves
npconv cost --vary 64 64 3 3 56 56                             no padding, half the image, twice the channels
npconv cost 1x64x56x56 64x64x3x3 --machines h100 a100 --count 8
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "cost", run, "what a convolution or a job costs", EXAMPLES)
    parser.add_argument(
        "sizes", nargs="+", metavar="SIZE",
        help="shapes X and W as for plan, or channels in and out, kernel and image: 100 100 5 5 64 64",
    )  # fmt: skip
    add_geometry(parser, shapes=False)
    parser.add_argument("--layers", type=_count, default=None, metavar="N", help="so many equal layers")
    parser.add_argument("--samples", type=_count, default=None, metavar="N", help="on so many samples, such as 1e6")
    parser.add_argument("--training", action="store_true", help="forward and backward")
    parser.add_argument("--separable", action="store_true", help="beside the depthwise separable pair")
    parser.add_argument("--vary", action="store_true", help="without padding, half the image, twice the channels")
    parser.add_argument(
        "--machines", nargs="+", choices=[*NAMED, "this"], help="default: the lecture's two and this one"
    )
    parser.add_argument("--count", type=int, default=1, metavar="N", help="so many of each machine")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> None:
    """Print multiply-accumulates (MACs), floating-point operations (two for each), parameters and bytes.

    Beside them the least time on each machine, from its peak and its bandwidth: this machine's are measured once.
    """
    costs = _costs(options, *_shapes(options))
    if options.training:
        costs = [cost.training() for cost in costs]
    machines = [machine if options.count == 1 else machine.times(options.count) for machine in _machines(options)]
    rows = [nc.cost.Row(cost, tuple(machines)) for cost in costs]
    if options.json:
        print(json.dumps([_values(row) for row in rows], indent=2))
    elif len(rows) == 1:
        _print_one(rows[0])
    else:
        print(nc.cost.table(rows))


def _shapes(options: argparse.Namespace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the input and the weights, from either way of writing them."""
    try:
        if len(options.sizes) == 2:
            x, w = (tuple(int(n) for n in size.lower().replace("×", "x").split("x")) for size in options.sizes)
            return x, w
        c_in, c_out, *rest = (int(size) for size in options.sizes)
    except ValueError:
        raise UsageError(
            f"sizes must be numbers, or shapes such as 1x64x56x56, got {' '.join(options.sizes)}"
        ) from None
    if not rest or len(rest) % 2:
        raise UsageError(
            f"give two shapes, or channels in, channels out, a kernel and an image size: 100 100 5 5 64 64; "
            f"got {' '.join(options.sizes)}"
        )
    kernel, image = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    if options.padding is None:
        options.padding = "same"
    return (1, c_in, *image), (c_out, c_in // max(options.groups, 1), *kernel)


def _costs(options: argparse.Namespace, x: tuple[int, ...], w: tuple[int, ...]) -> list[nc.cost.Cost]:
    arguments = geometry(options)
    if options.separable:
        if arguments.pop("groups") != 1:
            raise UsageError("--separable compares with a layer of one group, so it takes no --groups")
        channels = x[-len(w) + 1]
        pair = nc.cost.separable(channels, w[0], w[2:], x[-len(w) + 2 :], **arguments)
        return [pair.dense, pair.depthwise, pair.pointwise, pair.pair]
    if options.vary:
        return list(nc.cost.variations(x, w, **arguments))
    layer = nc.cost.conv(x, w, **arguments)
    if options.layers is None and options.samples is None:
        return [layer]
    layers = 1 if options.layers is None else options.layers
    stack = nc.cost.job(layer, layers, 1)
    costs = [layer, nc.cost.stack([layer] * layers)] if layers <= 1000 else [layer, stack]
    return costs if options.samples is None else [*costs, nc.cost.job(layer, layers, options.samples)]


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
        if value != int(value) or value < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a number such as 10 or 1e6, got {text!r}") from None
    return int(value)
