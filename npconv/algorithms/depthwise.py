"""Depthwise convolution: every group has one input channel, so a tap is a scaled image rather than a matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.algorithms.direct import Direct
from npconv.arrays import Array, Backend, flatten
from npconv.geometry import ConvSpec


class Depthwise(Direct):
    """The direct form with products and sums in place of matrix products. See `npconv.algorithms.base.Algorithm`."""

    name = "depthwise"

    def supports(self, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any] | None = None) -> str | None:
        if spec.is_depthwise:
            return None
        return (
            f"a depthwise convolution has as many groups as input channels, here {spec.groups} and {spec.in_channels}"
        )

    def portable_kernel(self, spec: ConvSpec) -> str:
        return "scale_per_tap"

    def product(self, backend: Backend, w: Array, part: Array) -> Array:
        if w.shape[2] == 1:
            return w.reshape(*w.shape[:2], *(1,) * (part.ndim - 3)) * part
        # The input gradient of a channel that feeds several outputs is a sum over them.
        return super().product(backend, w, part)

    def correlation(self, backend: Backend, dy: Array, part: Array) -> Array:
        return backend.xp.einsum("ngmp,ngkp->gmk", flatten(dy, 3), flatten(part, 3))
