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
    parser = describe(commands, "warmup", run, "compile every loop now", EXAMPLES)
    parser.add_argument("dtypes", nargs="*", default=["float32", "float64"], help="default: float32 float64")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Compile every loop of the numba backend for some dtypes, or load it from the cache."""
    seconds = nc.warmup(tuple(options.dtypes))
    answer = {"dtypes": options.dtypes, "seconds": seconds}
    print(json.dumps(answer, indent=2) if options.json else f"ready after {seconds:.1f} s")
