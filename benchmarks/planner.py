"""How well the planner predicts, and how well it chooses: ``python -m benchmarks.planner``.

Every algorithm that may run a layer is measured, as a call and with packed weights, on one core. The times go to
``benchmarks/results/planner.json``, where vectors have another number of lanes than AVX2's into a file that says so;
the table and the picture are made of them and of what the planner says today, so that ``--report`` shows what a change
of its figures does without measuring again. How fast the core was, as its register tile tells it in the same rounds,
scales the predictions: it differs by a quarter from minute to minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layers import LAYERS, Layer, select
from benchmarks.tables import by_width, grid, machine, milliseconds
from benchmarks.workers import ROOT, pin
from npconv.algorithms.rates import rates_of
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.kernels.cpu.burst import burst
from npconv.planning.planner import candidates, plan_for
from npconv.planning.tuning import job, operands

FORMS = ("call", "packed")
HOPELESS = 8
"""Algorithms predicted to take this many times as long as the fastest are not measured."""
NEAR, CLOSE = 0.25, 0.05
"""How far a prediction may be off, and how much longer than the fastest the choice may take, to count as right."""
RESULTS = ROOT / "benchmarks" / "results"

Times = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One layer in one form: what was measured, and what the planner says."""

    layer: Layer
    form: str
    measured: Times
    predicted: Times

    @property
    def chosen(self) -> str:
        return min(self.predicted, key=lambda name: self.predicted[name])

    @property
    def fastest(self) -> str:
        return min(self.measured, key=lambda name: self.measured[name])

    @property
    def off(self) -> float:
        """Predicted over measured time of the choice, less one."""
        return self.predicted[self.chosen] / self.measured[self.chosen] - 1

    @property
    def lost(self) -> float:
        """How much longer the choice takes than the fastest; names of one and the same loop count as one."""
        same = [name for name in self.measured if self.predicted[name] == self.predicted[self.chosen]]
        return min(self.measured[name] for name in same) / self.measured[self.fastest] - 1


def spec_of(layer: Layer) -> ConvSpec:
    return ConvSpec.of(layer.x_shape, layer.w_shape, **layer.options)


def predict(layer: Layer, form: str) -> Times:
    """Predicted times of the algorithms that may run, on one thread of the machine that the figures were fitted on."""
    found, _ = candidates(
        spec_of(layer), "forward", require("numba"), np.dtype("float32"), 2**30, False, form == "packed"
    )
    return {name: candidate.seconds for name, candidate in found.items()}


def measure(layer: Layer, seconds: float) -> dict[str, Any]:
    """Medians over interleaved runs, by form and algorithm, and the FLOP/s that the core reached in the same rounds."""
    spec, backend, dtype = spec_of(layer), require("numba"), np.dtype("float32")
    a, b = operands(spec, "forward", backend, dtype)
    jobs: dict[tuple[str, str], Callable[[], Any]] = {}
    for form in FORMS:
        predicted = predict(layer, form)
        for name, value in predicted.items():
            if value <= HOPELESS * min(predicted.values()):
                plan = plan_for(spec, "forward", backend, dtype, name, threads=1, reused=form == "packed")
                jobs[form, name] = job(plan, a, b)
    jobs["peak", ""], macs = burst(dtype, 1)
    samples: dict[tuple[str, str], list[float]] = {label: [] for label in jobs}
    for run in jobs.values():
        run()
    for _ in range(5):
        for label, run in jobs.items():
            samples[label].append(_seconds(run, seconds / 5))
    found: dict[str, Any] = {form: {} for form in FORMS}
    found["peak"] = float(f"{2 * macs / statistics.median(samples.pop(('peak', ''))):.4g}")
    for (form, name), times in samples.items():
        found[form][name] = float(f"{statistics.median(times):.4g}")
    return found


def _seconds(run: Callable[[], Any], budget: float) -> float:
    """The median of the runs that fit the budget, one at least."""
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cases(found: dict[str, dict[str, Times]]) -> list[Case]:
    """What was measured beside what the planner says today, where it was measured."""
    both = []
    for layer in LAYERS:
        for form in FORMS if layer.name in found else ():
            times = found[layer.name][form]
            predicted = predict(layer, form)
            pace = rates_of(require("numba")).peak / found[layer.name]["peak"]
            case = Case(layer, form, times, {name: pace * seconds for name, seconds in predicted.items()})
            if case.chosen in times:
                both.append(case)
    return both


def summary(found: Sequence[Case]) -> str:
    """A row a form: how many predictions and choices are right."""
    head = ["form", "layers", "predicted within 25 %", "choice within 5 % of the fastest", "mean loss", "largest loss"]
    rows = []
    for form in FORMS:
        inside = [case for case in found if case.form == form]
        if not inside:
            continue
        near = sum(abs(case.off) <= NEAR for case in inside) / len(inside)
        close = sum(case.lost <= CLOSE for case in inside) / len(inside)
        worst = max(inside, key=lambda case: case.lost)
        mean = statistics.fmean(case.lost for case in inside)
        rows.append(
            [
                form,
                str(len(inside)),
                f"{near:.0%}",
                f"{close:.0%}",
                f"{mean:.1%}",
                f"{worst.lost:.0%} ({worst.layer.name})",
            ]
        )
    return grid(head, rows)


def table(found: Sequence[Case]) -> str:
    """A row a layer and form."""
    head = ["layer", "form", "choice", "predicted ms", "measured ms", "off", "fastest", "ms", "lost"]
    return grid(
        head,
        (
            [
                case.layer.name, case.form, case.chosen, milliseconds(case.predicted[case.chosen]),
                milliseconds(case.measured[case.chosen]), f"{case.off:+.0%}", case.fastest,
                milliseconds(case.measured[case.fastest]), f"{case.lost:.0%}",
            ]
            for case in found
        ),
    )  # fmt: skip


def draw(found: Sequence[Case], title: str, path: Path) -> None:
    """Write the picture: predicted over measured time, and how much the choice loses."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    names = list(dict.fromkeys(case.chosen for case in found))
    for color, name in zip(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), names, strict=False):
        inside = [case for case in found if case.chosen == name]
        measured = [1e3 * case.measured[name] for case in inside]
        left.scatter(measured, [1e3 * case.predicted[name] for case in inside], s=14, color=color, label=name)
        ordered = sorted(range(len(found)), key=lambda i: found[i].lost)
        places = [place for place, i in enumerate(ordered) if found[i].chosen == name]
        right.scatter(places, [100 * found[ordered[place]].lost for place in places], s=14, color=color)
    ends = np.array([min(left.get_xlim()[0], 0.03), max(case.measured[case.chosen] for case in found) * 2e3])
    ends[0] = min(case.measured[case.chosen] for case in found) * 5e2
    left.plot(ends, ends, color="black", linewidth=0.8)
    left.fill_between(ends, ends * (1 - NEAR), ends * (1 + NEAR), color="0.5", alpha=0.2, linewidth=0, label="±25 %")
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured (ms)", ylabel="predicted (ms)")
    left.set_title("Prediction for the algorithm that was chosen", fontsize=9)
    left.legend(fontsize=8)
    right.axhline(100 * CLOSE, color="0.5", linewidth=0.8)
    right.set(xlabel="layers, in the order of the loss", ylabel="time beyond the fastest algorithm's (%)")
    right.set_title("Choice against the fastest that was measured; the line is 5 %", fontsize=9)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def kept() -> Path:
    """Where the times of processors whose vectors are as wide as this one's are kept: others have other rates."""
    return RESULTS / f"{by_width('planner')}.json"


def load(path: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"machine": machine(), "layers": {}}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", metavar="PATTERN", help="networks or parts of names, all by default")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each algorithm and form")
    parser.add_argument("--missing", action="store_true", help="measure only what no result is there of")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        layers = select(options.layers) if options.layers else LAYERS
        pin(1)
    except ValueError as error:
        sys.exit(str(error))
    path = kept()
    stored = load(path)
    if not options.report:
        if stored["machine"] != machine():
            stored = {"machine": machine(), "layers": {}}
        for layer in layers:
            if options.missing and layer.name in stored["layers"]:
                continue
            stored["layers"][layer.name] = measure(layer, options.seconds)
            print(layer.name, flush=True)
            path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    found = cases(stored["layers"])
    title = f"forward, float32, one core of an {stored['machine']}; {len(found)} cases of python -m benchmarks.planner"
    print(summary(found))
    picture = path.with_suffix(".png")
    parts = ["# The planner against the clock", f"{title}.", summary(found), f"![]({picture.name})", table(found)]
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw(found, title, picture)


if __name__ == "__main__":
    main()
