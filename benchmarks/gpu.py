"""Everything that a GPU can say about npconv, in under eight minutes: ``python -m benchmarks.gpu``.

It checks every algorithm and every family of kernels against the reference (with CuPy itself, also the cases of
tests/test_cuda_kernels.py), measures against PyTorch and cupyx.scipy, and runs compute-sanitizer on small cases where
that program is found. Each section is a process of its own with a limit of time. A case that fails is written down
with its traceback; one that breaks the GPU's context, or the process, is left behind, and a new process goes on with
the next. ``benchmarks/results/gpu-<device>.md`` and ``.json`` (under ``$OUT`` if that is set) are written after each
section, ``gpu-rows.jsonl`` after each case.
"""

from __future__ import annotations

import argparse
import datetime as dt
import faulthandler
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gpu_cases
from benchmarks.gpu_cases import PYTORCH, Case, Row
from benchmarks.tables import grid, milliseconds, two
from benchmarks.workers import ROOT

TESTS = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "--tb=short", "-ra")
"""A warning of a package that is newer there is no error."""

CREW = 8
"""Processes among which tests are divided, where pytest-xdist is installed: most of their time is the compiler's."""

SMALL = "(depthwise or gemm or pointwise or winograd) and not problems and not dtype and not tile"
"""Tests that a sanitizer, which slows kernels down a hundredfold, has time for."""

MEASURED: dict[str, Callable[[], Iterator[Case]]] = {
    "device": gpu_cases.device,
    "definition": gpu_cases.definition,
    "forward": gpu_cases.forward,
    "lecture": gpu_cases.lecture,
    "winograd": gpu_cases.winograd,
    "tensor": gpu_cases.tensor,
    "gradients": gpu_cases.gradients,
    "narrow": gpu_cases.narrow,
    "fused": gpu_cases.fused,
    "scipy": gpu_cases.scipy,
}
LIMITS = {
    "device": 20, "check": 70, "check-public": 35, "definition": 25, "forward": 60, "lecture": 25, "tensor": 55,
    "gradients": 45, "winograd": 35, "narrow": 15, "fused": 20, "scipy": 20, "memcheck": 22, "racecheck": 22,
}  # fmt: skip
"""Seconds for each section, in the order in which they run; 469 in all. A few sections alone get more each."""

ALL = 470
"""Seconds for all sections together: a machine may be lent for ten minutes a command."""

BROKEN = 75
"""Exit status of a process whose GPU answers nothing any more, so that a new one has to go on."""

KEPT = 8000
"""Characters of what a process said that are kept."""

GOALS = {
    ("forward", "depthwise"): (2.0, 3.0),
    ("forward", "3x3 stride 1"): (0.8, 1.0),
    ("forward", "other"): (0.8, 1.0),
    ("winograd", None): (1.0, 1.3),
    ("narrow", None): (1.2, 1.5),
    ("tensor", "tf32"): (0.55, 0.85),
    ("tensor", "3xtf32"): (1.1, 1.5),
    ("tensor", "float16"): (0.55, 0.85),
    ("tensor", "bfloat16"): (0.55, 0.85),
    ("fused", None): (1.0, 1.5),
    ("gradients", None): (0.6, 1.0),
    ("scipy", None): (10.0, 10.0),
}
"""Peer's time over ours, at least and aimed at, by section and kind of layer or dtype."""

OURS, PEERS = ("npconv", "npconv channels-last"), (*PYTORCH, "cupyx ndimage", "cupyx signal")


@dataclass
class Section:
    """What one section found."""

    name: str
    state: str = "not run"
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    output: str = ""


def command(name: str, rows: Path, first: int = 0, limit: float = 600.0) -> list[str] | None:
    """The process of a section, which measures or tests; None where it needs a program that is missing."""
    if name in MEASURED:
        how = ("--rows", str(rows), "--first", str(first), "--limit", str(limit))
        return [sys.executable, "-m", "benchmarks.gpu", "--section", name, *how]
    rooms = ("backend",) if name == "check-public" else ("kernels", "winograd")
    tests = [sys.executable, *TESTS, *(str(ROOT / "tests" / f"test_cuda_{room}.py") for room in rooms)]
    if name.startswith("check"):
        return [*tests, "-n", str(CREW)] if importlib.util.find_spec("xdist") else tests
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        return None
    return [sanitizer, "--tool", name, "--error-exitcode", "9", "--target-processes", "all", *tests, "-k", SMALL]


def run(name: str, limit: float, rows: Path) -> Section:
    """A section in its process, or in several where a case ends one; what they have written to `rows` is kept."""
    section, start, first = Section(name), time.perf_counter(), 0
    while True:
        left = limit - (time.perf_counter() - start)
        process = command(name, rows, first, left)
        if process is None:
            section.state = "not run: compute-sanitizer was not found"
            return section
        code, output = finished(process, left)
        section.output = (section.output + output)[-KEPT:]
        section.rows, begun = written(name, rows)
        section.seconds = time.perf_counter() - start
        if code is None:
            section.state = f"stopped after its {limit:.0f} s: {last_line(output)}"[:400]
            return section
        if section.state == "not run" or code:
            section.state = outcome(name, code, output)
        # A process that got no further than the one before will not get further next time either.
        if not code or name not in MEASURED or begun < first or limit - section.seconds < 5:
            return section
        first = begun + 1


def written(name: str, rows: Path) -> tuple[list[Row], int]:
    """The rows of a section, and the number of the last case that was begun; -1 where none was."""
    found: list[Row] = []
    begun = -1
    for line in rows.read_text(encoding="utf-8").splitlines() if rows.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            # The last line of a process that was stopped may be half a line.
            continue
        if row.get("section") == name:
            begun = max(begun, row["number"])
            if "begun" not in row:
                found.append(row)
    return found, begun


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


def measure(name: str, path: Path, first: int = 0, limit: float = 600.0) -> None:
    """Add a section's rows from case number `first` on to a file, a line each; what was begun is a line, too."""
    # Where it was when its time was up: a kernel that does not end would tell nothing else.
    faulthandler.dump_traceback_later(max(limit - 2, 1))
    with path.open("a", encoding="utf-8") as file:

        def write(**row: object) -> None:
            # A line before it may be half a line.
            file.write("\n" + json.dumps({"section": name, **row}, default=str) + "\n")
            file.flush()

        for number, case in enumerate(MEASURED[name]()):
            if number < first:
                continue
            write(number=number, begun=True)
            try:
                row = case()
            except Exception as error:  # whatever it is, it is this case's answer
                row = {"case": f"case {number}", "errors": {"npconv": f"{type(error).__name__}: {error}"[:300]}}
                row["tracebacks"] = {"npconv": traceback.format_exc()[-3000:]}
            write(number=number, **row)
            if is_broken(row):
                print(f"case {number} of {name} broke the GPU's context: {row['errors']}")
                sys.exit(BROKEN)
    faulthandler.cancel_dump_traceback_later()


def is_broken(row: Row) -> bool:
    """Whether an error of a case is one after which a process's GPU answers nothing any more."""
    signs = (
        "illegal|misaligned|launch failure|launch failed|launch timed|unspecified|device-side|cudaErrorLaunch|hardware"
    )
    return any(re.search(signs, error, re.IGNORECASE) for error in row.get("errors", {}).values())


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
    page.with_suffix(".json").write_text(json.dumps(everything, indent=1, default=str) + "\n", encoding="utf-8")
    try:
        text = "\n\n".join(filter(None, parts(sections, facts, today)))
    except Exception:  # a page that cannot be laid out must not cost what was measured
        text = f"The page could not be written; the numbers are in the file beside it.\n\n{traceback.format_exc()}"
    page.write_text(text + "\n", encoding="utf-8")
    return page


def facts_of(sections: Sequence[Section]) -> Row:
    """What the first row of the section "device" says, and the bandwidth of a copy."""
    rows = [row for section in sections if section.name == "device" for row in section.rows]
    names = ("section", "number", "case", "errors", "tracebacks", "seconds", "how", "differs")
    return {name: value for row in rows for name, value in row.items() if name not in names}


def parts(sections: Sequence[Section], facts: Row, today: str) -> Iterator[str]:
    yield f"# npconv on {facts.get('device', 'an unknown GPU')}"
    yield f"`python -m benchmarks.gpu`, {today}; " + ", ".join(f"{name} {value}" for name, value in facts.items())
    yield (
        "Times of one call in milliseconds with a cold L2 cache; float32 without TF32 on both sides, unless a row says "
        "tf32; 3xtf32 against float32 without TF32. A ratio is the time of the fastest peer / the time of npconv: "
        "above 1 npconv is the faster one."
    )
    states = [[s.name, f"{s.seconds:.0f}", str(len(s.rows)), s.state] for s in sections]
    yield grid(["section", "s", "rows", "state"], states)
    yield grid(["ratio", "kind", "cases", "mean", "at least", "aim"], summary(sections))
    for section in sections:
        if not section.rows and "FAILED" not in section.state:
            continue
        yield f"## {section.name}"
        rows = [row for row in section.rows if row.get("seconds")]
        if rows:
            yield table(rows, facts.get("bandwidth"))
        yield "\n".join(remarks(section.rows))
        if "FAILED" in section.state:
            yield f"```text\n{section.output[-3000:]}\n```"


def summary(sections: Sequence[Section]) -> Iterator[list[str]]:
    """A line a goal: the geometric mean of what was measured."""
    for (name, kind), (least, aim) in GOALS.items():
        rows = [row for s in sections if s.name == name for row in s.rows]
        rows = [row for row in rows if kind in (None, row.get("kind"), row.get("dtype"))]
        ratios = [value for value in map(ratio, rows) if value]
        mean = f"{statistics.geometric_mean(ratios):.2f}" if ratios else "unmeasured"
        yield [name, kind or "all", str(len(ratios)), mean, f"{least:g}", f"{aim:g}"]


def ratio(row: Row) -> float | None:
    """The time of the fastest peer over that of npconv's channels-first call, unless a result is wrong."""
    times = row.get("seconds", {})
    peers = [times[name] for name in PEERS if name in times]
    return min(peers) / times["npconv"] if peers and "npconv" in times and not row.get("differs") else None


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
        if not row.get("right", True):
            yield f"- {row['case']}: WRONG"
        for name, error in row.get("errors", {}).items():
            # A module that is missing is said once, above.
            if "No module named" not in error:
                yield f"- {row['case']}, {name}: {error}"
        for name, distance in row.get("differs", {}).items():
            yield f"- {row['case']}, {name} DIFFERS by {distance:.1e} of the largest element"
    ways = sorted({f"{name}: {how}" for row in rows for name, how in row.get("how", {}).items() if "captured" in how})
    yield from (f"- {way}, in some cases" for way in ways)
    for row in rows:
        for name, minutes in row.get("minutes", {}).items():
            job = "ten layers on a million samples; the lecture says 14.22"
            yield f"- {name}, {row['dtype']}: {minutes:.2f} minutes for {job}"


def failed(section: Section) -> bool:
    wrong = any(
        row.get("differs") or not row.get("right", True) or any(name in row.get("errors", {}) for name in OURS)
        for row in section.rows
    )
    return "FAILED" in section.state or wrong


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="SECTION", help=", ".join(LIMITS)
    )
    parser.add_argument("--section", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=600.0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.section:
        measure(options.section, options.rows, options.first, options.limit)
        return 0
    start = time.perf_counter()
    from npconv.arrays import require

    try:
        require("cupy")
    except Exception as error:  # an installation that is broken in any way
        print(f"no GPU can be used here: {error}", file=sys.stderr)
        return 2
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "gpu-rows.jsonl"
    rows.unlink(missing_ok=True)
    sections: list[Section] = []
    chosen = list(dict.fromkeys(["device", *options.only]))
    scale = ALL / sum(LIMITS[name] for name in chosen)
    for name in chosen:
        left = ALL - (time.perf_counter() - start)
        limit = min(scale * LIMITS[name], left)
        section = run(name, limit, rows) if left > 5 else Section(name, "not run: the time was up")
        sections.append(section)
        page = write(sections, folder)
        print(f"{name}: {section.state}, {len(section.rows)} rows, {section.seconds:.0f} s", flush=True)
    print(f"written: {page} and .json")
    return int(any(map(failed, sections)))


if __name__ == "__main__":
    sys.exit(main())
