"""Winograd's weight gradient: both operands transformed, a product over tiles at every point, and the way back.

Under F(m, r) the gradient of r weights is ``G^T [sum over tiles of (A dy) * (B^T x)]``: what a tile of m outputs adds
to it takes n = m + r - 1 products instead of m r. A task owns a part of the gradient, some output channels by some
planes, and works through all tiles in one order, some at a time. It transforms the patches of its planes into panels, a
lane a plane, and those of the result's gradient into chunks, a lane a tile, as the register tile wants them; adds their
product to the sums of every point; and in the end transforms the sums back. Tasks divide the gradient, never a sum, so
no bit depends on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.config import get_num_threads
from npconv.geometry import ConvSpec
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import Tile, evenly, last_axes
from npconv.kernels.cpu.compile import compiled, inner
from npconv.kernels.cpu.microkernel import CHUNK, tile_product
from npconv.kernels.cpu.operands import read_only
from npconv.kernels.cpu.transforms import Rows, gatherer, row_width, scatterer
from npconv.kernels.cpu.vectors import INT64, Vectors, address_of, number, on_addresses
from npconv.kernels.cpu.winograd import Factors
from npconv.kernels.cpu.winograd_driver import _factors, winograd_tile
from npconv.kernels.cpu.workspace import on_lines

# Output channels and planes of a task: so many that transforming a tile costs little beside its products.
MOST_CHANNELS = 256
# Tiles that are transformed at once: enough products to be worth reading the sums.
MOST_TILES = 128
# Where all tiles are transformed at once, sums are made and transformed back in parts that stay in L2: so many bytes,
# and planes.
SUMS_BYTES, SUMS_PLANES = 256 * 1024, 64
# Bytes before they are needed that lines of the operands are fetched: as many of the next tiles.
AHEAD = 128


class Parts(NamedTuple):
    """How much of the gradient a task owns, how much of that it sums at once, and how many tiles it transforms."""

    outputs: int
    planes: int
    some_outputs: int
    some_planes: int
    tiles: int


def winograd_weight_grad(spec: ConvSpec, transforms: tuple[Any, ...], planes: Any, x: Any, dy: Any, dw: Any) -> None:
    """Write the weight gradient of a convolution over one or two axes; operands as `winograd_runner` has them."""
    if spec.batch * spec.parameters * spec.window.positions == 0:
        dw[...] = 0
        return
    outputs, depth = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    (down, across), tile, window = (
        _factors(transforms),
        winograd_tile(x.dtype, outputs, depth),
        last_axes(spec.window, 2),
    )
    tiles = spec.batch * -(-window.out[0] // len(down.at)) * -(-window.out[1] // len(across.at))
    points = len(down.bt) * len(across.bt)
    parts = parts_for(outputs, depth, tiles, points * x.dtype.itemsize, tile, -(-get_num_threads() // spec.groups))
    shape = (
        spec.batch // len(planes),
        outputs,
        depth // planes.shape[1],
        *window.size,
        *(low for low, _ in window.padding),
    )
    threads.run(
        conv_winograd_grad(x.dtype, tile, down, across),
        spec.groups * -(-outputs // parts.outputs) * -(-depth // parts.planes), spec.macs,
        read_only(x.reshape(-1)), read_only(dy.reshape(-1)), dw.reshape(-1), spec.groups, *parts,
        read_only(np.array([*shape, *window.out], np.int64)), planes, stoppable=True,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def parts_for(outputs: int, depth: int, tiles: int, point_bytes: int, tile: Tile, tasks: int) -> Parts:
    """Divide a group's gradient, into so many tasks if possible. They do not change which tiles are summed at once."""
    blocks, panels = -(-outputs // tile.rows), -(-depth // tile.columns)
    some_blocks, some_panels = evenly(blocks, MOST_CHANNELS // tile.rows), evenly(panels, MOST_CHANNELS // tile.columns)
    while -(-blocks // some_blocks) * -(-panels // some_panels) < tasks:
        # A plane's patches take longer to transform than those of the result: rather transform the latter twice.
        if some_panels > 1:
            some_panels = -(-some_panels // 2)
        elif some_blocks > 1:
            some_blocks = -(-some_blocks // 2)
        else:
            break
    part_outputs, part_planes = some_blocks * tile.rows, some_panels * tile.columns
    at_once = -(-evenly(tiles, MOST_TILES) // CHUNK) * CHUNK
    if tiles > at_once:
        return Parts(part_outputs, part_planes, part_outputs, part_planes, at_once)
    planes = min(part_planes, max(tile.columns, SUMS_PLANES // tile.columns * tile.columns))
    rows = max(1, SUMS_BYTES // (point_bytes * planes) // tile.rows) * tile.rows
    return Parts(part_outputs, part_planes, min(part_outputs, rows), planes, at_once)


@functools.lru_cache(maxsize=32)
def conv_winograd_grad(dtype: np.dtype[Any], tile: Tile, down: Factors, across: Factors) -> Callable[..., None]:
    """The driver for float32 or float64, a tile, and the transforms of rows (`down`) and columns (`across`)."""
    size, lanes, columns, rows, kind = dtype.itemsize, tile.lanes, tile.columns, tile.rows, dtype.type
    points_h, points_w, out_h, out_w = len(down.bt), len(across.bt), len(down.at), len(across.at)
    points, taps_h, taps_w = points_h * points_w, len(down.g[0]), len(across.g[0])
    product = tile_product(size, tile, chunked=True)
    gather_image, room_image = patch_gatherer(size, lanes, down.bt, across.bt, 1)
    gather_result, room_result = patch_gatherer(size, CHUNK, turned(down.at), turned(across.at), CHUNK // 2)
    scatter = scatterer(size, lanes, turned(down.g), turned(across.g))

    @compiled
    def conv_winograd_grad_loop(
        start: int, stop: int, x: Any, dy: Any, dw: Any, groups: int, part_outputs: int, part_planes: int,
        some_outputs: int, some_planes: int, most_tiles: int, shape: Any, planes: Any, stopped: Any,
    ) -> None:  # fmt: skip
        """``dw``, ``(groups * outputs, depth, taps)``, for flat arrays. A task is (group, part of outputs, of planes).

        `shape` holds images, outputs and channels of a group, height and width, low paddings, and output height and
        width. `planes` says which plane of an image's channel lies under every plane of the result, for each of what
        follow each other as channels; -1 is a plane of zeros. What a task owns, and what of it is summed at once, are
        whole register tiles, `most_tiles` whole chunks. Where not all tiles fit these, all of a part is summed at once.
        """
        images, outputs, channels, height, width, low_h, low_w, result_h, result_w = shape
        leads, stacked = planes.shape
        held = x.size // max(images * groups * channels * height * width, 1)  # planes of a channel of the image
        depth = channels * stacked
        tiles_h, tiles_w = (result_h + out_h - 1) // out_h, (result_w + out_w - 1) // out_w
        total = images * leads * tiles_h * tiles_w
        parts_d, parts_o = (depth + part_planes - 1) // part_planes, (outputs + part_outputs - 1) // part_outputs
        # A little apart, so that the same place at all points does not compete for the same lines of a cache.
        data_pitch, results_pitch = most_tiles * part_planes + 16, most_tiles * part_outputs + 16
        sums_pitch = some_outputs * some_planes + 16
        data, results = on_lines(points * data_pitch, kind), on_lines(points * results_pitch, kind)
        sums = on_lines(points * sums_pitch, kind)
        patches = np.empty(max(room_image(width), room_result(result_w)), x.dtype)
        scratch = on_lines(points * max(lanes, CHUNK), kind)
        # Of every tile: its place, the result's plane, its first element in an image and in the result's gradient.
        tops, lefts, leading = (
            np.empty(most_tiles, np.int64),
            np.empty(most_tiles, np.int64),
            np.empty(most_tiles, np.int64),
        )
        sources, targets = np.empty(most_tiles, np.int64), np.empty(most_tiles, np.int64)
        # Of every lane.
        most = max(columns, CHUNK)
        begins, aboves, befores = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
        firsts, taps = np.empty(columns, np.int64), np.empty(columns, np.int64)
        places = np.empty(most, np.int64)
        none, limits = np.zeros(rows, x.dtype), np.array([-np.inf, np.inf], x.dtype)
        for task in range(start, stop):
            part_d, rest = task % parts_d, task // parts_d
            part_o, group = rest % parts_o, rest // parts_o
            first_d, used_d = part_d * part_planes, min(part_planes, depth - part_d * part_planes)
            first_o, used_o = (
                group * outputs + part_o * part_outputs,
                min(part_outputs, outputs - part_o * part_outputs),
            )
            image = address_of(x) + group * channels * held * height * width * size
            gradient = address_of(dy) + first_o * leads * result_h * result_w * size
            weights = address_of(dw) + first_o * depth * taps_h * taps_w * size
            for first in range(0, total, most_tiles):
                if stopped[0] != 0:
                    return
                count = min(most_tiles, total - first)
                padded = (count + CHUNK - 1) // CHUNK * CHUNK
                for t in range(padded):
                    # Tiles too many repeat the last one, and meet zeros in the result's gradient.
                    number = first + min(t, count - 1)
                    plane, row, column = number // (tiles_h * tiles_w), number // tiles_w % tiles_h, number % tiles_w
                    n, leading[t] = plane % images, plane // images
                    tops[t], lefts[t] = row * out_h, column * out_w
                    sources[t] = n * groups * channels * held * height * width
                    sources[t] += (tops[t] - low_h) * width + lefts[t] - low_w
                    targets[t] = ((n * groups * outputs * leads + leading[t]) * result_h + tops[t]) * result_w + lefts[
                        t
                    ]
                for d in range(0, used_d, columns):
                    for lane in range(columns):
                        # Lanes too many repeat the last plane.
                        number = first_d + min(d + lane, used_d - 1)
                        firsts[lane], taps[lane] = number // stacked * held, number % stacked
                    for t in range(padded):
                        for lane in range(columns):
                            plane = planes[leading[t], taps[lane]]
                            begins[lane] = sources[t] + (firsts[lane] + max(plane, 0)) * height * width
                            aboves[lane] = tops[t] - low_h if plane >= 0 else height
                            befores[lane] = lefts[t] - low_w
                        for lane in range(0, columns, lanes):
                            gather_image(
                                image, begins, aboves, befores, lane, height, width, patches, places,
                                address_of(scratch), address_of(data) + (d * padded + t * columns + lane) * size,
                                data_pitch,
                            )  # fmt: skip
                for t in range(0, padded, CHUNK):
                    for lane in range(CHUNK):
                        begins[lane], befores[lane] = targets[t + lane], lefts[t + lane]
                        aboves[lane] = tops[t + lane] if t + lane < count else result_h
                    for o in range(used_o):
                        gather_result(
                            gradient + o * leads * result_h * result_w * size, begins, aboves, befores, 0,
                            result_h, result_w, patches, places, address_of(scratch),
                            address_of(results) + (o // rows * rows * padded + t * rows + o % rows * CHUNK) * size,
                            results_pitch,
                        )  # fmt: skip
                    # The tiles multiply by what pads the outputs; numbers that are nearly zero, as anything may look,
                    # take a hundred times as long.
                    for o in range(used_o, (used_o + rows - 1) // rows * rows):
                        for point in range(points):
                            place = point * results_pitch + o // rows * rows * padded + t * rows + o % rows * CHUNK
                            results[place : place + CHUNK] = 0
                for above in range(0, used_o, some_outputs):
                    below = min(used_o, above + some_outputs)
                    for left in range(0, used_d, some_planes):
                        right = min(used_d, left + some_planes)
                        for point in range(points):
                            for d in range(left, right, columns):
                                for o in range(above, below, rows):
                                    place = point * sums_pitch + (o - above) * some_planes + d - left
                                    product(
                                        padded, address_of(results) + (point * results_pitch + o * padded) * size, 0,
                                        address_of(data) + (point * data_pitch + d * padded) * size, 0,
                                        address_of(sums) + place * size, some_planes, min(rows, below - o), columns,
                                        address_of(none), first > 0, -np.inf, np.inf,
                                    )  # fmt: skip
                        if first + count < total:
                            continue
                        for o in range(above, below):
                            for d in range(left, right, lanes):
                                for lane in range(lanes):
                                    # Lanes too many write once more what the last one does.
                                    places[lane] = (first_d + min(d + lane, right - 1)) * taps_h * taps_w
                                scatter(
                                    address_of(sums) + ((o - above) * some_planes + d - left) * size, sums_pitch,
                                    address_of(scratch), weights + o * depth * taps_h * taps_w * size,
                                    address_of(places), taps_w, address_of(none), address_of(limits),
                                )  # fmt: skip

    return conv_winograd_grad_loop


@functools.lru_cache(maxsize=32)
def patch_gatherer(
    size: int, lanes: int, down: Rows, across: Rows, every: int
) -> tuple[Callable[..., None], Callable[..., int]]:
    """A function that transforms patches wherever they are, and one that says how many numbers those at edges take.

    Of `every` so many lanes one fetches what follows its rows.
    """
    patch_h, read = len(down[0]), row_width(len(across[0]))
    gather, window = gatherer(size, lanes, down, across), windower(size, read)

    def fetch_rows(vectors: Vectors, origin: Any, places: Any, pitch: Any) -> None:
        builder, first = vectors.builder, vectors.pointer(origin)
        table = builder.inttoptr(places, INT64.as_pointer())
        for lane in range(0, lanes, every):
            place = builder.add(builder.load(builder.gep(table, [number(lane)])), number(AHEAD // size))
            for i in range(patch_h):
                vectors.prefetch(builder.gep(first, [builder.add(place, builder.mul(number(i), pitch))]))

    fetch = on_addresses(fetch_rows, size, lanes)

    @inner
    def room(width: int) -> int:
        """Numbers that `patches` has to hold for images of rows of so many."""
        beside = max(width, read) // read
        return (lanes + beside - 1) // beside * patch_h * max(width, read)

    @inner
    def gather_patches(
        origin: int, begins: Any, tops: Any, lefts: Any, first: int, height: int, width: int, patches: Any, places: Any,
        scratch: int, target: int, distance: int,
    ) -> None:  # fmt: skip
        """`gatherer` for patches that begin at element ``begins[first + lane]`` behind `origin`, in row ``tops[...]``.

        Those that reach over an edge are copied first, with zeros, into `patches`: to rows as far apart as those of the
        image, so that one vector may hold both kinds. Where the image has rows shorter than a patch, all of them are.
        """
        pitch = max(width, read)
        beside = pitch // read
        for lane in range(lanes):
            top, left, begin = tops[first + lane], lefts[first + lane], begins[first + lane]
            if 0 <= top <= height - patch_h and 0 <= left <= width - read:
                places[lane] = begin
                continue
            patch = address_of(patches) + (lane // beside * patch_h * pitch + lane % beside * read) * size
            for i in range(patch_h):
                window(
                    patch + i * pitch * size, origin + (begin + i * width) * size,
                    max(0, -left), min(read, width - left) if 0 <= top + i < height else 0,
                )  # fmt: skip
            places[lane] = (patch - origin) // size
        fetch(origin, address_of(places), pitch)
        gather(origin, address_of(places), pitch, scratch, target, distance)

    return gather_patches, room


def windower(itemsize: int, lanes: int) -> Any:
    """``window(target, source, begin, end)``: lanes [begin, end) from `source`, zeros in the others; reads no more."""

    def window(vectors: Vectors, target: Any, source: Any, begin: Any, end: Any) -> None:
        builder = vectors.builder
        mask = builder.and_(vectors.first_lanes(end), builder.not_(vectors.first_lanes(begin)))
        vectors.store(vectors.load_masked(vectors.pointer(source), mask), vectors.pointer(target))

    return on_addresses(window, itemsize, lanes)


def turned(matrix: Rows) -> Rows:
    """The transpose of a matrix."""
    return tuple(zip(*matrix, strict=True))
