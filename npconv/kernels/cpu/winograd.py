"""Winograd convolution of images and signals: transforms in registers around a tile product per point.

A task takes some tiles of outputs (of any images of the batch) and some or all output channels of a group. It
transforms the patches under them, one lane a tile, into panels; runs the register tiles for every point; and transforms
the sums back into the result. The patches are read where they lie; those that reach over an edge are copied first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.kernels.cpu.blocking import PANEL_BYTES, Tile
from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.microkernel import CHUNK, tile_product
from npconv.kernels.cpu.transforms import Rows, gatherer, row_width, scatterer
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

    @compiled
    def conv_winograd_loop(
        start: int, stop: int, x: Any, u: Any, bias: Any, y: Any, limits: Any, groups: int,
        shares: int, most_tiles: int, shape: Any, planes: Any,
    ) -> None:  # fmt: skip
        """``y = clamp(bias + x * w)`` with weights from `winograd_weights`.

        A task is (group, block of tiles, share): one of `shares` parts of the group's output channels. `shape` holds
        images, channels of a group, height and width, low paddings, and output height and width. A channel of the
        result has ``planes.shape[0]`` planes; under them lie those that `planes` says, of one channel
        ``planes.shape[1]``, or none (-1), for weights that follow each other.
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
        # A little apart, so that the same place at all points does not compete for the same lines of a cache.
        data_pitch = panels * depth * columns + 16
        sums_pitch = ((tiles + shares - 1) // shares) * rows * most_tiles + 16
        data = np.empty(points * data_pitch, x.dtype)
        if depth > used_depth:
            data[:] = 0  # what pads the depth
        sums = np.empty(points * sums_pitch, x.dtype)
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
        for lane in range(lanes):
            patch_offsets[lane] = lane // beside * points_h * pitch + lane % beside * read
            result_offsets[lane] = lane * out_h * written
        for task in range(start, stop):
            share, rest = task % shares, task // shares
            block, group = rest % blocks, rest // blocks
            count = min(most_tiles, total - block * most_tiles)
            used_vectors = (count + lanes - 1) // lanes
            for t in range(used_vectors * lanes):
                # Lanes that are too many repeat the last tile.
                number = block * most_tiles + min(t, count - 1)
                image, row, column = number // (tiles_h * tiles_w), number // tiles_w % tiles_h, number % tiles_w
                n, leading[t] = image // leads, image % leads
                tops[t], lefts[t] = row * out_h - low_h, column * out_w - low_w
                sources[t] = (n * groups * channels * held * height + tops[t]) * width + lefts[t]
                targets[t] = ((n * groups * outputs * leads + leading[t]) * result_h + row * out_h) * result_w
                targets[t] += column * out_w
            for v in range(used_vectors):
                panel, column = v * lanes // columns, v * lanes % columns
                for tap in range(stacked):
                    for lane in range(lanes):
                        t = v * lanes + lane
                        here = planes[leading[t], tap]
                        within = 0 <= tops[t] <= height - points_h and 0 <= lefts[t] <= width - read
                        inside[lane] = here >= 0 and within
                        ends[lane] = min(read, width - lefts[t]) if here >= 0 else 0
                        starts[lane] = sources[t] + max(here, 0) * height * width
                    for c in range(channels):
                        plane = address_of(x) + (group * channels + c) * held * height * width * size
                        target = address_of(data) + ((panel * depth + c * stacked + tap) * columns + column) * size
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
            for point in range(points):
                for above in range(0, max(depth, 1), most_depth):  # once without channels too: zeros are written
                    for o in range(first_tile * rows, min(last_tile * rows, outputs), rows):
                        weights = point * u.shape[1] + (group * tiles * rows + o) * depth + above * rows
                        place = point * sums_pitch + (o - first_tile * rows) * most_tiles
                        for panel in range((count + columns - 1) // columns):
                            product(
                                min(most_depth, depth - above), address_of(u) + weights * size, 0,
                                address_of(data) + (point * data_pitch + (panel * depth + above) * columns) * size, 0,
                                address_of(sums) + (place + panel * columns) * size, most_tiles,
                                min(rows, outputs - o), columns, address_of(none), above > 0, -np.inf, np.inf,
                            )  # fmt: skip
            for o in range(first_tile * rows, min(last_tile * rows, outputs)):
                channel = group * outputs + o
                plane = address_of(y) + channel * leads * result_h * result_w * size
                shift, bounds = address_of(bias) + channel * size, address_of(limits)
                for v in range(used_vectors):
                    whole = (v + 1) * lanes <= count
                    for t in range(v * lanes, (v + 1) * lanes):
                        whole = whole and tops[t] + low_h <= result_h - out_h and lefts[t] + low_w <= result_w - out_w
                    source = address_of(sums) + ((o - first_tile * rows) * most_tiles + v * lanes) * size
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
def winograd_weights(dtype: np.dtype[Any], rows: int, down: Rows, across: Rows) -> Callable[..., None]:
    """The driver that transforms weights for tiles of so many rows, one lane a channel; with the matrices G."""
    size, points = dtype.itemsize, len(down) * len(across)
    kernel_h, kernel_w = len(down[0]), len(across[0])
    read, taps = row_width(kernel_w), kernel_h * kernel_w
    gather, (move, clear, *_) = gatherer(size, CHUNK, down, across), copiers(size, 1)

    @compiled
    def winograd_weights_loop(
        start: int, stop: int, w: Any, u: Any, outputs: int, channels: int, row_step: int, lane_step: int
    ) -> None:
        """``u = G w G^T`` as chunks for the tiles, for `outputs` and `channels` of a group.

        Weights of neighbouring outputs are `row_step` elements apart, of neighbouring channels `lane_step`. `u` is
        ``(points, pitch)``; a point holds the groups' blocks of `rows` output channels, each in chunks of channels. A
        task is a block. What pads the channels is zero, what pads the last block stays as it was.
        """
        tiles, chunks = (outputs + rows - 1) // rows, (channels + CHUNK - 1) // CHUNK
        patches, scratch = np.zeros(CHUNK * kernel_h * read, w.dtype), np.empty(points * CHUNK, w.dtype)
        offsets, patch_offsets = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
        for lane in range(CHUNK):
            offsets[lane], patch_offsets[lane] = lane * lane_step, lane * kernel_h * read
        for task in range(start, stop):
            group, block = task // tiles, task % tiles
            # All rows of a chunk before the next one: together they fill the lines that each point begins anew.
            for chunk in range(chunks):
                for row in range(min(rows, outputs - block * rows)):
                    first = group * outputs * channels * taps + (block * rows + row) * row_step
                    first, lanes = first + chunk * CHUNK * lane_step, min(CHUNK, channels - chunk * CHUNK)
                    target = address_of(u) + ((task * chunks + chunk) * rows + row) * CHUNK * size
                    if lanes == CHUNK and first + (CHUNK - 1) * lane_step + taps + read - kernel_w <= w.size:
                        source = address_of(w) + first * size
                        gather(source, address_of(offsets), kernel_w, address_of(scratch), target, u.shape[1])
                        continue
                    # The last of the weights: a row that is read whole would end behind them.
                    for lane in range(CHUNK):
                        for tap in range(taps):
                            place = patch_offsets[lane] + tap // kernel_w * read + tap % kernel_w
                            patch = address_of(patches) + place * size
                            if lane < lanes:
                                move(patch, address_of(w) + (first + lane * lane_step + tap) * size)
                            else:
                                clear(patch)
                    gather(
                        address_of(patches), address_of(patch_offsets), read, address_of(scratch), target, u.shape[1]
                    )

    return winograd_weights_loop


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
