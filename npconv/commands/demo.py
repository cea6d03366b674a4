"""``npconv demo``: the main job on real input."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from npconv.commands import CommandError, UsageError
from npconv.commands.arguments import describe, need, seed

EXAMPLES = """
npconv demo                                     a photograph, a network, the lecture's table
npconv demo --image holiday.jpg                 the same with a picture of your own
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = describe(commands, "demo", run, "filter a photograph and train a network", EXAMPLES)
    parser.add_argument("--image", type=Path, metavar="PATH", help="a picture (default: scikit-learn's photograph)")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", default=Path("npconv-demo"), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the network's weights (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Filter a photograph, train a network on handwritten digits, print the lecture's cost table; draw two pictures."""
    need("demo", "matplotlib", "PIL", "sklearn", "tqdm")
    from npconv import demo

    try:
        demo.run(options.image, options.output, seed=options.seed)
    except demo.ImageError as error:
        raise UsageError(error) from None
    except AssertionError as error:
        raise CommandError(error) from None
