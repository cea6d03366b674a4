"""Max pooling and the mean of channels-last arrays, read as they are: the inner loops run along channels.

There they vectorise for every real dtype, whatever the stride, because neighbours in memory are never compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.loops import at, input_row
from npconv.kernels.cpu.pooling import raise_to

CHANNELS, RUN = 256, 64
"""Channels of a task of the mean, whose sums stay in L1; and positions that are summed before they join the others."""


@compiled
def max_last(start: int, stop: int, x: Any, y: Any, lowest: Any, geometry: Any, spans: Any) -> None:
    """Largest element of each window, or NaN; `lowest`, an array of one element, where there is padding alone.

    The arrays are ``(N, positions, C)``; `geometry` and `spans` as in `loops`. A task is one output row: (n, row).
    """
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    rows, channels = y.shape[1] // out, x.shape[2]
    leads = 1
    for axis in range(last):
        leads *= geometry[1, axis]
    for task in range(start, stop):
        n, row = task // rows, task % rows
        best = y[n, row * out : (row + 1) * out].reshape(out * channels)
        best[:] = lowest[0]
        for lead in range(leads):
            source_row = input_row(row, lead, geometry)
            if source_row < 0:
                continue
            source = x[n, source_row * size : (source_row + 1) * size].reshape(size * channels)
            for k in range(kernel):
                first, end = spans[k]
                column = k * dilation - low
                if stride == 1:  # neighbours see neighbours: one long run
                    raise_to(best, source, first * channels, end * channels, 1, column * channels)
                else:
                    for j in range(first, end):
                        to = j * channels
                        raise_to(best, source, to, to + channels, 1, (j * stride + column) * channels - to)


@compiled
def mean_last(start: int, stop: int, x: Any, y: Any) -> None:
    """Mean of ``(N, positions, C)`` over the positions, as ``(N, C)``. A task is (n, block of channels).

    Four positions at a time, and the sums of `RUN` before they are added to the others, which rounds less.
    """
    positions, channels = x.shape[1], x.shape[2]
    blocks = (channels + CHANNELS - 1) // CHANNELS
    some = np.empty(CHANNELS, x.dtype)
    for task in range(start, stop):
        n, first = task // blocks, task % blocks * CHANNELS
        count = min(CHANNELS, channels - first)
        image, total = x[n].reshape(positions * channels), y[n, first : first + count]
        total[:] = 0
        for top in range(0, positions, RUN):
            end = min(top + RUN, positions)
            some[:] = 0
            p = top
            while p < end:
                a = p * channels + first
                if p + 4 <= end:
                    b, c, d = a + channels, a + 2 * channels, a + 3 * channels
                    for i in range(count):
                        some[at(i)] += (image[at(a + i)] + image[at(b + i)]) + (image[at(c + i)] + image[at(d + i)])
                    p += 4
                else:
                    for i in range(count):
                        some[at(i)] += image[at(a + i)]
                    p += 1
            for i in range(count):
                total[at(i)] += some[at(i)]
        for i in range(count):
            total[at(i)] /= positions
