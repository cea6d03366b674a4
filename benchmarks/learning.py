"""How well networks learn: what `npconv train` reaches on scikit-learn's digits, ``python -m benchmarks.learning``."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile

from benchmarks.tables import machine, versions
from benchmarks.workers import ROOT

COMMANDS = (
    "train --model lenet --data digits",
    "train --model mobilenet --width 0.25 --data digits --epochs 10",
)
RESULTS = ROOT / "benchmarks" / "results" / "learning.md"


def main() -> int:
    lines = ["| command | pictures held back | recognised |", "| --- | ---: | ---: |"]
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            call = [sys.executable, "-m", "npconv", *shlex.split(command), "--output", folder, "--json"]
            done = subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        lines.append(f"| `npconv {command}` | {found['held_back']} | {found['recognised']:.2%} |")
        print(lines[-1], flush=True)
    about = f"Seed 0, float32, an {machine()}; {versions(['npconv', 'numpy', 'numba', 'scikit-learn'])}."
    text = "\n\n".join(["# What is learned of the digits", about, "\n".join(lines)])
    RESULTS.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
