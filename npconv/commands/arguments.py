"""What several commands share: how a command is described, and how shapes and geometry are written."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

Sizes = tuple[int, ...]


def describe(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command whose help is its summary in the list, the docstring of `run`, and examples to copy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=inspect.getdoc(run),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_geometry(command: argparse.ArgumentParser, *, shapes: bool = True) -> None:
    """Add the shapes of a convolution, unless the command has its own, and what `npconv.conv` is told besides."""
    if shapes:
        command.add_argument("x", type=sizes, metavar="X", help="shape of the input, such as 1x64x56x56")
        command.add_argument("w", type=sizes, metavar="W", help="shape of the weights, such as 64x64x3x3")
    command.add_argument("--stride", type=sizes, default=(1,), metavar="N", help="one, or one per dimension: 2x1")
    command.add_argument("--padding", type=_padding, metavar="N", help="the same, or a word such as same")
    command.add_argument("--dilation", type=sizes, default=(1,), metavar="N", help="as --stride")
    command.add_argument("--groups", type=int, default=1, metavar="N")
    command.add_argument("--dtype", default="float32", help="default: %(default)s")


def add_backend(command: argparse.ArgumentParser) -> None:
    """Add the choice of a backend."""
    command.add_argument("--backend", default=None, help="auto, numpy, numba or cupy")


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the choice of an answer that a program reads: one JSON value on standard output, and nothing else there."""
    command.add_argument("--json", action="store_true", help="for programs")


def geometry(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_geometry` took, as the arguments that follow the shapes in `npconv.plan` and `npconv.cost.conv`."""
    return {
        "stride": _each(options.stride),
        "padding": 0 if options.padding is None else _each(options.padding),
        "dilation": _each(options.dilation),
        "groups": options.groups,
        "dtype": options.dtype,
    }


def sizes(text: str) -> Sizes:
    """Read ``1x64x56x56``."""
    try:
        return tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected sizes such as 1x64x56x56, got {text!r}") from None


def positive(text: str) -> int:
    """Read a number of things, at least one."""
    return _whole(text, 1)


def seed(text: str) -> int:
    """Read what NumPy's random numbers begin with."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
    return value


def seconds(text: str) -> float:
    """Read a duration, which ends."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0 and less than 3600, got {text!r}")
    return value


def _padding(text: str) -> str | Sizes:
    return text if text.isalpha() or "_" in text else sizes(text)


def _each(value: Sizes | str | int) -> Sizes | str | int:
    """One number stands for all dimensions."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def need(extra: str, *packages: str) -> None:
    """Raise an error that names the extra unless all of its packages can be imported; before any work is done."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"this command needs the extra {extra!r} ({error}): pip install 'npconv[{extra}]'"
            ) from None
