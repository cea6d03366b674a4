"""``npconv predict``: what a trained network sees in pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import npconv as nc
from npconv.commands import recipes, samples
from npconv.commands.arguments import describe, need

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


def run(options: argparse.Namespace) -> None:
    """Print, for each picture, the class that the network takes it for, and how sure it is."""
    need("train", "PIL", *(["safetensors"] if options.weights.suffix == ".safetensors" else []))
    network, model = recipes.load(options.weights)
    channels, *size = network.shape
    pictures = np.stack([samples.read(path, size, channels) for path in options.images])
    logits = nc.nn.predict(model, samples.scaled(pictures)).astype(float)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for path, share in zip(options.images, shares, strict=True):
        best = np.argsort(-share, kind="stable")[: max(1, options.top)]
        print(f"{path}: " + ", ".join(f"{network.names[number]} ({share[number]:.1%})" for number in best))
