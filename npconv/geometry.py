"""The geometry of sliding windows and of convolutions: pure integers, no arrays.

Every rule about sizes, strides, padding, dilation and groups is here, and so is every error message about a shape.
Two values come out: a `Window` (how a kernel slides over spatial axes) and a `ConvSpec` (a window plus batch, channels
and groups). Both are frozen, hashable and already normalised, so the rest of the package never asks again.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Size = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

PADDING_STRINGS = ("valid", "same", "same_upper", "same_lower", "full", "causal")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = ("channels_first", "channels_last")

# Offsets are computed in signed 64-bit integers; a complex128 element takes 16 bytes.
_MAX_ELEMENTS = (2**63 - 1) // 16
_MAX_INTEGER = 2**62


# --------------------------------------------------------------------------------------------------------------------
# Normalising what callers write
# --------------------------------------------------------------------------------------------------------------------


def integer(name: str, value: Any, minimum: int = 0) -> int:
    """Return `value` as a Python integer of at least `minimum`, or raise an error that names `name`.

    Booleans and floats are refused even where they are equal to an integer: they are nearly always a swapped argument.
    """
    if type(value) is not int:
        try:
            if type(value).__name__ in ("bool", "bool_", "_bool"):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {_show(value)}") from None
    if value < minimum:
        kind = {0: "zero or more", 1: "positive"}.get(minimum, f"at least {minimum}")
        raise ValueError(f"{name} must be {kind}, got {value}")
    if value > _MAX_INTEGER:
        raise ValueError(f"{name} is too large for 64-bit offsets, got {value}")
    return int(value)


def choice(name: str, value: Any, known: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of `known`, else raise a `ValueError` that lists them."""
    if not any(value is k or (isinstance(value, str) and value == k) for k in known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {_show(value)}")
    return value


def shape(name: str, value: Any) -> Size:
    """Return `value` as a tuple of sizes, each zero or more."""
    items = sequence(value)
    if items is None:
        raise TypeError(f"{name} must be a shape, a tuple of integers, got {_show(value)}")
    sizes = tuple(integer(f"{name}[{i}]", v) for i, v in enumerate(items))
    return check_extent(name, sizes)


def per_axis(name: str, value: Any, ndim: int, minimum: int = 1) -> Size:
    """Return `value`, one integer or one per dimension, as a tuple of `ndim` integers."""
    items = sequence(value)
    if items is None:
        return (integer(name, value, minimum),) * ndim
    if len(items) != ndim:
        raise ValueError(
            f"{name} must be an integer or {_count(ndim, 'integer')}, one per dimension; got {_show(value)}"
        )
    return tuple(integer(f"{name}[{i}]", v, minimum) for i, v in enumerate(items))


def check_extent(name: str, sizes: Size) -> Size:
    """Return `sizes` unless their product leaves 64-bit byte offsets."""
    if math.prod(sizes) > _MAX_ELEMENTS:
        raise ValueError(f"{name} of shape {sizes} has too many elements for 64-bit byte offsets")
    return sizes


def sequence(value: Any) -> tuple[Any, ...] | None:
    """The items of a tuple, a list or an array; None for anything else."""
    if isinstance(value, tuple | list):
        return tuple(value)
    if getattr(value, "ndim", 0) >= 1 and hasattr(value, "__iter__"):
        return tuple(value)
    return None


def _show(value: Any) -> str:
    """A short `repr` with the type, for error messages."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


# --------------------------------------------------------------------------------------------------------------------
# Padding
# --------------------------------------------------------------------------------------------------------------------


def resolve_padding(value: Any, size: Size, kernel: Size, stride: Size, dilation: Size) -> Pairs:
    """Turn any form of `padding` into one (low, high) pair per dimension.

    Parameters
    ----------
    value : int, str, or sequence
        An integer; one integer or one ``(low, high)`` pair per dimension; or ``"valid"`` (none), ``"same"`` =
        ``"same_upper"`` (output size ``ceil(size / stride)``, an odd leftover goes to the high side), ``"same_lower"``
        (it goes to the low side), ``"full"`` (every overlap) or ``"causal"`` (only the low side).
    size, kernel, stride, dilation : tuple of int
        The geometry that the strings are resolved against.
    """
    ndim = len(kernel)
    if isinstance(value, str):
        choice("padding", value, PADDING_STRINGS)
        return tuple(_padding_by_name(value, *axis) for axis in zip(size, kernel, stride, dilation, strict=True))
    items = sequence(value)
    if items is None:
        if value is None or not hasattr(value, "__index__"):
            raise TypeError(
                f"padding must be an integer, integers or (low, high) pairs per dimension, or one of "
                f"{', '.join(map(repr, PADDING_STRINGS))}; got {_show(value)}"
            )
        p = integer("padding", value)
        return ((p, p),) * ndim
    if len(items) != ndim:
        hint = (
            f"; for one dimension's low and high side write (({items[0]}, {items[1]}),)"
            if _is_flat_pair(items, ndim)
            else ""
        )
        raise ValueError(
            f"padding must be one integer or one (low, high) pair for each of {_count(ndim, 'dimension')}, "
            f"got {_show(value)}{hint}"
        )
    return tuple(_padding_pair(f"padding[{i}]", item) for i, item in enumerate(items))


def _is_flat_pair(items: tuple[Any, ...], ndim: int) -> bool:
    return ndim == 1 and len(items) == 2 and all(type(i) is int for i in items)


def _padding_pair(name: str, item: Any) -> tuple[int, int]:
    pair = sequence(item)
    if pair is None:
        p = integer(name, item)
        return p, p
    if len(pair) != 2:
        raise ValueError(f"{name} must be an integer or a (low, high) pair, got {_show(item)}")
    return integer(f"{name}[0]", pair[0]), integer(f"{name}[1]", pair[1])


def _padding_by_name(name: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    reach = (kernel - 1) * dilation
    if name == "valid":
        return 0, 0
    if name == "full":
        return reach, reach
    if name == "causal":
        return reach, 0
    out = -(-size // stride)
    total = max((out - 1) * stride + reach + 1 - size, 0)
    smaller, larger = total // 2, total - total // 2
    return (larger, smaller) if name == "same_lower" else (smaller, larger)


# --------------------------------------------------------------------------------------------------------------------
# Window: how a kernel slides over spatial axes
# --------------------------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------------------------
# ConvSpec: a convolution
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvSpec:
    """One convolution, complete and checked: what it computes, not how. Build it with `ConvSpec.of`.

    Attributes
    ----------
    batch, in_channels, out_channels, groups : int
    window : Window
        The spatial part.
    padding_mode, layout : str
    batched : bool
        False where the caller's arrays have no batch axis (`batch` is then 1).

    Examples
    --------
    >>> spec = ConvSpec.of((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
    >>> spec.y_shape, spec.macs
    ((1, 100, 64, 64), 1024000000)
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    window: Window
    padding_mode: str = "zeros"
    layout: str = "channels_first"
    batched: bool = True

    @classmethod
    def of(
        cls,
        x_shape: Any,
        w_shape: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        *,
        x_name: str = "x",
        w_name: str = "w",
        ndim: int | None = None,
    ) -> ConvSpec:
        """Normalise and validate the shapes and parameters of a convolution.

        Parameters
        ----------
        x_shape : tuple of int
            ``(N, C_in, *spatial)``, or without ``N``; with ``layout="channels_last"`` the channels come last.
        w_shape : tuple of int
            ``(C_out, C_in / groups, *kernel)``.
        stride, padding, dilation, groups, padding_mode, layout
            As for `npconv.conv`.
        x_name, w_name : str
            What error messages call the two shapes.
        ndim : int, optional
            The number of spatial dimensions that the called function requires.
        """
        x_shape, w_shape = shape(x_name, x_shape), shape(w_name, w_shape)
        choice("padding_mode", padding_mode, PADDING_MODES)
        choice("layout", layout, LAYOUTS)
        dims = _kernel_dims(w_name, w_shape, "(C_out, C_in/groups, *kernel)", ndim)
        batch, channels, size, batched = split_shape(x_name, x_shape, dims, layout)
        groups = integer("groups", groups, 1)
        if channels != w_shape[1] * groups:
            raise ValueError(
                f"{x_name} has {_count(channels, 'channel')} (shape {x_shape}, {layout}), but {w_name} of shape "
                f"{w_shape} with groups={groups} expects {w_shape[1]} x {groups} = {w_shape[1] * groups}"
            )
        if w_shape[0] % groups:
            raise ValueError(
                f"groups must divide the number of output channels: {w_name} has {w_shape[0]} (shape {w_shape}), "
                f"got groups={groups}"
            )
        window = Window.over(size, w_shape[2:], stride, padding, dilation)
        spec = cls(batch, channels, w_shape[0], groups, window, padding_mode, layout, batched)
        if padding_mode != "zeros" and window.has_padding and 0 in size:
            raise ValueError(
                f"padding_mode {padding_mode!r} needs something to repeat, but {x_name} has spatial size {size}"
            )
        check_extent("the padded input", (batch, channels, *window.padded))
        check_extent("the output", spec.y_shape)
        return spec

    @classmethod
    def transposed(
        cls,
        x_shape: Any,
        w_shape: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        layout: str = "channels_first",
        *,
        ndim: int | None = None,
    ) -> tuple[ConvSpec, Size]:
        """The convolution whose input gradient is a transposed convolution of `x`, and the extension of the result.

        Parameters
        ----------
        x_shape : tuple of int
            ``(N, C, *spatial)``, or without ``N``.
        w_shape : tuple of int
            ``(C, C_out / groups, *kernel)``.
        stride, padding, output_padding, dilation, groups, layout
            As for `npconv.conv_transpose`.
        ndim : int, optional
            The number of spatial dimensions that the called function requires.

        Returns
        -------
        spec : ConvSpec
            It maps the transposed convolution's result to `x`, so its input is that result.
        beyond : tuple of int
            Per axis, how many more elements the result has at the high side, which no weight reaches.
        """
        x_shape, w_shape = shape("x", x_shape), shape("w", w_shape)
        choice("layout", layout, LAYOUTS)
        dims = _kernel_dims("w", w_shape, "(C, C_out/groups, *kernel)", ndim)
        batch, channels, size, batched = split_shape("x", x_shape, dims, layout)
        groups = integer("groups", groups, 1)
        if channels != w_shape[0]:
            raise ValueError(
                f"x has {_count(channels, 'channel')} (shape {x_shape}, {layout}), but w of shape {w_shape} "
                f"expects {w_shape[0]}"
            )
        if channels % groups:
            raise ValueError(f"groups must divide the number of input channels: x has {channels}, got groups={groups}")
        window, beyond = _transposed_window(size, w_shape[2:], stride, padding, output_padding, dilation)
        spec = cls(batch, w_shape[1] * groups, channels, groups, window, "zeros", layout, batched)
        check_extent("the output", spec.x_shape)
        return spec, beyond

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return self.window.ndim

    @property
    def x_shape(self) -> Size:
        """Shape of the input as the caller sees it."""
        return join_shape(self.batch, self.in_channels, self.window.size, self.layout, self.batched)

    @property
    def w_shape(self) -> Size:
        """Shape of the weights, ``(C_out, C_in / groups, *kernel)``."""
        return (self.out_channels, self.in_channels // self.groups, *self.window.kernel)

    @property
    def y_shape(self) -> Size:
        """Shape of the output as the caller sees it."""
        return join_shape(self.batch, self.out_channels, self.window.out, self.layout, self.batched)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations; taps that fall into the padding are counted, as everybody does."""
        return self.batch * self.window.positions * math.prod(self.w_shape)

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-accumulate."""
        return 2 * self.macs

    @property
    def parameters(self) -> int:
        """Number of weights, without a bias."""
        return math.prod(self.w_shape)

    def bytes(self, itemsize: int = 4) -> int:
        """Bytes of input, weights and output, each counted once: the least that must move."""
        return itemsize * (math.prod(self.x_shape) + math.prod(self.w_shape) + math.prod(self.y_shape))

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 kernel without padding: a matrix product."""
        return self.window.taps == 1 and not self.window.has_padding

    @property
    def is_depthwise(self) -> bool:
        """Each group has one input channel."""
        return self.groups == self.in_channels > 0

    def without_padding(self) -> ConvSpec:
        """The same convolution over an input that has been padded already."""
        return replace(self, window=self.window.without_padding(), padding_mode="zeros")


def _kernel_dims(name: str, w_shape: Size, form: str, ndim: int | None) -> int:
    """Number of spatial dimensions of weights; `ndim` is what the called function requires."""
    if len(w_shape) < 3:
        raise ValueError(f"{name} must have at least 3 dimensions, {form}, got shape {w_shape}")
    if ndim is not None and len(w_shape) != ndim + 2:
        raise ValueError(
            f"{name} must have {ndim + 2} dimensions, {form}, for a {ndim}-D convolution; got shape {w_shape}"
        )
    return len(w_shape) - 2


def split_shape(name: str, value: Size, dims: int, layout: str) -> tuple[int, int, Size, bool]:
    """Split an array's shape into batch, channels and spatial size; the flag tells whether it had a batch axis."""
    if len(value) not in (dims + 1, dims + 2):
        form = "C, *spatial" if layout == "channels_first" else "*spatial, C"
        raise ValueError(
            f"{name} must have {dims + 2} dimensions, (N, {form}), or {dims + 1} without a batch, for "
            f"{_count(dims, 'spatial dimension')}; got shape {value}"
        )
    batched = len(value) == dims + 2
    batch, rest = (value[0], value[1:]) if batched else (1, value)
    channels, size = (rest[0], rest[1:]) if layout == "channels_first" else (rest[-1], rest[:-1])
    return batch, channels, size, batched


def join_shape(batch: int, channels: int, size: Size, layout: str, batched: bool) -> Size:
    """The inverse of `split_shape`."""
    rest = (channels, *size) if layout == "channels_first" else (*size, channels)
    return (batch, *rest) if batched else rest


def _transposed_window(
    size: Size, kernel: Size, stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> tuple[Window, Size]:
    """The window whose adjoint is a transposed convolution, and how far its result is extended at the high side.

    A transposed convolution maps `size` back to the input of the convolution that this window describes. Output padding
    uncovers positions that the high padding cut off; what it asks for beyond those is an extension that no weight
    reaches, returned per axis.
    """
    ndim = len(kernel)
    kernel = per_axis("kernel size", kernel, ndim)
    strides, dilations = per_axis("stride", stride, ndim), per_axis("dilation", dilation, ndim)
    extra = per_axis("output_padding", output_padding, ndim, minimum=0)
    for op, s, d in zip(extra, strides, dilations, strict=True):
        if op >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than the stride or the dilation, got output_padding={extra} with "
                f"stride={strides} and dilation={dilations}"
            )
    # "same" asks for size * stride; every other form does not depend on the size.
    targets = tuple(n * s for n, s in zip(size, strides, strict=True))
    pads = resolve_padding(padding, targets, kernel, strides, dilations)
    if isinstance(padding, str) and padding.startswith("same"):
        extra = tuple(
            op + max(s - (k - 1) * d - 1, 0) for op, s, k, d in zip(extra, strides, kernel, dilations, strict=True)
        )
    out = tuple(
        (n - 1) * s - lo - hi + (k - 1) * d + 1 + op
        for n, s, (lo, hi), k, d, op in zip(size, strides, pads, kernel, dilations, extra, strict=True)
    )
    beyond = tuple(max(op - hi, 0) for op, (_, hi) in zip(extra, pads, strict=True))
    if 0 in size:
        raise ValueError(f"x must have at least one element along each spatial axis to be transposed, got size {size}")
    if min(out) < 0:
        raise ValueError(
            f"the output of a transposed convolution would have size {out}: x has size {size}, kernel {kernel}, "
            f"stride {strides}, padding {pads}, dilation {dilations}, output_padding {extra}"
        )
    check_extent("the output", out)
    # Low padding may cut off so much that only the extension is left.
    reached = tuple(max(o - b, 0) for o, b in zip(out, beyond, strict=True))
    beyond = tuple(o - r for o, r in zip(out, reached, strict=True))
    uncovered = tuple(
        ((n - 1) * s + (k - 1) * d + 1 - r - max(hi - op, 0), max(hi - op, 0))
        for n, s, k, d, r, op, (_, hi) in zip(size, strides, kernel, dilations, reached, extra, pads, strict=True)
    )
    return Window.over(reached, kernel, strides, uncovered, dilations), beyond
