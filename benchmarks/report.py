"""Every number that the documentation quotes, made anew: ``python -m benchmarks.report``.

Each part is a program of its own, in a process of its own; ``--only`` names some. The parts write
``benchmarks/results/``, from where the documentation takes them, and the README's table.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.workers import ROOT

PARTS = {
    "forward": "benchmarks.compare --readme",
    "input_grad": "benchmarks.compare --op input_grad",
    "weight_grad": "benchmarks.compare --op weight_grad",
    "planner": "benchmarks.planner",
    "sweep": "benchmarks.sweep",
    "memory": "benchmarks.memory",
}
"""What is measured, and by which command; in the order in which it runs."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="say what would run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    failed = []
    for name in options.only:
        print(f"{name}: python -m {PARTS[name]}", flush=True)
        if options.list:
            continue
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *shlex.split(PARTS[name])], cwd=ROOT, check=False)
        print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'} after {time.perf_counter() - start:.0f} s")
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
