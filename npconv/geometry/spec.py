"""A convolution: a window, batch, channels and groups."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from npconv.geometry.arguments import (
    LAYOUTS,
    PADDING_MODES,
    Size,
    check_extent,
    choice,
    count_of,
    integer,
    per_axis,
    shape,
)
from npconv.geometry.padding import resolve_padding
from npconv.geometry.window import Window


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
                f"{x_name} has {count_of(channels, 'channel')} (shape {x_shape}, {layout}), but {w_name} of shape "
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
                f"x has {count_of(channels, 'channel')} (shape {x_shape}, {layout}), but w of shape {w_shape} "
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
            f"{count_of(dims, 'spatial dimension')}; got shape {value}"
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
