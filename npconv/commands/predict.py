"""``npconv predict``: what a trained network sees in pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands import pictures, recipes, samples
from npconv.commands.arguments import add_json, describe, need, positive

EXAMPLES = """
npconv predict npconv-train/weights.safetensors photo.jpg            what it sees in a picture
npconv predict npconv-train/weights.safetensors photos/ --top 3      every picture of a folder
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "predict", run, "say what a trained network sees in pictures", EXAMPLES)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a file that npconv train wrote")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder, or a pattern in quotes")
    parser.add_argument(
        "--top", type=positive, default=1, metavar="N", help="so many classes for each picture (default: %(default)s)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print, for each picture, the class that the network takes it for, and how sure it is."""
    need("train", "PIL", *(["safetensors"] if options.weights.suffix == ".safetensors" else []))
    network, model = recipes.load(options.weights)
    channels, *size = network.shape
    paths = pictures.find(options.images)
    pixels = np.stack([samples.read(path, size, channels) for path in paths])
    logits = nc.nn.predict(model, samples.scaled(pixels)).astype(float)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = np.argsort(-shares, axis=1, kind="stable")[:, : options.top]
    found = [
        [(network.names[number], share[number]) for number in row] for share, row in zip(shares, best, strict=True)
    ]
    if options.json:
        classes = ([{"class": name, "share": float(share)} for name, share in row] for row in found)
        rows = zip(paths, classes, strict=True)
        print(json.dumps([{"picture": str(path), "classes": row} for path, row in rows], indent=2))
        return
    for path, row in zip(paths, found, strict=True):
        print(f"{path}: " + ", ".join(f"{name} ({share:.1%})" for name, share in row))
