"""Weight gradients of depthwise convolutions: dot products of two planes, straight from the caller's arrays.

A plane of the result's gradient meets a plane of the image under every tap. A vector of the gradient is multiplied with
the vectors of the image under some taps, each of which has a vector of sums in a register. As in `depthwise` nothing of
the padding is read: rows outside are a row of zeros, and of a vector over a border only the lanes inside are loaded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from npconv.geometry import Window
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import first_axes, last_axes, processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.correlation import totals
from npconv.kernels.cpu.depthwise import (
    Strip,
    Strips,
    border_masks,
    lanes_inside,
    loads_of,
    mask_table,
    read_vector,
    row_start,
    with_known_rows,
)
from npconv.kernels.cpu.vectors import (
    ADDRESS,
    GRID,
    TABLE,
    Vectors,
    address_of,
    counted_loop,
    number,
    number_of,
    on_addresses,
)
from npconv.kernels.cpu.workspace import on_lines
from npconv.leading import leading_planes

# Rows of the gradient that are in registers together: a vector of the image then serves several.
LINES = 4
# Rows of an image whose products are all written out, where a vector holds a row of the gradient: planes so small are
# many, and what comes before and after the products of one takes as long as they do.
MOST_WRITTEN_OUT = 16
# Bytes that both operands are fetched ahead: planes and parts of rows are too short to be foreseen.
AHEAD = 6 * 1024
# Vectors that are added one to the other before their sum is added to a total, which keeps rounding low, and rows that
# they come from, whose lines stay in L1.
MOST_IN_A_ROW, MOST_ROWS = 256, 32
# Bytes of the sums of a block of channels: half of L1.
SUMS_BYTES = 16 * 1024


def runner(
    window: Window, batch: int, channels: int, dtype: np.dtype[Any], limit: int | None
) -> Callable[[Any, Any, Any], None]:
    """``run(x, dy, dw)`` for arrays in C order: writes the gradient of so many channels, ``(channels, taps)``."""
    strip, tables = dots_for(window, dtype.itemsize)
    work = batch * channels * window.positions * window.taps
    bytes_of_a_channel = window.taps * strip.lanes * dtype.itemsize
    together = max(1, min(SUMS_BYTES // bytes_of_a_channel, -(-channels // 4)))
    tasks = -(-channels // together)
    call = threads.prepared(weight_grad_depthwise(dtype, strip), tasks, work, limit, stoppable=True)
    return lambda x, dy, dw: call(x, dy, dw, batch, channels, together, tables)


@functools.lru_cache(maxsize=1024)
def dots_for(window: Window, itemsize: int) -> tuple[Strip, Strips]:
    """What the instructions depend on, one vector of the result's gradient, and the tables of the driver.

    They are as in `depthwise.Strips`, but `shape` holds planes of an image's channel, height and width, height and
    width of the result, stride and low padding of rows, bytes of the masks of a vector, first and last of the
    vectors that reach over no border, and bytes of all masks.
    Masks leave out what lies behind a row's last output too; the last one is that of the gradient.
    """
    plane, leads = last_axes(window, 2), leading_planes(first_axes(window, 2))
    lanes, (height, width), (out_h, out_w) = processor().register_bytes // itemsize, plane.size, plane.out
    kernel, stride, dilation = ((pair[0], pair[1]) for pair in (plane.kernel, plane.stride, plane.dilation))
    strip = Strip(lanes, 1, 1, 1, kernel, stride, dilation, None)
    lefts = np.arange(0, out_w, lanes)
    columns = lefts * stride[1] - plane.padding[1][0]
    used = [lefts[:, None] + strip.outputs_of(load) < out_w for load in loads_of(strip)]
    own = lefts[:, None] + np.arange(lanes) < out_w
    masks = np.stack([*(lanes_inside(strip, columns, width) & np.stack(used, axis=1)).swapaxes(0, 1), own], axis=1)
    numbers, masks = border_masks(masks)
    if lefts.size == 1 and max(height, out_h) <= MOST_WRITTEN_OUT and (leads >= 0).all():
        strip = with_known_rows(strip._replace(rows=out_h), plane)
    whole = np.flatnonzero(numbers == 0)
    first, last = (whole[0], whole[-1] + 1) if whole.size else (lefts.size, lefts.size)
    shape = [
        math.prod(window.size[:-2]), height if width else 0, width, out_h, out_w, stride[0], plane.padding[0][0],
        (len(loads_of(strip)) + 1) * lanes * itemsize, first, last, masks.size * itemsize,
    ]  # fmt: skip
    tables = Strips(
        np.array(shape, np.int64), leads, np.stack([lefts, columns, numbers], axis=1),
        mask_table(masks, width, itemsize),
    )  # fmt: skip
    for table in tables:
        table.flags.writeable = False
    return strip, tables


def plane_dots(itemsize: int, strip: Strip, masked: bool) -> Any:
    """``dots(rows, parts, dy, pitch, x, row, column, height, width, zeros, masks, sums)``, for compiled code.

    Contract: `dy`, `x`, `zeros`, `masks` and `sums` are addresses. A gradient of `rows` rows, `pitch` apart, and
    `parts` vectors in a row begins at `dy`; the first tap of its first element lies at (`row`, `column`) of a plane of
    `height` rows of `width` at `x`. If `masked`, there is one vector in a row, and what its masks say is read; if not,
    everything. A strip that knows its rows (`Strip.inside`) has `rows` rows, whatever is said, and its plane is none of
    padding. `zeros` is a row of zeros. To vector t at `sums` is added the sum for tap t; its lanes are in the order of
    `vectors.halves` at a step of 2.
    """
    size, loads = strip.lanes, loads_of(strip)
    columns = list(dict.fromkeys(column for _, column in strip.places))
    together = max(1, processor().sums // strip.kernel[0])
    groups = [columns[first : first + together] for first in range(0, len(columns), together)]

    def dots(
        vectors: Vectors, rows: Any, parts: Any, dy: Any, pitch: Any, x: Any, row: Any, column: Any, height: Any,
        width: Any, zeros: Any, masks: Any, sums: Any,
    ) -> None:  # fmt: skip
        builder = vectors.builder
        gradient, result = vectors.pointer(dy), vectors.pointer(sums)
        inside = [vectors.load_mask(masks, n) if masked else None for n in range(len(loads) + 1)]

        def row_of(line: Any, below: int) -> Any:
            place = builder.add(row, builder.add(builder.mul(line, number(strip.stride[0])), number(below)))
            if strip.inside is not None:
                start = builder.mul(builder.mul(place, width), number(itemsize))
                return vectors.pointer(builder.add(x, start))
            return row_start(vectors, x, place, height, width, zeros)

        def read(start: Any, first: Any, load: tuple[int, int]) -> Any:
            return read_vector(vectors, strip.step, start, first, load, inside[loads.index(load)], width)

        def read_own(position: Any) -> Any:
            if masked:
                return vectors.load_masked(gradient, inside[-1], position)
            return vectors.load(gradient, position)

        def fetch_ahead(start: Any, place: Any) -> None:
            vectors.prefetch(builder.gep(start, [builder.add(place, number(AHEAD // itemsize))]))

        def lines(count: int, taps: list[tuple[int, tuple[int, int]]], first_line: Any) -> Callable[..., list[Any]]:
            """The body of a loop over `count` rows of the gradient at a time."""

            def body(index: Any, carried: list[Any]) -> list[Any]:
                line = builder.add(first_line, builder.mul(index, number(count)))
                rows_under = [[i * strip.stride[0] + down for i in range(count)] for _, (down, _) in taps]
                starts = {r: row_of(line, r) for r in sorted(set().union(*rows_under)) if strip.may_exist(r)}

                def vector(part: Any, carried: list[Any]) -> list[Any]:
                    first = builder.add(column, builder.mul(part, number(size * strip.stride[1])))
                    factors: dict[int, Any] = {}

                    def factor(i: int) -> Any:
                        """The vector of the gradient's row, loaded when first it is asked for."""
                        if i in factors:
                            return factors[i]
                        position = builder.mul(builder.add(line, number(i)), pitch)
                        position = builder.add(position, builder.mul(part, number(size)))
                        if ahead:
                            fetch_ahead(gradient, position)
                        value = read_own(position)
                        factors[i] = vectors.out_of_order(value) if strip.step == 2 else value
                        return factors[i]

                    after = list(carried)
                    # Once, with the first of the taps; rows that serve other lines too are fetched for the first.
                    ahead = range(count * strip.stride[0]) if taps[0][0] == 0 else ()
                    for r in (r for r in ahead if r in starts):
                        fetch_ahead(starts[r], first)
                    for r, start in starts.items():
                        held: dict[tuple[int, int], Any] = {}
                        for n, (_, (_, left)) in enumerate(taps):
                            if r not in rows_under[n]:
                                continue
                            needed = strip.loads(left)
                            for load in needed:
                                if load not in held:
                                    held[load] = read(start, first, load)
                            pieces = [held[load] for load in needed]
                            image = pieces[0] if len(pieces) == 1 else vectors.half(pieces[0], pieces[1], left % 2)
                            after[n] = vectors.multiply_add(factor(rows_under[n].index(r)), image, after[n])
                    return after

                return counted_loop(builder, number(1) if masked else parts, carried, vector)

            return body

        many, rest = builder.sdiv(rows, number(LINES)), builder.srem(rows, number(LINES))
        for group in groups:
            taps = [(tap, place) for tap, place in enumerate(strip.places) if place[1] in group]
            found = [vectors.zeros] * len(taps)
            if strip.inside is not None:
                found = lines(strip.rows, taps, number(0))(number(0), found)
            else:
                found = counted_loop(builder, many, found, lines(LINES, taps, number(0)))
                found = counted_loop(builder, rest, found, lines(1, taps, builder.mul(many, number(LINES))))
            for (tap, _), value in zip(taps, found, strict=True):
                vectors.store(builder.fadd(vectors.load(result, tap * size), value), result, tap * size)

    return on_addresses(dots, itemsize, strip.lanes)


@functools.lru_cache(maxsize=64)
def weight_grad_depthwise(dtype: np.dtype[Any], strip: Strip) -> Callable[..., None]:
    """The driver for float32 or float64 and the kernel, stride and dilation of `strip`."""
    size, lanes, taps, kind = dtype.itemsize, strip.lanes, strip.taps, dtype.type
    whole, over_a_border = (plane_dots(size, strip, masked) for masked in (False, True))
    total_of = totals(size, lanes)
    tuple_of: Any = types.Tuple

    @entry(
        types.int64, types.int64, *[ADDRESS] * 3, *[types.int64] * 3, tuple_of((TABLE, GRID, GRID, TABLE)), TABLE
    )  # fmt: skip
    def weight_grad_depthwise_loop(
        start: int, stop: int, x: Any, dy: Any, dw: Any, batch: int, channels: int, together: int, tables: Any,
        stopped: Any,
    ) -> None:  # fmt: skip
        """``dw``, ``(channels, leading taps * taps)``, for the addresses of an image, a gradient and a result.

        A task is a block of so many channels together, which are gone through image by image: so what is read lies side
        by side, where the planes of one channel lie far apart.
        """
        x, dy, dw = number_of(x), number_of(dy), number_of(dw)
        shape, leads, columns, masks = tables
        image_planes, height, width, out_h, out_w = shape[0], shape[1], shape[2], shape[3], shape[4]
        stride_h, low_h, mask_bytes, first_whole, last_whole = shape[5], shape[6], shape[7], shape[8], shape[9]
        positions, plane_bytes = leads.shape[0] * out_h * out_w, height * width * size
        zeros = address_of(masks) + shape[10]
        of_a_channel = leads.shape[1] * taps
        sums = on_lines(together * of_a_channel * lanes, kind)
        most_parts = min(MOST_IN_A_ROW, last_whole - first_whole)
        most_rows = min(MOST_ROWS, MOST_IN_A_ROW // max(1, most_parts))
        for block in range(start, stop):
            first, count = block * together, min(together, channels - block * together)
            sums[:] = 0
            n, channel = 0, -1
            for _ in range(batch * count):
                channel += 1
                if channel == count:
                    n, channel = n + 1, 0
                sums_of_channel = address_of(sums) + channel * of_a_channel * lanes * size
                image = x + (n * channels + first + channel) * image_planes * plane_bytes
                gradient = dy + (n * channels + first + channel) * positions * size
                for lead in range(leads.shape[0]):
                    for tap in range(leads.shape[1]):
                        plane, sums_of_tap = leads[lead, tap], sums_of_channel + tap * taps * lanes * size
                        # A plane in the padding is one without rows.
                        rows_of_plane = height if plane >= 0 else 0
                        for top in range(0, out_h, most_rows):
                            if stopped[0] != 0:
                                return
                            rows, row = min(most_rows, out_h - top), top * stride_h - low_h
                            line = gradient + (lead * out_h + top) * out_w * size
                            part = 0
                            while part < columns.shape[0]:
                                if first_whole <= part < last_whole:
                                    parts = min(most_parts, last_whole - part)
                                    whole(
                                        rows, parts, line + columns[part, 0] * size, out_w,
                                        image + plane * plane_bytes, row, columns[part, 1], rows_of_plane, width,
                                        zeros, 0, sums_of_tap,
                                    )  # fmt: skip
                                    part += parts
                                else:
                                    over_a_border(
                                        rows, 1, line + columns[part, 0] * size, out_w,
                                        image + plane * plane_bytes, row, columns[part, 1], rows_of_plane, width,
                                        zeros, address_of(masks) + (columns[part, 2] - 1) * mask_bytes, sums_of_tap,
                                    )  # fmt: skip
                                    part += 1
            for k in range(count * of_a_channel):
                total_of(dw + (first * of_a_channel + k) * size, address_of(sums) + k * lanes * size)

    return weight_grad_depthwise_loop
