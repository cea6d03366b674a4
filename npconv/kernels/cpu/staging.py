"""A block of the image as the tiles want it: padding written down, strides undone, every tap at a fixed offset.

Staged planes are `blocking.Blocks`: for every phase (what a tap's position leaves modulo the stride) the rows and
columns of the padded input that belong to it. Output (i, j) of the block finds the element under a tap at
``i * staged_w + j`` behind the tap's own offset, so after staging every convolution has stride 1 and no edges.
"""

from __future__ import annotations

from typing import Any

from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.loops import at


@compiled
def stage_plane(x: Any, plane: int, top: int, left: int, staged: Any, start: int, shape: Any, phases: Any) -> None:
    """Stage one plane of a block.

    `x` is flat and `plane` the number of a plane in it, or -1 for one of zeros; (`top`, `left`) is the output at which
    the block begins; `start` is where the staged plane begins in `staged`.
    """
    height, width = shape[1], shape[2]
    stride_h, stride_w, low_h, low_w, rows, columns = shape[9], shape[10], shape[11], shape[12], shape[13], shape[14]
    for phase in range(phases.shape[0]):
        first_row = top * stride_h + phases[phase, 0] - low_h
        first_column = left * stride_w + phases[phase, 1] - low_w
        # Columns [begin, end) of the stage lie inside the image.
        begin = min(columns, max(0, (stride_w - 1 - first_column) // stride_w))
        end = max(begin, min(columns, (width - 1 - first_column) // stride_w + 1))
        for i in range(rows):
            row = first_row + i * stride_h
            if plane < 0 or row < 0 or row >= height:
                for j in range(columns):
                    staged[at(start + j)] = 0
            else:
                source = (plane * height + row) * width + first_column
                for j in range(begin):
                    staged[at(start + j)] = 0
                if stride_w == 1:
                    for j in range(begin, end):
                        staged[at(start + j)] = x[at(source + j)]
                elif stride_w == 2:
                    for j in range(begin, end):
                        staged[at(start + j)] = x[at(source + 2 * j)]
                else:
                    for j in range(begin, end):
                        staged[at(start + j)] = x[at(source + stride_w * j)]
                for j in range(end, columns):
                    staged[at(start + j)] = 0
            start += columns


@compiled
def stage_planes(
    x: Any, image: int, lead: int, first: int, last: int, top: int, left: int, staged: Any, blocks: Any
) -> None:
    """Stage planes `first` to `last` of the depth: (channel, leading tap) pairs of the channels from `image` on."""
    shape, leads, phases, _ = blocks
    for number in range(first, last):
        channel, tap = number // leads.shape[1], number % leads.shape[1]
        plane = leads[lead, tap]
        if plane >= 0:
            plane += (image + channel) * shape[0]
        stage_plane(x, plane, top, left, staged, (number - first) * shape[15], shape, phases)
