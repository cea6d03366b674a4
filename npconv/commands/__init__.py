"""The commands of ``npconv``, one file each: ``add(commands)`` describes its arguments, ``run(options)`` does the work.

A new command is a new file and a name in `NAMES`. ``run`` returns nothing where it went well. It raises `UsageError`
where it was called wrongly, `CommandError` where it could not do what was asked; both messages are one line for a
person to read. A `ValueError` or `TypeError` of npconv counts as the first, and so does a path that leads nowhere; an
`ImportError`, `RuntimeError` or any other `OSError` as the second.
"""

from __future__ import annotations

import importlib
from typing import Any

NAMES = (
    "demo", "info", "plan", "autotune", "cost", "bench", "filter", "train", "predict", "run", "warmup", "completion",
)  # fmt: skip
"""Every command, in the order of the help."""


class UsageError(Exception):
    """The command was called wrongly: exit status 2."""


class CommandError(Exception):
    """The command could not do what was asked: exit status 1."""


def add_all(commands: Any) -> None:
    """Describe every command to the parser."""
    for name in NAMES:
        importlib.import_module(f"npconv.commands.{name}").add(commands)
