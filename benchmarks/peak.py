"""What a core can do at most: npconv's own register tile on operands that never leave the first-level cache."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from benchmarks.cases import Case, Job
from npconv.kernels.cpu.blocking import tile_for
from npconv.kernels.cpu.microkernel import tile_product
from npconv.kernels.cpu.vectors import address_of

DEPTH = 128  # with the largest tile 20 KiB of operands
TILES = 2000  # about a millisecond


@functools.cache
def burst(dtype: np.dtype[Any]) -> tuple[Any, int, int]:
    """A compiled loop over one tile, and the tile's rows and columns."""
    tile = tile_for(dtype, 6, 16)
    product, rows, columns = tile_product(dtype.itemsize, tile), tile.rows, tile.columns

    @numba.njit(nogil=True)
    def run(tiles: int, a: Any, b: Any, c: Any) -> None:
        for _ in range(tiles):
            product(
                DEPTH, address_of(a), DEPTH, address_of(b), 0, address_of(c), columns, rows, columns,
                address_of(c), False, -np.inf, np.inf,
            )  # fmt: skip

    return run, rows, columns


def prepare(case: Case) -> Job:
    """The burst as a job whose layer does not matter; the result is the work of one run, in FLOP."""
    dtype = np.dtype(case.dtype)
    run, rows, columns = burst(dtype)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((rows, DEPTH), dtype), rng.standard_normal((DEPTH, columns), dtype)
    c = np.zeros((rows, columns), dtype)
    return Job(lambda: run(TILES, a, b, c), lambda _: np.array(2.0 * TILES * DEPTH * rows * columns))
