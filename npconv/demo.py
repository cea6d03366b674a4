"""The main job on real input: a photograph through a bank of filters, a network trained on handwritten digits.

Public face only, so that every step can be copied into a program of one's own. Needs the extra ``demo``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc

GRAY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in the brightness of ITU-R BT.601."""

SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)

Say = Callable[[str], None]


class ImageError(Exception):
    """A picture that cannot be read; the message says which and why."""


def run(image: Path | None, folder: Path, say: Say = print, seed: int = 0) -> None:
    """Run the whole demonstration.

    Parameters
    ----------
    image : Path or None
        A picture; None takes the photograph that scikit-learn ships.
    folder : Path
        Where the pictures go; made if need be.
    say : callable
        Receives every line of the report.
    seed : int
        Of the network's weights and of the order of the digits.

    Raises
    ------
    ImageError
        If `image` cannot be read.
    OSError
        If `folder` cannot be written.
    """
    photograph = load_image(image)
    folder.mkdir(parents=True, exist_ok=True)

    say(f"\nA photograph, {_shape(photograph)}, through multi-channel filters")
    results = [apply(filter_, photograph, say) for filter_ in filters()]
    check(photograph, say)
    maps = folder / "feature_maps.png"
    draw_feature_maps(photograph, results, maps)

    say("\nA small LeNet learns handwritten digits")
    trained = train(say, seed)
    curve = folder / "training.png"
    draw_training(trained, curve)

    say("\nWhat a layer costs: 100 to 100 channels, 5x5 kernel, 64x64 outputs; ten layers, a million samples")
    say(nc.cost.table(nc.cost.lecture(nc.machine.measured_rate())))
    say("This machine's rate is what it reached on that layer. Winograd's method multiplies less than is counted here.")
    say(f"\nPictures: {maps} and {curve}")


# --------------------------------------------------------------------------------------------------------------------
# The photograph
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """A named convolution: weights and what `npconv.conv2d` is told besides."""

    name: str
    weights: Any
    options: dict[str, Any]


def load_image(path: Path | None) -> Any:
    """Read a picture as float32 ``(3, H, W)`` between 0 and 1."""
    if path is None:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image("china.jpg")
    else:
        pixels = np.asarray(open_picture(path).convert("RGB"))
    return (pixels.astype(np.float32) / 255).transpose(2, 0, 1)


def open_picture(path: Path) -> Any:
    """Read a picture as Pillow's, turned as it was taken.

    Raises
    ------
    ImageError
        If there is none, or it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise ImageError(f"there is no picture at {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise ImageError(f"{path} is not a picture that can be read") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"the picture {path} cannot be read: {error}") from None


def filters() -> list[Filter]:
    """The bank: every kind of convolution that the lecture names."""
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32) / 4
    binomial = np.array([1, 6, 15, 20, 15, 6, 1], np.float32) / 64
    blur = np.outer(binomial, binomial)
    sharpen = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    same = {"padding": "same", "padding_mode": "replicate"}
    # Three input channels, summed with the weights of brightness: one output channel for each direction.
    edges = np.stack([GRAY[:, None, None] * sobel, GRAY[:, None, None] * sobel.T])
    return [
        Filter("edges, 3 channels to 2", edges, same),
        Filter("blur 7x7", each_channel(blur), same),
        Filter("sharpen 3x3", each_channel(sharpen), same),
        Filter("emboss 3x3", each_channel(emboss), same),
        Filter("1x1 channel mix", SEPIA[:, :, None, None], {}),
        Filter("blur, stride 4", each_channel(blur), {**same, "stride": 4}),
        Filter("depthwise edges", np.stack([sobel, sobel, sobel])[:, None], {**same, "groups": 3}),
    ]


def each_channel(kernel: Any) -> Any:
    """Weights that apply one 2-D kernel to every colour by itself: a full bank with zeros between the colours."""
    return np.eye(3, dtype=np.float32)[:, :, None, None] * kernel


def apply(filter_: Filter, photograph: Any, say: Say) -> tuple[str, Any]:
    """Run one filter and report its shapes, its work and its time."""
    nc.conv2d(photograph, filter_.weights, **filter_.options)  # compiled here, if it has to be
    start = time.perf_counter()
    result = nc.conv2d(photograph, filter_.weights, **filter_.options)
    seconds = time.perf_counter() - start
    options = {k: v for k, v in filter_.options.items() if k in ("stride", "groups")}
    macs = nc.plan(photograph.shape, filter_.weights.shape, **{"padding": "same", **options}).macs
    say(
        f"  {filter_.name:<24} weights {_shape(filter_.weights):<9} -> {_shape(result):<11} "
        f"{macs / 1e6:6.1f} MMAC {seconds * 1e3:7.1f} ms"
    )
    return filter_.name, result


def check(photograph: Any, say: Say) -> None:
    """Check that 1x1 is the matrix product, and that every backend gives the same.

    Raises
    ------
    AssertionError
        If it does not.
    """
    flat = photograph.reshape(3, -1)
    # Three products and two sums of numbers up to 1, each rounded: 8 units in the last place is a safe bound.
    bound = 8 * float(np.finfo(np.float32).eps)
    worst = float(np.abs(nc.conv2d(photograph, SEPIA[:, :, None, None]).reshape(3, -1) - SEPIA @ flat).max())
    _report(say, "1x1 convolution against the matrix product", worst, bound)
    results = {
        name: [nc.conv2d(photograph, f.weights, backend=name, **f.options) for f in filters()]
        for name in nc.available_backends()
    }
    names = list(results)
    # The longest sums have 3 * 49 terms, with weights that add up to 9 at most.
    bound = 3 * 49 * 9 * float(np.finfo(np.float32).eps)
    for other in names[1:]:
        worst = max(float(np.abs(a - b).max()) for a, b in zip(results[names[0]], results[other], strict=True))
        _report(say, f"backend {other} against {names[0]}", worst, bound)


def _report(say: Say, what: str, worst: float, bound: float) -> None:
    if not worst <= bound:
        raise AssertionError(f"{what}: largest difference {worst:.3g}, allowed {bound:.3g}")
    say(f"  {what}: equal, largest difference {worst:.1e}")


def draw_feature_maps(photograph: Any, results: list[tuple[str, Any]], path: Path) -> None:
    """Draw the photograph and what every filter made of it."""
    from matplotlib.figure import Figure  # not pyplot's, which asks for a screen

    panels = [("photograph", photograph), *results]
    row_height = 3.0 * photograph.shape[1] / photograph.shape[2] + 0.35
    figure = Figure(figsize=(12, 2 * row_height), layout="constrained")
    axes = figure.subplots(2, (len(panels) + 1) // 2)
    for axis, (name, value) in zip(axes.flat, panels, strict=False):
        _, height, width = value.shape
        axis.imshow(_visible(value), aspect="equal", interpolation="antialiased")
        axis.set_title(f"{name}  ({width}×{height})", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=150)


def _visible(value: Any) -> Any:
    """A result as an RGB picture: two channels are a gradient's components, negative values are shown from grey."""
    if value.shape[0] == 2:
        strength = np.hypot(*value)
        return np.repeat((1 - strength / max(float(strength.max()), 1e-6))[..., None] ** 2, 3, axis=2)
    picture = value.transpose(1, 2, 0)
    if picture.mean() < 0.1:  # differences, which have no brightness of their own
        picture = 0.5 + 2 * picture
    return picture.clip(0, 1)


# --------------------------------------------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What training left behind, for the picture."""

    history: Any
    confusion: Any
    kernels: Any


def lenet(seed: int) -> nc.nn.Sequential:
    """Build LeNet's plan at the size of 8x8 digits: two convolutions, each with a pooling, and two dense layers."""
    nn, rng = nc.nn, np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64, rng=rng), nn.ReLU(), nn.Linear(64, 10, rng=rng),
    )  # fmt: skip


def train(say: Say, seed: int, epochs: int = 20, held_back: int = 360) -> Trained:
    """Train on scikit-learn's digits with some held back, and measure on those.

    Raises
    ------
    AssertionError
        If fewer than 97 % of the held-back digits are recognised.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    images, labels = digits.images[order, None].astype(np.float32) / 16, digits.target[order]
    test, train_ = slice(0, held_back), slice(held_back, None)
    model = lenet(seed)
    sgd = nc.nn.SGD(model.parameters(), lr=0.05, momentum=0.9)
    start = time.perf_counter()
    history = nc.nn.fit(
        model,
        (images[train_], labels[train_]),
        optimizer=sgd,
        schedule=nc.nn.StepLR(sgd, epochs * 3 // 4),
        epochs=epochs,
        seed=seed,
        validation=(images[test], labels[test]),
    )
    seconds = time.perf_counter() - start
    guesses = nc.nn.predict(model, images[test]).argmax(axis=1)
    accuracy = history.validation_accuracy[-1]
    count = sum(p.value.size for p in model.parameters())
    say(f"  {count:,} parameters, {len(labels) - held_back} digits, {epochs} epochs in {seconds:.1f} s")
    say(f"  {accuracy:.2%} of {held_back} held-back digits recognised")
    if accuracy < 0.97:
        raise AssertionError(f"the network recognises {accuracy:.2%} of the digits, expected 97 %")
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels[test], guesses), 1)
    return Trained(history, confusion, next(iter(model.parameters())).value)


def draw_training(trained: Trained, path: Path) -> None:
    """Draw the curves of training, the confusion matrix and the kernels of the first layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    losses, matrix, kernels = figure.subplots(1, 3)
    nc.plot.training_curves(trained.history, ax=losses)
    nc.plot.confusion_matrix(trained.confusion, ax=matrix).set_title("held-back digits", fontsize="medium")
    nc.plot.kernels(trained.kernels, columns=4, ax=kernels)
    kernels.set_title("what the first layer learned: sixteen 3×3 kernels", fontsize="medium")
    figure.savefig(path, dpi=150)


def _shape(value: Any) -> str:
    return "×".join(map(str, value.shape))
