"""What a comparison found: a row a layer, means over groups of layers, and both as text and as Markdown."""

from __future__ import annotations

import platform
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import npconv
from benchmarks.layers import Layer
from npconv.algorithms.rates import AVX2, rates_of
from npconv.arrays import require

FUNCTIONAL, PACKED = "npconv", "npconv-packed"


def by_width(name: str) -> str:
    """The name of a file of results, which says how wide vectors were where that is not as usual, with AVX2."""
    lanes = rates_of(require("numba")).lanes
    return name if lanes == AVX2.lanes else f"{name}-{lanes}-lanes"


@dataclass
class Row:
    """Medians, in seconds, of all contestants on one layer."""

    layer: Layer
    threads: int = 1
    peak: float = float("nan")
    """FLOP/s that one core reached in the same rounds."""
    algorithm: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, float] = field(default_factory=dict)
    """Peers whose result differs, and by how much; they were not measured."""

    def rate(self, name: str) -> float:
        """FLOP/s as the direct method counts them, so that forms with fewer products may pass the peak."""
        return 2 * self.layer.macs / self.seconds[name]

    def share(self, name: str) -> float:
        """Of the peak of all cores in use."""
        return self.rate(name) / (self.peak * self.threads)

    @property
    def fastest(self) -> str | None:
        peers = [name for name in self.seconds if name not in (FUNCTIONAL, PACKED)]
        return min(peers, key=self.seconds.__getitem__, default=None)

    def ratio(self, ours: str, peer: str | None = None) -> float | None:
        """Time of a peer, or of the fastest, over ours."""
        peer = peer or self.fastest
        return self.seconds[peer] / self.seconds[ours] if peer in self.seconds and ours in self.seconds else None


@dataclass(frozen=True)
class Group:
    """Layers whose ratios have a mean of their own."""

    name: str
    holds: Callable[[Layer], bool]
    peer: str | None = None


GROUPS = (
    Group("all", lambda _: True),
    Group("3x3 at stride 1, against ncnn", lambda a: _plain(a) and a.kernel == (3, 3) and a.stride == 1, "ncnn"),
    Group("dense, larger than 1x1", lambda a: _plain(a) and max(a.kernel) > 1 and a.in_channels > 3),
    Group("1x1", lambda a: max(a.kernel) == 1),
    Group("depthwise", lambda a: a.depthwise),
    Group("grouped", lambda a: 1 < a.groups < a.in_channels),
    Group("from 1 to 3 channels", lambda a: a.in_channels <= 3),
    Group("from one channel", lambda a: a.in_channels == 1),
    Group("dilated", lambda a: a.dilation > 1),
    Group("signals", lambda a: len(a.size) == 1),
    Group("volumes", lambda a: len(a.size) == 3),
)


def _plain(layer: Layer) -> bool:
    return layer.groups == layer.dilation == 1 and len(layer.size) == 2


def ratios(rows: Iterable[Row], ours: str, peer: str | None = None) -> dict[str, float]:
    """By layer, where both were measured."""
    found = ((row.layer.name, row.ratio(ours, peer)) for row in rows)
    return {name: ratio for name, ratio in found if ratio is not None}


def grid(head: list[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def milliseconds(seconds: float | None) -> str:
    """Three digits that count."""
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.{max(0, min(4, 2 - _exponent(1e3 * seconds)))}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


HEAD = f"{'':<36}{'npconv ms':>11}{'GFLOP/s':>9}{'peak':>7}{'packed ms':>11}{'GFLOP/s':>9}{'peak':>7}"
HEAD += f"  {'algorithm':<11}{'fastest peer':<23}{'ms':>9}{'/ npconv':>10}{'/ packed':>10}"


def line(row: Row) -> str:
    """A row under `HEAD`."""
    text = f"{row.layer.name:<36}"
    for ours in (FUNCTIONAL, PACKED):
        if ours in row.seconds:
            text += f"{milliseconds(row.seconds[ours]):>11}{row.rate(ours) / 1e9:>9.1f}{row.share(ours):>7.0%}"
        else:
            text += f"{'-':>11}{'-':>9}{'-':>7}"
    fastest = row.fastest
    text += f"  {row.algorithm:<11}{fastest or '-':<23}{milliseconds(row.seconds.get(fastest or '')):>9}"
    return text + "".join(f"{two(row.ratio(ours)):>10}" for ours in (FUNCTIONAL, PACKED))


def forms(rows: Sequence[Row]) -> list[str]:
    """The forms of npconv that were measured; gradients have no packed weights."""
    return [ours for ours in (FUNCTIONAL, PACKED) if any(ours in row.seconds for row in rows)]


def _over(ours: str) -> str:
    return "/ " + ours.removeprefix("npconv-")


def table(rows: Sequence[Row]) -> str:
    """All layers, with the time of every peer; the fastest one's is bold."""
    peers = list(
        dict.fromkeys(name for row in rows for name in (*row.seconds, *row.wrong) if name not in (FUNCTIONAL, PACKED))
    )
    head = ["layer", "algorithm"]
    measured = forms(rows)
    for ours in measured:
        head += [f"{ours} ms", "GFLOP/s", "of peak"]
    head += [f"{peer} ms" for peer in peers] + [f"fastest {_over(ours)}" for ours in measured]
    return grid(head, (_cells(row, peers, measured) for row in rows))


def _cells(row: Row, peers: Sequence[str], measured: Sequence[str]) -> list[str]:
    cells = [row.layer.name, row.algorithm or "-"]
    for ours in measured:
        known = ours in row.seconds
        cells += [milliseconds(row.seconds.get(ours))]
        cells += [f"{row.rate(ours) / 1e9:.1f}", f"{row.share(ours):.0%}"] if known else ["-", "-"]
    for peer in peers:
        text = "differs" if peer in row.wrong else milliseconds(row.seconds.get(peer))
        cells.append(f"**{text}**" if peer == row.fastest else text)
    return cells + [two(row.ratio(ours)) for ours in measured]


def _mean_cells(rows: Iterable[Row], ours: str, peer: str | None = None) -> list[str]:
    """Geometric mean, and the lowest with its layer."""
    found = ratios(rows, ours, peer)
    if not found:
        return ["-", "-"]
    lowest = min(found, key=found.__getitem__)
    return [f"{statistics.geometric_mean(found.values()):.2f}", f"{found[lowest]:.2f} ({lowest})"]


def means(rows: Sequence[Row]) -> str:
    """Geometric means of *time of the fastest peer / ours*, over all layers and a group at a time."""
    measured, lines = forms(rows), []
    head = ["layers", "count", *(cell for ours in measured for cell in (_over(ours), "lowest"))]
    for group in GROUPS:
        inside = [row for row in rows if group.holds(row.layer)]
        count = len(ratios(inside, FUNCTIONAL, group.peer))
        if count:
            cells = (_mean_cells(inside, ours, group.peer) for ours in measured)
            lines.append([group.name, str(count), *(cell for pair in cells for cell in pair)])
    return grid(head, lines)


def shares(rows: Sequence[Row]) -> str:
    """How near the peak those forms come that save no products, where there is enough to do; empty without any."""
    enough = [row for row in rows if row.layer.products >= 256 and row.layer.pixels >= 196]
    enough = [row for row in enough if row.algorithm not in ("", "winograd", "fft")]
    sentences = []
    for ours in (FUNCTIONAL, PACKED):
        found = {row.layer.name: row.share(ours) for row in enough if ours in row.seconds}
        if found:
            lowest = min(found, key=found.__getitem__)
            mean = statistics.geometric_mean(found.values())
            sentences.append(f"{ours} {mean:.0%} in the mean, {found[lowest]:.0%} at least ({lowest})")
    where = "Share of the peak in direct and 1x1 layers with at least 256 products an output and 196 pixels"
    return f"{where}: {'; '.join(sentences)}." if sentences else ""


def networks(rows: Sequence[Row]) -> str:
    """A row a network: what a reader of the README wants to know."""
    measured, lines = forms(rows), []
    head = ["network", "layers", *(cell for ours in measured for cell in (_over(ours), "lowest"))]
    for name in (*dict.fromkeys(row.layer.network for row in rows), "all"):
        inside = [row for row in rows if name in (row.layer.network, "all")]
        cells = []
        for ours in measured:
            mean, lowest = _mean_cells(inside, ours)
            cells += [mean, lowest.partition(" ")[0]]
        lines.append([name, str(len(inside)), *cells])
    return grid(head, lines)


def machine() -> str:
    """The processor's name, where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(modules: Iterable[str]) -> str:
    """The versions that run; of npconv's own there may be no other record than the checkout."""
    found = dict.fromkeys(modules, "")
    return ", ".join(
        f"{module} {npconv.__version__ if module == 'npconv' else metadata.version(module)}" for module in found
    )


def stem(name: str, chosen: Iterable[str] | None = None) -> str:
    """Name of a result's files; what only some of its rows were `chosen` for never takes the place of the whole."""
    return "-".join([name, *(re.sub(r"\W+", "-", pattern).strip("-") for pattern in chosen or ())])


def insert(text: str, mark: str, content: str) -> str:
    """The text with what stands between two markers replaced.

    Raises
    ------
    ValueError
        If the markers are not there.
    """
    opening, closing = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not (found and closed):
        raise ValueError(f"the text has no place for {mark}: {opening} ... {closing}")
    return f"{before}{opening}\n\n{content}\n\n{closing}{after}"
