"""``npconv warmup``: compile before it is needed."""

from __future__ import annotations

import argparse
import json
from typing import Any

import npconv as nc
from npconv.commands.arguments import add_json, describe

EXAMPLES = """
npconv warmup                                   float32 and float64
npconv warmup float16 int8                      what you name
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "warmup", run, "compile what most networks run on now", EXAMPLES)
    parser.add_argument("dtypes", nargs="*", default=["float32", "float64"], help="default: float32 float64")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Compile what most networks run on, or load it from the cache: some minutes for each dtype, once.

    For each dtype the loops that serve every geometry, and for floats those of 1x1, 3x3 and depthwise 3x3 convolutions
    and of batch normalisation with a rectifier, forward and backward. What is rarer is compiled when it is first met.
    """
    seconds = nc.warmup(tuple(options.dtypes))
    answer = {"dtypes": options.dtypes, "seconds": seconds}
    print(json.dumps(answer, indent=2) if options.json else f"ready after {seconds:.1f} s")
