"""Batch normalisation, an activation that clamps, and both their gradients, over blocks of channels.

Arrays are ``(N, C * S)`` in C order, of planes of S elements. A task is a block of channels whose images stay in the
cache from one pass to the next, and which lie in runs of some kilobytes: small planes, read one by one from image to
image, would wait for memory at each of them.

Large planes are gone through one by one, their channel's numbers and sums in registers. Small ones do not fill vectors:
there a run of all the block's channels is gone through at once, with numbers that are written out for every element of
it and sums of every element. Sums are taken in the dtype over a plane or some images, and in float64 over these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.kernels.cpu.compile import compiled, compiled_reduction
from npconv.kernels.cpu.loops import at

# Elements of a run: seven arrays of as many, at most, stay in L1 beside what streams by.
RUN = 512
# Elements of a plane up to which runs of several are gone through at once.
SMALL_PLANE = 100
# Bytes of a block of channels in one array, of which the backward pass has three in L2.
BLOCK_BYTES = 96 * 1024
# Images whose elements are added to one another before the sum goes on in float64.
IMAGES = 32


class Planes(NamedTuple):
    """How an array is divided: elements of a channel's plane, channels of a task, tasks; whether planes are small."""

    size: int
    together: int
    tasks: int
    small: bool


def planes_of(x: Any) -> Planes:
    """Images ``(N, C, S)``: as many channels to a task as fit the cache and a run, and a quarter of all at most.

    That is the same for any number of threads, and so are the sums.
    """
    batch, channels, size = x.shape
    fitting = min(BLOCK_BYTES // (batch * size * x.itemsize), RUN // size)
    together = max(1, min(fitting, -(-channels // 4)))
    return Planes(size, together, -(-channels // together), size <= SMALL_PLANE)


@compiled
def write_out(values: Any, count: int, size: int, target: Any) -> None:
    """Each of so many values `size` times, side by side."""
    for c in range(count):
        for j in range(c * size, (c + 1) * size):
            target[at(j)] = values[c]


@compiled_reduction
def add_up(sums: Any, count: int, size: int, totals: Any) -> None:
    """Add to each channel's total in float64 the sums of its elements in a run, and clear them."""
    for c in range(count):
        total = 0.0
        for j in range(c * size, (c + 1) * size):
            total += np.float64(sums[at(j)])
            sums[at(j)] = 0
        totals[c] += total


@functools.lru_cache(maxsize=2)
def batch_norm(small: bool) -> Callable[..., None]:
    """The loop for the result, over small planes or large ones."""

    @compiled_reduction
    def batch_norm_loop(
        start: int, stop: int, x: Any, weight: Any, bias: Any, y: Any, mean: Any, var: Any, eps: float, bounds: Any,
        size: int, together: int,
    ) -> None:  # fmt: skip
        """``y = clamp((x - mean) / sqrt(var + eps) * weight + bias)``, with the channel's mean and biased variance."""
        batch, channels, zero = x.shape[0], x.shape[1] // size, x.dtype.type(0)
        low, high = bounds
        gains, totals = np.empty(together, x.dtype), np.empty(together)
        sums, spread = np.zeros(RUN, x.dtype), np.empty((3, RUN), x.dtype)
        for block in range(start, stop):
            first, count = block * together, min(together, channels - block * together)
            length = count * size if small else size
            for moment in range(2):
                totals[:] = 0
                for n in range(batch):
                    for run in range(1 if small else count):
                        begin = (first + run) * size
                        source, total = x[n, begin : begin + length], zero
                        if moment == 0:
                            for j in range(length):
                                if small:
                                    sums[at(j)] += source[at(j)]
                                else:
                                    total += source[at(j)]
                        else:
                            middle = mean[first + run]
                            for j in range(length):
                                off = source[at(j)] - (spread[0, at(j)] if small else middle)
                                if small:
                                    sums[at(j)] += off * off
                                else:
                                    total += off * off
                        totals[run] += total
                    if small and (n % IMAGES == IMAGES - 1 or n == batch - 1):
                        add_up(sums, count, size, totals)
                for c in range(count):
                    if moment == 0:
                        mean[first + c] = totals[c] / (batch * size)
                    else:
                        var[first + c] = totals[c] / (batch * size)
                        # As the backward pass finds it, which must see the same results below and above the bounds.
                        gains[c] = weight[first + c] / np.sqrt(np.float64(var[first + c]) + eps)
                if small and moment == 0:
                    write_out(mean[first:], count, size, spread[0])
            if small:
                write_out(gains, count, size, spread[1])
                write_out(bias[first:], count, size, spread[2])
            for n in range(batch):
                for run in range(1 if small else count):
                    begin = (first + run) * size
                    source, target = x[n, begin : begin + length], y[n, begin : begin + length]
                    middle, gain, offset = mean[first + run], gains[run], bias[first + run]
                    for j in range(length):
                        if small:
                            middle, gain, offset = spread[0, at(j)], spread[1, at(j)], spread[2, at(j)]
                        value = (source[at(j)] - middle) * gain + offset
                        # A NaN is neither below nor above, and stays.
                        value = low if value < low else value
                        target[at(j)] = high if value > high else value

    return batch_norm_loop


@functools.lru_cache(maxsize=4)
def batch_norm_grad(clamps: bool, small: bool) -> Callable[..., None]:
    """The loop for the gradients; where a clamp cuts a result off, or it is NaN, nothing passes.

    Results are computed once more from `x`, which costs less than reading them, and nobody has to keep them. There is
    no branch, so that whole vectors pass or not by lane: a third to two thirds less time than with one.
    """

    @compiled_reduction
    def batch_norm_grad_loop(
        start: int, stop: int, dy: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float, bounds: Any,
        dx: Any, dweight: Any, dbias: Any, size: int, together: int,
    ) -> None:  # fmt: skip
        batch, channels, zero = x.shape[0], x.shape[1] // size, x.dtype.type(0)
        low, high = bounds
        numbers, totals, alongs = np.empty((3, together), x.dtype), np.empty(together), np.empty(together)
        sums, spread = np.zeros((2, RUN), x.dtype), np.empty((5, RUN), x.dtype)
        for block in range(start, stop):
            first, count = block * together, min(together, channels - block * together)
            length = count * size if small else size
            totals[:] = 0
            alongs[:] = 0
            for c in range(count):
                numbers[0, c] = weight[first + c] / np.sqrt(np.float64(var[first + c]) + eps)
            if small:
                write_out(mean[first:], count, size, spread[0])
                write_out(numbers[0], count, size, spread[1])
                write_out(bias[first:], count, size, spread[2])
            for n in range(batch):
                for run in range(1 if small else count):
                    begin = (first + run) * size
                    source, slopes = x[n, begin : begin + length], dy[n, begin : begin + length]
                    middle, gain, offset = mean[first + run], numbers[0, run], bias[first + run]
                    total, along = zero, zero
                    for j in range(length):
                        if small:
                            middle, gain, offset = spread[0, at(j)], spread[1, at(j)], spread[2, at(j)]
                        off, value = source[at(j)] - middle, slopes[at(j)]
                        if clamps:
                            result = off * gain + offset
                            value = value if (result > low) & (result < high) else zero
                        if small:
                            sums[0, at(j)] += value
                            sums[1, at(j)] += value * off
                        else:
                            total += value
                            along += value * off
                    totals[run] += total
                    alongs[run] += along
                if small and (n % IMAGES == IMAGES - 1 or n == batch - 1):
                    add_up(sums[0], count, size, totals)
                    add_up(sums[1], count, size, alongs)
            for c in range(count):
                scale = 1 / np.sqrt(np.float64(var[first + c]) + eps)
                dweight[first + c], dbias[first + c] = alongs[c] * scale, totals[c]
                numbers[1, c] = totals[c] / (batch * size)
                numbers[2, c] = alongs[c] * scale * scale / (batch * size)
            if small:
                write_out(numbers[1], count, size, spread[3])
                write_out(numbers[2], count, size, spread[4])
            for n in range(batch):
                for run in range(1 if small else count):
                    begin = (first + run) * size
                    source, slopes = x[n, begin : begin + length], dy[n, begin : begin + length]
                    target = dx[n, begin : begin + length]
                    middle, gain, offset = mean[first + run], numbers[0, run], bias[first + run]
                    common, tilt = numbers[1, run], numbers[2, run]
                    for j in range(length):
                        if small:
                            middle, gain, offset = spread[0, at(j)], spread[1, at(j)], spread[2, at(j)]
                            common, tilt = spread[3, at(j)], spread[4, at(j)]
                        off, value = source[at(j)] - middle, slopes[at(j)]
                        if clamps:
                            result = off * gain + offset
                            value = value if (result > low) & (result < high) else zero
                        target[at(j)] = gain * (value - common - off * tilt)

    return batch_norm_grad_loop
