"""npconv against everybody else on the table of layers: ``python -m benchmarks.compare --help``.

Each contestant runs in a process of its own, on the same cores, and only while it is its turn: for every layer, round
after round, each is measured for a slice of the time, so that what else the machine does meets all of them. A figure is
the median over all rounds. Before that each result is checked against npconv's, because a benchmark of a wrong result
says nothing. With the layers goes the peak of the core, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import numpy as np

from benchmarks import pictures, tables
from benchmarks.cases import DTYPES, OPS, Case
from benchmarks.layers import LAYERS, select
from benchmarks.peers import CONTESTANTS, OURS, PEERS
from benchmarks.tables import Row
from benchmarks.workers import ROOT, Failed, Worker, pin

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 5
# Of the largest value: the most that Winograd's larger tiles lose, and what a sum of thousands of products does.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


class Notes:
    """What must not pass unseen; the same reason of the same contestant is said once, where it first comes up."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], str] = {}

    def say(self, who: str, reason: str, where: str = "") -> None:
        if (who, reason) not in self.said:
            self.said[who, reason] = f"{who}: {reason}" + (f" (first: {where})" if where else "")
            print(f"note: {self.said[who, reason]}", file=sys.stderr, flush=True)


def distance(y: np.ndarray, ours: np.ndarray) -> float:
    """Largest difference, relative to the largest value; infinite where shapes differ or a value is not a number."""
    if y.shape != ours.shape:
        return float("inf")
    error = float(np.abs(y - ours).max() / np.abs(ours).max())
    return error if error == error else float("inf")


def prepare(workers: Iterable[Worker], case: Case, row: Row, notes: Notes) -> list[Worker]:
    """Make contestants ready for a layer; those that can do it, and do it right."""
    ready, ours = [], None
    for worker in workers:
        try:
            note, y = worker.ask("prepare", case)
        except Failed as error:
            notes.say(worker.name, str(error), case.layer.name)
            continue
        if worker.name in OURS:
            row.algorithm = note or row.algorithm
            ours = y if ours is None else ours
        error = 0.0 if ours is None else distance(y, ours)
        if error > TOLERANCE[case.dtype]:
            row.wrong[worker.name] = error
            notes.say(worker.name, f"WRONG, differs from npconv by {error:.1e} of the largest value", case.layer.name)
        else:
            ready.append(worker)
    return ready


def measure(peak: Worker, workers: Sequence[Worker], case: Case, seconds: float, notes: Notes) -> Row:
    """One layer, all contestants in turn, and the core's peak with them."""
    row = Row(case.layer, case.threads)
    _, burst = peak.ask("prepare", case)
    turns = [peak, *prepare(workers, case, row, notes)]
    samples: dict[str, list[float]] = {worker.name: [] for worker in turns}
    for _ in range(ROUNDS):
        for worker in turns:
            try:
                samples[worker.name] += worker.ask("measure", seconds / ROUNDS)
            except Failed as error:
                notes.say(worker.name, f"failed while it was measured: {error}", case.layer.name)
    row.seconds = {name: statistics.median(times) for name, times in samples.items() if times}
    row.peak = burst.item() / row.seconds.pop("peak")
    return row


def present(workers: Iterable[Worker], op: str, dtype: str, notes: Notes) -> list[Worker]:
    """Those that can take part; of the others it is said why not."""
    found = []
    for worker in workers:
        refusal = worker.ask("refusal", (op, dtype))
        if refusal:
            notes.say(worker.name, f"does not take part, {refusal}")
            worker.close()
        else:
            found.append(worker)
    return found


def compare(options: argparse.Namespace, notes: Notes) -> list[Row]:
    """Measure and print layer by layer."""
    layers = select(options.layers) if options.layers else LAYERS
    rows = []
    with ExitStack() as stack:
        peak, *workers = (
            stack.enter_context(Worker(name, options.threads)) for name in ("peak", *OURS, *options.peers)
        )
        workers = present(workers, options.op, options.dtype, notes)
        print(tables.HEAD)
        for layer in layers:
            case = Case(layer, options.op, options.dtype, options.threads)
            rows.append(measure(peak, workers, case, options.seconds, notes))
            print(tables.line(rows[-1]), flush=True)
    return rows


def title(options: argparse.Namespace, rows: Sequence[Row]) -> str:
    """What was measured, where, and with what."""
    cores = "one core" if options.threads == 1 else f"{options.threads} cores"
    names = {name for row in rows for name in row.seconds}
    libraries = tables.versions(m for name, c in CONTESTANTS.items() if name in names for m in c.modules)
    peak = statistics.median(row.peak for row in rows) / 1e9
    what = f"{options.op}, {options.dtype}, {cores} of an {tables.machine()} (peak of a core: {peak:.1f} GFLOP/s)"
    return f"{what}; {libraries}."


def summary(rows: Sequence[Row]) -> str:
    """Means and shares, as they are printed and written."""
    head = "Time of the fastest peer over ours, geometric means:"
    return "\n\n".join(part for part in (head, tables.means(rows), tables.shares(rows)) if part)


def stem(options: argparse.Namespace) -> str:
    """Name of the result's files."""
    dtype = [options.dtype] if options.dtype != DTYPES[0] else []
    return tables.stem("-".join(["compare", options.op, f"{options.threads}t", *dtype]), options.layers)


def write(options: argparse.Namespace, rows: Sequence[Row], notes: Notes) -> None:
    """The table and the picture, and the README's table if asked for."""
    about = title(options, rows)
    remarks = "\n".join(f"- {text}" for text in notes.said.values())
    command = f"Medians of `python -m {' '.join(['benchmarks.compare', *options.arguments])}`."
    parts = ["# npconv and its peers", about, command, summary(rows), tables.table(rows), remarks]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{tables.by_width(stem(options))}.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    pictures.draw(rows, about, path.with_suffix(".png"))
    print(f"\nwritten: {path.relative_to(ROOT)} and .png")
    if options.readme:
        readme = ROOT / "README.md"
        content = f"{about}\n\n{tables.networks(rows)}"
        readme.write_text(tables.insert(readme.read_text(encoding="utf-8"), stem(options), content), encoding="utf-8")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", metavar="PATTERN", help="networks or parts of names, all by default")
    parser.add_argument("--op", choices=OPS, default=OPS[0])
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each contestant and layer")
    parser.add_argument("--readme", action="store_true", help="write the README's table too")
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    if options.readme and options.layers:
        parser.error("the README's table is of all layers")
    try:
        select(options.layers or ())
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, notes = parse(arguments), Notes()
    try:
        pin(options.threads)
    except ValueError as error:
        sys.exit(str(error))
    rows = compare(options, notes)
    print(f"\n{title(options, rows)}\n\n{summary(rows)}")
    write(options, rows, notes)
    failures = [f"{row.layer.name}: {name} DIFFERS from npconv" for row in rows for name in row.wrong]
    failures += [f"{row.layer.name}: npconv gave NO RESULT" for row in rows if tables.FUNCTIONAL not in row.seconds]
    if failures:
        print("", *failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
