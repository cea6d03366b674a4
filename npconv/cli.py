"""The command line: one program whose commands are the files of `npconv.commands`.

Exit status 0, 1 (it failed) or 2 (it was called wrongly). A user's mistake is one line on standard error, never a
traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import npconv as nc
from npconv.commands import Failure, Mistake, add_all

EXAMPLES = """examples:
  npconv demo                                          a photograph, a network, the lecture's table
  npconv demo --image holiday.jpg                      the same with a picture of your own
  npconv info                                          what npconv runs on here
  npconv plan 1x64x56x56 64x64x3x3 --padding 1         how a convolution would run, and why
  npconv cost 1x100x64x64 100x100x5x5 --padding same   what a convolution costs
"""


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
        options.run(options)
    except KeyboardInterrupt:
        print("npconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away, as `head` does: nothing is left to say, also not while Python closes its streams.
        sys.stdout = None
        return 1
    except (Mistake, ValueError, TypeError) as error:
        return _fail(error, 2)
    except (Failure, ImportError, RuntimeError, OSError, MemoryError) as error:
        return _fail(error, 1)
    return 0


def _fail(error: BaseException, status: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"npconv: {text}", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """Everything that ``npconv`` understands."""
    parser = argparse.ArgumentParser(
        prog="npconv",
        description="N-d, multi-channel convolution on plain arrays, without a framework.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"npconv {nc.__version__}")
    add_all(parser.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser
