"""``npconv predict``: what a trained network sees in pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands import recipes, samples
from npconv.commands.arguments import add_json, describe, need

EXAMPLES = """
npconv predict npconv-train/weights.safetensors photo.jpg
npconv predict npconv-train/weights.safetensors *.png --top 3
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "predict", run, "say what a trained network sees in pictures", EXAMPLES)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a file that npconv train wrote")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="pictures, as those it was trained on")
    parser.add_argument("--top", type=int, default=1, help="so many classes for each picture (default: %(default)s)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print, for each picture, the class that the network takes it for, and how sure it is."""
    need("train", "PIL", *(["safetensors"] if options.weights.suffix == ".safetensors" else []))
    network, model = recipes.load(options.weights)
    channels, *size = network.shape
    pictures = np.stack([samples.read(path, size, channels) for path in options.images])
    logits = nc.nn.predict(model, samples.scaled(pictures)).astype(float)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = np.argsort(-shares, axis=1, kind="stable")[:, : max(1, options.top)]
    found = [
        [(network.names[number], share[number]) for number in row] for share, row in zip(shares, best, strict=True)
    ]
    if options.json:
        classes = ([{"class": name, "share": float(share)} for name, share in row] for row in found)
        rows = zip(options.images, classes, strict=True)
        print(json.dumps([{"picture": str(path), "classes": row} for path, row in rows], indent=2))
        return
    for path, row in zip(options.images, found, strict=True):
        print(f"{path}: " + ", ".join(f"{name} ({share:.1%})" for name, share in row))
