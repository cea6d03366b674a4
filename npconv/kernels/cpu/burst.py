"""What a core can do at most: the register tile over and over, on operands that never leave the first-level cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import tile_for
from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.microkernel import tile_product
from npconv.kernels.cpu.vectors import address_of

DEPTH = 128  # with the largest tile 20 KiB of operands
TILES = 2000  # about a millisecond


@functools.cache
def burst(dtype: np.dtype[Any], count: int) -> tuple[Callable[[], None], int]:
    """Bursts of `count` threads at once, as a function to time, and their multiply-accumulates."""
    tile = tile_for(dtype, 6, 16)
    loop, rng = _loop(dtype), np.random.default_rng(0)
    a, b = rng.standard_normal((tile.rows, DEPTH)), rng.standard_normal((DEPTH, tile.columns))
    # A page for each thread, so that no two write the same line of a cache.
    c = np.zeros((count, 4096), dtype)
    macs = count * TILES * DEPTH * tile.rows * tile.columns
    operands = a.astype(dtype), b.astype(dtype), c

    def run() -> None:
        threads.run(loop, count, macs, TILES, *operands, limit=count)

    return run, macs


@functools.cache
def _loop(dtype: np.dtype[Any]) -> Callable[..., Any]:
    tile = tile_for(dtype, 6, 16)
    product, rows, columns = tile_product(dtype.itemsize, tile), tile.rows, tile.columns

    def run(start: int, stop: int, tiles: int, a: Any, b: Any, c: Any) -> None:
        for task in range(start, stop):
            for _ in range(tiles):
                product(
                    DEPTH, address_of(a), DEPTH, address_of(b), 0, address_of(c[task]), columns, rows, columns,
                    address_of(c[task]), False, -np.inf, np.inf,
                )  # fmt: skip

    return compiled(run)
