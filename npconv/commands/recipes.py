"""The networks that ``npconv train`` knows, how it trains each, and how they are kept in files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import npconv as nc
from npconv.commands import UsageError

_NOTE = "npconv network"


@dataclass(frozen=True)
class Recipe:
    """A function of `npconv.models`, the size of its pictures, and a learning rate for AdamW that suits it."""

    function: str
    size: int
    lr: float
    has_width: bool = False


RECIPES = {
    "lenet": Recipe("lenet5", 32, 3e-3),
    "mobilenet": Recipe("mobilenet_v1", 64, 1e-2, has_width=True),
    "mobilenet_v2": Recipe("mobilenet_v2", 64, 1e-2, has_width=True),
    "resnet18": Recipe("resnet18", 64, 2e-3),
}


@dataclass(frozen=True)
class Network:
    """A network by name, with what it was built with, and the names of its classes."""

    recipe: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    names: tuple[str, ...]

    def build(self, seed: int | None = None) -> Any:
        """Return the network with initial weights."""
        return getattr(nc.models, RECIPES[self.recipe].function)(**self.arguments, rng=seed)

    def save(self, model: Any, path: Path) -> None:
        """Write weights, and all that `load` needs besides."""
        note = {"recipe": self.recipe, "arguments": self.arguments, "shape": self.shape, "names": self.names}
        nc.nn.save(model, path, {_NOTE: json.dumps(note)})


def load(path: Path) -> tuple[Network, Any]:
    """Return the network that a file of weights is for, and that network with those weights.

    Raises
    ------
    UsageError
        If the file is none that ``npconv train`` wrote.
    """
    try:
        _, metadata = nc.nn.files.read(path)
    except FileNotFoundError:
        raise UsageError(f"there is no file of weights {path}") from None
    try:
        note = json.loads(metadata[_NOTE])
        network = Network(note["recipe"], dict(note["arguments"]), tuple(note["shape"]), tuple(note["names"]))
        model = network.build()
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"{path} does not say which network its weights are for: npconv train did not write it"
        ) from None
    nc.nn.load(model, path)
    return network, model.eval()
