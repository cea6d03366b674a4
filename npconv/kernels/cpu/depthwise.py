"""Depthwise convolution and its input gradient: one plane in, one plane out, a strip of the result in registers.

There is no product of matrices here, so the register tile has nothing to reuse. What can be reused is the image: a
vector of it serves every tap and every row of the strip under which it lies. The instructions for one kernel size,
stride and dilation are written out, so that each vector is loaded once for all of them, straight from the caller's
array. What lies in the padding is never read: rows outside are replaced by a row of zeros, and where a vector reaches
over the left or right border only the lanes inside are loaded.

Results are written in whole vectors too, over the end of a row and of a plane, into what is written later. So strips go
down a plane, within a strip from right to left, and only the last one of a range of tasks is cut.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.geometry import Window
from npconv.kernels.cpu.blocking import first_axes, last_axes, processor
from npconv.kernels.cpu.compile import entry
from npconv.kernels.cpu.loops import HARDSWISH
from npconv.kernels.cpu.tiled import arguments
from npconv.kernels.cpu.vectors import INT64, Vectors, address_of, number, number_of, on_addresses
from npconv.leading import leading_planes

MOST_TAPS = 64
"""Kernels with more taps are too much code to be written out."""

WORTH_WRITING_OUT = 2**15
"""Products of an image from which on a kernel is worth machine code of its own, which takes seconds to make."""

AHEAD = 1536
"""Bytes that planes are fetched ahead which are a strip each, at a step of 2: they are read faster than the hardware
fetches the next ones."""

SUMS = 8
"""Vectors of a strip at most: with a column of weights and a vector of the image they fill AVX2's registers, and they
hide the time that an addition takes."""


def is_written_out(taps: int, products: int) -> bool:
    """Whether a kernel of one channel with so many products an image has its taps written out."""
    return taps <= MOST_TAPS and products >= WORTH_WRITING_OUT


class Term(NamedTuple):
    """A tap and one of the vectors that it adds to, and the vector of the image that it scales."""

    tap: int
    row: int
    """Row of the strip."""
    part: int
    """Vector of that row."""
    source: tuple[int, int, int]
    """Leading tap, and row and column behind the strip's first."""


class Strip(NamedTuple):
    """What the instructions for a strip depend on; pairs are of rows and columns."""

    lanes: int
    rows: int
    vectors: int
    """Vectors in a row of the result, or in a row of one of its phases."""
    leads: int
    """Taps of the axes before the last two."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int] | None
    """Low paddings for the input gradient, None for the forward convolution."""
    inside: tuple[int, int] | None = None
    """First and one past the last of the rows behind the strip's first that exist, where that is known because strips
    are whole planes. Elsewhere it is seen when the loop runs."""

    @property
    def phases(self) -> int:
        """Vectors that are woven into one another: results of the input gradient modulo the stride."""
        return 1 if self.low is None else self.stride[1]

    @property
    def step(self) -> int:
        """Distance of the columns of the image that go into a vector."""
        return self.stride[1] if self.low is None else 1

    @property
    def span(self) -> int:
        """Columns of the result."""
        return self.lanes * self.vectors * self.phases

    @property
    def taps(self) -> int:
        """Number of weights."""
        return self.leads * self.kernel[0] * self.kernel[1]

    def terms(self) -> list[Term]:
        """All of them, those of one tap together."""
        found = []
        for tap in range(self.taps):
            lead, number_of_place = divmod(tap, len(self.places))
            down, across = self.places[number_of_place]
            for row in range(self.rows):
                for part in range(self.vectors * self.phases):
                    vector, phase = divmod(part, self.phases)
                    source, left = self.under(0, row, down), self.under(1, phase, across)
                    if source is not None and left is not None and self.may_exist(source):
                        place = (lead, source, left + vector * self.lanes * self.step)
                        found.append(Term(tap, row, part, place))
        return found

    def may_exist(self, below: int) -> bool:
        """Whether a row behind the strip's first may be more than padding."""
        return self.inside is None or self.inside[0] <= below < self.inside[1]

    def under(self, axis: int, place: int, tap: int) -> int | None:
        """Where the image lies that a tap takes to a place of the result."""
        if self.low is None:
            return place * self.stride[axis] + tap
        quotient, rest = divmod(place + self.low[axis] - tap, self.stride[axis])
        return None if rest else quotient

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column of the taps of one leading tap, in the image."""
        rows, columns = (range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True))
        return list(itertools.product(rows, columns))

    def loads(self, column: int) -> list[tuple[int, int]]:
        """What a vector from a column on is made of: columns, and how many further each load begins.

        At a step of 2 it takes half of two vectors, and the vector from the next column takes the other half.
        """
        if self.step != 2:
            return [(column, 0)]
        return [(column - column % 2, behind) for behind in (0, self.lanes)]

    def outputs_of(self, load: tuple[int, int]) -> Any:
        """The lane of the result that each lane of a load goes into."""
        return (np.arange(self.lanes) + load[1]) // (2 if self.step == 2 else 1)


class Strips(NamedTuple):
    """The tables that the driver works from, all of int64.

    `shape` holds planes of an image's channel, their height and width, height and width of the result, first row of the
    image for the first strip and how many further it is for the next, strips of a plane and bytes of the masks of one
    strip and of all. `leads` is the image's plane for each leading place of the result and leading tap, or -1.
    `columns` has for every strip of a row its first column, the image's column there, and if it reaches over a border
    the number of its masks, from 1 on. `masks` has the lanes of its loads that lie inside as -1, in integers as wide as
    the image's elements, and at last a row of zeros.
    """

    shape: Any
    leads: Any
    columns: Any
    masks: Any


def loads_of(strip: Strip) -> list[tuple[int, int]]:
    """All loads from a row, each once, in the order of their masks."""
    columns = dict.fromkeys(term.source[2] for term in strip.terms())
    return list(dict.fromkeys(load for column in columns for load in strip.loads(column)))


@functools.lru_cache(maxsize=1024)
def forward_strips(window: Window, itemsize: int) -> tuple[Strip, Strips, int]:
    """The strip for a window, the driver's tables, and the number of tasks of a channel of the result."""
    plane, leads = last_axes(window, 2), leading_planes(first_axes(window, 2))
    strip = _strip(plane, plane.out, leads.shape[1], itemsize, None)
    if (leads >= 0).all():
        strip = with_known_rows(strip, plane)
    first = tuple(-low for low, _ in plane.padding)
    return strip, *_strips(strip, plane.size, plane.out, first, leads, _planes(window.size), itemsize)


@functools.lru_cache(maxsize=1024)
def gradient_strips(window: Window, outputs: int, itemsize: int) -> tuple[Strip, Strips, int]:
    """The same for the input gradient: the image is the result's gradient, in planes of `outputs` channels."""
    plane, forward = last_axes(window, 2), leading_planes(first_axes(window, 2))
    # Which of the result's leading places each one of the input goes into, by which leading tap.
    leads = np.full((_planes(window.size), outputs, forward.shape[1]), -1)
    places, taps = np.nonzero(forward >= 0)
    leads[forward[places, taps], :, taps] = places[:, None] + np.arange(outputs) * len(forward)
    leads = leads.reshape(len(leads), -1)
    low = (plane.padding[0][0], plane.padding[1][0])
    strip = _strip(plane, plane.size, leads.shape[1], itemsize, low)
    return strip, *_strips(strip, plane.out, plane.size, (0, 0), leads, outputs * len(forward), itemsize)


def _strip(plane: Window, result: tuple[int, ...], leads: int, itemsize: int, low: tuple[int, int] | None) -> Strip:
    lanes, (height, width) = processor().register_bytes // itemsize, result
    (down, across), (kernel_h, kernel_w), (dilation_h, dilation_w) = plane.stride, plane.kernel, plane.dilation
    # A strip of the gradient begins with the first phase of rows.
    period, phases = (1, 1) if low is None else (down, across)
    most = max(period, SUMS // phases // period * period)
    rows = -(-height // period) * period
    if rows > most:
        options = [rows for rows in (7, 8, 6, 5, 4, 3, 2, 1) if most < 2 * rows <= 2 * most and rows % period == 0]
        rows = min(options or [most], key=lambda rows: -(-height // rows) * rows)
    vectors = max(1, min(SUMS // (rows * phases), width // (lanes * phases)))
    return Strip(
        lanes, rows, vectors, leads, (kernel_h, kernel_w), (down, across), (dilation_h, dilation_w), low
    )  # fmt: skip


def with_known_rows(strip: Strip, plane: Window) -> Strip:
    """A strip of the forward convolution with what is known of its rows where it is a whole plane."""
    if strip.rows < plane.out[0]:
        return strip
    low, span = plane.padding[0][0], (strip.rows - 1) * strip.stride[0] + plane.reach[0] + 1
    known = strip._replace(inside=(min(low, span), min(low + plane.size[0], span)))
    # Padding alone has no columns to load.
    return known if plane.size[1] and known.terms() else strip


def _strips(
    strip: Strip, size: tuple[int, ...], result: tuple[int, ...], first: tuple[int, ...], leads: Any, planes: int,
    itemsize: int,
) -> tuple[Strips, int]:  # fmt: skip
    """The tables for images of a size whose element `first` lies under the first tap of the first result."""
    (height, width), (result_h, result_w) = size, result
    lefts = np.arange(0, result_w, strip.span)[::-1]
    down, across = strip.stride
    row_step, columns = (
        (strip.rows * down, lefts * across) if strip.low is None else (strip.rows // down, lefts // across)
    )
    columns += first[1]
    inside = lanes_inside(strip, columns, width)
    numbers, masks = border_masks(inside)
    strips = -(-result_h // strip.rows)
    shape = [
        planes, height if width else 0, width, result_h, result_w, first[0], row_step, strips,
        math.prod(inside.shape[1:]) * itemsize, masks.size * itemsize,
    ]  # fmt: skip
    tables = Strips(
        np.array(shape, np.int64), np.ascontiguousarray(leads, np.int64),
        np.stack([lefts, columns, numbers], axis=1), mask_table(masks, width, itemsize),
    )  # fmt: skip
    for table in tables:
        table.flags.writeable = False
    return tables, len(leads) * strips


def lanes_inside(strip: Strip, columns: Any, width: int) -> Any:
    """Whether lanes lie in rows of so many elements: ``(strips, loads, lanes)`` for strips from `columns` on."""
    spacing = strip.step if strip.step > 2 else 1
    first = np.array([sum(load) for load in loads_of(strip)])
    places = columns[:, None, None] + first[:, None] + np.arange(strip.lanes) * spacing
    return (places >= 0) & (places < width)


def border_masks(masks: Any) -> tuple[Any, Any]:
    """Numbers of the strips of a row whose masks leave lanes out, from 1 on, 0 for the others; and those masks."""
    over_border = ~masks.all(axis=(1, 2))
    return np.where(over_border, np.cumsum(over_border), 0), masks[over_border]


def mask_table(masks: Any, width: int, itemsize: int) -> Any:
    """The table `Strips.masks` of boolean masks and a row of so many zeros."""
    per_word = 8 // itemsize
    zeros = np.zeros(-(-max(width, 1) // per_word) * per_word, bool)
    return (-np.append(masks.ravel(), zeros).astype(f"i{itemsize}")).view(np.int64)


def _planes(size: tuple[int, ...]) -> int:
    return math.prod(size[:-2])


def strip_sums(itemsize: int, strip: Strip, masked: bool) -> Any:
    """``sums(planes, row, column, width, zeros, masks, w, bias, y, pitch, end, limits, hardswish)``.

    For compiled code: the vectors of a strip, each ``y := act(clamp(bias + sum over its terms of w * x))``.

    Contract: `planes` is a table of the address and the number of rows of a plane for each leading tap, with no rows
    where it falls into padding, which it never does where the strip knows its rows (`Strip.inside`); `zeros`, `masks`,
    `w`, `bias`, `y`, `end` and `limits`, of two numbers, are addresses.
    The terms begin at (`row`, `column`) of planes whose rows are of `width`, of which what lies inside is read: in the
    columns what the masks say (see `Strips`), everything if the function is not `masked`. `zeros` is a row of zeros.
    The rows of `y` are `pitch` apart and are written in their order, whole vectors even where they reach further than
    `pitch`, but nothing from `end` on.
    """
    lanes, terms, loads = strip.lanes, strip.terms(), loads_of(strip)
    parts = strip.vectors * strip.phases
    places = [(row, part) for row in range(strip.rows) for part in range(parts)]

    def sums(
        vectors: Vectors, planes: Any, row: Any, column: Any, width: Any, zeros: Any, masks: Any, w: Any, bias: Any,
        y: Any, pitch: Any, end: Any, limits: Any, hardswish: Any,
    ) -> None:  # fmt: skip
        builder = vectors.builder
        weights, result, bounds = map(vectors.pointer, (w, y, limits))
        table = builder.inttoptr(planes, INT64.as_pointer())
        inside = [vectors.load_mask(masks, n) if masked else None for n in range(len(loads))]
        row_bytes = builder.mul(width, number(itemsize))

        def existing_row(address: Any) -> Any:
            if strip.step == 2:
                vectors.prefetch(vectors.pointer(builder.add(address, number(AHEAD))))
            return vectors.pointer(address)

        def row_of(lead: int, below: int) -> Any:
            plane, height = (builder.load(builder.gep(table, [number(2 * lead + n)])) for n in range(2))
            if strip.inside is not None:
                return existing_row(builder.add(plane, builder.mul(builder.add(row, number(below)), row_bytes)))
            return row_start(vectors, plane, builder.add(row, number(below)), height, width, zeros)

        def read(start: Any, load: tuple[int, int]) -> Any:
            return read_vector(vectors, strip.step, start, column, load, inside[loads.index(load)], width)

        def under(source: tuple[int, int, int]) -> Any:
            """The vector of the image that begins at a place."""
            lead, below, left = source
            if source[:2] not in starts:
                starts[source[:2]] = row_of(lead, below)
            needed = strip.loads(left)
            for load in needed:
                if (source[:2], load) not in held:
                    held[source[:2], load] = read(starts[source[:2]], load)
            pieces = [held[source[:2], load] for load in needed]
            return pieces[0] if len(pieces) == 1 else vectors.half(pieces[0], pieces[1], left % 2)

        starts: dict[tuple[int, int], Any] = {}
        totals = dict.fromkeys(places, vectors.broadcast(builder.load(vectors.pointer(bias))))
        # Taps in one column of the kernel see the same vectors of the image, which then are loaded once; two columns at
        # a step of 2 share their loads. Their weights stay in registers meanwhile.
        for lead, columns in dict.fromkeys(_column_of(strip, term) for term in terms):
            together = [term for term in terms if _column_of(strip, term) == (lead, columns)]
            factors = {term.tap: builder.gep(weights, [number(term.tap)]) for term in together}
            factors = {tap: vectors.broadcast(builder.load(factor)) for tap, factor in factors.items()}
            held: dict[Any, Any] = {}
            for term in sorted(together, key=lambda term: term.source[1]):
                place = term.row, term.part
                totals[place] = vectors.multiply_add(factors[term.tap], under(term.source), totals[place])
        low, high = (vectors.broadcast(builder.load(builder.gep(bounds, [number(i)]))) for i in range(2))
        found = [vectors.clamp(totals[place], low, high) for place in places]
        found = vectors.where(hardswish, found, vectors.hardswish)
        if strip.step == 2:
            found = [vectors.in_order(value) for value in found]
        if strip.phases > 1:
            groups = [found[n : n + strip.phases] for n in range(0, len(found), strip.phases)]
            found = [value for group in groups for value in vectors.woven(group)]
        furthest = builder.add(builder.mul(pitch, number(strip.rows - 1)), number(parts * lanes))
        fits = builder.icmp_unsigned("<=", builder.add(y, builder.mul(furthest, number(itemsize))), end)
        with builder.if_else(fits) as (whole, cut):
            for branch, is_cut in ((whole, False), (cut, True)):
                with branch:
                    for (i, part), value in zip(places, found, strict=True):
                        place = builder.add(builder.mul(pitch, number(i)), number(part * lanes))
                        if is_cut:
                            left = builder.sub(end, builder.add(y, builder.mul(place, number(itemsize))))
                            mask = vectors.first_lanes(builder.sdiv(left, number(itemsize)))
                            vectors.store_masked(value, result, mask, place)
                        else:
                            vectors.store(value, result, place)

    return on_addresses(sums, itemsize, lanes)


def row_start(vectors: Vectors, plane: Any, row: Any, height: Any, width: Any, zeros: Any) -> Any:
    """A pointer to a row of a plane at an address, or to zeros where it lies outside."""
    builder = vectors.builder
    start = builder.add(plane, builder.mul(builder.mul(row, width), number(vectors.itemsize)))
    return vectors.pointer(builder.select(builder.icmp_unsigned("<", row, height), start, zeros))


def read_vector(
    vectors: Vectors, step: int, start: Any, column: Any, load: tuple[int, int], mask: Any, width: Any
) -> Any:
    """One of `Strip.loads` from a row of `width` elements, in which a strip begins at `column`; mask may be None."""
    place = vectors.builder.add(column, number(sum(load)))
    if step > 2:
        return vectors.load_strided(start, place, step, mask, vectors.builder.sub(width, number(1)))
    return vectors.load(start, place) if mask is None else vectors.load_masked(start, mask, place)


def _column_of(strip: Strip, term: Term) -> tuple[int, int]:
    """The leading tap of a term and the column of its tap in the kernel, or the pair of columns that share loads."""
    column = term.tap % strip.kernel[1] * strip.dilation[1]
    return term.source[0], column // 2 if strip.step == 2 else column


@functools.lru_cache(maxsize=64)
def conv_depthwise(dtype: np.dtype[Any], strip: Strip) -> Callable[..., None]:
    """The driver for float32 or float64 and a strip."""
    size, rows, kind = dtype.itemsize, strip.rows, dtype.type
    inside, over_a_border = (strip_sums(size, strip, masked) for masked in (False, True))

    @entry(*arguments(dtype))
    def conv_depthwise_loop(
        start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, low: Any, high: Any, activation: int, groups: int,
        outputs: int, total: int, tables: Any,
    ) -> None:  # fmt: skip
        """``y = act(clamp(bias + x * w))`` for the addresses of an image, weights ``(groups * outputs, total)``, a bias
        and a result.

        A task is (n, channel of the result, leading place, strip of rows). What lies behind the tasks in the result is
        not touched; what lies in them may be written several times.
        """
        x, w, bias, y = number_of(x), number_of(w), number_of(bias), number_of(y)
        shape, leads, columns, masks = tables
        image_planes, height, width, out_h, out_w = shape[0], shape[1], shape[2], shape[3], shape[4]
        first_row, row_step, strips, mask_bytes = shape[5], shape[6], shape[7], shape[8]
        plane_bytes, result_bytes = height * width * size, out_h * out_w * size
        zeros = address_of(masks) + shape[9]
        planes, limits = np.empty((leads.shape[1], 2), np.int64), np.empty(2, kind)
        limits[0], limits[1] = low, high
        bottom = min((stop - 1) % strips * rows + rows, out_h)
        end = y + (stop - 1) // strips * result_bytes + bottom * out_w * size
        begin, result = start % strips, start // strips
        lead, channel = result % leads.shape[0], result // leads.shape[0]
        image, output, weights = channel // outputs, channel % outputs, channel % (groups * outputs)
        left_over = stop - start
        while left_over > 0:
            for tap in range(leads.shape[1]):
                plane = leads[lead, tap]
                planes[tap, 0] = x + (image * image_planes + plane) * plane_bytes
                planes[tap, 1] = height if plane >= 0 else 0
            factors, shift = w + weights * total * size, bias + weights * size
            until = min(strips, begin + left_over)
            for strip_of_plane in range(begin, until):
                row = first_row + strip_of_plane * row_step
                target = y + result * result_bytes + strip_of_plane * rows * out_w * size
                for part in range(columns.shape[0]):
                    left, column = columns[part, 0], columns[part, 1]
                    if columns[part, 2] != 0:
                        over_a_border(
                            address_of(planes), row, column, width, zeros,
                            address_of(masks) + (columns[part, 2] - 1) * mask_bytes, factors, shift,
                            target + left * size, out_w, end, address_of(limits), activation == HARDSWISH,
                        )  # fmt: skip
                    else:
                        inside(
                            address_of(planes), row, column, width, zeros, 0, factors, shift,
                            target + left * size, out_w, end, address_of(limits), activation == HARDSWISH,
                        )  # fmt: skip
            left_over, begin, result, lead = left_over - (until - begin), 0, result + 1, lead + 1
            if lead == leads.shape[0]:
                lead, output, weights = 0, output + 1, weights + 1
                if output == outputs:
                    output, image = 0, image + 1
                if weights == groups * outputs:
                    weights = 0

    return conv_depthwise_loop
