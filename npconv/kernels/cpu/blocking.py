"""Sizes of tiles and blocks, as data: what fits the registers and caches of this processor."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding

# Bytes of the packed image that one pass over the weights works on: half of a small L1 cache, so that a panel of
# weights and the lines of the result fit beside it.
PANEL_BYTES = 16 * 1024
# Panels that share one pass over the weights; together they stay in L2.
PANELS = 4


@dataclass(frozen=True)
class Tile:
    """A block of the result that is held in registers: `rows` output channels by `vectors` of `lanes` positions."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Number of positions."""
        return self.vectors * self.lanes


@functools.lru_cache(maxsize=8)
def tile_for(dtype: np.dtype[Any]) -> Tile:
    """The tile for float32 or float64 on this processor.

    Every accumulator, the vectors of the image and one broadcast weight must have a register: 32 of them with AVX-512
    and on 64-bit Arm, 16 elsewhere.
    """
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        rows, vectors, register_bytes = 14, 2, 64
    elif features.get("avx2") and features.get("fma"):
        rows, vectors, register_bytes = 6, 2, 32
    elif features.get("neon"):
        rows, vectors, register_bytes = 8, 3, 16
    else:
        rows, vectors, register_bytes = 6, 2, 16
    return Tile(rows, vectors, register_bytes // dtype.itemsize)


def depth_for(dtype: np.dtype[Any]) -> int:
    """How many products a tile sums before its panel of the image is exchanged."""
    return PANEL_BYTES // (tile_for(dtype).columns * dtype.itemsize)
