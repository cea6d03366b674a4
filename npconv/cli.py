"""The command line: ``npconv demo``, ``info``, ``plan``, ``autotune``, ``cost``, ``run``, ``warmup``.

Exit status 0, 1 (it failed) or 2 (it was called wrongly). A user's mistake is one line on standard error, never a
traceback.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import npconv as nc

EXAMPLES = """examples:
  npconv demo                                          a photograph, a network, the lecture's table
  npconv demo --image holiday.jpg                      the same with a picture of your own
  npconv info                                          what npconv runs on here
  npconv plan 1x64x56x56 64x64x3x3 --padding 1         how a convolution would run, and why
  npconv run model.onnx cat.jpg                        a network that others trained
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
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("npconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away, as `head` does: nothing is left to say, also not while Python closes its streams.
        sys.stdout = None
        return 1
    except (ValueError, TypeError) as error:
        return _fail(error, 2)
    except (ImportError, RuntimeError, OSError, MemoryError) as error:
        return _fail(error, 1)


def _fail(error: BaseException, status: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"npconv: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npconv",
        description="N-d, multi-channel convolution on plain arrays, without a framework.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"npconv {nc.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="filter a photograph and train a network", description=_demo.__doc__)
    demo.add_argument("--image", type=Path, metavar="PATH", help="a picture (default: scikit-learn's photograph)")
    demo.add_argument("--output", type=Path, metavar="FOLDER", default=Path("npconv-demo"), help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="of the network's weights (default: %(default)s)")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="what npconv runs on here", description=_info.__doc__)
    info.add_argument("--json", action="store_true", help="for programs")
    info.set_defaults(run=_info)

    plan = commands.add_parser("plan", help="how a convolution would run, and why", description=_plan.__doc__)
    _add_geometry(plan)
    plan.add_argument("--backend", default=None, help="auto, numpy, numba or cupy")
    plan.add_argument("--algorithm", default="auto", help="default: %(default)s")
    plan.set_defaults(run=_plan)

    tune = commands.add_parser("autotune", help="measure how it runs best, and remember it", description=_tune.__doc__)
    _add_geometry(tune)
    tune.add_argument("--backend", default=None, help="auto, numpy, numba or cupy")
    tune.add_argument("--op", default="forward", help="forward, input_grad or weight_grad (default: %(default)s)")
    tune.set_defaults(run=_tune)

    cost = commands.add_parser("cost", help="what a convolution costs", description=_cost.__doc__)
    _add_geometry(cost)
    cost.set_defaults(run=_cost)

    run = commands.add_parser("run", help="run an ONNX model", description=_run.__doc__)
    run.add_argument("model", type=Path, metavar="MODEL.onnx")
    run.add_argument("input", type=Path, metavar="INPUT", help="an .npy file, or a picture")
    run.add_argument("-o", "--output", type=Path, metavar="PATH", help=".npy or .npz for the outputs")
    run.add_argument("--top", type=int, default=5, help="of the largest elements to print (default: %(default)s)")
    run.add_argument("--max-memory", type=float, default=4.0, metavar="GIB", help="default: %(default)s")
    run.set_defaults(run=_run)

    warmup = commands.add_parser("warmup", help="compile every loop now", description=_warmup.__doc__)
    warmup.add_argument("dtypes", nargs="*", default=["float32", "float64"], help="default: float32 float64")
    warmup.set_defaults(run=_warmup)
    return parser


def _add_geometry(command: argparse.ArgumentParser) -> None:
    command.add_argument("x", type=_sizes, metavar="X", help="shape of the input, such as 1x64x56x56")
    command.add_argument("w", type=_sizes, metavar="W", help="shape of the weights, such as 64x64x3x3")
    command.add_argument("--stride", type=_sizes, default=(1,), help="one number, or one per dimension: 2x1")
    command.add_argument("--padding", type=_padding, default=0, help="the same, or a word such as same")
    command.add_argument("--dilation", type=_sizes, default=(1,), help="as --stride")
    command.add_argument("--groups", type=int, default=1)
    command.add_argument("--dtype", default="float32", help="default: %(default)s")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected sizes such as 1x64x56x56, got {text!r}") from None


def _padding(text: str) -> str | tuple[int, ...]:
    return text if text.isalpha() or "_" in text else _sizes(text)


def _each(sizes: tuple[int, ...] | str | int) -> tuple[int, ...] | str | int:
    """One number stands for all dimensions."""
    return sizes[0] if isinstance(sizes, tuple) and len(sizes) == 1 else sizes


def _geometry(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "stride": _each(options.stride),
        "padding": _each(options.padding),
        "dilation": _each(options.dilation),
        "groups": options.groups,
        "dtype": options.dtype,
    }


def _demo(options: argparse.Namespace) -> int:
    """Filter a photograph, train a network on handwritten digits, print the lecture's cost table; draw two pictures."""
    try:
        # All at once, so that nothing starts that could not finish.
        for package in ("matplotlib", "PIL", "sklearn", "tqdm"):
            importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"npconv demo needs the extra 'demo' ({error}): pip install 'npconv[demo]'") from None
    from npconv import demo

    try:
        demo.run(options.image, options.output, seed=options.seed)
    except demo.ImageError as error:
        return _fail(error, 2)
    except AssertionError as error:
        return _fail(error, 1)
    return 0


def _info(options: argparse.Namespace) -> int:
    """Print versions, backends, threads, cache folder and the environment variables that npconv reads."""
    if options.json:
        from npconv.report import configuration

        print(json.dumps(configuration(), indent=2))
    else:
        nc.show_config()
    return 0


def _plan(options: argparse.Namespace) -> int:
    """Print how a convolution would run: algorithm, work, memory, predicted time, and why the others lost."""
    print(nc.plan(options.x, options.w, **_geometry(options), backend=options.backend, algorithm=options.algorithm))
    return 0


def _tune(options: argparse.Namespace) -> int:
    """Measure every algorithm on a convolution, keep the times in the cache folder, and print the plan they give."""
    print(nc.autotune(options.x, options.w, **_geometry(options), backend=options.backend, op=options.op))
    return 0


def _cost(options: argparse.Namespace) -> int:
    """Print multiply-accumulates, floating-point operations, parameters and bytes of a convolution."""
    cost = nc.cost.conv(options.x, options.w, **_geometry(options))
    print(f"MACs        {cost.macs:,}")
    print(f"FLOPs       {cost.flops:,}")
    print(f"parameters  {cost.parameters:,}")
    print(f"bytes       {cost.bytes:,}")
    return 0


def _run(options: argparse.Namespace) -> int:
    """Run an ONNX model on an array or a picture, and print the largest elements of its outputs, or save them."""
    run = importlib.import_module("npconv.onnx.run").run
    run(options.model, options.input, options.output, options.top, int(options.max_memory * 2**30))
    return 0


def _warmup(options: argparse.Namespace) -> int:
    """Compile every loop of the numba backend for some dtypes, or load it from the cache."""
    print(f"ready after {nc.warmup(tuple(options.dtypes)):.1f} s")
    return 0
