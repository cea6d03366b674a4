"""The bar that shows how a training goes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from npconv.nn.arguments import flag
from npconv.nn.history import Tally


def shows(progress: bool | None) -> bool:
    """Whether there is to be a bar: nobody looks at one in a file or a pipe."""
    if progress is None:
        return sys.stderr is not None and sys.stderr.isatty()
    return flag("progress", progress)


def bars() -> Any:
    """Return tqdm's bar, or raise an error that says what is missing."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            f"a progress bar needs the extra 'train' ({error}): pip install 'npconv[train]', or say progress=False"
        ) from None
    return tqdm


class _NoBar:
    def update(self, count: int) -> None:
        """Show nothing."""

    def set_postfix(self, numbers: dict[str, str], refresh: bool = True) -> None:
        """Show nothing."""


@contextlib.contextmanager
def shown(bar: Any, epoch: int, epochs: int, samples: int, done: int) -> Iterator[Any]:
    """A bar over the samples of an epoch, or nothing."""
    if bar is None:
        yield _NoBar()
        return
    with bar(total=samples, initial=done, desc=f"epoch {epoch + 1}/{epochs}", unit=" images") as opened:
        yield opened


def numbers(prefix: str, tally: Tally) -> dict[str, str]:
    """Loss and accuracy so far, as a bar shows them."""
    loss = {f"{prefix}loss": f"{tally.mean_loss:.4f}"}
    return loss if tally.accuracy is None else {**loss, f"{prefix}accuracy": f"{tally.accuracy:.2%}"}
