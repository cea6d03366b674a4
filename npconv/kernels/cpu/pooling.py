"""Max pooling and its gradient as compiled loops; the contract is that of `loops`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.geometry import Window
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.compile import compiled
from npconv.kernels.cpu.loops import at, input_row
from npconv.kernels.cpu.vectors import Vectors, address_of, counted_loop, number, on_addresses

AT_ONCE, AHEAD = 8, 2048
"""Rows of windows whose maxima down the columns are taken before those along the rows; bytes that an image is asked for
ahead of being read."""


@compiled
def exceeds(value: Any, best: Any) -> Any:
    """Whether `value` displaces `best` as a maximum: greater (complex: by real, then imaginary part) or NaN."""
    if best != best:
        return False
    return value != value or value.real > best.real or (value.real == best.real and value.imag > best.imag)


@compiled
def max_pool(start: int, stop: int, x: Any, y: Any, winner: Any, geometry: Any, spans: Any, stopped: Any) -> None:
    """Largest element of each window and the number of its tap.

    ``y`` holds the lowest value of its dtype and ``winner`` -1 on entry, which is what a window of padding alone
    keeps. A task is one output row: (n, channel, row).
    """
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    rows = y.shape[2] // out
    leads = 1
    for axis in range(last):
        leads *= geometry[1, axis]
    for task in range(start, stop):
        n, c, row = task // (rows * x.shape[1]), task // rows % x.shape[1], task % rows
        best = y[n, c, row * out : (row + 1) * out]
        chosen = winner[n, c, row * out : (row + 1) * out]
        for lead in range(leads):
            source_row = input_row(row, lead, geometry)
            if source_row < 0:
                continue
            source = x[n, c, source_row * size : (source_row + 1) * size]
            for k in range(kernel):
                if stopped[0] != 0:
                    return
                first, end = spans[k]
                for j in range(first, end):
                    value = source[at(j * stride + k * dilation - low)]
                    if chosen[at(j)] < 0 or exceeds(value, best[at(j)]):
                        best[at(j)] = value
                        chosen[at(j)] = lead * kernel + k


@compiled
def raise_to(best: Any, source: Any, first: int, end: int, stride: int, offset: int) -> None:
    """Put the larger of two elements, or NaN, in the place of the first, from `first` to `end`.

    `numpy.maximum` is ten times as fast as a comparison here: whether to write is no question then, so it vectorises.
    """
    for j in range(first, end):
        best[at(j)] = np.maximum(source[at(j * stride + offset)], best[at(j)])


@compiled
def max_values(start: int, stop: int, x: Any, y: Any, geometry: Any, spans: Any) -> None:
    """Largest element of each window, as `max_pool` finds it, but not of complex numbers.

    First down the rows of a window, which vectorises at any stride, then along the one row that is left.

    ``y`` holds the lowest value of its dtype on entry. A task is one output row: (n, channel, row).
    """
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    rows = y.shape[2] // out
    leads = 1
    for axis in range(last):
        leads *= geometry[1, axis]
    tall = np.empty(size, x.dtype)
    for task in range(start, stop):
        n, c, row = task // (rows * x.shape[1]), task // rows % x.shape[1], task % rows
        empty = True
        for lead in range(leads):
            source_row = input_row(row, lead, geometry)
            if source_row < 0:
                continue
            source = x[n, c, source_row * size : (source_row + 1) * size]
            if empty:
                tall[:] = source
                empty = False
            else:
                raise_to(tall, source, 0, size, 1, 0)
        if empty:
            continue
        best = y[n, c, row * out : (row + 1) * out]
        for k in range(kernel):
            first, end = spans[k]
            if stride == 1:
                raise_to(best, tall, first, end, 1, k * dilation - low)
            else:
                raise_to(best, tall, first, end, stride, k * dilation - low)


@compiled
def max_strided(start: int, stop: int, x: Any, y: Any, geometry: Any) -> None:
    """`max_values` for images of which a window skips some rows: each row of the result from those under it.

    Maxima are taken down the columns first, straight from the image, then along what is left. A task is one plane:
    (n, channel).
    """
    height, width = geometry[0]
    kernel_h, kernel_w = geometry[1]
    stride_h, stride_w = geometry[2]
    dilation_h, dilation_w = geometry[3]
    low_h, low_w = geometry[4]
    out_h, out_w = geometry[5]
    tall = np.empty(max(low_w + width, (out_w - 1) * stride_w + (kernel_w - 1) * dilation_w + 1), x.dtype)
    tall[:] = y[start // x.shape[1], start % x.shape[1], 0]
    middle = tall[low_w : low_w + width]
    for task in range(start, stop):
        source, best = x[task // x.shape[1], task % x.shape[1]], y[task // x.shape[1], task % x.shape[1]]
        for row in range(out_h):
            empty = True
            for k in range(kernel_h):
                place = row * stride_h - low_h + k * dilation_h
                if place < 0 or place >= height:
                    continue
                if empty:
                    for j in range(width):
                        middle[at(j)] = source[at(place * width + j)]
                else:
                    raise_to(middle, source, 0, width, 1, place * width)
                empty = False
            if empty:
                continue
            line = best[row * out_w : (row + 1) * out_w]
            for k in range(kernel_w):
                if stride_w == 2:  # written out, so that the loop knows its stride and vectorises
                    raise_to(line, tall, 0, out_w, 2, k * dilation_w)
                else:
                    raise_to(line, tall, 0, out_w, stride_w, k * dilation_w)


def suits_halved(window: Window, dtype: np.dtype[Any]) -> bool:
    """Whether `max_halved` takes images of this dtype."""
    shortest = min(window.out[1], window.size[1]) * dtype.itemsize
    return dtype.kind == "f" and window.stride[1] == 2 and shortest >= processor().register_bytes


@functools.lru_cache(maxsize=2)
def max_halved(dtype: np.dtype[Any]) -> Callable[..., None]:
    """`max_strided` for windows two columns apart, and rows of float32 or float64 that fill a vector.

    The last vector of a row overlaps the one before it: what is compared twice costs less than single elements.
    """
    size, lanes = dtype.itemsize, processor().register_bytes // dtype.itemsize
    of_three, along = (on_addresses(write, size, lanes) for write in (_highest_of_three, _highest_along))

    @compiled
    def max_halved_loop(start: int, stop: int, x: Any, y: Any, geometry: Any) -> None:
        height, width = geometry[0]
        kernel_h, kernel_w = geometry[1]
        stride_h, dilation_h, dilation_w = geometry[2, 0], geometry[3, 0], geometry[3, 1]
        low_h, low_w = geometry[4]
        out_h, out_w = geometry[5]
        # The padded rows under some rows of windows: what was just stored is slow to load at another place.
        pitch = max(low_w + width, 2 * out_w + (kernel_w - 1) * dilation_w)
        tall = np.empty(AT_ONCE * pitch, x.dtype)
        tall[:] = y[start // x.shape[1], start % x.shape[1], 0]
        there = np.zeros(AT_ONCE, np.bool_)
        for task in range(start, stop):
            source, best = address_of(x) + task * height * width * size, address_of(y) + task * out_h * out_w * size
            for top in range(0, out_h, AT_ONCE):
                rows = min(AT_ONCE, out_h - top)
                for row in range(rows):
                    place = (top + row) * stride_h - low_h
                    first, taps = 0, 0
                    for k in range(kernel_h):
                        if 0 <= place + k * dilation_h < height:
                            first, taps = (first if taps else place + k * dilation_h), taps + 1
                    there[row] = taps > 0
                    begin, step = source + first * width * size, dilation_h * width * size
                    target = address_of(tall) + (row * pitch + low_w) * size
                    for k in range(0, taps, 2):
                        one, other = begin + min(k + 1, taps - 1) * step, begin + min(k + 2, taps - 1) * step
                        for column in range(0, width, lanes):
                            j = min(column, width - lanes) * size
                            of_three(target + j, (begin if k == 0 else target) + j, one + j, other + j)
                for row in range(rows):
                    line, target = address_of(tall) + row * pitch * size, best + (top + row) * out_w * size
                    for column in range(0, out_w if there[row] else 0, lanes):
                        j = min(column, out_w - lanes) * size
                        along(target + j, line + 2 * j, kernel_w, dilation_w)

    return max_halved_loop


def _higher(vectors: Vectors, value: Any, best: Any) -> Any:
    """The larger of two elements, or NaN, in every lane."""
    builder = vectors.builder
    stays = builder.or_(builder.fcmp_ordered(">", best, value), builder.fcmp_unordered("uno", best, best))
    return builder.select(stays, best, value)


def _highest_of_three(vectors: Vectors, target: Any, first: Any, second: Any, third: Any) -> None:
    """The largest of three elements each, or NaN, for one vector."""
    one, two, three = (vectors.load(vectors.pointer(address)) for address in (first, second, third))
    for address in (first, second):
        vectors.prefetch(vectors.pointer(vectors.builder.add(address, number(AHEAD))))
    vectors.store(_higher(vectors, three, _higher(vectors, two, one)), vectors.pointer(target))


def _highest_along(vectors: Vectors, target: Any, source: Any, taps: Any, apart: Any) -> None:
    """The largest of so many elements, or NaN, for a vector of windows that begin at every second element.

    One element more than they have is read.
    """
    builder, row = vectors.builder, vectors.pointer(source)

    def under(tap: Any) -> Any:
        first = builder.mul(tap, apart)
        return vectors.half(vectors.load(row, first), vectors.load(row, builder.add(first, number(vectors.lanes))), 0)

    def larger(index: Any, carried: list[Any]) -> list[Any]:
        return [_higher(vectors, under(builder.add(index, number(1))), carried[0])]

    (best,) = counted_loop(builder, builder.sub(taps, number(1)), [under(number(0))], larger)
    vectors.store(vectors.in_order(best), vectors.pointer(target))


@compiled
def raise_noting(best: Any, taps: Any, source: Any, source_taps: Any, further: int, end: int, offset: int) -> None:
    """`raise_to` that notes which tap an element came from: that of the source, and `further`.

    Both arrays are written in any case, without a branch, so that it vectorises.
    """
    for j in range(end):
        value, tap = source[at(j + offset)], source_taps[at(j + offset)] + further
        # NaN is the largest, and the first of them stays.
        wins = (best[at(j)] == best[at(j)]) & ((value > best[at(j)]) | (value != value))
        best[at(j)] = value if wins else best[at(j)]
        taps[at(j)] = tap if wins else taps[at(j)]


@functools.lru_cache(maxsize=2)
def max_planes(noting: bool) -> Callable[..., None]:
    """`max_values` for images, or with `noting` `max_pool` for them: from a padded copy of a plane.

    Its loops run over many rows at once. A window's maximum is taken along its rows, then down its columns, so that it
    costs as much as its sides are long, and the first of the largest wins. A task is one plane: (n, channel).

    ``y`` holds the lowest value of its dtype on entry, ``winner`` -1.
    """

    @compiled
    def max_planes_loop(start: int, stop: int, x: Any, y: Any, winner: Any, geometry: Any) -> None:
        height, width = geometry[0]
        kernel_h, kernel_w = geometry[1]
        stride_h, stride_w = geometry[2]
        dilation_h, dilation_w = geometry[3]
        low_h, low_w = geometry[4]
        out_h, out_w = geometry[5]
        rows, columns = (out_h - 1) * stride_h + (kernel_h - 1) * dilation_h + 1, (out_w - 1) * stride_w + 1
        pitch = columns + (kernel_w - 1) * dilation_w
        inside = min(width, pitch - low_w)
        padded = np.empty(rows * pitch, x.dtype)
        wide, tall = np.empty_like(padded), np.empty_like(padded)
        none = np.zeros(rows * pitch if noting else 0, np.int32)
        wide_taps, tall_taps = np.empty_like(none), np.empty_like(none)
        lowest = y[start // x.shape[1], start % x.shape[1], 0]
        padded[:] = lowest
        length = rows * pitch - (kernel_w - 1) * dilation_w
        for task in range(start, stop):
            n, c = task // x.shape[1], task % x.shape[1]
            source, best, chosen = x[n, c], y[n, c], winner[n, c]
            for row in range(min(height, rows - low_h)):
                to, begin = (row + low_h) * pitch + low_w, row * width
                for j in range(inside):
                    padded[at(to + j)] = source[at(begin + j)]
            for j in range(length):
                wide[at(j)] = padded[at(j)]
            if noting:
                wide_taps[:] = 0
            for k in range(1, kernel_w):
                if noting:
                    raise_noting(wide, wide_taps, padded, none, k, length, k * dilation_w)
                else:
                    raise_to(wide, padded, 0, length, 1, k * dilation_w)
            # Where windows follow each other closely, all rows of the result at once; else each from the rows it needs.
            span = (out_h - 1) * pitch + columns if stride_h == 1 else columns
            for row in range(1 if stride_h == 1 else out_h):
                top = row * stride_h * pitch
                for j in range(span):
                    tall[at(j)] = wide[at(top + j)]
                if noting:
                    for j in range(span):
                        tall_taps[at(j)] = wide_taps[at(top + j)]
                for k in range(1, kernel_h):
                    down = top + k * dilation_h * pitch
                    if noting:
                        raise_noting(tall, tall_taps, wide, wide_taps, k * kernel_w, span, down)
                    else:
                        raise_to(tall, wide, 0, span, 1, down)
                for part in range(out_h if stride_h == 1 else 1):
                    to, begin = (row + part) * out_w, part * pitch
                    for j in range(out_w):
                        best[at(to + j)] = tall[at(begin + j * stride_w)]
                        if noting:
                            chosen[at(to + j)] = tall_taps[at(begin + j * stride_w)]
            if noting:
                for p in range(out_h * out_w):
                    if best[at(p)] == lowest:  # all elements are as low as the padding, which must not win
                        chosen[at(p)] = first_inside(p // out_w, p % out_w, geometry)

    return max_planes_loop


@compiled
def first_inside(row: int, column: int, geometry: Any) -> int:
    """The first tap of a window of an image that is not in the padding, -1 if there is none."""
    for tap in range(geometry[1, 0] * geometry[1, 1]):
        down, across = tap // geometry[1, 1] * geometry[3, 0], tap % geometry[1, 1] * geometry[3, 1]
        y, x = row * geometry[2, 0] + down - geometry[4, 0], column * geometry[2, 1] + across - geometry[4, 1]
        if 0 <= y < geometry[0, 0] and 0 <= x < geometry[0, 1]:
            return tap
    return -1


@compiled
def max_pool_grad(start: int, stop: int, dy: Any, winner: Any, dx: Any, starts: Any, steps: Any) -> None:
    """Every gradient returns to the element that won its window. A task is one plane: (n, channel).

    A winner's place is the sum of two table entries, its window's in `starts` and its tap's in `steps`. To ask every
    tap of a window whether it won takes twelve times as long (3x3).
    """
    for task in range(start, stop):
        n, c = task // dx.shape[1], task % dx.shape[1]
        dx[n, c, :] = 0
        for p in range(starts.size):
            tap = winner[n, c, at(p)]
            if tap >= 0:
                dx[n, c, at(starts[at(p)] + steps[at(tap)])] += dy[n, c, at(p)]
