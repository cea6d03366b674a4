"""Convolution layers."""

from __future__ import annotations

from typing import Any, ClassVar

import npconv as nc
from npconv.nn import init
from npconv.nn.arguments import Array, Ints, check_shape, flag, namespace, per_axis, positive, widened
from npconv.nn.module import Module, Parameter


class _Kernel(Module):
    """What convolutions and transposed ones share: channels, the window, weights and bias."""

    ndim: ClassVar[int | None] = None
    bias: Parameter | None

    def _set_up(
        self, in_channels: int, out_channels: int, kernel_size: Ints, stride: Ints, dilation: Ints, groups: int
    ) -> None:
        self.in_channels = positive("in_channels", in_channels)
        self.out_channels = positive("out_channels", out_channels)
        self.groups = positive("groups", groups)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"groups must divide {name}, got groups={self.groups} and {name}={channels}")
        ndim = self._ndim_of(kernel_size)
        self.kernel_size = per_axis("kernel_size", kernel_size, ndim)
        self.stride = per_axis("stride", stride, ndim)
        self.dilation = per_axis("dilation", dilation, ndim)

    def _ndim_of(self, kernel_size: Any) -> int:
        if self.ndim is not None:
            return self.ndim
        if not isinstance(kernel_size, tuple | list) or not kernel_size:
            raise ValueError(
                f"kernel_size must be a tuple, one integer per dimension, for {type(self).__name__}; "
                f"got {kernel_size!r}"
            )
        return len(kernel_size)

    def _draw(self, shape: tuple[int, ...], bias: bool, rng: init.Rng, dtype: Any) -> None:
        """Make weights of this shape, and a bias where wanted."""
        rng = init.generator(rng)
        bound = init.default_bound(shape)
        self.weight = Parameter(init.uniform(shape, bound, rng=rng, dtype=dtype))
        self.bias = None
        if flag("bias", bias):
            self.bias = Parameter(init.uniform((self.out_channels,), bound, rng=rng, dtype=dtype))

    def _learn_bias(self, dy: Array) -> None:
        """Add to the bias's gradient, if there is a bias."""
        if self.bias is not None:
            channels = dy.ndim - len(self.kernel_size) - 1
            axes = tuple(axis for axis in range(dy.ndim) if axis != channels)
            self.bias.accumulate(widened(namespace("dy", dy), dy).sum(axis=axes))

    def describe(self) -> str:
        """Return the arguments, those that are not at their defaults by name."""
        ones, zeros = (1,) * len(self.kernel_size), (0,) * len(self.kernel_size)
        required = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        usual_padding = zeros if hasattr(self, "output_padding") else 0
        unusual = self._unusual(
            stride=ones, padding=usual_padding, output_padding=zeros, dilation=ones, groups=1, padding_mode="zeros"
        )
        return required + unusual + (", bias=False" if self.bias is None else "")


class Conv(_Kernel):
    """Convolution over any number of dimensions, `npconv.conv` with weights that are learned.

    `Conv1d`, `Conv2d` and `Conv3d` are the same with the number of dimensions fixed.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : tuple of int
        One size per dimension.
    stride, dilation : int or tuple of int
    padding : int, tuple or str
        Any form that `npconv.conv` takes: an integer, one integer or ``(low, high)`` pair per dimension, ``"same"`` and
        others.
    groups : int
        Divides both numbers of channels. ``groups=in_channels`` makes the layer depthwise.
    bias : bool
        Whether a learned number is added to each output channel.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    rng : int, numpy.random.Generator or None
        Where the initial weights come from: a seed, or a generator to share among layers.
    dtype : {"float32", "float64", "float16"}

    Attributes
    ----------
    weight : Parameter
        ``(out_channels, in_channels / groups, *kernel_size)``.
    bias : Parameter or None
        ``(out_channels,)``.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, in_channels, *spatial)`` to ``(N, out_channels, *out)``, and the same without ``N``. Weights and bias
    start uniform in ``[-b, b]``, ``b = 1 / sqrt(in_channels / groups * kernel elements)``, as PyTorch's do.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Conv(3, 8, (3, 3, 3, 3), padding="same", rng=0)
    >>> layer(np.zeros((2, 3, 4, 4, 4, 4), "float32")).shape
    (2, 8, 4, 4, 4, 4)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Any = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rng: init.Rng = None,
        dtype: Any = "float32",
    ) -> None:
        self._set_up(in_channels, out_channels, kernel_size, stride, dilation, groups)
        self.padding = padding
        self.padding_mode = padding_mode
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self._check_padding(shape)
        self._draw(shape, bias, rng, dtype)

    def _check_padding(self, weight_shape: tuple[int, ...]) -> None:
        """Let npconv judge the padding now, on the smallest image, and not at the first forward pass."""
        span = tuple((k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        nc.plan(
            (1, self.in_channels, *span), weight_shape, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, backend="numpy",
        )  # fmt: skip

    def forward(self, x: Array) -> Array:
        """Convolve.

        Parameters
        ----------
        x : array
            ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.

        Returns
        -------
        array
            ``(N, out_channels, *out)``, or without ``N``.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        # The backward pass must use these weights even if an optimiser has replaced them by then.
        weight, bias = self.weight.value, None if self.bias is None else self.bias.value
        y = nc.conv(x, weight, bias, *self._window, padding_mode=self.padding_mode)
        self.keep((x, weight))
        return y

    @property
    def _window(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def backward(self, dy: Array) -> Array:
        """Add to the gradients of weight and bias, and return the input's; see `Module.backward`."""
        x, weight = self._learn(dy)
        return nc.conv_input_grad(dy, weight, tuple(x.shape), *self._window, padding_mode=self.padding_mode)

    def backward_parameters(self, dy: Array) -> None:
        """Add to the gradients of weight and bias; see `Module.backward_parameters`."""
        if type(self).backward is Conv.backward:
            self._learn(dy)
        else:  # a subclass may do more in its own
            self.backward(dy)

    def _learn(self, dy: Array) -> tuple[Array, Array]:
        """Add to the gradients of weight and bias; return the input and the weights of the forward pass."""
        x, weight = self.recall()
        dw = nc.conv_weight_grad(x, dy, tuple(weight.shape), *self._window, padding_mode=self.padding_mode)
        self.weight.accumulate(dw)
        self._learn_bias(dy)
        return x, weight


class Conv1d(Conv):
    """Convolution of signals, ``(N, C, length)`` or ``(C, length)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, rng, dtype
        As for `Conv`; `kernel_size` may be one integer.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.Conv1d(2, 4, 3, stride=2, rng=0)(np.zeros((5, 2, 9), "float32")).shape
    (5, 4, 4)
    """

    ndim = 1


class Conv2d(Conv):
    """Convolution of images, ``(N, C, H, W)`` or ``(C, H, W)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, rng, dtype
        As for `Conv`; `kernel_size` may be one integer for a square.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Conv2d(3, 8, 5, padding=2, rng=0)
    >>> y = layer(np.ones((1, 3, 12, 12), "float32"))
    >>> dx = layer.backward(np.ones_like(y))
    >>> dx.shape, layer.weight.grad.shape, layer.bias.grad
    ((1, 3, 12, 12), (8, 3, 5, 5), array([144., 144., 144., 144., 144., 144., 144., 144.], dtype=float32))
    """

    ndim = 2


class Conv3d(Conv):
    """Convolution of volumes, ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, rng, dtype
        As for `Conv`; `kernel_size` may be one integer for a cube.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.Conv3d(1, 2, 3, rng=0)(np.zeros((1, 8, 8, 8), "float32")).shape
    (2, 6, 6, 6)
    """

    ndim = 3


class ConvTranspose(_Kernel):
    """Transposed convolution over any number of dimensions, `npconv.conv_transpose` with weights that are learned.

    `ConvTranspose1d`, `ConvTranspose2d` and `ConvTranspose3d` are the same with the number of dimensions fixed.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : tuple of int
        One size per dimension.
    stride, dilation : int or tuple of int
    padding : int or tuple of int
        What is cut off the result at both sides.
    output_padding : int or tuple of int
        Added to the size of the result at the high side; smaller than the stride or the dilation.
    groups : int
        Divides both numbers of channels.
    bias : bool
        Whether a learned number is added to each output channel.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from: a seed, or a generator to share among layers.
    dtype : {"float32", "float64", "float16"}

    Attributes
    ----------
    weight : Parameter
        ``(in_channels, out_channels / groups, *kernel_size)``.
    bias : Parameter or None
        ``(out_channels,)``.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here; the message names it.

    Notes
    -----
    Maps ``(N, in_channels, *spatial)`` to ``(N, out_channels, *out)``, and the same without ``N``, where
    ``out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1``. Weights and bias start
    uniform in ``[-b, b]``, ``b = 1 / sqrt(out_channels / groups * kernel elements)``, as PyTorch's do.

    References
    ----------
    V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.ConvTranspose(3, 8, (2, 2, 2, 2), stride=2, rng=0)
    >>> layer(np.zeros((2, 3, 2, 2, 3, 3), "float32")).shape
    (2, 8, 4, 4, 6, 6)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        *,
        rng: init.Rng = None,
        dtype: Any = "float32",
    ) -> None:
        self._set_up(in_channels, out_channels, kernel_size, stride, dilation, groups)
        ndim = len(self.kernel_size)
        self.padding = per_axis("padding", padding, ndim, least=0)
        self.output_padding = per_axis("output_padding", output_padding, ndim, least=0)
        for axis, extra in enumerate(self.output_padding):
            if extra >= max(self.stride[axis], self.dilation[axis]):
                raise ValueError(
                    f"output_padding must be smaller than stride or dilation, got {extra} with "
                    f"stride={self.stride[axis]} and dilation={self.dilation[axis]} on axis {axis}"
                )
        self._draw((self.in_channels, self.out_channels // self.groups, *self.kernel_size), bias, rng, dtype)

    def forward(self, x: Array) -> Array:
        """Convolve, transposed.

        Parameters
        ----------
        x : array
            ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.

        Returns
        -------
        array
            ``(N, out_channels, *out)``, or without ``N``.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        # The backward pass must use these weights even if an optimiser has replaced them by then.
        weight, bias = self.weight.value, None if self.bias is None else self.bias.value
        y = nc.conv_transpose(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        self.keep((x, weight, y.shape))
        return y

    def backward(self, dy: Array) -> Array:
        """Add to the gradients of weight and bias, and return the input's; see `Module.backward`."""
        x, weight, shape = self.recall()
        check_shape("dy", dy, tuple(shape), "that of the result")
        self._learn_bias(dy)
        # This layer is the adjoint of a convolution, so its gradient is that convolution. Output padding uncovers what
        # the padding cut off on the high side; where it goes beyond that, no weight reaches.
        ends = list(zip(self.padding, self.output_padding, strict=True))
        padding = tuple((low, max(low - extra, 0)) for low, extra in ends)
        reached = tuple(slice(n - max(e - p, 0)) for n, (p, e) in zip(dy.shape[-len(ends) :], ends, strict=True))
        dy = dy[(..., *reached)]
        window = (self.stride, padding, self.dilation, self.groups)
        self.weight.accumulate(nc.conv_weight_grad(dy, x, weight.shape, *window))
        return nc.conv(dy, weight, None, *window)


class ConvTranspose1d(ConvTranspose):
    """Transposed convolution of signals, ``(N, C, length)`` or ``(C, length)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, rng, dtype
        As for `ConvTranspose`; `kernel_size` may be one integer.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1, rng=0)
    >>> layer(np.zeros((1, 2, 5), "float32")).shape
    (1, 4, 10)
    """

    ndim = 1


class ConvTranspose2d(ConvTranspose):
    """Transposed convolution of images, ``(N, C, H, W)`` or ``(C, H, W)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, rng, dtype
        As for `ConvTranspose`; `kernel_size` may be one integer.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, rng=0)
    >>> layer(np.zeros((1, 2, 5, 5), "float32")).shape
    (1, 4, 10, 10)
    """

    ndim = 2


class ConvTranspose3d(ConvTranspose):
    """Transposed convolution of volumes, ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, rng, dtype
        As for `ConvTranspose`; `kernel_size` may be one integer.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.ConvTranspose3d(2, 4, 3, stride=2, padding=1, output_padding=1, rng=0)
    >>> layer(np.zeros((1, 2, 5, 5, 5), "float32")).shape
    (1, 4, 10, 10, 10)
    """

    ndim = 3
