"""Winograd convolution of images and signals: transforms in registers around a tile product per point.

A task takes some tiles of outputs (of any images of the batch) and some or all output channels of a group. It
transforms the patches under them, one lane a tile, into panels; runs the register tiles for every point; and transforms
the sums back into the result. The patches are read where they lie; those that reach over an edge are copied first.

Weights are transformed before, or on the way: then some of them at a time, into a buffer that stays in L2, and the
products that use them follow. What is multiplied is ordered by planes of an image that follow each other as channels
(taps of leading axes), then by its channels, so that planes of zeros can be left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.kernels.cpu.blocking import PANEL_BYTES, Tile
from npconv.kernels.cpu.compile import compiled, inner
from npconv.kernels.cpu.microkernel import CHUNK, tile_product
from npconv.kernels.cpu.transforms import Rows, gatherer, kernel_transformer, row_width, scatterer
from npconv.kernels.cpu.vectors import Vectors, address_of, copiers, on_addresses


class Factors(NamedTuple):
    """The matrices of one axis as tuples of rows: A^T, G, B^T."""

    at: Rows
    g: Rows
    bt: Rows


@functools.lru_cache(maxsize=32)
def conv_winograd(dtype: np.dtype[Any], tile: Tile, down: Factors, across: Factors) -> Callable[..., None]:
    """The driver for float32 or float64, a tile, and the transforms of rows (`down`) and columns (`across`)."""
    size, lanes, columns, rows = dtype.itemsize, tile.lanes, tile.columns, tile.rows
    points_h, points_w, out_h, out_w = len(down.bt), len(across.bt), len(down.at), len(across.at)
    points, read, written = points_h * points_w, row_width(points_w), row_width(out_w)
    most_depth = PANEL_BYTES // (columns * size) // CHUNK * CHUNK
    product = tile_product(size, tile, chunked=True)
    gather = gatherer(size, lanes, down.bt, across.bt)
    scatter = scatterer(size, lanes, down.at, across.at)
    window, (move, *_) = windower(size, read), copiers(size, 1)
    transform, kernels_size = weights_transform(dtype, rows, down, across)

    @compiled
    def conv_winograd_loop(
        start: int, stop: int, x: Any, u: Any, points_apart: int, layout: Any, bias: Any, y: Any, limits: Any,
        groups: int, shares: int, most_tiles: int, some_rows: int, some_depth: int, shape: Any, planes: Any, spans: Any,
    ) -> None:  # fmt: skip
        """``y = clamp(bias + x * w)`` with weights from `winograd_weights`, or as they came where `points_apart` is 0.

        The latter have the `layout` of `weights_transform`, and are transformed for `some_rows` register tiles of
        outputs and `some_depth`, a multiple of CHUNK, at a time.

        A task is (group, block of tiles, share): one of `shares` parts of the group's output channels. `shape` holds
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
        blocks, tiles = (total + most_tiles - 1) // most_tiles, (outputs + rows - 1) // rows
        panels = most_tiles // columns
        if points_apart:
            some_rows, some_depth = (tiles + shares - 1) // shares, depth
        # A little apart, so that the same place at all points does not compete for the same lines of a cache.
        data_pitch = panels * depth * columns + 16
        sums_pitch = some_rows * rows * most_tiles + 16
        made_pitch = some_rows * rows * some_depth + 16
        data = np.empty(points * data_pitch, x.dtype)
        if depth > used_depth:
            data[:] = 0  # what pads the depth
        sums = np.empty(points * sums_pitch, x.dtype)
        made = np.empty(0 if points_apart else points * made_pitch, x.dtype)
        kernels, offsets = np.zeros(kernels_size, x.dtype), np.empty(2 * CHUNK, np.int64)
        # Patches over an edge are copied to rows as far apart as those of the image, so that one vector may hold both
        # kinds; where the image has rows shorter than a patch, all of them are copied.
        pitch = max(width, read)
        beside = pitch // read
        patches = np.zeros(max((lanes + beside - 1) // beside * points_h * pitch, lanes * out_h * written), x.dtype)
        inside, places = np.empty(lanes, np.bool_), np.empty(lanes, np.int64)
        scratch = np.empty(points * lanes, x.dtype)
        none = np.zeros(rows, x.dtype)
        sources, targets = np.empty(most_tiles, np.int64), np.empty(most_tiles, np.int64)
        tops, lefts = np.empty(most_tiles, np.int64), np.empty(most_tiles, np.int64)
        leading, ends, starts = np.empty(most_tiles, np.int64), np.empty(lanes, np.int64), np.empty(lanes, np.int64)
        patch_offsets, result_offsets = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
        firsts, ends_of = np.empty(panels, np.int64), np.empty(panels, np.int64)
        for lane in range(lanes):
            patch_offsets[lane] = lane // beside * points_h * pitch + lane % beside * read
            result_offsets[lane] = lane * out_h * written
        for task in range(start, stop):
            share, rest = task % shares, task // shares
            block, group = rest % blocks, rest // blocks
            count = min(most_tiles, total - block * most_tiles)
            used_vectors, used_panels = (count + lanes - 1) // lanes, (count + columns - 1) // columns
            firsts[:], ends_of[:] = depth, 0
            for t in range(used_vectors * lanes):
                # Lanes that are too many repeat the last tile.
                number = block * most_tiles + min(t, count - 1)
                image, row, column = number // (tiles_h * tiles_w), number // tiles_w % tiles_h, number % tiles_w
                n, leading[t] = image % images, image // images
                tops[t], lefts[t] = row * out_h - low_h, column * out_w - low_w
                sources[t] = (n * groups * channels * held * height + tops[t]) * width + lefts[t]
                targets[t] = ((n * groups * outputs * leads + leading[t]) * result_h + row * out_h) * result_w
                targets[t] += column * out_w
                panel = t // columns
                firsts[panel] = min(firsts[panel], spans[leading[t], 0])
                ends_of[panel] = max(ends_of[panel], spans[leading[t], 1])
            for v in range(used_vectors):
                panel, column = v * lanes // columns, v * lanes % columns
                for tap in range(stacked):
                    if (tap + 1) * channels <= firsts[panel] or tap * channels >= ends_of[panel]:
                        continue
                    for lane in range(lanes):
                        t = v * lanes + lane
                        here = planes[leading[t], tap]
                        within = 0 <= tops[t] <= height - points_h and 0 <= lefts[t] <= width - read
                        inside[lane] = here >= 0 and within
                        ends[lane] = min(read, width - lefts[t]) if here >= 0 else 0
                        starts[lane] = sources[t] + max(here, 0) * height * width
                    for c in range(channels):
                        plane = address_of(x) + (group * channels + c) * held * height * width * size
                        target = address_of(data) + ((panel * depth + tap * channels + c) * columns + column) * size
                        for lane in range(lanes):
                            if inside[lane]:
                                places[lane] = starts[lane]
                                continue
                            t = v * lanes + lane
                            patch = address_of(patches) + patch_offsets[lane] * size
                            for i in range(points_h):
                                window(
                                    patch + i * pitch * size, plane + (starts[lane] + i * width) * size,
                                    max(0, -lefts[t]), ends[lane] if 0 <= tops[t] + i < height else 0,
                                )  # fmt: skip
                            places[lane] = (patch - plane) // size
                        gather(plane, address_of(places), pitch, address_of(scratch), target, data_pitch)
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
                                place = point * sums_pitch + (o - first * rows) * most_tiles
                                tile_weights = point * apart + (o - first * rows) * (below - above) - above * rows
                                for panel in range(used_panels):
                                    k, end = max(low, firsts[panel]), min(low + most_depth, below, ends_of[panel])
                                    # Zeros alone are written once, as the sum of nothing.
                                    if k >= end and (low > 0 or ends_of[panel] > 0):
                                        continue
                                    product(
                                        max(end - k, 0), weights + (tile_weights + k * rows) * size, 0,
                                        address_of(data) + (point * data_pitch + (panel * depth + k) * columns) * size,
                                        0, address_of(sums) + (place + panel * columns) * size, most_tiles,
                                        min(rows, outputs - o), columns, address_of(none),
                                        ends_of[panel] > 0 and k > firsts[panel], -np.inf, np.inf,
                                    )  # fmt: skip
                for o in range(first * rows, min(last * rows, outputs)):
                    channel = group * outputs + o
                    plane = address_of(y) + channel * leads * result_h * result_w * size
                    shift, bounds = address_of(bias) + channel * size, address_of(limits)
                    for v in range(used_vectors):
                        whole = (v + 1) * lanes <= count
                        for t in range(v * lanes, (v + 1) * lanes):
                            whole = (
                                whole and tops[t] + low_h <= result_h - out_h and lefts[t] + low_w <= result_w - out_w
                            )
                        source = address_of(sums) + ((o - first * rows) * most_tiles + v * lanes) * size
                        if whole:
                            scatter(
                                source, sums_pitch, address_of(scratch), plane, address_of(targets) + v * lanes * 8,
                                result_w, shift, bounds,
                            )  # fmt: skip
                            continue
                        scatter(
                            source, sums_pitch, address_of(scratch), address_of(patches), address_of(result_offsets),
                            written, shift, bounds,
                        )  # fmt: skip
                        for t in range(v * lanes, min(count, (v + 1) * lanes)):
                            for i in range(min(out_h, result_h - low_h - tops[t])):
                                patch = (t - v * lanes) * out_h * written + i * written
                                for j in range(min(out_w, result_w - low_w - lefts[t])):
                                    move(
                                        plane + (targets[t] + i * result_w + j) * size,
                                        address_of(patches) + (patch + j) * size,
                                    )

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
    size = dtype.itemsize
    kernel_h, kernel_w = len(down.g[0]), len(across.g[0])
    beyond, taps = row_width(kernel_w) - kernel_w, kernel_h * kernel_w
    straight = kernel_transformer(size, CHUNK, down.g, across.g)
    reverse = kernel_transformer(size, CHUNK, *(tuple(row[::-1] for row in f.g) for f in (down, across)))
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
        before. What pads the depth is zero, what pads the outputs stays as it was.
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
            for row in range(min(rows, outputs - block * rows)):
                begin = group * group_step + (block * rows + row) * row_step + plane_first
                here = target + ((chunk - first) * rows + row) * CHUNK * size
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
                if is_turned:
                    reverse(source, places, here, pitch)
                else:
                    straight(source, places, here, pitch)

    return transform_weights, CHUNK * taps + beyond


def weights_shape(groups: int, outputs: int, channels: int, points: int, rows: int) -> tuple[int, int]:
    """Shape of the transformed weights of `winograd_weights`, for `outputs` and `channels` of a group.

    The points lie a little further apart than their contents: at a multiple of 4 KiB they would compete for the same
    lines of a cache.
    """
    return points, groups * -(-outputs // rows) * rows * -(-channels // CHUNK) * CHUNK + 16


def windower(itemsize: int, lanes: int) -> Any:
    """``window(target, source, begin, end)``: lanes [begin, end) from `source`, zeros in the others; reads no more."""

    def window(vectors: Vectors, target: Any, source: Any, begin: Any, end: Any) -> None:
        builder = vectors.builder
        mask = builder.and_(vectors.first_lanes(end), builder.not_(vectors.first_lanes(begin)))
        vectors.store(vectors.load_masked(vectors.pointer(source), mask), vectors.pointer(target))

    return on_addresses(window, itemsize, lanes)
