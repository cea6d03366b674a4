"""``npconv plan``: how a convolution would run, and why."""

from __future__ import annotations

import argparse
from typing import Any

import npconv as nc
from npconv.commands.arguments import add_backend, add_geometry, describe, geometry

EXAMPLES = """
npconv plan 1x64x56x56 64x64x3x3 --padding 1    3x3, 64 to 64 channels, an image of 56x56
npconv plan 1x32x28x28 32x1x3x3 --groups 32     depthwise
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "plan", run, "how a convolution would run, and why", EXAMPLES)
    add_geometry(parser)
    add_backend(parser)
    parser.add_argument("--algorithm", default="auto", help="default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Print how a convolution would run: algorithm, work, memory, predicted time, and why the others lost."""
    print(nc.plan(options.x, options.w, **geometry(options), backend=options.backend, algorithm=options.algorithm))
