"""Memory: the limit that a caller sets, and one arena that values share when they do not live at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes of a cache line, at which every value starts."""


class LimitError(ValueError):
    """More memory would be needed than a budget allows.

    Examples
    --------
    >>> from npconv.inference import Budget, LimitError
    >>> issubclass(LimitError, ValueError)
    True
    >>> Budget(10).check(11, "x")
    Traceback (most recent call last):
    npconv.inference.memory.LimitError: x needs 11 bytes beside 0 that are held, more than max_memory=10 allows
    """


class Budget:
    """A limit on the bytes that may be held at a time, and how many are.

    Parameters
    ----------
    limit : int

    Examples
    --------
    >>> from npconv.inference import Budget
    >>> budget = Budget(1000)
    >>> budget.take(800, "the weights")
    >>> budget.check(300, "x")
    Traceback (most recent call last):
    npconv.inference.memory.LimitError: x needs 300 bytes beside 800 that are held, more than max_memory=1,000 allows
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def check(self, nbytes: int, who: str) -> None:
        """Raise LimitError if `nbytes` more would be too much; `who` wants them."""
        if self.held + nbytes > self.limit:
            raise LimitError(
                f"{who} needs {nbytes:,} bytes beside {self.held:,} that are held, "
                f"more than max_memory={self.limit:,} allows"
            )

    def take(self, nbytes: int, who: str) -> None:
        """Hold `nbytes` more, or raise LimitError."""
        self.check(nbytes, who)
        self.held += nbytes

    def give(self, nbytes: int) -> None:
        """Hold `nbytes` less."""
        self.held -= nbytes


@dataclass(frozen=True)
class Block:
    """Memory that is needed from one step of a program to another, both included."""

    nbytes: int
    first: int
    last: int


def layout(blocks: Mapping[str, Block]) -> tuple[dict[str, int], int]:
    """Where each block starts in an arena, and the arena's size.

    The largest blocks are placed first, each at the lowest place where it meets none that lives at the same time.

    References
    ----------
    Y. Pisarchyk, J. Lee, *Efficient memory management for deep neural net inference*, arXiv:2001.03288, section 5.2.

    Examples
    --------
    >>> layout({"a": Block(100, 0, 1), "b": Block(100, 1, 2), "c": Block(64, 2, 3)})
    ({'a': 0, 'b': 128, 'c': 0}, 256)
    """
    offsets: dict[str, int] = {}
    for name in sorted(blocks, key=lambda name: -blocks[name].nbytes):
        block = blocks[name]
        others = ((offsets[o], blocks[o]) for o in offsets)
        taken = sorted(
            (start, start + other.nbytes)
            for start, other in others
            if other.first <= block.last and block.first <= other.last
        )
        offsets[name] = _lowest_gap(taken, block.nbytes)
    end = max((_aligned(offsets[name] + blocks[name].nbytes) for name in blocks), default=0)
    return offsets, end


def _lowest_gap(taken: Iterable[tuple[int, int]], nbytes: int) -> int:
    """The lowest aligned place for `nbytes` between the stretches that are taken, which are sorted."""
    place = 0
    for start, stop in taken:
        if place + nbytes <= start:
            break
        place = max(place, _aligned(stop))
    return place


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
