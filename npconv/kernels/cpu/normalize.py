"""Batch normalisation, an activation that clamps, and both their gradients, in two passes over a channel.

Arrays are ``(N, C, S)`` in C order, see `loops`. A task is one channel: what the first pass reads, the second finds in
the cache. Sums are taken in vector lanes along a plane and in float64 from plane to plane.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.kernels.cpu.compile import compiled_reduction
from npconv.kernels.cpu.loops import at


@compiled_reduction
def batch_norm(
    start: int, stop: int, x: Any, weight: Any, bias: Any, y: Any, mean: Any, var: Any, eps: float, bounds: Any
) -> None:
    """``y = clamp((x - mean) / sqrt(var + eps) * weight + bias)``, with the channel's mean and biased variance."""
    count = x.shape[0] * x.shape[2]
    low, high = bounds
    for c in range(start, stop):
        total = 0.0
        for n in range(x.shape[0]):
            plane = x[n, c]
            part = x.dtype.type(0)
            for j in range(x.shape[2]):
                part += plane[at(j)]
            total += part
        middle = x.dtype.type(total / count)
        total = 0.0
        for n in range(x.shape[0]):
            plane = x[n, c]
            part = x.dtype.type(0)
            for j in range(x.shape[2]):
                off = plane[at(j)] - middle
                part += off * off
            total += part
        mean[c], var[c] = middle, total / count
        gain, offset = x.dtype.type(weight[c] / np.sqrt(total / count + eps)), bias[c]
        for n in range(x.shape[0]):
            plane, result = x[n, c], y[n, c]
            for j in range(x.shape[2]):
                value = (plane[at(j)] - middle) * gain + offset
                # A NaN is neither below nor above, and stays.
                value = low if value < low else value
                result[at(j)] = high if value > high else value


@functools.lru_cache(maxsize=2)
def batch_norm_grad(clamps: bool) -> Callable[..., None]:
    """The loop for the gradients; where a clamp cut a result off, or it is NaN, nothing passes.

    Results are read only if there is a clamp, and then with no branch, so that whole vectors pass or not by lane: a
    third to two thirds less time than with one.
    """

    @compiled_reduction
    def batch_norm_grad_loop(
        start: int, stop: int, dy: Any, x: Any, y: Any, weight: Any, mean: Any, var: Any, eps: float, bounds: Any,
        dx: Any, dweight: Any, dbias: Any,
    ) -> None:  # fmt: skip
        count = x.shape[0] * x.shape[2]
        low, high = bounds
        zero = x.dtype.type(0)
        for channel in range(start, stop):
            c = at(channel)
            middle = mean[c]
            along, total = 0.0, 0.0
            for n in range(x.shape[0]):
                part, part_along = zero, zero
                for j in range(x.shape[2]):
                    value = dy[n, c, at(j)]
                    if clamps:
                        result = y[n, c, at(j)]
                        value = value if (result > low) & (result < high) else zero
                    part += value
                    part_along += value * (x[n, c, at(j)] - middle)
                total += part
                along += part_along
            scale = 1 / np.sqrt(var[c] + eps)
            dweight[c], dbias[c] = along * scale, total
            gain = x.dtype.type(weight[c] * scale)
            common, slope = x.dtype.type(total / count), x.dtype.type(along * scale * scale / count)
            for n in range(x.shape[0]):
                for j in range(x.shape[2]):
                    value = dy[n, c, at(j)]
                    if clamps:
                        result = y[n, c, at(j)]
                        value = value if (result > low) & (result < high) else zero
                    dx[n, c, at(j)] = gain * (value - common - (x[n, c, at(j)] - middle) * slope)

    return batch_norm_grad_loop
