"""``npconv autotune``: measure how a convolution runs best, and remember it."""

from __future__ import annotations

import argparse
import json
from typing import Any

import npconv as nc
from npconv.commands.arguments import add_backend, add_geometry, add_json, describe, geometry
from npconv.commands.plan import values

EXAMPLES = """
npconv autotune 1x64x56x56 64x64x3x3 --padding 1
npconv autotune 8x64x56x56 64x64x3x3 --padding 1 --op weight_grad
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "autotune", run, "measure how it runs best, and remember it", EXAMPLES)
    add_geometry(parser)
    add_backend(parser)
    parser.add_argument("--op", default="forward", help="forward, input_grad or weight_grad (default: %(default)s)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure every algorithm on a convolution, keep the times in the cache folder, and print the plan they give."""
    plan = nc.autotune(options.x, options.w, **geometry(options), backend=options.backend, op=options.op)
    print(json.dumps(values(plan, {}), indent=2) if options.json else plan)
