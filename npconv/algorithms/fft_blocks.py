"""Which blocks an FFT convolution is cut into: their length by its price, and how many are in work at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from npconv.geometry import ConvSpec, Size

STEP = 8 * 2**20
"""Bytes of blocks and spectra that are in work at once, unless one block of one group needs more."""

BLOCK = 64 * 2**20
"""Bytes that one block of one group may take where a smaller one is possible."""

IN_FLIGHT = 64 * 2**20
"""Bytes that the steps of several threads may take together, unless one step needs more."""

# Products of spectra with fewer multiplications a frequency are sums of images; with more, a matrix product pays for
# the transposes before and after it (4 x 4 channels: 8 against 6 GFLOP/s; 8 x 8: 6 against 26).
FEWEST_FOR_MATMUL = 32

# What one core of an AMD EPYC (Zen 3) takes with NumPy 2.4, in seconds: a floating-point operation of a transform, of a
# product of images, of a matrix product in float32; a one-dimensional transform, a matrix product, a block and a step
# besides; a byte that is moved, and one that is transposed.
_TRANSFORM, _MULTIPLY, _MATMUL = 1 / 12e9, 1 / 10e9, 1 / 45e9
_LINE, _MATRIX, _RUN, _STEP = 80e-9, 500e-9, 8e-6, 50e-6
_BYTE, _TRANSPOSED_BYTE = 0.1e-9, 0.4e-9


@dataclass(frozen=True)
class Blocks:
    """How one operation is cut up. `inner` and `outer` are the channels of a group, phases included, that are summed
    over and that are produced; `out` and `reach` count samples of a phase.

    Attributes
    ----------
    length : tuple of int
        Samples of a block per axis, the size of its transform.
    kept : tuple of int
        Samples of the result that a block gives per axis.
    count : tuple of int
        Number of blocks per axis.
    images, groups_at_once : int
        How many (block, image) pairs and how many groups are in work together.
    """

    batch: int
    groups: int
    inner: int
    outer: int
    out: Size
    reach: Size
    length: Size
    images: int = 1
    groups_at_once: int = 1

    @property
    def kept(self) -> Size:
        return tuple(n - r for n, r in zip(self.length, self.reach, strict=True))

    @property
    def count(self) -> Size:
        return tuple(-(-n // k) for n, k in zip(self.out, self.kept, strict=True))

    @property
    def pairs(self) -> int:
        """Blocks of all images."""
        return self.batch * math.prod(self.count)

    @property
    def steps(self) -> int:
        return -(-self.pairs // self.images) * -(-self.groups // self.groups_at_once)

    @property
    def axes(self) -> Size:
        """The axes that are transformed."""
        return tuple(i for i, r in enumerate(self.reach) if r)

    @property
    def transform(self) -> int:
        """Samples of one transform."""
        return math.prod(self.length[i] for i in self.axes)

    @property
    def rows(self) -> int:
        """Transforms of one channel of one block."""
        return math.prod(n for n, r in zip(self.length, self.reach, strict=True) if not r)

    @property
    def frequencies(self) -> int:
        """Frequencies of one real transform."""
        last = self.length[self.axes[-1]]
        return self.transform // last * (last // 2 + 1)

    @property
    def by_matmul(self) -> bool:
        return self.inner * self.outer >= FEWEST_FOR_MATMUL

    @property
    def transforms(self) -> int:
        """Number of transforms, of blocks and of kernels."""
        channels = self.groups * (self.inner + self.outer) * self.pairs * self.rows
        return channels + self.groups * self.inner * self.outer

    @property
    def lines(self) -> int:
        """One-dimensional transforms in one."""
        *others, last = (self.length[i] for i in self.axes)
        return self.transform // last + sum(self.frequencies // n for n in others)

    @property
    def transform_flops(self) -> int:
        """2.5 n log2(n) for each real transform, as is usual."""
        return int(2.5 * self.transform * math.log2(self.transform) * self.transforms)

    @property
    def product_flops(self) -> int:
        return 8 * self.groups * self.inner * self.outer * self.frequencies * self.rows * self.pairs

    def spectra(self, itemsize: int) -> int:
        """Bytes of the kernels' spectra."""
        return 2 * itemsize * self.groups * self.inner * self.outer * self.frequencies

    def pair(self, itemsize: int) -> int:
        """Bytes in work for one block of one group: the spectra of both sides, and two copies of the larger."""
        channels = self.inner + self.outer + 2 * max(self.inner, self.outer)
        return 2 * itemsize * channels * self.frequencies * self.rows

    def step(self, itemsize: int) -> int:
        """Bytes in work for one step."""
        return self.pair(itemsize) * self.images * self.groups_at_once

    def at_a_time(self, itemsize: int) -> int:
        """Most steps that may run side by side."""
        return max(1, min(self.steps, IN_FLIGHT // self.step(itemsize)))

    def seconds(self, itemsize: int) -> float:
        """About how long it takes on one core."""
        wide = itemsize / 4  # which halves vectors
        samples = 2 * itemsize * self.groups * (self.inner + self.outer) * self.frequencies * self.rows * self.pairs
        seconds = self.lines * self.transforms * _LINE + self.transform_flops * _TRANSFORM * math.sqrt(wide)
        seconds += 2 * samples * _BYTE + self.steps * _STEP + math.prod(self.count) * _RUN
        if not self.by_matmul:
            return seconds + self.product_flops * _MULTIPLY * wide
        passes = -(-self.pairs // self.images)
        seconds += self.product_flops * _MATMUL * wide + passes * self.groups * self.frequencies * _MATRIX
        return seconds + (samples + self.spectra(itemsize)) * _TRANSPOSED_BYTE + passes * self.spectra(itemsize) * _BYTE


def blocks_for(spec: ConvSpec, op: str, itemsize: int) -> Blocks:
    """The blocks that an operation is cut into."""
    return _blocks_for(spec, op, itemsize, STEP, BLOCK)


@functools.lru_cache(maxsize=1024)
def _blocks_for(spec: ConvSpec, op: str, itemsize: int, step: int, most: int) -> Blocks:
    phases = math.prod(spec.window.stride)
    inner, outer = spec.in_channels // spec.groups * phases, spec.out_channels // spec.groups
    out, reach = spec.window.out, phase_reach(spec)
    if op == "input_grad":
        inner, outer, out = outer, inner, phases_reached(spec)[1]
    best: Blocks | None = None
    for length in _lengths(out, reach):
        blocks = Blocks(spec.batch, spec.groups, inner, outer, out, reach, length)
        blocks = _together(_with_fewer_rows(blocks, itemsize, most), itemsize, step)
        if best is not None and blocks.pair(itemsize) > most:
            break
        if best is None or blocks.seconds(itemsize) < best.seconds(itemsize):
            best = blocks
    assert best is not None
    return best


def _lengths(out: Size, reach: Size) -> Iterator[Size]:
    """Sizes of blocks from a little more than the kernel's up to the whole image's."""
    whole = tuple(fast_length(n + r) if r else max(n, 1) for n, r in zip(out, reach, strict=True))
    factor, last = 1.25, None
    while last != whole:
        length = tuple(
            min(w, _even(n, r, math.ceil(factor * (r + 1)))) if r else w
            for n, r, w in zip(out, reach, whole, strict=True)
        )
        if length != last:
            yield length
        factor, last = factor * 1.5, length


def _even(out: int, reach: int, length: int) -> int:
    """A fast length of about `length` whose blocks come out even."""
    kept = max(1, length - reach)
    count = max(1, round(out / kept))
    return fast_length(-(-out // count) + reach)


def _with_fewer_rows(blocks: Blocks, itemsize: int, most: int) -> Blocks:
    """Axes that are not transformed are cut until a block is small enough."""
    length = list(blocks.length)
    while blocks.pair(itemsize) > most and blocks.rows > 1:
        widest = max((i for i, r in enumerate(blocks.reach) if not r), key=lambda i: length[i])
        length[widest] = -(-length[widest] // 2)
        blocks = Blocks(
            blocks.batch, blocks.groups, blocks.inner, blocks.outer, blocks.out, blocks.reach, tuple(length)
        )
    return blocks


def _together(blocks: Blocks, itemsize: int, step: int) -> Blocks:
    """As many groups, then as many images as make a step of the wanted size."""
    room = step // blocks.pair(itemsize)
    groups = max(1, min(blocks.groups, room))
    images = max(1, min(blocks.pairs, room // groups))
    return Blocks(
        blocks.batch, blocks.groups, blocks.inner, blocks.outer, blocks.out, blocks.reach, blocks.length,
        images, groups,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def fast_length(n: int) -> int:
    """The smallest product of 2, 3, 5 and 7 that is at least `n`."""
    best = 1 << max(n - 1, 0).bit_length()
    sevens = 1
    while sevens < best:
        fives = sevens
        while fives < best:
            threes = fives
            while threes < best:
                best = min(best, threes << max(0, (-(-n // threes) - 1).bit_length()))
                threes *= 3
            fives *= 5
        sevens *= 7
    return best


def is_trivial(spec: ConvSpec) -> bool:
    """Whether there is nothing to sum, to write or to transform."""
    return not (
        spec.batch and spec.in_channels and spec.out_channels and all(spec.window.size) and any(phase_reach(spec))
    )


def phase_reach(spec: ConvSpec) -> Size:
    """Distance from a kernel's first to its last tap, in samples of a phase."""
    return tuple(r // s for r, s in zip(spec.window.reach, spec.window.stride, strict=True))


def phases_reached(spec: ConvSpec) -> tuple[Size, Size]:
    """First sample of the input's phases, padding included, that a gradient is wanted of, and how many there are."""
    window = spec.window
    first = tuple(lo // s for (lo, _), s in zip(window.padding, window.stride, strict=True))
    last = tuple(
        min((lo + n - 1) // s, out - 1 + r)
        for (lo, _), n, s, out, r in zip(
            window.padding, window.size, window.stride, window.out, phase_reach(spec), strict=True
        )
    )
    return first, tuple(max(0, b - a + 1) for a, b in zip(first, last, strict=True))


def kernel_chunk(blocks: Blocks, itemsize: int) -> tuple[int, int]:
    """How many kernels (pairs of channels) are transformed together, and the bytes that this takes."""
    # Spread and phased, spectra, and what a transform over several axes copies.
    one = 2 * itemsize * 4 * blocks.frequencies
    most = blocks.groups * blocks.inner * blocks.outer
    # Whole rows of pairs: at least those of one channel of the result.
    row = max(blocks.inner, blocks.outer)
    chunk = min(most, max(row, STEP // one))
    return chunk, chunk * one
