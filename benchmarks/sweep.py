"""Whether time grows as the work does, or jumps at sizes that fit a tile badly: ``python -m benchmarks.sweep``.

One size of a layer at a time goes through a range that holds odd numbers and primes too. A straight line, a cost of the
call and a cost of the work, is laid through the times; what counts is how far a point lies off it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.cases import Case
from benchmarks.layers import Layer, conv, depthwise
from benchmarks.tables import FUNCTIONAL, PACKED, grid, machine, milliseconds, stem
from benchmarks.workers import ROOT, Worker, pin

ROUNDS = 5
LAYERS = (
    conv("sweep", 64, 64, 56, 3),
    conv("sweep", 128, 128, 28, 1),
    conv("sweep", 48, 48, 32, 5),
    conv("sweep", 64, 64, 56, 3, stride=2),
    depthwise("sweep", 64, 56),
)
CHANNELS = (48, 53, 56, 61, 63, 64, 65, 72, 79, 80, 91, 96, 97, 112, 127, 128, 129)
STEPS: dict[str, Sequence[int]] = {
    "batch": (1, 2, 3, 4, 5, 6, 7, 8),
    "channels in": CHANNELS,
    "channels out": CHANNELS,
    "channels": CHANNELS,
    "side": (24, 25, 27, 28, 29, 31, 32, 33, 37, 41, 47, 48, 49, 55, 56, 57, 63, 64, 65),
}
GROW: dict[str, Callable[[Layer, int], Layer]] = {
    "batch": lambda layer, n: replace(layer, batch=n),
    "channels in": lambda layer, n: replace(layer, in_channels=n),
    "channels out": lambda layer, n: replace(layer, out_channels=n),
    "channels": lambda layer, n: replace(layer, in_channels=n, out_channels=n, groups=n),
    "side": lambda layer, n: replace(layer, size=(n,) * len(layer.size)),
}


@dataclass(frozen=True)
class Series:
    """Times of one layer while one of its sizes grows."""

    layer: Layer
    size: str
    values: Sequence[int]
    work: Sequence[int]
    seconds: Sequence[float]

    @property
    def line(self) -> np.ndarray:
        """The straight line in the work that Theil and Sen draw: cliffs, or a busy moment, do not pull it their way."""
        work, seconds = np.array(self.work, float), np.array(self.seconds)
        first, second = np.nonzero(np.less.outer(work, work))
        slope = np.median((seconds[second] - seconds[first]) / (work[second] - work[first]))
        return slope * work + np.median(seconds - slope * work)

    @property
    def off(self) -> np.ndarray:
        """How much longer than on the line each point takes, as a part of it."""
        return np.array(self.seconds) / self.line - 1


def sizes(layer: Layer) -> list[str]:
    """Those that may grow alone."""
    channels = ["channels"] if layer.depthwise else ["channels in", "channels out"]
    return ["batch", *channels, "side"]


def measure(worker: Worker, layer: Layer, size: str, seconds: float) -> Series:
    """One series; the points are measured in turn, several rounds, so that a busy moment does not hit one of them."""
    values = STEPS[size]
    layers = [GROW[size](layer, value) for value in values]
    samples: list[list[float]] = [[] for _ in layers]
    for _ in range(ROUNDS):
        for times, grown in zip(samples, layers, strict=True):
            worker.ask("prepare", Case(grown))
            times += worker.ask("measure", seconds / ROUNDS)
    return Series(layer, size, values, [grown.macs for grown in layers], [statistics.median(t) for t in samples])


def row(series: Series) -> list[str]:
    worst = int(np.abs(series.off).argmax())
    within = float(np.mean(np.abs(series.off) <= 0.1))
    span = f"{milliseconds(min(series.seconds))} to {milliseconds(max(series.seconds))}"
    steps = f"{series.values[0]} to {series.values[-1]}"
    name = series.layer.name.removeprefix("sweep ")
    return [name, series.size, steps, span, f"{within:.0%}", f"{series.off[worst]:+.0%} at {series.values[worst]}"]


def table(found: Sequence[Series]) -> str:
    head = ["layer", "grows", "from", "ms", "within 10 % of a line", "farthest off"]
    return grid(head, (row(series) for series in found))


def draw(found: Sequence[Series], title: str, path: Path) -> None:
    """A panel a series: time over work, and the line."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    columns = max(len(sizes(layer)) for layer in LAYERS)
    figure, panels = plt.subplots(
        len(LAYERS), columns, figsize=(3 * columns, 2.2 * len(LAYERS)), layout="constrained", squeeze=False
    )
    for panel in panels.flat:
        panel.axis("off")
    for series in found:
        panel = panels[LAYERS.index(series.layer), sizes(series.layer).index(series.size)]
        panel.axis("on")
        panel.plot(series.values, 1e3 * series.line, color="0.6", linewidth=1)
        panel.plot(series.values, 1e3 * np.array(series.seconds), ".", color="C0")
        panel.set_ylim(0)
        panel.tick_params(labelsize=7)
        panel.set_xlabel(series.size, fontsize=7)
        panel.set_ylabel("ms", fontsize=7)
        panel.set_title(series.layer.name.removeprefix("sweep "), fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", metavar="TEXT", help="parts of names, all by default")
    parser.add_argument("--form", choices=(FUNCTIONAL, PACKED), default=PACKED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each point")
    options = parser.parse_args(arguments)
    options.chosen = [
        layer for layer in LAYERS if not options.layers or any(part in layer.name for part in options.layers)
    ]
    if not options.chosen:
        parser.error(f"no layer has one of {options.layers} in its name")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        pin(options.threads)
    except ValueError as error:
        sys.exit(str(error))
    found = []
    with Worker(options.form, options.threads) as worker:
        for layer in options.chosen:
            for size in sizes(layer):
                found.append(measure(worker, layer, size, options.seconds))
                print("  ".join(row(found[-1])), flush=True)
    cores = "one core" if options.threads == 1 else f"{options.threads} cores"
    about = f"{options.form}, forward, float32, {cores} of an {machine()}"
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    lines = ["# Time as the work grows", f"{about}; medians of `python -m benchmarks.sweep`.", table(found)]
    path = folder / f"{stem('sweep', options.layers)}.md"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    draw(found, about, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
