"""Depthwise convolution of channels-last arrays: vectors run along the channels, neighbouring outputs are in registers.

Every pixel is a line of channels, so a stride costs nothing, and no element ever changes its lane. A *segment*, some
neighbouring outputs of a row, takes every vector of the image once for all taps of a row of the kernel that it lies
under; the weights of that row stay in registers meanwhile. Nothing is copied and nothing outside is read: rows of the
kernel that fall into the padding are left out when the loop runs, and columns when its instructions are written, which
for a segment at a border are others.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.geometry import ConvSpec, Window
from npconv.kernels.cpu.blocking import LINE, Tile, evenly, first_axes, last_axes, processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.depthwise import WORTH_WRITING_OUT
from npconv.kernels.cpu.launch import Launch
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.operands import as_table, nothing
from npconv.kernels.cpu.vectors import (
    ADDRESS,
    GRID,
    INT64,
    TABLE,
    Vectors,
    address_of,
    counted_loop,
    number,
    number_of,
    on_addresses,
)
from npconv.leading import leading_planes

SPARE = 8
"""Whole lines of the caches are taken at once: channels are often a power of two, so that pixels compete for the same
sets, and half a line would be gone when its turn came. One channel in so many may be computed in vain for it.
"""

MOST_OUTPUTS = 8
"""Outputs of a segment: more are more code, but no faster."""

MOST_PRODUCTS, MOST_SEGMENTS = 500, 6
"""Products of all kinds of segments, and kinds of segments, that are not too much code to be written out."""

WEIGHT_BYTES = 16 * 1024
"""Of a block of channels: half of a small L1 cache, since every segment reads all of them."""


class Segment(NamedTuple):
    """Neighbouring outputs of a row, and which columns under their taps exist, counted from the first tap's."""

    outputs: int
    first: int
    stop: int


class Line(NamedTuple):
    """What the instructions for a row of outputs depend on."""

    lanes: int
    vectors: int
    """Vectors of channels that are done at once."""
    taps: int
    """Taps of a row of the kernel."""
    all_taps: int
    stride: int
    dilation: int
    masked: bool
    """Whether there are fewer channels than a vector has lanes."""
    segments: tuple[Segment, ...]

    @property
    def wide(self) -> int:
        """Channels that are done at once."""
        return self.lanes * self.vectors


class Layout(NamedTuple):
    """How a convolution is divided: channels of a block, and for each segment of a row its first output and kind."""

    line: Line
    block: int
    parts: tuple[tuple[int, int], ...]


def suits(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a depthwise convolution is done here: one output channel for each input channel, and worth its code.

    What layout its arrays have is not asked.
    """
    if spec.macs < max(1, spec.batch) * WORTH_WRITING_OUT:
        return False
    # A single channel has no layout.
    if dtype.kind != "f" or spec.in_channels < 2 or not spec.is_depthwise or spec.out_channels != spec.in_channels:
        return False
    line = layout(spec.window, spec.in_channels, dtype.itemsize).line
    products = sum(segment.outputs for segment in line.segments) * line.taps * line.vectors
    return products <= MOST_PRODUCTS and len(line.segments) <= MOST_SEGMENTS


@functools.lru_cache(maxsize=1024)
def layout(window: Window, channels: int, itemsize: int) -> Layout:
    """How a depthwise convolution of so many channels is divided."""
    lanes, row = processor().register_bytes // itemsize, window.axes(slice(window.ndim - 1, None))
    (size,), (kernel,), (stride,), (dilation,), (out,) = row.size, row.kernel, row.stride, row.dilation, row.out
    low = row.padding[0][0]
    vectors = max(1, LINE // processor().register_bytes)
    if channels < lanes * vectors or -channels % (lanes * vectors) * SPARE > channels:
        vectors = 1
    # A row of weights and what streams need registers too.
    count = -(-out // min(MOST_OUTPUTS, max(1, processor().sums * 2 // 3 // vectors)))
    bounds = [out * i // max(count, 1) for i in range(count + 1)]
    kinds: dict[Segment, int] = {}
    parts = []
    for begin, end in itertools.pairwise(bounds):
        column, span = begin * stride - low, (end - begin - 1) * stride + (kernel - 1) * dilation + 1
        first = min(max(0, -column), span)
        segment = Segment(end - begin, first, max(first, min(span, size - column)))
        parts.append((begin, kinds.setdefault(segment, len(kinds))))
    line = Line(lanes, vectors, kernel, window.taps, stride, dilation, channels < lanes, tuple(kinds))
    # At least two steps, so that the last one, which may overlap the one before it, stays in its block.
    most = max(2, WEIGHT_BYTES // (window.taps * line.wide * itemsize))
    return Layout(line, evenly(-(-channels // line.wide), most) * line.wide, tuple(parts))


def details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How it is done, as pairs of words for a person."""
    line, block, _ = layout(spec.window, spec.in_channels, dtype.itemsize)
    blocks = f"{-(-spec.in_channels // block)} of {min(block, spec.in_channels)} channels"
    return ("driver", "channels last, one channel each"), ("tile", _tile(line).lying), ("blocks", blocks)


def pack_weights(spec: ConvSpec, w: Any) -> Panels:
    """Weights ``(C, 1, *kernel)`` as ``(steps, taps, channels of a step)``; the last may overlap the one before."""
    line, _, _ = layout(spec.window, spec.in_channels, w.itemsize)
    channels, wide, flat = spec.in_channels, line.wide, w.reshape(spec.in_channels, line.all_taps)
    if channels < wide:
        flat = np.append(flat, np.zeros((wide - channels, line.all_taps), w.dtype), axis=0)
    if len(flat) % wide:
        first = np.minimum(np.arange(0, channels, wide), channels - wide)
        flat = flat[(first[:, None] + np.arange(wide)).reshape(-1)]
    steps = flat.reshape(-1, wide, line.all_taps).swapaxes(1, 2)
    return Panels(np.ascontiguousarray(steps), _tile(line))


def _tile(line: Line) -> Tile:
    outputs = max((segment.outputs for segment in line.segments), default=0)
    return Tile(outputs, line.vectors, line.lanes)


@functools.lru_cache(maxsize=1024)
def runner(spec: ConvSpec, dtype: np.dtype[Any], bounds: tuple[float, float], bent: bool) -> Callable[..., None]:
    """The convolution of channels-last arrays, clamped to `bounds` and then bent by hardswish or not.

    The runner takes an image, weights from `pack_weights`, a bias or None, a result and the number of threads. Nothing
    but the arrays' addresses is looked at: they must be in C order and of the dtype.
    """
    if not math.prod(spec.y_shape):
        return nothing
    line, block, parts = layout(spec.window, spec.in_channels, dtype.itemsize)
    plane, leads = last_axes(spec.window, 2), leading_planes(first_axes(spec.window, 2))
    blocks = -(-spec.in_channels // block)
    shape = as_table([
        math.prod(spec.window.size[:-2]), *plane.size, *plane.out, plane.kernel[0], plane.stride[0],
        plane.padding[0][0], plane.dilation[0], spec.in_channels, block, blocks,
    ])  # fmt: skip
    table = as_table([(first, kind, first * line.stride - plane.padding[1][0]) for first, kind in parts])
    tasks, kernel = spec.batch * blocks * len(leads) * plane.out[0], conv_depthwise_last(dtype, line)
    rest = np.array(bounds, dtype), int(bent), shape, as_table(leads), table
    return Launch.of(kernel, tasks, spec, dtype, rest)


def segment_sums(itemsize: int, line: Line) -> Any:
    """``sums(kind, rows, count, left, pitch, w, bias, y, channels, bounds, bent)``.

    For compiled code: a segment of a row of the result, ``y := act(clamp(bias + sum over taps of w * x))``.

    Contract: `kind` is the segment's number in `Line.segments`. `rows` is the address of a table with, for each of the
    `count` rows of the kernel that do not fall into the padding, the address of the image's row and the offset of the
    weights, in bytes. The segment's first tap lies `left` bytes behind the row's start, perhaps before it; pixels of
    the image and of the result are `pitch` bytes apart. `w`, `bias`, `y` and `bounds`, of two numbers, are addresses;
    `channels` are at least `Line.wide`, unless the line is `masked`. Columns outside the image are not read.
    """
    lanes, wide, numbers = line.lanes, line.wide, range(line.vectors)

    def sums(
        vectors: Vectors, kind: Any, rows: Any, count: Any, left: Any, pitch: Any, w: Any, bias: Any, y: Any,
        channels: Any, bounds: Any, bent: Any,
    ) -> None:  # fmt: skip
        builder = vectors.builder
        table, limits = builder.inttoptr(rows, INT64.as_pointer()), vectors.pointer(bounds)
        low, high = (vectors.broadcast(builder.load(builder.gep(limits, [number(i)]))) for i in range(2))
        mask = vectors.first_lanes(channels) if line.masked else None

        def read(address: Any) -> Any:
            pointer = vectors.pointer(address)
            return vectors.load(pointer) if mask is None else vectors.load_masked(pointer, mask)

        def behind(address: Any, steps: int) -> Any:
            return builder.add(address, builder.mul(pitch, number(steps)))

        def write(segment: Segment) -> None:
            outputs = range(segment.outputs)

            def along(index: Any, _: list[Any]) -> list[Any]:
                first, last = builder.mul(index, number(wide)), builder.sub(channels, number(wide))
                first = builder.select(builder.icmp_signed("<", first, last), first, last)
                here = number(0) if line.masked else builder.mul(first, number(itemsize))
                weights = builder.add(w, builder.mul(index, number(line.all_taps * wide * itemsize)))
                image, shift, result = (builder.add(address, here) for address in (left, bias, y))

                def down(index: Any, totals: list[Any]) -> list[Any]:
                    row, further = (
                        builder.load(builder.gep(table, [builder.add(builder.shl(index, number(1)), number(i))]))
                        for i in range(2)
                    )
                    start, factors = builder.add(row, image), vectors.pointer(builder.add(weights, further))
                    totals = list(totals)
                    for v in numbers:
                        held = [vectors.load(factors, (k * line.vectors + v) * lanes) for k in range(line.taps)]
                        for column in range(segment.first, segment.stop):
                            used = [
                                (o, k) for o in outputs for k in range(line.taps)
                                if o * line.stride + k * line.dilation == column
                            ]  # fmt: skip
                            if used:
                                value = read(builder.add(behind(start, column), number(v * lanes * itemsize)))
                            for o, k in used:
                                place = o * line.vectors + v
                                totals[place] = vectors.multiply_add(held[k], value, totals[place])
                    return totals

                shifts = [read(builder.add(shift, number(v * lanes * itemsize))) for v in numbers]
                totals = counted_loop(builder, count, [shifts[v] for _ in outputs for v in numbers], down)
                found = [vectors.clamp(total, low, high) for total in totals]
                found = vectors.where(bent, found, vectors.hardswish)
                for n, value in enumerate(found):
                    place = vectors.pointer(behind(result, n // line.vectors))
                    if mask is None:
                        vectors.store(value, place, n % line.vectors * lanes)
                    else:
                        vectors.store_masked(value, place, mask)
                return []

            counted_loop(builder, builder.sdiv(builder.add(channels, number(wide - 1)), number(wide)), [], along)

        after, *cases = (builder.function.append_basic_block() for _ in range(1 + len(line.segments)))
        switch = builder.switch(kind, cases[0])
        for n, (case, segment) in enumerate(zip(cases, line.segments, strict=True)):
            if n:
                switch.add_case(number(n), case)
            builder.position_at_end(case)
            write(segment)
            builder.branch(after)
        builder.position_at_end(after)

    return on_addresses(sums, itemsize, lanes)


@functools.lru_cache(maxsize=64)
def conv_depthwise_last(dtype: np.dtype[Any], line: Line) -> Callable[..., None]:
    """The driver for float32 or float64 and a line."""
    size, sums = dtype.itemsize, segment_sums(dtype.itemsize, line)
    row_bytes, all_taps = line.taps * line.wide * size, line.all_taps

    @entry(types.int64, types.int64, *[ADDRESS] * 5, types.int64, TABLE, GRID, GRID)
    def conv_depthwise_last_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, bounds: Any, bent: int, shape: Any, leads: Any,
        parts: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for the addresses of an image, weights, a bias, a result and two bounds.

        A task is (n, block of channels, leading place, row).
        """
        x, w, bias, y, bounds = number_of(x), number_of(w), number_of(bias), number_of(y), number_of(bounds)
        planes, height, width, out_h, out_w, kernel_h = shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]
        stride_h, low_h, dilation_h, channels, block, blocks = (
            shape[6], shape[7], shape[8], shape[9], shape[10], shape[11],
        )  # fmt: skip
        places, pitch = leads.shape[0], channels * size
        rows = np.empty((leads.shape[1] * kernel_h, 2), np.int64)
        for task in range(start, stop):
            row, rest = task % out_h, task // out_h
            lead, rest = rest % places, rest // places
            channel, n = rest % blocks * block, rest // blocks
            count = 0
            for tap in range(leads.shape[1]):
                plane = leads[lead, tap]
                for k in range(kernel_h):
                    place = row * stride_h - low_h + k * dilation_h
                    if plane >= 0 and 0 <= place < height:
                        rows[count, 0] = x + ((n * planes + plane) * height + place) * width * pitch + channel * size
                        rows[count, 1] = (tap * kernel_h + k) * row_bytes
                        count += 1
            target = y + ((n * places + lead) * out_h + row) * out_w * pitch + channel * size
            for part in range(parts.shape[0]):
                sums(
                    parts[part, 1], address_of(rows), count, parts[part, 2] * pitch, pitch,
                    w + channel * all_taps * size, bias + channel * size, target + parts[part, 0] * pitch,
                    min(block, channels - channel), bounds, bent,
                )  # fmt: skip

    return conv_depthwise_last_loop
