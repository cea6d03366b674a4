"""The command line: one program whose commands are the files of `npconv.commands`.

Exit status 0, 1 (it failed) or 2 (it was called wrongly). A user's mistake is one line on standard error, never a
traceback.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import npconv as nc
from npconv.commands import CommandError, UsageError, add_all

EXAMPLES = """examples:
  npconv demo                                          a photograph, a network, the lecture's table
  npconv demo --image holiday.jpg                      the same with a picture of your own
  npconv train --model lenet --data digits             train a network; see npconv train --help
  npconv info --check                                  what npconv runs on here, and whether it computes right
  npconv plan 1x64x56x56 64x64x3x3 --padding 1         how a convolution would run, and why
  npconv cost --layers 10 --samples 1e6 100 100 5 5 64 64
                                                       what the lecture's job costs, and how long it takes here
  npconv filter holiday.jpg --kernel sobel             edges of a photograph

`npconv COMMAND --help` has more of them.
"""


_NO_SUCH_PLACE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What a path raises that was written wrongly; whatever else a disk says is no mistake of the call's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Defaults to the process's own.

    Returns
    -------
    int
        The exit status.

    Examples
    --------
    >>> main(["plan", "1x3x8", "4x3x3", "--backend", "numpy", "--padding", "same"])  # doctest: +ELLIPSIS
    forward 1x3x8 * 4x3x3 -> 1x4x8, float32
    ...
    0
    """
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            options.run(options)
    except KeyboardInterrupt:
        print("npconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away, as `head` does: nothing is left to say, also not while Python closes its streams.
        sys.stdout = None
        return 1
    except (UsageError, ValueError, TypeError, *_NO_SUCH_PLACE) as error:
        return _fail(error, 2)
    except (CommandError, ImportError, RuntimeError, OSError, MemoryError) as error:
        return _fail(error, 1)
    return 0


def _warn(*facts: Any, **_: Any) -> None:
    """What `warnings.showwarning` is told, as a line for a person: the message without the place in the code."""
    print(f"npconv: warning: {' '.join(str(facts[0]).split())}", file=sys.stderr)


def _fail(error: BaseException, status: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    print(f"npconv: {text}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a call."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"npconv: {' '.join(message.split())}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Everything that ``npconv`` understands."""
    parser = _Parser(
        prog="npconv",
        description="N-d, multi-channel convolution on plain arrays, without a framework.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"npconv {nc.__version__}")
    add_all(parser.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser
