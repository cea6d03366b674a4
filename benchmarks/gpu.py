"""Everything that a GPU can say about npconv, in under eight minutes: ``python -m benchmarks.gpu``.

It checks every family of kernels against the reference (the cases of tests/test_cuda_kernels.py, with CuPy itself),
runs compute-sanitizer on small cases where that program is found, and measures against PyTorch and cupyx.scipy. Each
section is a process of its own, so that a fault in one leaves the others their GPU, and has a limit of time; what it
has found by then counts. ``benchmarks/results/gpu-<device>.md`` and ``.json`` (under ``$OUT`` if that is set) are
written after each section.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gpu_cases
from benchmarks.gpu_cases import PYTORCH, Row
from benchmarks.tables import grid, milliseconds, two
from benchmarks.workers import ROOT

TESTS = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
SMALL = "(depthwise or gemm or pointwise or winograd) and not problems and not dtype and not tile"
"""Tests that a sanitizer, which slows kernels down a hundredfold, has time for."""

MEASURED: dict[str, Callable[[], Iterator[Row]]] = {
    "device": gpu_cases.device,
    "forward": gpu_cases.forward,
    "lecture": gpu_cases.lecture,
    "gradients": gpu_cases.gradients,
    "narrow": gpu_cases.narrow,
    "fused": gpu_cases.fused,
    "scipy": gpu_cases.scipy,
}
LIMITS = {
    "device": 30, "check": 110, "check-public": 50, "memcheck": 40, "racecheck": 40, "forward": 90, "lecture": 15,
    "gradients": 45, "narrow": 25, "fused": 15, "scipy": 15,
}  # fmt: skip
"""Seconds for each section, in the order in which they run; 475 in all."""

GOALS = {
    ("forward", "depthwise"): (2.0, 3.0),
    ("forward", "3x3 stride 1"): (1.0, 1.3),
    ("forward", "other"): (0.8, 1.0),
    ("narrow", "depthwise"): (1.2, 1.5),
    ("fused", None): (1.0, 1.5),
    ("gradients", None): (0.6, 1.0),
    ("scipy", None): (10.0, 10.0),
}
"""Peer's time over ours, at least and aimed at, by section and kind of layer."""

OURS, PEERS = ("npconv", "npconv channels-last"), (*PYTORCH, "cupyx ndimage", "cupyx signal")


@dataclass
class Section:
    """What one section found."""

    name: str
    state: str = "not run"
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def command(name: str, rows: Path) -> list[str] | None:
    """The process of a section, which measures or tests; None where it needs a program that is missing."""
    if name in MEASURED:
        return [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--rows", str(rows)]
    rooms = ("backend",) if name == "check-public" else ("kernels", "winograd")
    tests = [sys.executable, *TESTS, *(str(ROOT / "tests" / f"test_cuda_{room}.py") for room in rooms)]
    if name.startswith("check"):
        return tests
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        return None
    return [sanitizer, "--tool", name, "--error-exitcode", "9", "--target-processes", "all", *tests, "-k", SMALL]


def run(name: str, limit: float) -> Section:
    """A section in its process; whatever happens there, what it has written down is kept."""
    section = Section(name)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        process = command(name, rows)
        if process is None:
            section.state = "not run: compute-sanitizer was not found"
            return section
        code, output = finished(process, limit)
        stopped = f"stopped after its {limit:.0f} s: {last_line(output)}"
        section.state = stopped if code is None else outcome(name, code, output)
        if rows.exists():
            # The last line of a process that was stopped may be half a line.
            lines = rows.read_text(encoding="utf-8").split("\n")[:-1]
            section.rows = [json.loads(line) for line in lines]
    section.seconds = time.perf_counter() - start
    return section


def finished(process: Sequence[str], limit: float) -> tuple[int | None, str]:
    """A process's exit status, None where its time was up, and what it said."""
    with subprocess.Popen(
        process, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            output, _ = running.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # A sanitizer's own child would go on, and hold the pipe open.
            os.killpg(running.pid, signal.SIGKILL)
            return None, running.communicate()[0]
        return running.returncode, output


def outcome(name: str, code: int, output: str) -> str:
    """In a line: how a process ended, in its own last words where it failed or ran tests."""
    last = last_line(output)
    if code == 0:
        return "done" if name in MEASURED else f"passed: {last}"
    if name not in MEASURED and code == 5:
        return "FAILED: no test ran, so no GPU was found"
    return f"FAILED with status {code}: {last}"[:400]


def last_line(output: str) -> str:
    return next((line.strip(" =") for line in reversed(output.splitlines()) if line.strip(" =")), "")


def measure(name: str, path: Path) -> None:
    """Write a section's rows to a file as they come, a line each."""
    with path.open("w", encoding="utf-8") as file:
        for row in MEASURED[name]():
            print(json.dumps(row), file=file, flush=True)


# --------------------------------------------------------------------------------------------------------------------
# The report
# --------------------------------------------------------------------------------------------------------------------


def write(sections: Sequence[Section], folder: Path) -> Path:
    """Both files; the path of the page."""
    facts = facts_of(sections)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    name = re.sub(r"\W+", "-", str(facts.get("device", "unknown"))).strip("-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"gpu-{name}.md"
    everything = {"date": today, "facts": facts, "sections": {s.name: vars(s) for s in sections}}
    page.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    page.write_text("\n\n".join(filter(None, parts(sections, facts, today))) + "\n", encoding="utf-8")
    return page


def facts_of(sections: Sequence[Section]) -> Row:
    """What the first row of the section "device" says, and the bandwidth of a copy."""
    rows = [row for section in sections if section.name == "device" for row in section.rows]
    return {**(rows[0] if rows else {}), **({"bandwidth": rows[1]["bandwidth"]} if len(rows) > 1 else {})}


def parts(sections: Sequence[Section], facts: Row, today: str) -> Iterator[str]:
    yield f"# npconv on {facts.get('device', 'an unknown GPU')}"
    yield f"`python -m benchmarks.gpu`, {today}; " + ", ".join(f"{name} {value}" for name, value in facts.items())
    yield (
        "Times of one call in milliseconds with a cold L2 cache; float32 without TF32 on both sides. A ratio is the "
        "time of the fastest peer / the time of npconv: above 1 npconv is the faster one."
    )
    states = [[s.name, f"{s.seconds:.0f}", str(len(s.rows)), s.state] for s in sections]
    yield grid(["section", "s", "rows", "state"], states)
    yield grid(["ratio", "kind", "cases", "mean", "at least", "aim"], summary(sections))
    for section in sections:
        rows = [row for row in section.rows if "seconds" in row]
        if rows:
            yield f"## {section.name}"
            yield table(rows, facts.get("bandwidth"))
            yield "\n".join(remarks(rows))


def summary(sections: Sequence[Section]) -> Iterator[list[str]]:
    """A line a goal: the geometric mean of what was measured."""
    for (name, kind), (least, aim) in GOALS.items():
        rows = [row for s in sections if s.name == name for row in s.rows if kind in (None, row.get("kind"))]
        ratios = [value for value in map(ratio, rows) if value]
        mean = f"{statistics.geometric_mean(ratios):.2f}" if ratios else "unmeasured"
        yield [name, kind or "all", str(len(ratios)), mean, f"{least:g}", f"{aim:g}"]


def ratio(row: Row) -> float | None:
    """The time of the fastest peer over that of npconv's channels-first call, unless a result is wrong."""
    times = row.get("seconds", {})
    peers = [times[name] for name in PEERS if name in times]
    return min(peers) / times["npconv"] if peers and "npconv" in times and not row["differs"] else None


def table(rows: Sequence[Row], bandwidth: float | None) -> str:
    names = [name for name in (*OURS, *PEERS) if any(name in row["seconds"] for row in rows)]
    lines = []
    for row in rows:
        label = " ".join(str(row[key]) for key in ("case", "op", "dtype") if key in row)
        ours = row["seconds"].get("npconv")
        rate = two(row["flops"] / ours / 1e12) if ours and "flops" in row else "-"
        share = two(row["bytes"] / ours / bandwidth) if ours and bandwidth and "bytes" in row else "-"
        lines.append([label, *(milliseconds(row["seconds"].get(name)) for name in names), two(ratio(row)), rate, share])
    return grid(["case", *names, "ratio", "TFLOP/s", "of copy bandwidth"], lines)


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """What went wrong, and what was timed otherwise than in a graph."""
    for row in rows:
        for name, error in row["errors"].items():
            # A module that is missing is said once, above.
            if "No module named" not in error:
                yield f"- {row['case']}, {name}: {error}"
        for name, distance in row["differs"].items():
            yield f"- {row['case']}, {name} DIFFERS by {distance:.1e} of the largest element"
    ways = sorted({f"{name}: {how}" for row in rows for name, how in row["how"].items() if "captured" in how})
    yield from (f"- {way}, in some cases" for way in ways)
    for row in rows:
        for name, minutes in row.get("minutes", {}).items():
            yield f"- {name}: {minutes:.2f} minutes for ten layers on a million samples; the lecture says 14.22"


def failed(section: Section) -> bool:
    wrong = any(row.get("differs") or "npconv" in row.get("errors", {}) for row in section.rows)
    return "FAILED" in section.state or wrong


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="SECTION", help=", ".join(LIMITS)
    )
    parser.add_argument("--section", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.section:
        measure(options.section, options.rows)
        return 0
    import npconv as nc

    if "cupy" not in nc.available_backends():
        print("no GPU can be used here; npconv.conv(..., backend='cupy') says why", file=sys.stderr)
        return 2
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    sections: list[Section] = []
    for name in dict.fromkeys(["device", *options.only]):
        section = run(name, LIMITS[name])
        sections.append(section)
        page = write(sections, folder)
        print(f"{name}: {section.state}, {len(section.rows)} rows, {section.seconds:.0f} s", flush=True)
    print(f"written: {page} and .json")
    return int(any(map(failed, sections)))


if __name__ == "__main__":
    sys.exit(main())
