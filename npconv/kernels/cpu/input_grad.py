"""Input gradients as forward convolutions at stride 1: one for every phase, with nothing inserted between elements.

An element of the input, seen modulo the stride, belongs to a phase. All elements of a phase are reached by the same
taps of the kernel, at steps of one output, so along an axis the gradient of a phase is a convolution of the result's
gradient with those taps in reverse order. The phases of the last axis are woven into rows, or, at stride 1 everywhere,
the one phase is written where it belongs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import types

from npconv.geometry import Window
from npconv.kernels.cpu import threads
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.compile import compiled, entry
from npconv.kernels.cpu.correlation import turner
from npconv.kernels.cpu.staging import row_movers
from npconv.kernels.cpu.vectors import ADDRESS, TABLE, Vectors, address_of, copiers, number_of, on_addresses

# Bytes of phases that wait to be woven: they stay in the last cache, and the memory that a call takes is bounded.
WAITING = 4 * 2**20
# Bytes of turned weights, and input channels that they are of at least.
TURNED_BYTES, FEWEST_CHANNELS = 16 * 2**20, 64
# Input channels whose turned weights are written side by side: their lines share few places of a small L1 cache.
TURNED = 8


class AxisPhase(NamedTuple):
    """The elements ``first, first + stride, ...`` of an axis, and the convolution that gives them."""

    first: int
    length: int
    taps: tuple[int, ...]
    """Taps of the kernel that reach them, in the order of the convolution."""
    dilation: int
    low: int
    """Padding before the result's gradient; a negative one leaves out elements."""


@dataclass(frozen=True, eq=False)
class Phase:
    """A phase of all axes."""

    window: Window
    taps: Any
    """Numbers of the kernel's taps, in order."""


class RowPhases(NamedTuple):
    """All phases of the last axis for one of the axes before: together they are rows of the image."""

    rows: Any
    """Element of an image plane at which each row begins."""
    phases: tuple[Phase | None, ...]
    """By the first element; None where there is no tap or no element."""


def axis_phase(size: int, kernel: int, stride: int, dilation: int, low: int, first: int) -> AxisPhase:
    """The phase of an axis that begins at element `first`.

    Element ``first + m * stride`` is reached by tap t of output p where ``first + m * stride + low == p * stride + t *
    dilation``. The taps that solve this are `step` apart; consecutive ones reach outputs ``dilation * step / stride``
    apart.
    """
    step = stride // math.gcd(stride, dilation)
    start = next((t for t in range(min(step, kernel)) if (first + low - t * dilation) % stride == 0), kernel)
    taps = tuple(range(start, kernel, step))[::-1]
    length = len(range(first, size, stride))
    spread = dilation * step // stride
    nearest = (first + low - start * dilation) // stride
    return AxisPhase(first, length, taps, spread, (len(taps) - 1) * spread - nearest)


@functools.lru_cache(maxsize=256)
def row_phases(window: Window) -> tuple[RowPhases, ...]:
    """What a window's input gradient is made of."""
    lows = [low for low, _ in window.padding]
    axes = zip(window.size, window.kernel, window.stride, window.dilation, lows, strict=True)
    phases = [[axis_phase(*axis, first) for first in range(axis[2])] for axis in axes]
    found = []
    for leading in itertools.product(*phases[:-1]):
        rows = np.zeros(1, np.int64)
        for axis, phase in enumerate(leading):
            places = np.arange(phase.length) * window.stride[axis] + phase.first
            rows = (rows[:, None] * window.size[axis] + places).reshape(-1)
        rows *= window.size[-1]
        if rows.size:
            found.append(RowPhases(_read_only(rows), tuple(_phase(window, (*leading, last)) for last in phases[-1])))
    return tuple(found)


def _phase(window: Window, axes: tuple[AxisPhase, ...]) -> Phase | None:
    """The convolution that gives one phase."""
    if not all(axis.taps and axis.length for axis in axes):
        return None
    kernel, dilation = tuple(len(axis.taps) for axis in axes), tuple(axis.dilation for axis in axes)
    padding = tuple(
        (axis.low, axis.length + (len(axis.taps) - 1) * axis.dilation - out - axis.low)
        for axis, out in zip(axes, window.out, strict=True)
    )
    numbers = np.zeros(1, np.int64)
    for axis, k in zip(axes, window.kernel, strict=True):
        numbers = (numbers[:, None] * k + np.array(axis.taps)).reshape(-1)
    return Phase(Window(window.out, kernel, (1,) * window.ndim, padding, dilation), _read_only(numbers))


def reads_padding(window: Window) -> bool:
    """Whether some phase multiplies weights with zeros that stand for outputs which do not exist."""
    pads = (pad for rows in row_phases(window) for phase in rows.phases if phase for pad in phase.window.padding)
    return any(max(pair) > 0 for pair in pads)


def run(window: Window, groups: int, dy: Any, w: Any, dx: Any, forward: Callable[..., None]) -> None:
    """Write the gradient ``(batch, channels, size)`` from ``(batch, outputs, out)`` and ``(outputs, depth, taps)``.

    All are float and in C order, `dy` and `w` read-only; ``forward(image, weights, result, groups, window)`` computes a
    convolution at stride 1 whose padding may be negative. Without padding (`reads_padding`) or with finite weights
    numbers that are not finite spread as in the definition.
    """
    if 0 in (dx.size, dy.size, w.size):
        dx[...] = 0
        return
    if lies_apart(window):
        run_apart(window, groups, dy, w, dx, forward)
        return
    outputs, depth, direct = w.shape[0] // groups, w.shape[1], set(window.stride) == {1}
    for part in row_phases(window):
        phases = [phase for phase in part.phases if phase is not None]
        plane_bytes = 0 if direct else part.rows.size * window.size[-1] * dx.itemsize
        channel_bytes = outputs * sum(phase.taps.size for phase in phases) * dx.itemsize
        turned: dict[Phase, Any] = {}
        for piece in pieces(dx.shape[0], groups, depth, plane_bytes, channel_bytes):
            if piece.images.start == 0:
                turned = {phase: turned_weights(w, groups, piece, phase.taps) for phase in phases}
            seen = dy[piece.images, piece.groups.start * outputs : piece.groups.stop * outputs]
            if direct:
                phase = phases[0]
                forward(
                    seen, turned[phase], dx[piece.images, piece.planes(depth)], piece.number_of_groups, phase.window
                )
                continue
            waiting, widths, begin = row_phase_results(part, seen, turned, piece.number_of_groups, forward)
            first = piece.images.start * dx.shape[1] + piece.planes(depth).start
            planes = seen.shape[0] * len(range(dx.shape[1])[piece.planes(depth)])
            pitches = part.rows.size * widths
            weave(window, part.rows, waiting, Phases(begin, pitches, widths), dx, first, planes)


def lies_apart(window: Window) -> bool:
    """Whether windows touch but neither overlap nor leave out an element: every element is reached by one tap."""
    whole = all(size == out * stride for size, out, stride in zip(window.size, window.out, window.stride, strict=True))
    apart = window.kernel == window.stride and set(window.dilation) == {1} and not window.has_padding
    return whole and apart and window.taps > 1


def run_apart(window: Window, groups: int, dy: Any, w: Any, dx: Any, forward: Callable[..., None]) -> None:
    """`run` where `lies_apart`: one product gives the phases of all taps, so that the result's gradient is packed once.

    The taps count as input channels of a kernel of one tap.
    """
    outputs, depth, taps = w.shape[0] // groups, w.shape[1], w.shape[2]
    one, positions = (1,) * window.ndim, window.positions
    line = Window(window.out, one, one, ((0, 0),) * window.ndim, one)
    only_tap, turned = np.zeros(1, np.int64), np.empty(0)
    plane_bytes, channel_bytes = math.prod(window.size) * dx.itemsize, outputs * taps * dx.itemsize
    for piece in pieces(dx.shape[0], groups, depth, plane_bytes, channel_bytes):
        channels = piece.channels.stop - piece.channels.start
        if piece.images.start == 0:
            rows = Piece(piece.groups, slice(piece.channels.start * taps, piece.channels.stop * taps), piece.images)
            turned = turned_weights(w.reshape(-1, depth * taps, 1), groups, rows, only_tap)
        seen = dy[piece.images, piece.groups.start * outputs : piece.groups.stop * outputs]
        planes = len(seen) * piece.number_of_groups * channels
        waiting = np.empty((len(seen), planes // len(seen) * taps, *window.out), dx.dtype)
        forward(seen, turned, waiting, piece.number_of_groups, line)
        first = piece.images.start * dx.shape[1] + piece.planes(depth).start
        pitches = np.full(window.stride[-1], taps * positions)
        for part in row_phases(window):
            begin = np.array([phase.taps[0] * positions for phase in part.phases if phase is not None])
            widths = np.full(window.stride[-1], window.out[-1])
            weave(window, part.rows, waiting.reshape(-1), Phases(begin, pitches, widths), dx, first, planes)


def at_once(
    window: Window, groups: int, batch: int, w_shape: tuple[int, int, int], dtype: np.dtype[Any],
    forward: Callable[..., Callable[..., None]], limit: int | None,
) -> Callable[[Any, Any, Any], None] | None:  # fmt: skip
    """``run(dy, w, dx)`` made ready for many calls, where one phase is written in place, or None.

    ``forward(dtype, batch, groups, outputs, depth, activation, window)`` makes ready the convolution of that phase.
    Nothing of the arrays is looked at but their addresses: they must be in C order and of the dtype.
    """
    outputs, depth, taps = w_shape[0] // groups, *w_shape[1:]
    if set(window.stride) != {1} or 0 in (batch, *w_shape, window.positions, *window.size):
        return None
    phase = row_phases(window)[0].phases[0]
    several = len(list(pieces(batch, groups, depth, 0, outputs * taps * dtype.itemsize))) > 1
    if phase is None or several:
        return None
    turn = threads.prepared(weight_turner(dtype), groups * -(-depth // TURNED), math.prod(w_shape), limit)
    rest = (outputs, depth, taps, depth, 0, phase.taps)
    convolve, shape = forward(dtype, batch, groups, depth, outputs * taps, None, phase.window), math.prod(w_shape)

    def run(dy: Any, w: Any, dx: Any) -> None:
        turned = np.empty(shape, dtype)
        turn(w, turned, *rest)
        convolve(dy, turned, None, dx, limit)

    return run


def row_phase_results(
    part: RowPhases, dy: Any, turned: dict[Phase, Any], groups: int, forward: Callable[..., None]
) -> tuple[Any, Any, Any]:
    """The phases of the last axis one behind the other, their widths, and where each begins; see `weave`."""
    shapes = [(len(dy), len(turned[phase]), *phase.window.out) if phase else (0,) for phase in part.phases]
    sizes = [math.prod(shape) for shape in shapes]
    begin = np.cumsum([0, *sizes])
    waiting = np.empty(begin[-1], dy.dtype)
    for phase, shape, first, size in zip(part.phases, shapes, begin, sizes, strict=False):
        if phase is not None:
            forward(dy, turned[phase], waiting[first : first + size].reshape(shape), groups, phase.window)
    return waiting, np.array([shape[-1] for shape in shapes], np.int64), begin[:-1]


class Piece(NamedTuple):
    """What is worked through together. Several images have all groups, and several groups all channels."""

    groups: slice
    channels: slice
    """Input channels of each of the groups."""
    images: slice

    @property
    def number_of_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.stop - self.groups.start)

    def planes(self, depth: int) -> slice:
        """The input channels, contiguous, numbered through all groups of `depth` each."""
        return slice(
            self.groups.start * depth + self.channels.start, (self.groups.stop - 1) * depth + self.channels.stop
        )


def pieces(batch: int, groups: int, depth: int, plane_bytes: int, channel_bytes: int) -> Iterator[Piece]:
    """Divide the images, groups and input channels so that phases that wait and turned weights stay small.

    A plane of an image takes `plane_bytes` while it waits, an input channel `channel_bytes` of turned weights.
    """
    planes, fitting = WAITING // max(1, plane_bytes), TURNED_BYTES // max(1, channel_bytes)
    all_channels = groups * depth
    images = max(1, min(batch, planes // all_channels)) if all_channels <= fitting else 1
    most = min(planes, fitting)
    some_groups = groups if images > 1 else max(1, min(groups, most // depth))
    channels = depth if some_groups > 1 or images > 1 else min(depth, max(FEWEST_CHANNELS, most))
    for g, c, n in itertools.product(range(0, groups, some_groups), range(0, depth, channels), range(0, batch, images)):
        stops = min(groups, g + some_groups), min(depth, c + channels), min(batch, n + images)
        yield Piece(slice(g, stops[0]), slice(c, stops[1]), slice(n, stops[2]))


def turned_weights(w: Any, groups: int, piece: Piece, taps: Any) -> Any:
    """``(inputs, outputs of a group * taps)`` of a piece: inputs and outputs exchanged, some taps in some order."""
    outputs = w.shape[0] // groups
    part = w[piece.groups.start * outputs : piece.groups.stop * outputs]
    first, count = piece.channels.start, piece.channels.stop - piece.channels.start
    turned = np.empty((piece.number_of_groups * count, outputs * taps.size), w.dtype)
    tasks = piece.number_of_groups * -(-count // TURNED)
    threads.run(
        weight_turner(w.dtype), tasks, turned.size,
        part, turned, outputs, w.shape[1], w.shape[2], count, first, taps,
    )  # fmt: skip
    return turned


@functools.lru_cache(maxsize=2)
def weight_turner(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop of `turned_weights`."""
    size, lanes = dtype.itemsize, processor().register_bytes // dtype.itemsize
    turn, reverse, (move, *_) = turner(size, lanes), reverser(size, lanes), copiers(size, 1)

    @entry(types.int64, types.int64, ADDRESS, ADDRESS, *[types.int64] * 5, TABLE)
    def weight_turner_loop(
        start: int, stop: int, w: Any, turned: Any, outputs: int, depth: int, total: int, channels: int,
        first_channel: int, taps: Any,
    ) -> None:  # fmt: skip
        """Turn `channels` input channels of each group, from `first_channel` on.

        `w` and `turned` are addresses, and a group of weights ``(outputs, depth, total)``. A task is (group, part of
        its input channels).
        """
        w, turned = number_of(w), number_of(turned)
        parts = (channels + TURNED - 1) // TURNED
        for task in range(start, stop):
            group, first = task // parts, task % parts * TURNED
            count = min(TURNED, channels - first)
            source = w + (group * outputs * depth + first_channel + first) * total * size
            target = turned + (group * channels + first) * outputs * taps.size * size
            if total == 1:
                for o in range(0, outputs, lanes):
                    for c in range(0, count, lanes):
                        turn(
                            target + (c * outputs + o) * size, outputs, source + (o * depth + c) * size, depth,
                            outputs - o, count - c,
                        )  # fmt: skip
                continue
            for o in range(outputs):
                for c in range(count):
                    here = source + (o * depth + c) * total * size
                    there = target + (c * outputs + o) * taps.size * size
                    if taps.size == total >= lanes:
                        # All taps, in reverse; the last vector overlaps the one before.
                        for t in range(0, total - lanes, lanes):
                            reverse(there + t * size, here + (total - lanes - t) * size)
                        reverse(there + (total - lanes) * size, here)
                        continue
                    for t in range(taps.size):
                        move(there + t * size, here + taps[t] * size)

    return weight_turner_loop


class Phases(NamedTuple):
    """Where the phases of the last axis lie while they wait, one number for each."""

    begin: Any
    """Element at which the first plane begins."""
    pitches: Any
    """Elements from plane to plane."""
    widths: Any
    """Elements of a row; 0 for a phase of zeros."""


def weave(window: Window, rows: Any, waiting: Any, phases: Phases, dx: Any, first_plane: int, planes: int) -> None:
    """Write `rows` of so many planes of `dx` from the phases of the last axis."""
    sizes = math.prod(window.size), window.size[-1]
    threads.run(
        weaver(dx.dtype), planes, planes * rows.size * window.size[-1],
        rows, waiting, *phases, dx.reshape(-1), first_plane, *sizes,
    )  # fmt: skip


@functools.lru_cache(maxsize=2)
def weaver(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop of `weave`."""
    size, lanes = dtype.itemsize, processor().register_bytes // dtype.itemsize
    zip_two, (move, clear, *_), (fill_row, _, _) = zipper(size, lanes), copiers(size, 1), row_movers(size, lanes)

    @compiled
    def weaver_loop(
        start: int, stop: int, rows: Any, waiting: Any, begin: Any, pitches: Any, widths: Any, dx: Any,
        first_plane: int, plane: int, width: int,
    ) -> None:  # fmt: skip
        """A task is a plane."""
        stride, source = widths.size, address_of(waiting)
        empty, pairs = widths.max() == 0, stride == 2 and widths.min() > 0
        for task in range(start, stop):
            for r in range(rows.size):
                target = address_of(dx) + ((first_plane + task) * plane + rows[r]) * size
                if empty:
                    fill_row(target, width)
                    continue
                done = 0
                if pairs:
                    even = source + (begin[0] + task * pitches[0] + r * widths[0]) * size
                    odd = source + (begin[1] + task * pitches[1] + r * widths[1]) * size
                    count = min(widths[0], widths[1])
                    while done < count and count >= lanes:
                        # The last vector overlaps the one before.
                        j = min(done, count - lanes)
                        zip_two(target + 2 * j * size, even + j * size, odd + j * size)
                        done = j + lanes
                for a in range(stride):
                    here = source + (begin[a] + task * pitches[a] + r * widths[a]) * size
                    for j in range(done, (width - a + stride - 1) // stride):
                        if widths[a] > 0:
                            move(target + (j * stride + a) * size, here + j * size)
                        else:
                            clear(target + (j * stride + a) * size)

    return weaver_loop


def zipper(itemsize: int, lanes: int) -> Any:
    """``zip_two(target, even, odd)``: two vectors element by element in turn."""

    def zip_two(vectors: Vectors, target: Any, even: Any, odd: Any) -> None:
        low, high = vectors.load(vectors.pointer(even)), vectors.load(vectors.pointer(odd))
        order = [lane // 2 + lanes * (lane % 2) for lane in range(2 * lanes)]
        result = vectors.pointer(target)
        vectors.store(vectors.shuffle(low, high, order[:lanes]), result)
        vectors.store(vectors.shuffle(low, high, order[lanes:]), result, lanes)

    return on_addresses(zip_two, itemsize, lanes)


def reverser(itemsize: int, lanes: int) -> Any:
    """``reverse(target, source)``: a vector from its last element to its first."""

    def reverse(vectors: Vectors, target: Any, source: Any) -> None:
        value = vectors.load(vectors.pointer(source))
        vectors.store(vectors.shuffle(value, value, list(range(lanes))[::-1]), vectors.pointer(target))

    return on_addresses(reverse, itemsize, lanes)


def _read_only(table: Any) -> Any:
    table.flags.writeable = False
    return table
