"""Winograd convolution of images and signals: transforms in registers around a tile product per point.

A task takes some tiles of outputs (of any images of the batch) and some or all output channels of a group. It
transforms the patches under them, one lane a tile, into panels; runs the register tiles for every point; and transforms
the sums back into the result. The rows of a channel that lie under the tiles are first copied side by side, with their
padding, which takes a few vectors a row and spares every patch the question where it lies.

Weights are transformed before, or on the way: then some of them at a time, into a buffer that stays in L2, and the
products that use them follow. What is multiplied is ordered by planes of an image that follow each other as channels
(taps of leading axes), then by its channels, so that planes of zeros can be left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from npconv.kernels.cpu.blocking import PANEL_BYTES, Tile
from npconv.kernels.cpu.compile import compiled, inner
from npconv.kernels.cpu.microkernel import CHUNK, tile_product
from npconv.kernels.cpu.staging import row_movers
from npconv.kernels.cpu.transforms import Rows, gatherer, kernel_transformer, row_width, scatterer
from npconv.kernels.cpu.vectors import address_of, copiers, elements
from npconv.kernels.cpu.workspace import on_lines


class Factors(NamedTuple):
    """The matrices of one axis as tuples of rows: A^T, G, B^T."""

    at: Rows
    g: Rows
    bt: Rows


@functools.lru_cache(maxsize=32)
def conv_winograd(dtype: np.dtype[Any], tile: Tile, down: Factors, across: Factors) -> Callable[..., None]:
    """The driver for float32 or float64, a tile, and the transforms of rows (`down`) and columns (`across`)."""
    size, lanes, columns, rows, kind = dtype.itemsize, tile.lanes, tile.columns, tile.rows, dtype.type
    points_h, points_w, out_h, out_w = len(down.bt), len(across.bt), len(down.at), len(across.at)
    points, read = points_h * points_w, row_width(points_w)
    most_depth = PANEL_BYTES // (columns * size) // CHUNK * CHUNK
    vectors, few = tile.vectors, Tile(rows, tile.vectors, min(lanes, CHUNK))
    product, dots = tile_product(size, tile, chunked=True), tile_product(size, few, chunked=True, dots=True)
    # What has one vector of tiles needs no more than that of a panel.
    thin_product = tile_product(size, replace(tile, vectors=1), chunked=True, pitch=columns)
    gather = gatherer(size, lanes, down.bt, across.bt, neighbours=points_w == 1)
    scatter = scatterer(size, lanes, down.at, across.at, neighbours=points_w == 1)
    _, copy_row, _ = row_movers(size, lanes)
    transform, kernels_size = weights_transform(dtype, rows, down, across)

    @compiled
    def conv_winograd_loop(
        start: int, stop: int, x: Any, u: Any, points_apart: int, layout: Any, bias: Any, y: Any, limits: Any,
        groups: int, shares: int, most_tiles: int, tail: int, some_rows: int, some_depth: int, shape: Any, planes: Any,
        spans: Any,
    ) -> None:  # fmt: skip
        """``y = clamp(bias + x * w)`` with weights from `winograd_weights`, or as they came where `points_apart` is 0.

        The latter have the `layout` of `weights_transform`, and are transformed for `some_rows` register tiles of
        outputs and `some_depth`, a multiple of CHUNK, at a time.

        A task is (group, block of tiles, share): one of `shares` parts of the group's output channels. The last block
        has `tail` tiles more, which fill no panel and are columns of dot products. `shape` holds
        images, channels of a group, height and width, low paddings, and output height and width. A channel of the
        result has ``planes.shape[0]`` planes; under them lie those that `planes` says, of one channel
        ``planes.shape[1]``, or none (-1), for weights that follow each other. Of the depth under such a plane only the
        chunks that `spans` says, ``(first, end)`` in multiples of CHUNK, hold anything but zeros; the deepest and 0
        where none do.
        """
        images, channels, height, width, low_h, low_w, result_h, result_w = shape
        leads, stacked = planes.shape
        held = x.size // max(images * groups * channels * height * width, 1)  # planes of a channel of the image
        outputs = y.size // (images * leads * groups * result_h * result_w)
        used_depth = channels * stacked
        depth = (used_depth + CHUNK - 1) // CHUNK * CHUNK
        tiles_h, tiles_w = (result_h + out_h - 1) // out_h, (result_w + out_w - 1) // out_w
        total = images * leads * tiles_h * tiles_w
        blocks, tiles = (total - tail + most_tiles - 1) // most_tiles, (outputs + rows - 1) // rows
        panels = most_tiles // columns
        room = most_tiles + (columns if tail > 0 else 0)
        if points_apart:
            some_rows, some_depth = (tiles + shares - 1) // shares, depth
        # A little apart, so that the same place at all points does not compete for the same lines of a cache.
        data_pitch = panels * depth * columns + 16
        sums_pitch = some_rows * rows * room + 16
        tail_pitch = tail * depth + 16
        made_pitch = some_rows * rows * some_depth + 16
        data, tail_data = on_lines(points * data_pitch, kind), on_lines(points * tail_pitch, kind)
        if depth > used_depth:
            data[:], tail_data[:] = 0, 0  # what pads the depth
        sums = on_lines(points * sums_pitch, kind)
        made = on_lines(0 if points_apart else points * made_pitch, kind)
        kernels, offsets = np.zeros(kernels_size, x.dtype), np.empty(2 * CHUNK, np.int64)
        # The image under the tiles, with its padding: rows of tiles side by side. Results that hang over an edge.
        most_rows = (room + tiles_w - 2) // tiles_w + 1
        pitch = room * out_w + most_rows * (read - out_w)
        staged = np.empty(points_h * pitch, x.dtype)
        row_sources, row_targets = np.empty(most_rows * points_h, np.int64), np.empty(most_rows * points_h, np.int64)
        row_counts = np.empty(most_rows * points_h, np.int64)
        ragged = points_w == 1 or result_h % out_h > 0 or result_w % out_w > 0
        joined = np.empty(out_h * room * out_w if ragged else 0, x.dtype)
        places, targets = np.empty(room, np.int64), np.empty(room, np.int64)
        firsts, ends = np.empty(panels + 1, np.int64), np.empty(panels + 1, np.int64)
        turned = on_lines(points * lanes, kind)
        scratch, none = on_lines(points * lanes, kind), np.zeros(rows, x.dtype)
        for task in range(start, stop):
            share, rest = task % shares, task // shares
            block, group = rest % blocks, rest // blocks
            begin = block * most_tiles
            few_tiles = tail if block == blocks - 1 else 0
            count = min(most_tiles, total - tail - begin) + few_tiles
            used_vectors, used_panels = (count + lanes - 1) // lanes, (count - few_tiles + columns - 1) // columns
            if few_tiles == 0 and used_vectors % vectors > 1:
                used_vectors = used_panels * vectors  # all of a panel takes part, but where it has one vector
            first_row, last_row = begin // tiles_w, (begin + count - 1) // tiles_w
            firsts[:], ends[:] = depth, 0
            for t in range(used_vectors * lanes):
                # Lanes that are too many repeat the last tile.
                number = begin + min(t, count - 1)
                row, column = number // tiles_w, number % tiles_w
                image, lead = row // tiles_h % images, row // tiles_h // images
                places[t] = (number - begin) * out_w + (row - first_row) * (read - out_w)
                targets[t] = (image * groups * outputs * leads + lead) * result_h + row % tiles_h * out_h
                targets[t] = (number - begin) * out_w if ragged else targets[t] * result_w + column * out_w
                panel = t // columns
                firsts[panel] = min(firsts[panel], spans[lead, 0])
                ends[panel] = max(ends[panel], spans[lead, 1])
            for tap in range(stacked):
                staged[:] = 0
                copies = 0
                for row in range(first_row, last_row + 1):
                    image, lead = row // tiles_h % images, row // tiles_h // images
                    first = max(begin, row * tiles_w)
                    # Columns of the image, beginning with the one under the first tile of the row.
                    left = first % tiles_w * out_w - low_w
                    wanted = (min(begin + count, (row + 1) * tiles_w) - first - 1) * out_w + points_w
                    there, beyond = max(0, left), min(width, left + wanted)
                    for i in range(points_h):
                        line = row % tiles_h * out_h - low_h + i
                        if planes[lead, tap] >= 0 and 0 <= line < height and there < beyond:
                            plane = image * groups * channels * held + planes[lead, tap]
                            row_sources[copies] = (plane * height + line) * width + there
                            row_targets[copies] = i * pitch + places[first - begin] + there - left
                            row_counts[copies] = beyond - there
                            copies += 1
                for c in range(channels):
                    plane = address_of(x) + (group * channels + c) * held * height * width * size
                    for n in range(copies):
                        copy_row(
                            address_of(staged) + row_targets[n] * size, plane + row_sources[n] * size, row_counts[n]
                        )
                    k = tap * channels + c
                    for v in range(used_vectors):
                        panel, column = v * lanes // columns, v * lanes % columns
                        if (tap + 1) * channels <= firsts[panel] or tap * channels >= ends[panel]:
                            continue
                        target, apart = address_of(data) + ((panel * depth + k) * columns + column) * size, data_pitch
                        if panel == used_panels:
                            target, apart = address_of(turned), lanes
                        gather(
                            address_of(staged), address_of(places) + v * lanes * 8, pitch, address_of(scratch), target,
                            apart,
                        )  # fmt: skip
                        if panel == used_panels:
                            for t in range(column, min(few_tiles, column + lanes)):
                                for point in range(points):
                                    value = turned[point * lanes + t - column]
                                    tail_data[point * tail_pitch + t * depth + k] = value
            first_tile, last_tile = tiles * share // shares, tiles * (share + 1) // shares
            for first in range(first_tile, last_tile, some_rows):
                last = min(first + some_rows, last_tile)
                for above in range(0, max(depth, 1), max(some_depth, 1)):  # once without channels: zeros are written
                    below = min(depth, above + some_depth)
                    if points_apart:
                        weights = address_of(u) + (group * tiles + first) * rows * depth * size
                        apart = points_apart
                    else:
                        weights, apart = address_of(made), made_pitch
                        for row in range(first, last):
                            transform(
                                u, group, row, above // CHUNK, below // CHUNK, layout,
                                weights + (row - first) * rows * (below - above) * size, apart, kernels, offsets,
                            )  # fmt: skip
                    for point in range(points):
                        for low in range(above, max(below, above + 1), most_depth):
                            for o in range(first * rows, min(last * rows, outputs), rows):
                                place = point * sums_pitch + (o - first * rows) * room
                                tile_weights = point * apart + (o - first * rows) * (below - above) - above * rows
                                for panel in range(used_panels):
                                    k, end = max(low, firsts[panel]), min(low + most_depth, below, ends[panel])
                                    # Zeros alone are written once, as the sum of nothing.
                                    if k >= end and (low > 0 or ends[panel] > 0):
                                        continue
                                    left = weights + (tile_weights + k * rows) * size
                                    right = (
                                        address_of(data) + (point * data_pitch + (panel * depth + k) * columns) * size
                                    )
                                    result = address_of(sums) + (place + panel * columns) * size
                                    adds = ends[panel] > 0 and k > firsts[panel]
                                    if count - panel * columns <= lanes:
                                        thin_product(
                                            max(end - k, 0), left, 0, right, 0, result, room, min(rows, outputs - o),
                                            lanes, address_of(none), adds, -np.inf, np.inf,
                                        )  # fmt: skip
                                    else:
                                        product(
                                            max(end - k, 0), left, 0, right, 0, result, room, min(rows, outputs - o),
                                            columns, address_of(none), adds, -np.inf, np.inf,
                                        )  # fmt: skip
                                if few_tiles == 0:
                                    continue
                                k, end = max(low, firsts[used_panels]), min(low + most_depth, below, ends[used_panels])
                                if k >= end and (low > 0 or ends[used_panels] > 0):
                                    continue
                                for t in range(0, few_tiles, vectors):
                                    dots(
                                        max(end - k, 0), weights + (tile_weights + k * rows) * size, 0,
                                        address_of(tail_data) + (point * tail_pitch + t * depth + k) * size, depth,
                                        address_of(sums) + (place + used_panels * columns + t) * size, room,
                                        min(rows, outputs - o), few_tiles - t, address_of(none),
                                        ends[used_panels] > 0 and k > firsts[used_panels], -np.inf, np.inf,
                                    )  # fmt: skip
                for o in range(first * rows, min(last * rows, outputs)):
                    channel = group * outputs + o
                    plane = address_of(y) + channel * leads * result_h * result_w * size
                    shift, bounds = address_of(bias) + channel * size, address_of(limits)
                    for point in range(points if few_tiles > 0 else 0):
                        # Lanes that are too many repeat the last tile here too.
                        place = point * sums_pitch + (o - first * rows) * room
                        sums[place + count : place + used_vectors * lanes] = sums[place + count - 1]
                    base, apart = (address_of(joined), room * out_w) if ragged else (plane, result_w)
                    for v in range(used_vectors):
                        source = address_of(sums) + ((o - first * rows) * room + v * lanes) * size
                        scatter(
                            source, sums_pitch, address_of(scratch), base, address_of(targets) + v * lanes * 8,
                            apart, shift, bounds,
                        )  # fmt: skip
                    if not ragged:
                        continue
                    for row in range(first_row, last_row + 1):
                        image, lead = row // tiles_h % images, row // tiles_h // images
                        begun, top = max(begin, row * tiles_w), row % tiles_h * out_h
                        left, end = begun % tiles_w * out_w, min(begin + count, (row + 1) * tiles_w) - row * tiles_w
                        place = (image * groups * outputs * leads + lead) * result_h + top
                        for i in range(min(out_h, result_h - top)):
                            copy_row(
                                plane + ((place + i) * result_w + left) * size,
                                address_of(joined) + (i * room + begun - begin) * out_w * size,
                                min(end * out_w, result_w) - left,
                            )  # fmt: skip

    return conv_winograd_loop


@functools.lru_cache(maxsize=32)
def winograd_weights(dtype: np.dtype[Any], rows: int, down: Factors, across: Factors) -> Callable[..., None]:
    """The driver that transforms all weights for register tiles of so many rows."""
    transform, kernels_size = weights_transform(dtype, rows, down, across)
    size = dtype.itemsize

    @compiled
    def winograd_weights_loop(start: int, stop: int, w: Any, u: Any, layout: Any) -> None:
        """``u = G w G^T``, ``(points, pitch)``: a point holds the groups' blocks of `rows` outputs, the tasks."""
        kernels, offsets = np.zeros(kernels_size, w.dtype), np.empty(2 * CHUNK, np.int64)
        tiles, chunks = (layout[0] + rows - 1) // rows, (layout[1] + CHUNK - 1) // CHUNK
        for task in range(start, stop):
            target = address_of(u) + task * chunks * rows * CHUNK * size
            transform(w, task // tiles, task % tiles, 0, chunks, layout, target, u.shape[1], kernels, offsets)

    return winograd_weights_loop


@functools.lru_cache(maxsize=32)
def weights_transform(
    dtype: np.dtype[Any], rows: int, down: Factors, across: Factors
) -> tuple[Callable[..., None], int]:
    """A function that transforms some weights for tiles of so many rows, and the numbers that it needs room for."""
    size, kind, points = dtype.itemsize, dtype.type, len(down.g) * len(across.g)
    kernel_h, kernel_w = len(down.g[0]), len(across.g[0])
    beyond, taps = row_width(kernel_w) - kernel_w, kernel_h * kernel_w
    transform = kernel_transformer(size, CHUNK, down.g, across.g)
    move, clear, *_ = copiers(size, 1)

    @inner
    def transform_weights(
        w: Any, group: int, block: int, first: int, last: int, layout: Any, target: int, pitch: int, kernels: Any,
        offsets: Any,
    ) -> None:  # fmt: skip
        """``u = G w G^T`` for a block of `rows` outputs of a group and the chunks [first, last), one lane a channel.

        `layout` holds outputs and depth of a group; channels, of which the depth is so many for each of some planes;
        distances in `w` of neighbouring groups, outputs, channels and planes, the place of the first plane; and whether
        the order of the taps of a kernel is the opposite one. A point of `u` lies `pitch` elements behind the one
        before. What pads the depth and the outputs is zero: the tiles multiply by it, and numbers that are nearly zero,
        as anything in memory may look, take a hundred times as long.
        """
        outputs, depth, channels, group_step, row_step, channel_step, plane_step, plane_first, is_turned = layout
        for lane in range(CHUNK):
            offsets[CHUNK + lane] = lane * taps
        for chunk in range(first, last):
            lanes, furthest = min(CHUNK, depth - chunk * CHUNK), 0
            plane, channel = chunk * CHUNK // channels, chunk * CHUNK % channels
            for lane in range(lanes):
                offsets[lane] = plane * plane_step + channel * channel_step
                furthest = max(furthest, offsets[lane])
                channel += 1
                if channel == channels:
                    plane, channel = plane + 1, 0
            # All rows of a chunk before the next one: together they fill the lines that each point begins anew.
            for row in range(rows):
                here = target + ((chunk - first) * rows + row) * CHUNK * size
                if block * rows + row >= outputs:
                    for point in range(points):
                        elements(here + point * pitch * size, CHUNK, kind)[:] = 0
                    continue
                begin = group * group_step + (block * rows + row) * row_step + plane_first
                source, places = address_of(w) + begin * size, address_of(offsets)
                if lanes < CHUNK or begin + furthest + taps + beyond > w.size:
                    # The last of the weights: a row that is read whole would end behind them.
                    for lane in range(CHUNK):
                        for tap in range(taps):
                            copy = address_of(kernels) + (lane * taps + tap) * size
                            if lane < lanes:
                                move(copy, source + (offsets[lane] + tap) * size)
                            else:
                                clear(copy)
                    source, places = address_of(kernels), address_of(offsets) + CHUNK * 8
                transform(source, places, here, pitch, is_turned)

    return transform_weights, CHUNK * taps + beyond


def weights_shape(groups: int, outputs: int, channels: int, points: int, rows: int) -> tuple[int, int]:
    """Shape of the transformed weights of `winograd_weights`, for `outputs` and `channels` of a group.

    The points lie a little further apart than their contents: at a multiple of 4 KiB they would compete for the same
    lines of a cache.
    """
    return points, groups * -(-outputs // rows) * rows * -(-channels // CHUNK) * CHUNK + 16
