"""The pictures of docs/engine.md, and the README's photograph: ``python -m docs.figures`` draws them into docs/images/.

Numbers in them are computed, and where a picture shows two ways to one result, the two are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.plot.axes import COLORS, writing_on

FOLDER = Path(__file__).parent / "images"
BLUE, RED, GREEN, PINK, YELLOW, SKY = COLORS
PALE, INK = "#e4e4e4", "#333333"

STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "npconv", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "savefig.facecolor": "white", "figure.facecolor": "white",
}  # fmt: skip

IMAGE = np.arange(16).reshape(1, 4, 4)
KERNEL = np.array([[[[1, 0, 2], [0, 1, 0], [2, 0, 1]]]])


def cells(ax: Any, x: float, y: float, values: Any, fill: Any = None, size: float = 1.0, title: str = "") -> None:
    """Draw a matrix of numbers as squares whose upper left corner is at ``(x, -y)``; None leaves a square empty."""
    from matplotlib.patches import Rectangle

    for (row, column), value in np.ndenumerate(np.asarray(values, object)):
        color = fill(row, column) if callable(fill) else fill or "white"
        corner = (x + column * size, -y - (row + 1) * size)
        ax.add_patch(Rectangle(corner, size, size, facecolor=color, edgecolor=INK, linewidth=0.8))
        if value is not None:
            ax.text(
                corner[0] + size / 2,
                corner[1] + size / 2,
                value,
                ha="center",
                va="center",
                fontsize=8,
                color=_ink(color),
            )
    if title:
        ax.text(x + np.shape(values)[1] * size / 2, -y + 0.25, title, ha="center", va="bottom")


def _ink(color: str) -> str:
    return INK if color == "white" or writing_on(color) == "black" else "white"


def says(ax: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Write words at ``(x, -y)``."""
    ax.text(x, -y, text, **{"ha": "center", "va": "center", **options})


def arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """Point from one place to another."""
    (x, y), (to_x, to_y) = start, end
    ax.annotate("", (to_x, -to_y), (x, -y), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2})
    if text:
        says(ax, (x + to_x) / 2, (y + to_y) / 2 - 0.3, text, va="bottom", fontsize=9)


def window(ax: Any) -> None:
    """One output is a sum over the window."""
    y = nc.conv2d(IMAGE, KERNEL)[0]
    covered = [(r, c) for r in range(3) for c in range(1, 4)]
    cells(ax, 0, 0, IMAGE[0], lambda r, c: SKY if (r, c) in covered else "white", title="image")
    says(ax, 4.75, 2, "∗", fontsize=20)
    cells(ax, 5.5, 0.5, KERNEL[0, 0], YELLOW, title="kernel")
    says(ax, 9.25, 2, "=", fontsize=20)
    cells(ax, 10, 1, y, lambda r, c: RED if (r, c) == (0, 1) else "white", title="result")
    terms = [f"{IMAGE[0, r, c]}·{w}" for (r, c), w in zip(covered, KERNEL.reshape(-1), strict=True) if w]
    says(ax, 6, 4.9, f"{' + '.join(terms)} = {y[0, 1]}")
    ax.set(xlim=(-0.5, 12.5), ylim=(-5.4, 1))


def im2col(ax: Any) -> None:
    """Windows become columns, and the convolution a product of matrices."""
    columns = nc.unfold(IMAGE[None], (3, 3))[0]
    product = KERNEL.reshape(1, 9) @ columns
    assert (product.reshape(2, 2) == nc.conv2d(IMAGE, KERNEL)[0]).all()
    cells(ax, 0, 2.5, IMAGE[0], lambda r, c: SKY if r < 3 and c < 3 else "white", title="image")
    arrow(ax, (4.3, 4.5), (6.2, 4.5), "unfold")
    cells(ax, 6.5, 0, columns, lambda _, c: SKY if c == 0 else "white", title="columns, one a position")
    cells(ax, 11.6, 4, KERNEL.reshape(1, 9), YELLOW, title="kernel, as a row")
    says(ax, 16.1, 5.6, "times the columns gives all results at once")
    cells(ax, 14.1, 6.2, product, lambda _, c: SKY if c == 0 else "white")
    says(ax, 4, 8.6, f"{IMAGE.size} numbers have become {columns.size}", fontsize=9)
    ax.set(xlim=(-0.5, 21.5), ylim=(-9.4, 1))


def register_tile(ax: Any) -> None:
    """Six rows of two vectors of sums, and what meets in them."""
    for vector, color in enumerate((SKY, GREEN)):
        cells(ax, 3 + 8.4 * vector, 0, [[None] * 8], color, title=f"vector {vector} of the image")
    cells(ax, 0, 1.6, [[f"w{row}"] for row in range(6)], YELLOW)
    for vector in range(2):
        cells(ax, 3 + 8.4 * vector, 1.6, [[None] * 8] * 6, lambda r, _: RED if r == 2 else PALE)
    arrow(ax, (1.1, 4.1), (2.9, 4.1))
    says(
        ax,
        9.2,
        8.1,
        "6 × 2 vectors of 8 sums stay in 12 registers; each step of the sum fetches 2 vectors and 6 weights",
    )
    says(ax, 9.2, 8.8, "and makes 6 × 2 × 8 = 96 multiply-adds. Red: the weight w2 meets both vectors.", fontsize=9)
    ax.set(xlim=(-0.5, 20), ylim=(-9.2, 1.2))


def caches(ax: Any) -> None:
    """What is where, and how far away that is."""
    from matplotlib.patches import FancyBboxPatch

    levels = (
        ("registers", "a tile of sums", "512 B", RED),
        ("L1", "a panel of the image: 16 positions × a slice of the depth", "32 KiB", YELLOW),
        ("L2", "a block of positions, staged; a slice of the weights", "512 KiB", SKY),
        ("memory", "image, weights, result", "GiB", PALE),
    )
    for level, (name, what, size, color) in enumerate(levels):
        y, width = 1.5 * level, 13 + 1.6 * level
        box = FancyBboxPatch((-width / 2, -y - 1), width, 1, boxstyle="round,pad=0.1", facecolor=color, edgecolor=INK)
        ax.add_patch(box)
        says(ax, -width / 2 + 0.1, y + 0.5, name, ha="left", weight="bold")
        says(ax, 0.6, y + 0.5, what, fontsize=9)
        says(ax, width / 2 - 0.1, y + 0.5, size, ha="right", fontsize=9)
    for level, reads in enumerate(("12 multiply-adds of vectors for 8 loads", "once for each 6 output channels",
                                   "once for a block")):  # fmt: skip
        arrow(ax, (9.8, 1.5 * level + 2.0), (9.8, 1.5 * level + 0.5))
        says(ax, 10, 1.5 * level + 1.25, reads, ha="left", fontsize=9)
    ax.set(xlim=(-9.2, 17), ylim=(-5.8, 0.3))


def direct(ax: Any) -> None:
    """A panel is copied from the image, where im2col would have found it."""
    rows, columns = 6, 8
    image = np.full((rows, columns), None)
    inside = lambda r, c: SKY if 1 <= r <= 3 and 2 <= c <= 7 else "white"  # noqa: E731
    cells(ax, 0, 0.5, image, inside, size=0.7, title="image")
    cells(ax, 8.2, 0.5, np.full((9, 4), None), GREEN, size=0.5, title="a panel: 9 taps × 4 positions")
    arrow(ax, (5.8, 2.6), (8.0, 2.6), "copy")
    arrow(ax, (10.4, 2.6), (12.8, 2.6), "tile")
    cells(
        ax,
        13,
        0.5,
        np.full((4, 6), None),
        lambda r, c: RED if r == 1 and 2 <= c <= 5 else "white",
        size=0.7,
        title="result",
    )
    says(ax, 8, 6.2, "only the panel exists, a few kilobytes at a time; the matrix of columns never does", fontsize=10)
    ax.set(xlim=(-0.5, 17.7), ylim=(-6.7, 0.7))


def depthwise(ax: Any) -> None:
    """Each channel by itself against every channel with every other."""
    for side, (title, pairs) in enumerate(
        {"dense: every pair of channels": [(i, o) for i in range(4) for o in range(4)],
         "depthwise: each by itself": [(i, i) for i in range(4)]}.items()
    ):  # fmt: skip
        x = 9 * side
        for channel, color in enumerate((BLUE, RED, GREEN, PINK)):
            cells(ax, x, 1.3 * channel, [[None]], color, size=0.9)
            cells(ax, x + 5, 1.3 * channel, [[None]], PALE if side == 0 else color, size=0.9)
        for i, o in pairs:
            ax.plot([x + 1, x + 4.9], [-1.3 * i - 0.45, -1.3 * o - 0.45], color=INK, linewidth=0.8)
        says(ax, x + 3, -0.5, title)
        weights = f"{9 * len(pairs)} weights; each number of the image used {'36' if side == 0 else '9'} times"
        says(ax, x + 3, 5.6, weights, fontsize=9)
    ax.set(xlim=(-0.5, 15.5), ylim=(-6.1, 1))


def winograd(ax: Any) -> None:
    """F(2, 3): four products instead of six."""
    from npconv.algorithms.cook_toom import transforms

    d, g = np.array([1.0, 4, 2, 3]), np.array([2.0, -1, 1])
    matrices = transforms(2, 3)
    products = (matrices.bt @ d) * (matrices.g @ g)
    y = matrices.at @ products
    np.testing.assert_allclose(y, np.correlate(d, g))
    text = lambda values: [[f"{v:g}"] for v in values]  # noqa: E731
    cells(ax, 0, 0, text(d), SKY, title="4 inputs")
    cells(ax, 0, 5.5, text(g), YELLOW, title="3 weights")
    arrow(ax, (1.3, 2), (4.2, 2), "sums, Bᵀ")
    arrow(ax, (1.3, 7), (4.2, 7), "sums, G")
    cells(ax, 4.5, 0, text(matrices.bt @ d), SKY)
    cells(ax, 4.5, 5, text(matrices.g @ g), YELLOW)
    arrow(ax, (5.8, 2), (8.3, 3.8))
    arrow(ax, (5.8, 7), (8.3, 5.2))
    cells(ax, 8.5, 2.5, text(products), GREEN, title="4 products")
    arrow(ax, (9.8, 4.5), (12.7, 4.5), "sums, Aᵀ")
    cells(ax, 13, 3.5, text(y), RED, title="2 results")
    says(
        ax, 7, 9.8, "the sums of the inputs serve all output channels, those of the weights all positions", fontsize=10
    )
    ax.set(xlim=(-1, 15), ylim=(-10.3, 1.1))


def fourier(ax: Any) -> None:
    """Blocks that overlap by what the kernel reaches, each multiplied in the frequency domain."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=70), np.ones(7) / 7
    y = nc.correlate(x, w, mode="valid")
    ax.plot(np.arange(70), x / 2.2 + 1.9, color=BLUE, linewidth=1)
    ax.plot(np.arange(3, 67), y - 1.4, color=RED, linewidth=1)
    for number, start in enumerate((0, 22, 44)):
        part = x[start : start + 26 + 2 * (start == 44)]
        spectrum = np.fft.rfft(part) * np.conj(np.fft.rfft(w, len(part)))
        ours = np.fft.irfft(spectrum, len(part))[: len(part) - 6]
        np.testing.assert_allclose(ours[:20], y[start : start + 20], atol=1e-12)
        color = (GREEN, YELLOW, PINK)[number]
        ax.plot([start, start + 27], [0.45 - 0.12 * number] * 2, color=color, linewidth=4, solid_capstyle="butt")
        ax.plot([start + 3, min(start + 24, 66)], [-0.35] * 2, color=color, linewidth=4, solid_capstyle="butt")
        arrow(ax, (start + 13, -0.05 + 0.12 * number - 0.1), (start + 13, 0.3))
    says(ax, -1, -1.9, "signal", ha="right")
    says(ax, -1, -0.35, "blocks, with overlap", ha="right")
    says(ax, -1, 0.35, "what is right of each", ha="right")
    says(ax, -1, 1.4, "result", ha="right")
    ax.set(xlim=(-22, 72), ylim=(-2.9, 3.4))


DRAWINGS: dict[str, tuple[Callable[[Any], None], tuple[float, float]]] = {
    "window": (window, (6, 3)),
    "im2col": (im2col, (9, 4.3)),
    "tile": (register_tile, (7.5, 3.9)),
    "caches": (caches, (9.5, 2.6)),
    "direct": (direct, (8, 3.3)),
    "depthwise": (depthwise, (7, 3.1)),
    "winograd": (winograd, (6.5, 4.6)),
    "fft": (fourier, (8, 3.2)),
}


def photograph(folder: Path) -> None:
    """A photograph, and what three convolutions over its colours make of it."""
    from matplotlib.figure import Figure

    from npconv import demo

    picture = demo.load_image(None)
    done = {each.name: nc.conv2d(picture, each.weights, **each.options) for each in demo.filters()}
    edges = np.hypot(*done["edges, 3 channels to 2"])
    shown = {
        "a photograph": picture,
        "edges: 3 channels to 2": np.repeat(edges[None] / edges.max() * 2, 3, axis=0),
        "emboss, each channel by itself": done["emboss 3x3"],
        "1x1: channels mixed": done["1x1 channel mix"],
    }
    figure = Figure(figsize=(12, 2.35), layout="constrained")
    for ax, (title, values) in zip(figure.subplots(1, 4), shown.items(), strict=True):
        ax.imshow(values.transpose(1, 2, 0).clip(0, 1))
        ax.set_title(title, fontsize="medium")
        ax.set_axis_off()
    figure.savefig(folder / "photograph.jpg", dpi=100, pil_kwargs={"quality": 88})


def explanation(folder: Path) -> None:
    """Draw the pictures of docs/engine.md."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        for name, (draw, size) in DRAWINGS.items():
            figure = Figure(figsize=size, layout="constrained")
            ax = figure.subplots()
            ax.set_axis_off()
            draw(ax)
            figure.savefig(folder / f"engine-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    explanation(FOLDER)
    photograph(FOLDER)
