"""How well networks learn: what `npconv train` reaches on scikit-learn's digits, ``python -m benchmarks.learning``."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile

from benchmarks.tables import machine, stem, versions
from benchmarks.workers import ROOT

COMMANDS = (
    "train --model lenet --data digits",
    "train --model mobilenet --width 0.25 --data digits --epochs 10",
)
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, help="in place of each command's own")
    epochs = parser.parse_args().epochs
    lines = ["| command | pictures held back | recognised |", "| --- | ---: | ---: |"]
    for command in (each if epochs is None else f"{each} --epochs {epochs}" for each in COMMANDS):
        with tempfile.TemporaryDirectory() as folder:
            call = [sys.executable, "-m", "npconv", *shlex.split(command), "--output", folder, "--json"]
            done = subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        lines.append(f"| `npconv {command}` | {found['held_back']} | {found['recognised']:.2%} |")
        print(lines[-1], flush=True)
    about = f"Seed 0, float32, an {machine()}; {versions(['npconv', 'numpy', 'numba', 'scikit-learn'])}."
    text = "\n\n".join(["# What is learned of the digits", about, "\n".join(lines)])
    name = stem("learning", None if epochs is None else [f"{epochs} epochs"])
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
