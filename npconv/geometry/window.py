"""How a kernel slides over spatial axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from npconv.geometry.arguments import Pairs, Size, check_extent, per_axis
from npconv.geometry.padding import resolve_padding


@dataclass(frozen=True)
class Window:
    """A kernel sliding over spatial axes. All tuples have one entry per dimension; build it with `Window.over`.

    Attributes
    ----------
    size, kernel, stride, dilation : tuple of int
        Input size, kernel size, and the step between outputs and between kernel taps.
    padding : tuple of (int, int)
        Virtual elements before and after each axis.
    out : tuple of int
        Number of window positions per axis.
    """

    size: Size
    kernel: Size
    stride: Size
    padding: Pairs
    dilation: Size
    out: Size = field(init=False, compare=False)

    def __post_init__(self) -> None:
        out = tuple(
            (padded - reach - 1) // stride + 1
            for padded, reach, stride in zip(self.padded, self.reach, self.stride, strict=True)
        )
        object.__setattr__(self, "out", out)

    @classmethod
    def over(
        cls,
        size: Size,
        kernel: Size,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Window:
        """Normalise and validate what a caller wrote; `size` and `kernel` are tuples already.

        With `ceil_mode` a last, partial window is added where one starts inside the input or the low padding; it is
        expressed as more high padding, so nothing else has to know.
        """
        ndim = len(kernel)
        kernel = per_axis("kernel size", kernel, ndim)
        strides = per_axis("stride", stride, ndim)
        dilations = per_axis("dilation", dilation, ndim)
        pads = resolve_padding(padding, size, kernel, strides, dilations)
        padded = tuple(n + lo + hi for n, (lo, hi) in zip(size, pads, strict=True))
        check_extent("the padded input", padded)
        span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
        if ceil_mode:
            pads = tuple(
                (lo, hi + _ceil_extra(n, s, st, lo, hi))
                for n, s, st, (lo, hi) in zip(size, span, strides, pads, strict=True)
            )
            padded = tuple(n + lo + hi for n, (lo, hi) in zip(size, pads, strict=True))
        if any(s > p for s, p in zip(span, padded, strict=True)):
            spread = f" (spanning {span} with dilation {dilations})" if span != kernel else ""
            raise ValueError(
                f"the kernel of size {kernel}{spread} is larger than the padded input of size {padded} "
                f"(input {size}, padding {pads})"
            )
        return cls(size, kernel, strides, pads, dilations)

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def reach(self) -> Size:
        """Distance from a window's first to its last tap, per axis."""
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def padded(self) -> Size:
        """Input size with its padding, per axis."""
        return tuple(n + lo + hi for n, (lo, hi) in zip(self.size, self.padding, strict=True))

    @property
    def positions(self) -> int:
        """Number of window positions, all axes together."""
        return math.prod(self.out)

    @property
    def taps(self) -> int:
        """Number of kernel elements, all axes together."""
        return math.prod(self.kernel)

    @property
    def has_padding(self) -> bool:
        """Whether any side of any axis is padded."""
        return any(lo or hi for lo, hi in self.padding)

    def without_padding(self) -> Window:
        """The same window over an input that has been padded already."""
        return replace(self, size=self.padded, padding=((0, 0),) * self.ndim)

    def axes(self, chosen: slice) -> Window:
        """Some of the axes as a window of their own."""
        return Window(*(getattr(self, name)[chosen] for name in ("size", "kernel", "stride", "padding", "dilation")))

    def tap_range(self, axis: int, tap: int) -> tuple[int, int]:
        """First and one-past-last output for which kernel element `tap` of `axis` falls inside the input."""
        offset = tap * self.dilation[axis] - self.padding[axis][0]
        stride = self.stride[axis]
        first = max(0, -(offset // stride))
        stop = min(self.out[axis], (self.size[axis] - 1 - offset) // stride + 1)
        return first, max(first, stop)

    def tap_slices(self) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
        """For every kernel tap that touches the input: its number, its input slices, its output slices.

        ``y[..., *out] += w[tap] * x[..., *inp]`` over all taps is the whole convolution, with no padded copy: outputs
        that a tap reaches only in the padding are left out of its slices. Every form written against `xp` is a loop
        over this.
        """
        axes = [[(tap, *self._axis_slices(axis, tap)) for tap in self._touching(axis)] for axis in range(self.ndim)]
        for chosen in itertools.product(*axes):
            taps, inputs, outputs = zip(*chosen, strict=True)
            if all(s.start < s.stop for s in outputs):
                number = 0
                for tap, k in zip(taps, self.kernel, strict=True):
                    number = number * k + tap
                yield number, inputs, outputs

    def _touching(self, axis: int) -> range:
        """Taps of an axis that may touch the input; of a huge kernel over a small image, a few."""
        low, dilation = self.padding[axis][0], self.dilation[axis]
        first = -((low - (self.out[axis] - 1) * self.stride[axis]) // -dilation)
        last = (self.size[axis] - 1 + low) // dilation
        return range(max(0, first), min(self.kernel[axis] - 1, last) + 1)

    def _axis_slices(self, axis: int, tap: int) -> tuple[slice, slice]:
        first, stop = self.tap_range(axis, tap)
        stride, offset = self.stride[axis], tap * self.dilation[axis] - self.padding[axis][0]
        return slice(first * stride + offset, (stop - 1) * stride + offset + 1, stride), slice(first, stop)


def _ceil_extra(size: int, span: int, stride: int, low: int, high: int) -> int:
    """High padding that turns the floor of the output size into its ceiling."""
    slack = (size + low + high - span) % stride
    if slack == 0:
        return 0
    start_of_last = size + low + high - span - slack + stride
    return stride - slack if start_of_last < size + low else 0
