"""A forward convolution that is one compiled loop, made ready: for arrays that come with each call, or stay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.operands import read_only


class Launch:
    """A runner, as `npconv.runners` says, whose weights are an array or `Panels`.

    Nothing but the arrays' addresses is looked at: they must be in C order and of the dtype.

    Parameters
    ----------
    kernel : compiled function
        Called as ``kernel(start, stop, x, w, bias, y, *rest)``.
    tasks, work : int
        Number of tasks, and of multiply-adds.
    outputs : int
        Output channels, for which there are zeros where there is no bias.
    dtype : dtype
    rest : tuple
    """

    def __init__(
        self, kernel: Callable[..., None], tasks: int, work: int, outputs: int, dtype: np.dtype[Any],
        rest: tuple[Any, ...],
    ) -> None:  # fmt: skip
        self._known = kernel, tasks, read_only(np.zeros(outputs, dtype)), rest
        self._work, self._alone = work, threads.most_parts(work) == 1

    @classmethod
    def of(
        cls, kernel: Callable[..., None], tasks: int, spec: ConvSpec, dtype: np.dtype[Any], rest: tuple[Any, ...]
    ) -> Launch:
        """A convolution as a whole."""
        return cls(kernel, tasks, spec.macs, spec.out_channels, dtype, rest)

    def __call__(self, x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        """Run it, on at most `limit` threads."""
        kernel, tasks, none, rest = self._known
        values, shift = w.values if type(w) is Panels else w, none if bias is None else bias
        if self._alone:
            kernel(0, tasks, x, values, shift, y, *rest)
        else:
            threads.run(
                kernel, tasks, self._work, x, values, shift, y, *rest, limit=limit, at_once=threads.TILE_SLICE
            )  # fmt: skip

    def on(self, x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> Callable[[], None]:
        """The same for arrays that stay where they are, as a function without arguments."""
        kernel, tasks, none, rest = self._known
        values, shift = w.values if type(w) is Panels else w, none if bias is None else bias
        call = threads.prepared(kernel, tasks, self._work, limit, at_once=threads.TILE_SLICE)
        return functools.partial(call, x, values, shift, y, *rest)
