"""A block of the image as the tiles want it: padding written down, strides undone, every tap at a fixed offset.

Staged planes are `blocking.Blocks`: for every phase (what a tap's position leaves modulo the stride) the rows and
columns of the padded input that belong to it. Output (i, j) of the block finds the element under a tap at
``i * staged_w + j`` behind the tap's own offset, so after staging every convolution has stride 1 and no edges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from npconv.kernels.cpu.compile import inner
from npconv.kernels.cpu.vectors import Vectors, copiers, number, on_addresses


def few_copiers(itemsize: int, lanes: int) -> tuple[Any, Any]:
    """``copy_few(target, source, count)``, and ``second_of_few`` of elements 0, 2, 4, ...: less than a whole vector.

    Two overlapping moves of the longest power of two that fits; where memory is stored through masks, some processors
    take as long as for a dozen plain ones.
    """

    def moves(vectors: Vectors, target: Any, source: Any, count: Any, step: int) -> None:
        builder, start, end = vectors.builder, vectors.pointer(source), vectors.pointer(target)

        def read(part: Vectors, first: Any) -> Any:
            low = part.load(start, first)
            if step == 1:
                return low
            # The second vector begins one element early, so that it ends with the last element wanted.
            high = part.load(start, builder.add(first, number(part.lanes - 1)))
            return part.shuffle(low, high, [2 * n if 2 * n < part.lanes else 2 * n + 1 for n in range(part.lanes)])

        def move(width: int) -> None:
            part = Vectors(builder, itemsize, width)
            with builder.if_else(builder.icmp_signed(">=", count, number(width))) as (enough, fewer):
                with enough:
                    last = builder.sub(count, number(width))
                    values = [read(part, number(0)), read(part, builder.mul(last, number(step)))]
                    part.store(values[0], end)
                    part.store(values[1], end, last)
                with fewer:
                    if width > 1:
                        move(width // 2)

        move(lanes // 2)

    def copy_few(vectors: Vectors, target: Any, source: Any, count: Any) -> None:
        moves(vectors, target, source, count, 1)

    def second_of_few(vectors: Vectors, target: Any, source: Any, count: Any) -> None:
        moves(vectors, target, source, count, 2)

    return on_addresses(copy_few, itemsize, lanes), on_addresses(second_of_few, itemsize, lanes)


@functools.lru_cache(maxsize=4)
def row_movers(size: int, lanes: int) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Functions that fill a row with zeros, copy one, and copy every `step`-th element of one; all on addresses.

    The last vector of a row overlaps the one before, so nothing outside the rows is touched.
    """
    copy, clear, every_second, _ = copiers(size, lanes)
    move, clear_one, _, _ = copiers(size, 1)

    copy_few, second_of_few = few_copiers(size, lanes)

    @inner
    def fill_row(target: Any, count: int) -> None:
        if count < lanes:
            for j in range(count):
                clear_one(target + j * size)
        else:
            for j in range(0, count - lanes, lanes):
                clear(target + j * size)
            clear(target + (count - lanes) * size)

    @inner
    def copy_row(target: Any, source: Any, count: int) -> None:
        if count < lanes:
            copy_few(target, source, count)
        else:
            for j in range(0, count - lanes, lanes):
                copy(target + j * size, source + j * size)
            copy(target + (count - lanes) * size, source + (count - lanes) * size)

    @inner
    def pick_row(target: Any, source: Any, count: int, step: int) -> None:
        if step == 1:
            copy_row(target, source, count)
        elif step == 2 and count < lanes:
            second_of_few(target, source, count)
        elif step == 2:
            for j in range(0, count - lanes, lanes):
                every_second(target + j * size, source + 2 * j * size)
            every_second(target + (count - lanes) * size, source + 2 * (count - lanes) * size)
        else:
            for j in range(count):
                move(target + j * size, source + step * j * size)

    return fill_row, copy_row, pick_row


@functools.lru_cache(maxsize=4)
def stager(size: int, lanes: int) -> Callable[..., None]:
    """The function that stages planes of elements of `size` bytes."""
    fill_row, _, pick_row = row_movers(size, lanes)

    @inner
    def stage_plane(x: Any, plane: int, top: int, left: int, target: Any, shape: Any, phases: Any, clear: bool) -> None:
        """Stage one plane of a block at address `target`.

        `x` is the image's address and `plane` the number of a plane in it, or -1 for one of zeros; (`top`, `left`) is
        the output at which the block begins.
        """
        height, width = shape[1], shape[2]
        stride_h, stride_w, low_h, low_w, rows, columns = (
            shape[9],
            shape[10],
            shape[11],
            shape[12],
            shape[13],
            shape[14],
        )
        for phase in range(phases.shape[0]):
            first_row = top * stride_h + phases[phase, 0] - low_h
            first_column = left * stride_w + phases[phase, 1] - low_w
            # Columns [begin, end) of the stage lie inside the image.
            begin = min(columns, max(0, (stride_w - 1 - first_column) // stride_w))
            end = max(begin, min(columns, (width - 1 - first_column) // stride_w + 1))
            for i in range(rows):
                row = first_row + i * stride_h
                inside = plane >= 0 and 0 <= row < height
                if plane < 0 or (clear and not (inside and end - begin == columns)):
                    fill_row(target, columns)
                if inside:
                    source = x + ((plane * height + row) * width + first_column + begin * stride_w) * size
                    pick_row(target + begin * size, source, end - begin, stride_w)
                target += columns * size

    @inner
    def stage_planes(
        x: Any, image: int, lead: int, first: int, last: int, top: int, left: int, staged: Any, blocks: Any, clear: bool
    ) -> None:
        """Stage planes `first` to `last` of the depth: (channel, leading tap) pairs of the channels from `image` on.

        Without `clear` the padding is left as it was: `staged` held the same block of other planes before.
        """
        shape, leads, phases, _ = blocks
        for place in range(first, last):
            channel, tap = place // leads.shape[1], place % leads.shape[1]
            plane = leads[lead, tap]
            if plane >= 0:
                plane += (image + channel) * shape[0]
            stage_plane(x, plane, top, left, staged + (place - first) * shape[15] * size, shape, phases, clear)

    return stage_planes


def first_copier(itemsize: int, lanes: int) -> Any:
    """``copy_first(target, source, count)``: a vector whose first `count` lanes are read and the others zeros."""

    def copy_first(vectors: Vectors, target: Any, source: Any, count: Any) -> None:
        vectors.store(vectors.load_masked(vectors.pointer(source), vectors.first_lanes(count)), vectors.pointer(target))

    return on_addresses(copy_first, itemsize, lanes)


@functools.lru_cache(maxsize=4)
def plane_copier(size: int, lanes: int) -> Callable[..., None]:
    """The function that stages planes as they lie, one phase of stride 1, where the padding is there already."""
    (copy, clear, *_), copy_first = copiers(size, lanes), first_copier(size, lanes)

    @inner
    def copy_planes(
        x: Any, image: int, lead: int, first: int, last: int, top: int, left: int, staged: Any, blocks: Any
    ) -> None:
        """Stage planes `first` to `last` of the depth: (channel, leading tap) pairs of the channels from `image` on.

        (`top`, `left`) is the place in the padded image at which the block begins. Behind a row up to a vector of zeros
        is written: before the next row is, in its padding, or behind the last plane.
        """
        shape, leads, _, _ = blocks
        planes, height, width, low_h, low_w = shape[0], shape[1], shape[2], shape[11], shape[12]
        rows, pitch, apart = shape[13], shape[14], shape[15]
        # Rows and columns of the stage that lie inside the image.
        first_row, last_row = min(rows, max(0, low_h - top)), max(0, min(rows, height + low_h - top))
        begin, end = min(pitch, max(0, low_w - left)), max(0, min(pitch, width + low_w - left))
        count, lines, step = end - begin, last_row - first_row, pitch
        if count == width == pitch:  # one line
            count, lines, step = count * lines, 1, 0
        whole = count // lanes * lanes
        corner = ((first_row + top - low_h) * width + begin + left - low_w) * size
        goal = staged + (first_row * pitch + begin) * size
        channel, tap = first // leads.shape[1], first % leads.shape[1]
        for _ in range(first, last):
            plane = leads[lead, tap]
            source, target = x + ((image + channel) * planes + plane) * height * width * size + corner, goal
            for _ in range(lines if plane >= 0 else 0):
                for j in range(0, whole, lanes):
                    copy(target + j * size, source + j * size)
                if whole < count:
                    copy_first(target + whole * size, source + whole * size, count - whole)
                source += width * size
                target += step * size
            if plane < 0:
                for j in range(0, apart, lanes):
                    clear(goal - (first_row * pitch + begin) * size + j * size)
            goal += apart * size
            tap += 1
            if tap == leads.shape[1]:
                channel, tap = channel + 1, 0

    return copy_planes
