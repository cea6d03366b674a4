"""What is asked of a contestant: one operation on one layer, on arrays that every process makes alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.layers import Layer

OPS = ("forward", "input_grad", "weight_grad")
DTYPES = ("float32", "float64")


class Unsupported(Exception):  # noqa: N818
    """A contestant cannot do what is asked; the message says what."""


@dataclass(frozen=True)
class Case:
    """One operation on one layer.

    The arrays are drawn from a seed and not sent, so that a process that measures also owns what it reads.
    """

    layer: Layer
    op: str = "forward"
    dtype: str = "float32"
    threads: int = 1

    @cached_property
    def x(self) -> np.ndarray:
        return self._normal(0, self.layer.x_shape)

    @cached_property
    def w(self) -> np.ndarray:
        return self._normal(1, self.layer.w_shape)

    @cached_property
    def dy(self) -> np.ndarray:
        """Gradient of the result."""
        return self._normal(2, self.layer.y_shape)

    def _normal(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, self.dtype)


@dataclass(frozen=True)
class Job:
    """A case made ready.

    Attributes
    ----------
    run : callable
        What is timed.
    result : callable
        Turns what `run` returns into an array, channels first.
    note : str
        How it is done, where the contestant says.
    keeps : object
        What the library only points at, and what must therefore live as long as the job.
    """

    run: Callable[[], Any]
    result: Callable[[Any], np.ndarray] = np.asarray
    note: str = ""
    keeps: Any = None
