"""``npconv completion``: what a shell needs to complete npconv's words."""

from __future__ import annotations

import argparse
from typing import Any

from npconv.commands import CommandError
from npconv.commands.arguments import describe, need

EXAMPLES = """
npconv completion bash > ~/.local/share/bash-completion/completions/npconv
npconv completion zsh > ~/.zfunc/_npconv
npconv completion fish > ~/.config/fish/completions/npconv.fish
"""

FILES = {"DATA", "FOLDER", "IMAGE", "INPUT", "KERNEL", "MODEL.onnx", "PATH", "WEIGHTS", "WHAT"}
"""Arguments, as help calls them, whose words may be names of files."""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "completion", run, "complete commands and options in your shell", EXAMPLES)
    parser.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"])


def run(options: argparse.Namespace) -> None:
    """Print a script that makes a shell complete commands, options and file names.

    zsh looks for it in a folder of $fpath, so ~/.zshrc needs: fpath=(~/.zfunc $fpath); autoload -U compinit; compinit
    """
    need("completion", "shtab")
    import shtab

    from npconv.cli import parser

    if options.shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise CommandError(f"this shtab, {shtab.__version__}, knows {known}, not {options.shell}: pip install -U shtab")
    whole = parser()
    for action in _arguments(whole):
        if (action.metavar or action.dest.upper()) in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, shell=options.shell))


def _arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Every argument of every command."""
    found = []
    for action in parser._actions:
        inner = action.choices if isinstance(action, argparse._SubParsersAction) else {}
        found += [action, *(argument for command in inner.values() for argument in _arguments(command))]
    return found
