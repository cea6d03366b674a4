"""Input gradients of few positions and many weights: a matrix product with the weights as they lie, then a fold.

With P positions and O outputs the product ``(P, O) @ (O, channels * taps)`` gives, a row a position, what each adds to
the pixels under its window. Its wide operand is the weights themselves, so nothing as large as they are is laid out
anew, as a convolution with exchanged inputs and outputs would need it, and their many columns fill whole vectors where
few positions do not. The fold adds the rows to the pixels, one position after the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.geometry import Window
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.correlation import turner
from npconv.kernels.cpu.vectors import Vectors, address_of, on_addresses

# Bytes of rows that wait to be folded: they stay in the last cache, and the memory that a call takes is bounded.
WAITING = 8 * 2**20

# Weights from which on they are worth it.
FEWEST_WEIGHTS = 2**14

# Outputs a position from which on weights of one tap are better left where they are.
ONE_TAP = 8

# Rows of a matrix that a task transposes.
TURNED = 32


def suits(window: Window, batch: int, outputs: int, channels: int) -> bool:
    """Whether the input gradient of a group is faster this way than by phases (`input_grad`).

    Phases write all weights in another order, 2 to 3 ns each; a fold adds one element a position and tap, about half
    of that. Weights of one tap are transposed, in vectors, and are ready sooner.
    """
    rows = batch * window.positions * (ONE_TAP if window.taps == 1 else 1)
    return rows <= outputs and outputs * channels * window.taps >= FEWEST_WEIGHTS


def run(window: Window, groups: int, dy: Any, w: Any, dx: Any, multiply: Callable[..., None]) -> None:
    """Write the gradient ``(batch, channels, size)`` from ``(batch, outputs, out)`` and ``(outputs, depth, taps)``.

    All are float and in C order, `dy` and `w` read-only; ``multiply(a, b, product)`` is a matrix product. Numbers that
    are not finite spread as in the definition: nothing is multiplied that is not in it.
    """
    batch, positions, depth = dy.shape[0], window.positions, w.shape[1]
    outputs, columns, places = w.shape[0] // groups, depth * window.taps, fold_places(window)
    planes, gradients = dx.reshape(batch, groups, depth, -1), dy.reshape(batch, groups, outputs, positions)
    most = max(1, WAITING // (columns * dx.itemsize))
    dx[...] = 0
    for group in range(groups):
        weights = w[group * outputs : (group + 1) * outputs].reshape(outputs, columns)
        factors = np.empty((batch * positions, outputs), dy.dtype)
        for n in range(batch):
            transpose(gradients[n, group], factors[n * positions : (n + 1) * positions])
        for first in range(0, len(factors), most):
            waiting = np.empty((min(most, len(factors) - first), columns), dy.dtype)
            multiply(factors[first : first + most], weights, waiting)
            fold(waiting, planes[:, group], places, first)


@functools.lru_cache(maxsize=64)
def fold_places(window: Window) -> Any:
    """``(positions, taps)``: the pixel of a plane under each tap; all padding is the pixel behind the last."""
    axes = []
    for axis in zip(
        window.size, window.kernel, window.stride, window.padding, window.dilation, window.out, strict=True
    ):
        size, kernel, stride, (low, _), dilation, out = axis
        pixel = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - low
        axes.append((size, np.where((pixel >= 0) & (pixel < size), pixel, -1)))
    places = np.zeros((1, 1), np.int64)
    for size, pixel in axes:
        before, after = places[:, None, :, None], pixel[None, :, None, :]
        joined = np.where((before < 0) | (after < 0), -1, before * size + after)
        places = joined.reshape(places.shape[0] * pixel.shape[0], -1)
    places[places < 0] = math.prod(window.size)
    places.flags.writeable = False
    return places


def fold(waiting: Any, planes: Any, places: Any, first: int) -> None:
    """Add rows, of which `first` is the first, to pixels ``(batch, channels, size)``."""
    channels, pixels, taps = planes.shape[1], planes.shape[2], places.shape[1]
    if taps == 1 and pixels == len(places) and places[0, 0] == 0 and places[-1, 0] == pixels - 1:
        # Every position is a pixel.
        row = 0
        while row < len(waiting):
            n, pixel = divmod(first + row, pixels)
            count = min(pixels - pixel, len(waiting) - row)
            transpose(waiting[row : row + count], planes[n, :, pixel : pixel + count])
            row += count
        return
    lanes = processor().register_bytes // waiting.itemsize
    threads.run(folder(waiting.dtype), -(-channels // lanes), waiting.size, waiting, planes, places, first)


@functools.lru_cache(maxsize=2)
def folder(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop of `fold`: pixels lie as vectors over channels while they are added to."""
    size, lanes, kind = dtype.itemsize, processor().register_bytes // dtype.itemsize, dtype.type
    turn, add = turner(size, lanes), adder(size, lanes)

    @compiled
    def folder_loop(start: int, stop: int, waiting: Any, planes: Any, places: Any, first: int) -> None:
        """A task is a vector of channels."""
        (positions, taps), (_, channels, pixels) = places.shape, planes.shape
        turned, sums = np.empty(taps * lanes, kind), np.empty((pixels + 1) * lanes, kind)
        for channel in range(start * lanes, min(stop * lanes, channels), lanes):
            count = min(lanes, channels - channel)
            row = 0
            while row < waiting.shape[0]:
                image, position = (first + row) // positions, (first + row) % positions
                sums[:] = 0
                for place in range(position, min(positions, position + waiting.shape[0] - row)):
                    source = address_of(waiting) + (row * channels + channel) * taps * size
                    for t in range(0, taps, lanes):
                        turn(address_of(turned) + t * lanes * size, lanes, source + t * size, taps, count, taps - t)
                    for t in range(taps):
                        # What falls on padding is added to a pixel behind the last.
                        pixel = places[place, t]
                        add(address_of(sums) + pixel * lanes * size, address_of(turned) + t * lanes * size)
                    row += 1
                for c in range(count):
                    for pixel in range(pixels):
                        planes[image, channel + c, pixel] += sums[pixel * lanes + c]

    return folder_loop


def adder(itemsize: int, lanes: int) -> Any:
    """``add(target, source)``: a vector is added to another in memory."""

    def add(vectors: Vectors, target: Any, source: Any) -> None:
        result = vectors.pointer(target)
        total = vectors.builder.fadd(vectors.load(result), vectors.load(vectors.pointer(source)))
        vectors.store(total, result)

    return on_addresses(add, itemsize, lanes)


def transpose(source: Any, target: Any) -> None:
    """``target[...] = source.T`` for matrices whose rows are contiguous."""
    size = source.itemsize
    blocks = -(-source.shape[0] // TURNED)
    threads.run(
        transposer(source.dtype), blocks, source.size, source, target, source.strides[0] // size,
        target.strides[0] // size,
    )  # fmt: skip


@functools.lru_cache(maxsize=2)
def transposer(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop of `transpose`."""
    size, lanes = dtype.itemsize, processor().register_bytes // dtype.itemsize
    turn = turner(size, lanes)

    @compiled
    def transposer_loop(start: int, stop: int, source: Any, target: Any, source_pitch: int, target_pitch: int) -> None:
        """A task is `TURNED` rows of the source."""
        rows, columns = source.shape
        for j in range(0, columns, lanes):
            for i in range(start * TURNED, min(stop * TURNED, rows), lanes):
                turn(
                    address_of(target) + (j * target_pitch + i) * size, target_pitch,
                    address_of(source) + (i * source_pitch + j) * size, source_pitch,
                    min(rows, stop * TURNED) - i, columns - j,
                )  # fmt: skip

    return transposer_loop
