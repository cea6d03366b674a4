"""``npconv train``: a network of its own from pictures with classes."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands import UsageError, samples
from npconv.commands.arguments import add_json, describe, need, positive, seed
from npconv.commands.recipes import RECIPES, Network

EXAMPLES = """
npconv train --model lenet --data digits                    handwritten digits, in a minute at most
npconv train --model mobilenet --width 0.25 --data digits   a narrow MobileNet
npconv train --model resnet18 --data flowers --size 96      flowers/rose/1.jpg, flowers/tulip/1.jpg, ...
npconv train --model lenet --data samples.npz               arrays x (N, C, H, W) and y (N) in a file
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "train", run, "train a network on pictures", EXAMPLES)
    parser.add_argument("--model", choices=list(RECIPES), required=True, help="the network")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="digits, a folder with a folder of pictures for each class, or .npz",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", default=Path("npconv-train"), help="default: %(default)s"
    )
    parser.add_argument("--epochs", type=positive, default=30, help="default: %(default)s")
    parser.add_argument("--batch-size", type=positive, default=32, help="default: %(default)s")
    parser.add_argument("--lr", type=float, help="highest learning rate of AdamW (default: one that suits the network)")
    parser.add_argument(
        "--size", type=positive, help="side of the pictures (default: 32 for lenet and digits, else 64)"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), help="grey or colour (default: 1 for digits, else 3)")
    parser.add_argument("--width", type=float, default=1.0, help="of a mobilenet: times the channels (default: 1)")
    parser.add_argument("--shift", type=int, help="pixels to move pictures by (default: a sixteenth of the side)")
    parser.add_argument("--held-back", type=float, default=0.2, help="share not trained on (default: %(default)s)")
    parser.add_argument("--patience", type=int, help="stop after so many epochs without a lower loss")
    parser.add_argument("--seed", type=seed, default=0, help="of weights, order and choice (default: %(default)s)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Train a network; save weights, a curve and a confusion matrix. Interrupted, the same command goes on."""
    need("train", "matplotlib", "PIL", "sklearn", "tqdm", "safetensors")
    recipe = RECIPES[options.model]
    if options.width != 1 and not recipe.has_width:
        raise UsageError(f"--width is for the mobilenets, not for {options.model}")
    if not 0 < options.held_back < 1:
        raise UsageError(f"--held-back must be between 0 and 1, got {options.held_back:g}")
    if options.lr is not None and not 0 <= options.lr < math.inf:
        raise UsageError(f"--lr must be finite and zero or more, got {options.lr:g}")
    size = options.size or (32 if options.data == "digits" else recipe.size)
    data = samples.load(options.data, size, options.channels)
    network, model = _network(options, recipe, data)
    options.output.mkdir(parents=True, exist_ok=True)
    history, held = _train(options, recipe, data, model)
    weights = options.output / "weights.safetensors"
    network.save(model, weights)
    pictures, share = _draw(options.output, history, model, held, data.names)
    if options.json:
        files = {"weights": str(weights), "curve": str(pictures[0]), "confusion": str(pictures[1])}
        print(json.dumps({"held_back": len(held), "recognised": share, **files}, indent=2))
        return
    print(f"{share:.2%} of {len(held)} held-back pictures recognised")
    print(f"Weights: {weights}. Pictures: {pictures[0]} and {pictures[1]}")
    print(f"Try: npconv predict {weights} IMAGE")


def _network(options: argparse.Namespace, recipe: Any, data: samples.Samples) -> tuple[Network, Any]:
    shape = data.pictures.shape[1:]
    if recipe.function == "lenet5" and shape[1] != shape[2]:
        raise UsageError(f"lenet takes square pictures, these are {shape[1]}x{shape[2]}")
    arguments: dict[str, Any] = {"classes": len(data.names), "channels": shape[0], "size": min(shape[1:])}
    if recipe.has_width:
        arguments["width"] = options.width
    network = Network(options.model, arguments, tuple(map(int, shape)), data.names)
    return network, network.build(options.seed)


def _train(
    options: argparse.Namespace, recipe: Any, data: samples.Samples, model: Any
) -> tuple[Any, samples.Augmented]:
    side = min(data.pictures.shape[2:])
    shift = side // 16 if options.shift is None else options.shift
    if not 0 <= shift < side:
        raise UsageError(f"--shift must be from 0 to {side - 1}, less than the side of the pictures; got {shift}")
    trained_on, held = data.split(options.held_back, shift, options.seed)
    count = sum(parameter.value.size for parameter in model.parameters())
    if not options.json:
        print(f"{options.model}, {count:,} parameters; {len(trained_on)} pictures, {len(held)} held back")
    adam = nc.nn.AdamW(model.parameters(), lr=recipe.lr if options.lr is None else options.lr)
    with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverges, `fit` says so itself
        history = nc.nn.fit(
            model,
            trained_on,
            optimizer=adam,
            schedule=nc.nn.CosineAnnealingLR(adam, options.epochs),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            validation=held,
            patience=options.patience,
            checkpoint=options.output / "checkpoint.npz",
        )
    return history, held


def _draw(
    folder: Path, history: Any, model: Any, held: samples.Augmented, names: tuple[str, ...]
) -> tuple[tuple[Path, Path], float]:
    from matplotlib.figure import Figure  # not pyplot's, which asks for a screen

    paths = folder / "curve.png", folder / "confusion.png"
    figure = Figure(figsize=(6, 4), layout="constrained")
    nc.plot.training_curves(history, ax=figure.subplots())
    figure.savefig(paths[0], dpi=150)
    guesses = nc.nn.predict(model, samples.scaled(held.pictures)).argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (held.labels, guesses), 1)
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    ax = nc.plot.confusion_matrix(confusion, names, ax=figure.subplots())
    share = float(np.mean(guesses == held.labels))
    ax.set_title(f"{share:.2%} of {len(held)} held-back pictures recognised", fontsize="medium")
    figure.savefig(paths[1], dpi=150)
    return paths, share
