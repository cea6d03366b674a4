"""``npconv info``: what npconv runs on here, and whether it computes what it should."""

from __future__ import annotations

import argparse
import json
from typing import Any

import npconv as nc
from npconv.commands import CommandError
from npconv.commands.arguments import add_json, describe
from npconv.report import configuration
from npconv.self_test import self_test

EXAMPLES = """
npconv info                                     for a person
npconv info --json                              for a program
npconv info --check                             compare every backend with the definition; loops are compiled first
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "info", run, "what npconv runs on here", EXAMPLES)
    parser.add_argument("--check", action="store_true", help="compare every backend with the definition")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print versions, processor, GPU, backends, threads, BLAS, cache folder and the variables that npconv reads.

    With --check every backend and algorithm computes small convolutions and their gradients, which are compared with
    the textbook's loops; exit status 1 where one differs.
    """
    results = self_test() if options.check else []
    if options.json:
        facts = configuration()
        print(json.dumps({**facts, "check": results} if options.check else facts, indent=2))
    else:
        nc.show_config()
        for result in results:
            print(f"{'ok' if result['right'] else 'WRONG':<11}{result['what']}")
    wrong = [result["what"] for result in results if not result["right"]]
    if wrong:
        raise CommandError(f"{len(wrong)} of {len(results)} checks differ from the definition: {', '.join(wrong)}")
