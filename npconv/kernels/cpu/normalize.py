"""Batch normalisation, an activation that clamps, and both their gradients, in two passes over a channel.

Arrays are ``(N, C, S)`` in C order, see `loops`. A task is one channel: what the first pass reads, the second finds in
the cache. Sums are taken in vector lanes along a plane and in float64 from plane to plane.
"""

from __future__ import annotations

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


@compiled_reduction
def batch_norm_grad(
    start: int,
    stop: int,
    dy: Any,
    x: Any,
    y: Any,
    weight: Any,
    mean: Any,
    var: Any,
    eps: float,
    bounds: Any,
    clamps: bool,
    dx: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    """The gradients; where the clamp cut a result off, or it is NaN, nothing passes."""
    count = x.shape[0] * x.shape[2]
    low, high = bounds
    zero = x.dtype.type(0)
    for c in range(start, stop):
        middle = mean[c]
        along, total = 0.0, 0.0
        for n in range(x.shape[0]):
            plane, result, grad = x[n, c], y[n, c], dy[n, c]
            part, part_along = zero, zero
            for j in range(x.shape[2]):
                passed = not clamps or (result[at(j)] > low and result[at(j)] < high)
                value = grad[at(j)] if passed else zero
                part += value
                part_along += value * (plane[at(j)] - middle)
            total += part
            along += part_along
        scale = 1 / np.sqrt(var[c] + eps)
        dweight[c], dbias[c] = along * scale, total
        gain = x.dtype.type(weight[c] * scale)
        common, slope = x.dtype.type(total / count), x.dtype.type(along * scale * scale / count)
        for n in range(x.shape[0]):
            plane, result, grad, target = x[n, c], y[n, c], dy[n, c], dx[n, c]
            for j in range(x.shape[2]):
                passed = not clamps or (result[at(j)] > low and result[at(j)] < high)
                value = grad[at(j)] if passed else zero
                target[at(j)] = gain * (value - common - (plane[at(j)] - middle) * slope)
