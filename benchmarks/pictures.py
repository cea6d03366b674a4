"""A comparison as a picture: every peer's time over ours, a row a layer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.tables import FUNCTIONAL, PACKED, Row

MARKS = "osD^vPX*"
MOST = 32.0


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the picture; to the right of the line, npconv is the faster one."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    ours = PACKED if any(PACKED in row.seconds for row in rows) else FUNCTIONAL
    rows = [row for row in rows if ours in row.seconds]
    names = list(dict.fromkeys(name for row in rows for name in row.seconds if name not in (FUNCTIONAL, PACKED)))
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.17 * len(rows)), layout="constrained")
    places = range(len(rows))
    fastest = [min(MOST, row.ratio(ours) or 1.0) for row in rows]
    axes.hlines(places, 1, fastest, color="0.8", linewidth=4, zorder=1)
    for name, mark in zip(names, MARKS, strict=False):
        values = np.minimum(MOST, [row.ratio(ours, name) or np.nan for row in rows])
        axes.scatter(values, places, s=14, marker=mark, label=name, zorder=2, clip_on=False)
    if ours == PACKED:
        values = [row.seconds.get(FUNCTIONAL, np.nan) / row.seconds[ours] for row in rows]
        axes.scatter(values, places, s=24, marker="|", color="black", label="npconv, weights not packed", zorder=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min([0.5, *fastest]) / 1.1, MOST)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(places, [row.layer.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"time / time of {ours}; {MOST:g} stands for more too")
    axes.set_title(textwrap.fill(title, 100), fontsize=8)
    axes.grid(axis="x", color="0.9", zorder=0)
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)
