"""A convolution over any axes as one of images at dilation 1, for algorithms that know nothing else.

Axes before the last two are no different from channels: under an output lies one plane of the image for each of their
taps, and outputs along them are more images. Dilation divides an image: an output reads inputs of one remainder modulo
the dilation, so that each remainder is an image of its own, a *phase*, and phases are more images too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npconv.arrays import Array, Backend
from npconv.geometry import ConvSpec, Size, Window
from npconv.leading import leading_planes


@dataclass(frozen=True, eq=False)
class Planar:
    """What `planar` makes of a convolution.

    Attributes
    ----------
    spec : ConvSpec
        The convolution of images. Its batch is images by *leads*, outputs along the axes before the last two by phases;
        its channels are channels by taps of those axes.
    planes : numpy.ndarray
        The plane of an image, as `split` orders them, under every lead and tap; -1 for one of zeros. int64.
    steps : tuple of int
        Phases along the last axes.
    sizes, outs, skipped : tuple of int
        Of those axes: sizes of the image and of the result, and results of the phases that come before the first.
    images, held, written : int
        Images of the batch. Planes of a channel of the image and of the result, before they are divided.
    """

    spec: ConvSpec
    planes: Any
    steps: Size
    sizes: Size
    outs: Size
    skipped: Size
    images: int
    held: int
    written: int

    @property
    def is_divided(self) -> bool:
        """Whether there is more than one phase, so that images must be laid out anew."""
        return math.prod(self.steps) > 1

    def split(self, backend: Backend, x: Array) -> Array:
        """``(N, C, ...)`` as ``(N, C, planes, *size)``, planes by phases; a view where there is one phase."""
        return self._divide(backend, x, self.held, self.sizes, (0,) * len(self.steps), self.spec.window.size)

    def split_result(self, backend: Backend, y: Array) -> Array:
        """`split` for a result's gradient, with zeros for what `spec` computes in vain."""
        return self._divide(backend, y, self.written, self.outs, self.skipped, self.spec.window.out)

    def divide(self, backend: Backend, x: Array) -> Array:
        """The image of `spec`: ``(batch, C, *size)``."""
        if self.planes.shape == (1, 1):
            return x.reshape(self.spec.x_shape)
        parts = self.split(backend, x)
        # The last plane is the absent one.
        held = backend.xp.zeros((*parts.shape[:2], parts.shape[2] + 1, *parts.shape[3:]), parts.dtype)
        held[:, :, :-1] = parts
        under = held[:, :, backend.xp.asarray(self.planes)]
        return backend.xp.ascontiguousarray(backend.xp.moveaxis(under, 2, 1)).reshape(self.spec.x_shape)

    def divide_result(self, backend: Backend, y: Array) -> Array:
        """The result's gradient as `spec` has it, with zeros for what it computes in vain."""
        if self.planes.shape == (1, 1):
            return y.reshape(self.spec.y_shape)
        parts = self.split_result(backend, y)
        return backend.xp.ascontiguousarray(backend.xp.moveaxis(parts, 2, 1)).reshape(self.spec.y_shape)

    def joined(self, backend: Backend, y: Array, shape: Size) -> Array:
        """The result of `spec` as that of the convolution it stands for, of this shape."""
        leads, window = len(self.planes), self.spec.window
        if leads == 1:
            return y.reshape(shape)
        parts = y.reshape(self.images, leads, self.spec.out_channels, *window.out)
        out = backend.xp.empty(shape, y.dtype)
        self.join(backend, backend.xp.moveaxis(parts, 1, 2), out)
        return out

    def join(self, backend: Backend, parts: Array, y: Array) -> None:
        """Write ``(N, C, planes, *out)`` into the result."""
        planes = y.reshape(math.prod(y.shape[:2]) * self.written, *_two(self.outs, 1))
        parts = parts.reshape(len(planes), *_two(self.steps, 1), *_two(self.spec.window.out, 1))
        before = _two(self.skipped, 0)
        kernels: Any = backend.kernels
        if hasattr(kernels, "join_phases"):
            kernels.join_phases(parts, before, planes)
            return
        for phase, here, there in self._phases(planes.shape[1:], before):
            planes[:, *here] = parts[:, *phase, *there]

    def _divide(self, backend: Backend, x: Array, count: int, sizes: Size, skipped: Size, size: Size) -> Array:
        if not self.is_divided:
            return x.reshape(*x.shape[:2], count, *sizes)
        planes, before = x.reshape(math.prod(x.shape[:2]) * count, *_two(sizes, 1)), _two(skipped, 0)
        parts = backend.scratch((len(planes), *_two(self.steps, 1), *_two(size, 1)), x.dtype)
        kernels: Any = backend.kernels
        if hasattr(kernels, "divide_phases"):
            kernels.divide_phases(planes, before, parts)
        else:
            parts[...] = 0
            for phase, here, there in self._phases(planes.shape[1:], before):
                parts[:, *phase, *there] = planes[:, *here]
        return parts.reshape(*x.shape[:2], count * math.prod(self.steps), *size)

    def _phases(self, sizes: Size, before: Size) -> Iterator[tuple[Size, tuple[slice, ...], tuple[slice, ...]]]:
        """Every phase, its elements of a plane of these sizes, and where they are in the phase."""
        steps = _two(self.steps, 1)
        for phase in itertools.product(*map(range, steps)):
            here = [slice((p - b) % d, None, d) for p, b, d in zip(phase, before, steps, strict=True)]
            first = [int(p < b) for p, b in zip(phase, before, strict=True)]
            counts = [len(range(n)[part]) for n, part in zip(sizes, here, strict=True)]
            yield phase, tuple(here), tuple(slice(f, f + n) for f, n in zip(first, counts, strict=True))


def _two(sizes: Size, missing: int) -> Size:
    """The numbers of two axes; a signal is a plane of one row."""
    return (missing,) * (2 - len(sizes)) + sizes


@functools.lru_cache(maxsize=1024)
def planar(spec: ConvSpec) -> Planar:
    """The convolution over the last one or two axes, at dilation 1, that `spec` amounts to."""
    window, front = spec.window, max(0, spec.ndim - 2)
    last = window.axes(slice(front, None))
    steps = tuple(d if k > 1 else 1 for k, d in zip(last.kernel, last.dilation, strict=True))
    front_axes = window.axes(slice(0, front))
    under = leading_planes(front_axes)
    phases = np.arange(math.prod(steps))[:, None]
    planes = np.where(under[:, None] >= 0, under[:, None] * len(phases) + phases, -1).reshape(-1, under.shape[1])
    planes = np.ascontiguousarray(planes, np.int64)
    planes.flags.writeable = False
    lows = tuple(-(-low // d) for (low, _), d in zip(last.padding, steps, strict=True))
    skipped = tuple(n * d - low for n, d, (low, _) in zip(lows, steps, last.padding, strict=True))
    size = tuple(-(-n // d) for n, d in zip(last.size, steps, strict=True))
    out = tuple(-(-(n + e) // d) for n, e, d in zip(last.out, skipped, steps, strict=True))
    # Perhaps negative: a phase may have pixels that no result of it reads.
    highs = [m + k - 1 - n - low for m, k, n, low in zip(out, last.kernel, size, lows, strict=True)]
    one = (1,) * len(steps)
    image = Window(size, last.kernel, one, tuple(zip(lows, highs, strict=True)), one)
    if len(planes) == planes.shape[1] == 1:
        image = replace(image, padding=last.padding)
    inner = replace(
        spec,
        batch=spec.batch * len(planes),
        in_channels=spec.in_channels * planes.shape[1],
        window=image,
        layout="channels_first",
        batched=True,
    )
    held, written = math.prod(front_axes.size), math.prod(front_axes.out)
    return Planar(inner, planes, steps, last.size, last.out, skipped, spec.batch, held, written)
