"""``npconv completion``: what a shell needs to complete npconv's words."""

from __future__ import annotations

import argparse
from typing import Any

from npconv.commands.arguments import describe, need

EXAMPLES = """
npconv completion bash > ~/.local/share/bash-completion/completions/npconv
npconv completion zsh > ~/.zfunc/_npconv
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "completion", run, "complete commands and options in your shell", EXAMPLES)
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(options: argparse.Namespace) -> None:
    """Print a script that makes a shell complete commands, options and file names."""
    need("completion", "shtab")
    import shtab

    from npconv.cli import parser

    print(shtab.complete(parser(), shell=options.shell))
