"""Every table and picture that the documentation quotes, made anew: ``python -m benchmarks.report``.

Each part is a program of its own, in a process of its own; ``--only`` names some. The parts write
``benchmarks/results/``, from where the documentation takes them, the README's table, and pictures.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.workers import ROOT


@dataclass(frozen=True)
class Part:
    """A program, as Python's ``-m`` takes it, and the files that it writes, by their beginning."""

    command: str
    writes: tuple[str, ...]


RESULTS = "benchmarks/results"
PARTS = {
    "forward": Part("benchmarks.compare --readme", ("README.md", f"{RESULTS}/compare-forward-1t.")),
    "input_grad": Part("benchmarks.compare --op input_grad", (f"{RESULTS}/compare-input_grad-1t.",)),
    "weight_grad": Part("benchmarks.compare --op weight_grad", (f"{RESULTS}/compare-weight_grad-1t.",)),
    "filters": Part("benchmarks.filters", (f"{RESULTS}/filters-1t.",)),
    "filters-2": Part("benchmarks.filters --threads 2", (f"{RESULTS}/filters-2t.",)),
    "models": Part("benchmarks.models --write --reference squeezenet", (f"{RESULTS}/models.",)),
    "training": Part("benchmarks.training --write", (f"{RESULTS}/training.",)),
    "learning": Part("benchmarks.learning", (f"{RESULTS}/learning.",)),
    "planner": Part("benchmarks.planner", (f"{RESULTS}/planner.",)),
    "sweep": Part("benchmarks.sweep", (f"{RESULTS}/sweep.",)),
    "memory": Part("benchmarks.memory", (f"{RESULTS}/memory.",)),
    "dask": Part("benchmarks.dask_scale --gigabytes 20 --side 2000 --workers 1 2 --write", (f"{RESULTS}/dask-scale.",)),
    "pictures": Part("docs.figures", ("docs/images/engine-", "docs/images/photograph.")),
    "demo": Part("npconv demo --output docs/images", ("docs/images/training.", "docs/images/feature_maps.")),
    "notebook": Part("docs.notebook", ("examples/channels.ipynb",)),
}
"""What is measured or drawn, and by which command; in the order in which it runs."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="say what would run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    failed = []
    for name in options.only:
        print(f"{name}: python -m {PARTS[name].command}", flush=True)
        if options.list:
            continue
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *shlex.split(PARTS[name].command)], cwd=ROOT, check=False)
        print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'} after {time.perf_counter() - start:.0f} s")
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
