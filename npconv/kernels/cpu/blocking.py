"""Sizes of tiles and blocks, as data: what fits the registers and caches of this processor."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.core import registry

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


@functools.lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """What Numba compiles for: this processor's instructions, or those that its variables name instead."""
    triple, _, text = registry.cpu_target.target_context.codegen().magic_tuple()
    found = {feature[1:] for feature in text.split(",") if feature.startswith("+")}
    return frozenset(found | {"neon", "fma"} if triple.startswith(("aarch64", "arm64")) else found)


def has_tiles() -> bool:
    """Whether the processor multiplies and adds in one instruction; without, a tile would call a function for each."""
    return "fma" in features()


@functools.lru_cache(maxsize=8)
def tile_for(dtype: np.dtype[Any]) -> Tile:
    """The tile for float32 or float64 on this processor.

    Every accumulator, the vectors of the image and one broadcast weight must have a register: 32 of them with AVX-512
    and on 64-bit Arm, 16 elsewhere.
    """
    if "avx512f" in features():
        rows, vectors, register_bytes = 14, 2, 64
    elif "neon" in features():
        rows, vectors, register_bytes = 8, 3, 16
    else:
        rows, vectors, register_bytes = 6, 2, 32
    return Tile(rows, vectors, register_bytes // dtype.itemsize)


def depth_for(dtype: np.dtype[Any]) -> int:
    """How many products a tile sums before its panel of the image is exchanged."""
    return PANEL_BYTES // (tile_for(dtype).columns * dtype.itemsize)
