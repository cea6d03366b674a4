"""Filters of one channel against everybody else's: ``python -m benchmarks.filters --help``.

All contestants share a process, its cores and its arrays, and take turns round after round; a figure is the median over
all rounds. Boundaries reflect where the contestant can do that, else they are zero; each result is first compared with
npconv's with the same boundary. Where a contestant would take too long, it filters a corner of the array, and its time
is scaled by the number of results: such a figure is marked with a tilde.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tables import grid, machine, milliseconds, stem, two, versions
from benchmarks.workers import ROOT, pin

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS, BUDGET = 5, 0.01
TOLERANCE = 2e-5  # of the largest value, in float32
OURS = "npconv"
PACKAGES = {
    "npconv": "npconv",
    "scipy": "scipy",
    "astropy": "astropy",
    "skimage": "scikit-image",
    "cv2": "opencv-python-headless",
}


@dataclass(frozen=True)
class Case:
    """An array and a kernel; `sigma` makes it a Gaussian, `lines` an outer product of others, None a dense one."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    sigma: float | None = None

    @property
    def name(self) -> str:
        shape, kernel = ("x".join(map(str, part)) for part in (self.size, self.kernel))
        return f"{shape} {f'Gaussian {self.sigma:g} ({kernel})' if self.sigma else f'dense {kernel}'}"

    @property
    def group(self) -> str:
        return f"{len(self.size)}-D {'Gaussian' if self.sigma else 'dense'}"

    def arrays(self) -> tuple[Any, Any]:
        """The image and the kernel."""
        from npconv import filters

        rng = np.random.default_rng(0)
        x = rng.standard_normal(self.size, np.float32)
        if self.sigma:
            return x, filters.gaussian(self.sigma, ndim=len(self.size)).astype(np.float32)
        return x, rng.standard_normal(self.kernel, np.float32)


def _gaussian(ndim: int, n: int, sigma: float) -> Case:
    return Case((n,) * ndim, (2 * int(4 * sigma + 0.5) + 1,) * ndim, sigma)


CASES = [
    *(Case((n, n), (k, k)) for n in (512, 2048) for k in (3, 5, 7, 11, 15, 21, 31, 63, 127)),
    *(Case((4096, 4096), (k, k)) for k in (3, 7, 31)),
    *(_gaussian(2, n, sigma) for n in (512, 2048, 4096) for sigma in (1, 2, 5)),
    *(Case((n,) * 3, (k,) * 3) for n in (64, 128) for k in (3, 5, 7, 15, 31)),
    *(_gaussian(3, n, sigma) for n in (64, 128) for sigma in (1, 2)),
    *(Case((n,), (k,)) for n in (2**12, 2**17, 2**22) for k in (15, 127, 1023, 16383) if k < n),
]


@dataclass
class Row:
    """Medians, in seconds, of all contestants on one case."""

    case: Case
    seconds: dict[str, float] = field(default_factory=dict)
    scaled: set[str] = field(default_factory=set)
    wrong: dict[str, float] = field(default_factory=dict)

    @property
    def fastest(self) -> str:
        return min((name for name in self.seconds if name != OURS), key=self.seconds.__getitem__)

    def ratio(self, peer: str | None = None) -> float:
        """Time of a peer, or of the fastest, over ours."""
        return self.seconds[peer or self.fastest] / self.seconds[OURS]


# --------------------------------------------------------------------------------------------------------------------
# Contestants: correlate an image with a kernel, all with the kernel's centre at k // 2
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """How a library is called.

    `run(case, x, w)` makes the call, or None where there is none. `product` is about what a product takes, where sums
    are direct; `most` are the elements of the largest array that is worth waiting for.
    """

    run: Callable[[Case, Any, Any], Callable[[], Any] | None]
    module: str = "scipy"
    boundary: str = "reflect"
    product: float = 0.0
    most: float = math.inf


def _ours(_: Case, x: Any, w: Any) -> Callable[[], Any]:
    import npconv as nc

    return lambda: nc.correlate(x, w)


def _ndimage(case: Case, x: Any, w: Any) -> Callable[[], Any]:
    from scipy import ndimage

    if case.sigma:
        return lambda: ndimage.gaussian_filter(x, case.sigma)
    return lambda: ndimage.correlate(x, w)


def _signal(method: str) -> Callable[[Case, Any, Any], Callable[[], Any]]:
    def make(_: Case, x: Any, w: Any) -> Callable[[], Any]:
        from scipy import signal

        turned = np.ascontiguousarray(np.flip(w))
        if method == "direct":
            return lambda: signal.convolve(x, turned, mode="same", method="direct")
        function = signal.fftconvolve if method == "fft" else signal.oaconvolve
        return lambda: function(x, turned, mode="same")

    return make


def _astropy(function: str) -> Callable[[Case, Any, Any], Callable[[], Any]]:
    def make(_: Case, x: Any, w: Any) -> Callable[[], Any]:
        from astropy import convolution

        turned, call = np.ascontiguousarray(np.flip(w)), getattr(convolution, function)
        how = {"boundary": "fill", "fill_value": 0.0, "normalize_kernel": False, "nan_treatment": "fill"}
        if function == "convolve_fft":
            how["allow_huge"] = True
        return lambda: call(x, turned, **how)

    return make


def _skimage(case: Case, x: Any, w: Any) -> Callable[[], Any] | None:
    from skimage import filters

    if case.sigma:
        return lambda: filters.gaussian(x, case.sigma, mode="reflect", preserve_range=True)
    return lambda: filters.correlate_sparse(x, w, mode="reflect")


def _opencv(case: Case, x: Any, w: Any) -> Callable[[], Any] | None:
    import cv2

    if len(case.size) == 3:
        return None
    if len(case.size) == 1:
        return lambda: cv2.filter2D(x[None], -1, w[None], borderType=cv2.BORDER_REFLECT)[0]
    if case.sigma:
        line = cv2.getGaussianKernel(case.kernel[0], case.sigma, cv2.CV_32F)
        return lambda: cv2.sepFilter2D(x, -1, line, line, borderType=cv2.BORDER_REFLECT)
    return lambda: cv2.filter2D(x, -1, w, borderType=cv2.BORDER_REFLECT)


CONTESTANTS = {
    OURS: Contestant(_ours, "npconv"),
    "ndimage": Contestant(_ndimage, product=2e-9),
    "signal direct": Contestant(_signal("direct"), boundary="constant", product=2e-9),
    "signal fft": Contestant(_signal("fft"), boundary="constant"),
    "oaconvolve": Contestant(_signal("oaconvolve"), boundary="constant"),
    "astropy": Contestant(_astropy("convolve"), "astropy", "constant", 2e-9),
    "astropy fft": Contestant(_astropy("convolve_fft"), "astropy", "constant", most=2**18),
    "skimage": Contestant(_skimage, "skimage", product=2e-9),
    "opencv": Contestant(_opencv, "cv2"),
}


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------


def distance(y: Any, expected: Any) -> float:
    """Largest difference, relative to the largest value."""
    if y.shape != expected.shape:
        return math.inf
    error = float(np.abs(y - expected).max() / np.abs(expected).max())
    return error if error == error else math.inf


def prepare(case: Case, names: Sequence[str], row: Row) -> dict[str, tuple[Callable[[], Any], float]]:
    """The calls of those that can do it, and do it right, and by how much their times are to be scaled."""
    import npconv as nc

    x, w = case.arrays()
    found: dict[str, tuple[Callable[[], Any], float]] = {}
    for name in (OURS, *names):
        contestant = CONTESTANTS[name]
        if x.size > contestant.most:
            continue
        corner, products = x, math.prod(case.size) * math.prod(case.kernel)
        if case.sigma and name in ("ndimage", "skimage"):
            products = math.prod(case.size) * sum(case.kernel)
        if contestant.product * products > BUDGET:
            side = (BUDGET / contestant.product / (products / x.size)) ** (1 / x.ndim)
            corner = np.ascontiguousarray(x[(slice(0, max(8, int(side))),) * x.ndim])
        call = contestant.run(case, corner, w)
        if call is None:
            continue
        error = distance(call(), nc.correlate(corner, w, boundary=contestant.boundary))
        if error > TOLERANCE:
            row.wrong[name] = error
            print(f"note: {name} differs from npconv by {error:.1e} of the largest value: {case.name}", file=sys.stderr)
        else:
            found[name] = call, x.size / corner.size
    row.scaled = {name for name, (_, factor) in found.items() if factor > 1}
    return found


def measure(case: Case, names: Sequence[str], seconds: float) -> Row:
    """One case, all contestants in turn."""
    row = Row(case)
    calls = prepare(case, names, row)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, (call, factor) in calls.items():
            if sum(samples[name]) > 4 * seconds * factor:
                continue
            end = time.perf_counter() + seconds / ROUNDS
            while True:
                begin = time.perf_counter()
                call()
                now = time.perf_counter()
                samples[name].append((now - begin) * factor)
                if now > end:
                    break
    row.seconds = {name: statistics.median(times) for name, times in samples.items()}
    return row


# --------------------------------------------------------------------------------------------------------------------
# What was found
# --------------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """All cases, with the time of every contestant in milliseconds; the fastest peer's is bold."""
    names = [name for name in CONTESTANTS if any(name in row.seconds or name in row.wrong for row in rows)]
    lines = []
    for row in rows:
        cells = []
        for name in names:
            text = "differs" if name in row.wrong else milliseconds(row.seconds.get(name))
            text = f"~{text}" if name in row.scaled else text
            cells.append(f"**{text}**" if name == row.fastest else text)
        lines.append([row.case.name, *cells, two(row.ratio()), two(_against_ndimage(row))])
    return grid(["case", *(f"{name} ms" for name in names), "fastest / npconv", "ndimage / npconv"], lines)


def means(rows: Sequence[Row]) -> str:
    """Geometric means and the lowest of a group at a time."""
    lines = []
    for group in (*dict.fromkeys(row.case.group for row in rows), "all"):
        inside = [row for row in rows if group in (row.case.group, "all")]
        lowest = min(inside, key=Row.ratio)
        mean = statistics.geometric_mean(row.ratio() for row in inside)
        others = [value for row in inside if (value := _against_ndimage(row)) is not None]
        least = f"{statistics.geometric_mean(others):.1f}, {min(others):.1f}" if others else "-"
        lines.append([group, str(len(inside)), f"{mean:.2f}", f"{lowest.ratio():.2f} ({lowest.case.name})", least])
    return grid(["cases", "count", "fastest / npconv", "lowest", "ndimage / npconv, lowest"], lines)


def _against_ndimage(row: Row) -> float | None:
    return row.ratio("ndimage") if "ndimage" in row.seconds else None


def draw(rows: Sequence[Row], title: str, path: Any) -> None:
    """Every peer's time over npconv's; to the right of the line, npconv is the faster one."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.16 * len(rows)), layout="constrained")
    places, most = range(len(rows)), 128.0
    for name, mark in zip((name for name in CONTESTANTS if name != OURS), "osD^vPX*", strict=True):
        values = np.minimum(most, [row.ratio(name) if name in row.seconds else np.nan for row in rows])
        axes.scatter(values, places, s=14, marker=mark, label=name, zorder=2, clip_on=False)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min([0.5, *(row.ratio() for row in rows)]) / 1.1, most)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(places, [row.case.name for row in rows], fontsize=6)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"time / time of npconv; {most:g} stands for more too")
    axes.set_title(textwrap.fill(title, 110, break_on_hyphens=False), fontsize=8)
    axes.grid(axis="x", color="0.9", zorder=0)
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def limit_threads(threads: int) -> None:
    """Every contestant that has a setting uses so many threads."""
    import npconv as nc

    nc.set_num_threads(threads)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(threads)
    if importlib.util.find_spec("scipy"):
        from scipy import fft

        fft.set_workers(threads).__enter__()


def present(names: Sequence[str]) -> list[str]:
    """The contestants that are installed; of the others it is said that they are not."""
    found = [name for name in names if importlib.util.find_spec(CONTESTANTS[name].module)]
    for name in sorted(set(names) - set(found)):
        print(f"note: {name} does not take part, {CONTESTANTS[name].module} is not installed", file=sys.stderr)
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.filters", description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="parts of names, all cases by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=list(CONTESTANTS)[1:], default=list(CONTESTANTS)[1:])
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each contestant and case")
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    options.chosen = [case for case in CASES if not options.cases or any(part in case.name for part in options.cases)]
    if not options.chosen:
        parser.error(f"no case has one of {options.cases} in its name")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    try:
        pin(options.threads)
    except ValueError as error:
        sys.exit(str(error))
    limit_threads(options.threads)
    names = present(options.peers)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in options.chosen:
            rows.append(measure(case, names, options.seconds))
            row = rows[-1]
            times = ", ".join(
                f"{name} {milliseconds(row.seconds[name])}" for name in sorted(row.seconds, key=row.seconds.get)
            )
            print(f"{case.name:<40}{row.ratio():>6.2f}  {times}", flush=True)
    cores = "one core" if options.threads == 1 else f"{options.threads} cores"
    packages = [PACKAGES[CONTESTANTS[name].module] for name in (OURS, *names)]
    about = f"float32, {cores} of an {machine()}; {versions([*packages, 'numpy'])}."
    print(f"\n{about}\n\n{means(rows)}")
    command = f"Medians of `python -m {' '.join(['benchmarks.filters', *options.arguments])}`."
    note = "A tilde marks the time of a corner of the array, scaled by the number of results."
    parts = ["# Filters: npconv and its peers", about, f"{command} {note}", means(rows), table(rows)]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stem(f'filters-{options.threads}t', options.cases)}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw(rows, about, path.with_suffix(".png"))
    print(f"\nwritten: {path.relative_to(ROOT)} and .png")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
