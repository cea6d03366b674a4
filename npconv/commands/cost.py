"""``npconv cost``: what a convolution costs."""

from __future__ import annotations

import argparse
from typing import Any

import npconv as nc
from npconv.commands.arguments import add_geometry, describe, geometry

EXAMPLES = """
npconv cost 1x100x64x64 100x100x5x5 --padding same
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "cost", run, "what a convolution costs", EXAMPLES)
    add_geometry(parser)


def run(options: argparse.Namespace) -> None:
    """Print multiply-accumulates, floating-point operations, parameters and bytes of a convolution."""
    cost = nc.cost.conv(options.x, options.w, **geometry(options))
    print(f"MACs        {cost.macs:,}")
    print(f"FLOPs       {cost.flops:,}")
    print(f"parameters  {cost.parameters:,}")
    print(f"bytes       {cost.bytes:,}")
