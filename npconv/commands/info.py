"""``npconv info``: what npconv runs on here."""

from __future__ import annotations

import argparse
import json
from typing import Any

import npconv as nc
from npconv.commands.arguments import describe
from npconv.report import configuration

EXAMPLES = """
npconv info                                     for a person
npconv info --json                              for a program
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "info", run, "what npconv runs on here", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> None:
    """Print versions, backends, threads, cache folder and the environment variables that npconv reads."""
    if options.json:
        print(json.dumps(configuration(), indent=2))
    else:
        nc.show_config()
