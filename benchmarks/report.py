"""Every number and picture that the documentation quotes, made anew: ``python -m benchmarks.report``.

Each part is a program of its own, in a process of its own. They write ``benchmarks/results/``, from where the
documentation takes them, the README's table, and pictures. A part that this machine cannot run is left out, with the
reason; behind one that fails the others go on, and the exit status is 1. ``--resume`` goes on behind what an
interrupted report has done. ``--quick`` runs every part in minutes, with tiny settings in a copy of the repository that
is thrown away: to see whether all of it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import npconv as nc
from benchmarks.workers import ROOT

RESULTS = "benchmarks/results"
STATE = ROOT / "build" / "report.json"
"""The parts that are done, until all are."""

COPIED = ("npconv", "benchmarks", "docs", "examples", "tests", "conftest.py", "pyproject.toml", "README.md")
"""What the programs read."""


@dataclass(frozen=True)
class Part:
    """A program, as Python's ``-m`` takes it, the files that it writes, by their beginning, and what it needs."""

    command: str
    writes: tuple[str, ...]
    quick: str = ""
    """The same with tiny settings; by default the same."""
    needs: tuple[str, ...] = ()
    """Packages; peers that a program itself leaves out are not among them."""
    cores: int = 1
    gpu: bool = False

    def obstacle(self) -> str:
        """Why it cannot run here; empty where it can."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"needs {', '.join(missing)}: pip install -e '.[bench,docs]'"
        if self.gpu and "cupy" not in nc.available_backends():
            return "needs a GPU, and CuPy"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return f"needs {self.cores} cores, and this process may use {cores}" if cores < self.cores else ""

    def run(self, root: Path, quick: bool) -> str:
        """Run it, and say what went wrong; empty where nothing did."""
        begun = time.time()
        command = self.quick if quick and self.quick else self.command
        done = subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=root, check=False)
        if done.returncode:
            return f"exit status {done.returncode}"
        stale = [start for start in self.writes if not _written(root, start, begun)]
        # With tiny settings nothing that is of all layers is written, such as the README's table.
        return f"wrote no {', '.join(stale)}" if stale and not (quick and len(stale) < len(self.writes)) else ""


def _written(root: Path, start: str, since: float) -> bool:
    """Whether there is a file that begins like this and is not older; clocks of file systems are coarse."""
    path = root / start
    return any(found.stat().st_mtime >= since - 2 for found in path.parent.glob(f"{path.name}*"))


NETWORKS = ("matplotlib", "PIL", "safetensors", "sklearn", "tqdm")
PARTS = {
    "forward": Part(
        "benchmarks.compare --readme", (f"{RESULTS}/compare-forward-1t", "README.md"),
        "benchmarks.compare --layers tiny --seconds 0.01", ("matplotlib",),
    ),
    "input_grad": Part(
        "benchmarks.compare --op input_grad", (f"{RESULTS}/compare-input_grad-1t",),
        "benchmarks.compare --op input_grad --layers tiny --seconds 0.01", ("matplotlib",),
    ),
    "weight_grad": Part(
        "benchmarks.compare --op weight_grad", (f"{RESULTS}/compare-weight_grad-1t",),
        "benchmarks.compare --op weight_grad --layers tiny --seconds 0.01", ("matplotlib",),
    ),
    "filters": Part(
        "benchmarks.filters", (f"{RESULTS}/filters-1t",),
        "benchmarks.filters --cases '512x512 dense 3x3' --seconds 0.01", ("matplotlib",),
    ),
    "filters-2": Part(
        "benchmarks.filters --threads 2", (f"{RESULTS}/filters-2t",),
        "benchmarks.filters --threads 2 --cases '512x512 dense 3x3' --seconds 0.01", ("matplotlib",), cores=2,
    ),
    "models": Part(
        "benchmarks.models --write --reference squeezenet", (f"{RESULTS}/models",),
        "benchmarks.models squeezenet --write --reference squeezenet --seconds 0.1", ("onnx", "onnxruntime"),
    ),
    "training": Part(
        "benchmarks.training --write", (f"{RESULTS}/training",),
        "benchmarks.training --write --models mobilenet_v1 --steps 3", ("torch",),
    ),
    "learning": Part(
        "benchmarks.learning", (f"{RESULTS}/learning",), "benchmarks.learning --epochs 1", NETWORKS,
    ),
    "planner": Part(
        "benchmarks.planner", (f"{RESULTS}/planner",), "benchmarks.planner --layers tiny --seconds 0.01",
        ("matplotlib",),
    ),
    "sweep": Part(
        "benchmarks.sweep", (f"{RESULTS}/sweep",), "benchmarks.sweep --layers '3x3 dw' --seconds 0.01",
        ("matplotlib",),
    ),
    "memory": Part("benchmarks.memory", (f"{RESULTS}/memory",), "benchmarks.memory --layers tiny"),
    "dask": Part(
        "benchmarks.dask_scale times --write", (f"{RESULTS}/dask-scale",),
        "benchmarks.dask_scale times --gigabytes 0.02 --side 500 --repeat 1 --write", ("distributed", "matplotlib"),
        cores=2,
    ),
    "dask-memory": Part(
        "benchmarks.dask_scale memory --write", (f"{RESULTS}/dask-memory",),
        "benchmarks.dask_scale memory --gigabytes 0.02 --side 500 --write", ("distributed",), cores=2,
    ),
    "gpu": Part("benchmarks.gpu", (f"{RESULTS}/gpu-",), "benchmarks.gpu --only device", gpu=True),
    "pictures": Part(
        "docs.figures", ("docs/images/engine-", "docs/images/photograph"), needs=("matplotlib", "PIL", "sklearn"),
    ),
    "demo": Part(
        "npconv demo --output docs/images", ("docs/images/training", "docs/images/feature_maps"), needs=NETWORKS,
    ),
    "notebook": Part(
        "docs.notebook", ("examples/channels.ipynb",),
        needs=(*NETWORKS, "ipykernel", "nbclient", "nbformat", "sphinx_gallery"),
    ),
}  # fmt: skip
"""What is measured or drawn, and by which command; in the order in which it runs."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="say what would run, and what would not")
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier, unfinished report has done")
    parser.add_argument("--quick", action="store_true", help="see whether all of it works; keep nothing")
    options = parser.parse_args(arguments)
    if options.quick and options.resume:
        parser.error("--quick keeps nothing that --resume could go on from")
    return options


def show(name: str, quick: bool) -> str:
    """A part, its command, and why it would be left out."""
    part = PARTS[name]
    obstacle = part.obstacle()
    command = part.quick if quick and part.quick else part.command
    return f"{name}: python -m {command}" + (f"  (left out: it {obstacle})" if obstacle else "")


def report(names: Sequence[str], root: Path, done: list[str], quick: bool) -> dict[str, str]:
    """Run parts, and what became of each; `done` grows by those that went well."""
    states = {}
    for name in names:
        print(show(name, quick), flush=True)
        obstacle, begun = PARTS[name].obstacle(), time.perf_counter()
        if name in done:
            states[name] = "was done before"
        elif obstacle:
            states[name] = f"left out: it {obstacle}"
        else:
            failure = PARTS[name].run(root, quick)
            states[name] = f"{'FAILED: ' + failure if failure else 'done'}, {time.perf_counter() - begun:.0f} s"
            if not failure:
                done.append(name)
                if not quick:
                    remember(done)
        print(f"{name}: {states[name]}\n", flush=True)
    return states


def remember(done: Sequence[str]) -> None:
    """Keep which parts are done."""
    STATE.parent.mkdir(exist_ok=True)
    STATE.write_text(json.dumps(done), encoding="utf-8")


def copy(folder: Path) -> Path:
    """The repository without what is built in it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            built = shutil.ignore_patterns("__pycache__", "_build", "generated")
            shutil.copytree(source, folder / name, ignore=built)
        else:
            shutil.copy(source, folder / name)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print(*(show(name, options.quick) for name in options.only), sep="\n")
        return 0
    done: list[str] = json.loads(STATE.read_text(encoding="utf-8")) if options.resume and STATE.exists() else []
    try:
        if options.quick:
            with tempfile.TemporaryDirectory() as folder:
                states = report(options.only, copy(Path(folder)), done, quick=True)
        else:
            states = report(options.only, ROOT, done, quick=False)
    except KeyboardInterrupt:
        print("interrupted" + (f"; --resume leaves out {', '.join(done)}" if done else ""), file=sys.stderr)
        return 130
    print(*(f"{name:<12}{state}" for name, state in states.items()), sep="\n")
    failed = any(state.startswith("FAILED") for state in states.values())
    if failed and not options.quick:
        print("--resume leaves out what is done", file=sys.stderr)
    elif not options.quick:
        STATE.unlink(missing_ok=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
