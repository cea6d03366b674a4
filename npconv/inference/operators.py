"""What each operation of a graph does: the shapes of its results, and a function that writes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

import npconv as nc
from npconv.inference.activation import FUSED, Activation, activate
from npconv.inference.graph import Array, Node
from npconv.inference.memory import Budget

Shape = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Value:
    """What is known of an array before it is computed; `constant` is the array where it is known already."""

    shape: Shape
    dtype: np.dtype[Any]
    constant: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, array: Array, constant: bool = False) -> Value:
        """What is known of an array that is there."""
        return cls(tuple(array.shape), array.dtype, array if constant else None)


@dataclass(frozen=True)
class Where:
    """Where a graph runs, and how much memory it may use there."""

    xp: ModuleType
    backend: str
    budget: Budget


@dataclass(frozen=True)
class Bound:
    """An operation made ready for inputs of certain shapes.

    Attributes
    ----------
    results : tuple of Value, or None
        None where nobody knows before it has run; `run` returns a tuple of arrays then.
    run : callable
        ``run(*inputs, *results)`` writes all elements of the results, which are in C order.
    view : bool
        The result is the memory of the first input in another shape; there is nothing to run.
    in_place : bool
        The result may be the memory of the first input, if that has its shape and dtype and nobody else reads it.
    """

    results: tuple[Value, ...] | None
    run: Callable[..., Any]
    view: bool = False
    in_place: bool = False


Build = Callable[[Node, Sequence["Value | None"], Where], Bound]


def bind(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Make a node ready, or raise an error that names it."""
    try:
        bound = OPERATORS[node.op](node, inputs, where)
        for value in bound.results or ():
            where.budget.check(value.nbytes, f"node {node}")
        return bound
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError, NotImplementedError) as error:
        raise named(node, error) from error


def named(node: Node, error: BaseException) -> BaseException:
    """The error of a node, with the node's name."""
    kind = type(error) if type(error) in (TypeError, NotImplementedError, MemoryError) else ValueError
    text = str(error)
    return error if text.startswith("node ") else kind(f"node {node}: {text or type(error).__name__}")


# --------------------------------------------------------------------------------------------------------------------
# Convolutions and matrix products
# --------------------------------------------------------------------------------------------------------------------


def conv(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``conv(x, w, bias)``; weights that are constant are packed once."""
    x, w, *more = inputs
    assert x is not None
    assert w is not None
    bias = more[0] if more else None
    dtype = _same_dtype(x, w, bias)
    geometry = {name: node.attributes[name] for name in ("stride", "padding", "dilation", "groups")}
    mode = node.attributes.get("padding_mode", "zeros")
    fused, after = _split(node.attributes.get("activation"), dtype)
    plan = nc.plan(
        x.shape, w.shape, **geometry, padding_mode=mode, activation=fused, dtype=dtype, backend=where.backend,
        max_workspace=where.budget.limit,
    )  # fmt: skip
    result = Value(plan.spec.y_shape, dtype)
    if w.constant is None or (bias is not None and bias.constant is None):

        def run(x: Array, w: Array, *rest: Array) -> None:
            *bias, y = rest
            activate(where.xp, plan(x, w, *(b for b in bias if b is not None), out=y), after)

        return Bound((result,), run)
    packed = plan.pack(w.constant, None if bias is None else bias.constant)

    def run_packed(x: Array, _w: Array, *rest: Array) -> None:
        packed(x, out=rest[-1])
        if after is not None:
            activate(where.xp, rest[-1], after)

    return Bound((result,), run_packed)


def conv_transpose(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``conv_transpose(x, w, bias)``."""
    x, w, *_ = inputs
    assert x is not None
    assert w is not None
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    geometry = {name: node.attributes[name] for name in names}
    activation = node.attributes.get("activation")
    run: Any = functools.partial(nc.conv_transpose, **geometry, backend=where.backend)
    shape = _enlarged_shape(x.shape, w.shape, **geometry)
    dtype = _same_dtype(*inputs)

    def write(x: Array, w: Array, *rest: Array) -> None:
        activate(where.xp, run(x, w, rest[0] if len(rest) == 2 else None, out=rest[-1]), activation)

    return Bound((Value(shape, dtype),), write)


def _enlarged_shape(
    x: Shape, w: Shape, stride: Shape, padding: Pairs, output_padding: Shape, groups: int, dilation: Shape
) -> Shape:
    """Shape that a transposed convolution gives."""
    axes = zip(x[2:], w[2:], stride, padding, output_padding, dilation, strict=True)
    out = ((n - 1) * step - low - high + d * (k - 1) + extra + 1 for n, k, step, (low, high), extra, d in axes)
    return (x[0], w[1] * groups, *out)


def affine(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``x * scale + shift`` with one number a channel: a convolution of 1 x 1, each channel by itself."""
    x, scale, shift = inputs
    assert x is not None
    assert scale is not None
    assert shift is not None
    channels = x.shape[1] if len(x.shape) > 1 else 0
    if len(x.shape) < 2 or scale.shape != (channels,) or shift.shape != (channels,):
        raise ValueError(f"scale {scale.shape} and shift {shift.shape} must have one number for each channel of "
                         f"x {x.shape}")  # fmt: skip
    image = (x.shape[0], channels, math.prod(x.shape[2:]))
    weights = None if scale.constant is None else scale.constant.reshape(-1, 1, 1)
    inner = Node("conv", node.inputs, node.outputs, {**ONE_BY_ONE, "groups": channels, **node.attributes})
    bound = conv(inner, (Value(image, x.dtype), Value((channels, 1, 1), scale.dtype, weights), shift), where)

    def run(x: Array, scale: Array, shift: Array, y: Array) -> None:
        bound.run(x.reshape(image), scale.reshape(-1, 1, 1), shift, y.reshape(image))

    return Bound((Value(x.shape, x.dtype),), run)


ONE_BY_ONE = {"stride": 1, "padding": 0, "dilation": 1}


def linear(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``x @ w + bias`` over any leading axes."""
    x, w, *more = inputs
    assert x is not None
    assert w is not None
    if not x.shape or not w.shape or (len(w.shape) > 1 and x.shape[-1] != w.shape[-2]):
        raise ValueError(f"x of shape {x.shape} cannot be multiplied by w of shape {w.shape}")
    dtype = _same_dtype(*inputs)
    activation = node.attributes.get("activation")
    shape = _matmul_shape(x.shape, w.shape)

    def run(x: Array, w: Array, *rest: Array) -> None:
        *bias, y = rest
        where.xp.matmul(x, w, out=y)
        if bias and bias[0] is not None:
            y += bias[0]
        activate(where.xp, y, activation)

    if more and more[0] is not None and np.broadcast_shapes(more[0].shape, shape) != shape:
        raise ValueError(f"the bias of shape {more[0].shape} does not fit a result of shape {shape}")
    return Bound((Value(shape, dtype),), run)


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    """Shape of ``a @ b``."""
    if len(a) == 1 or len(b) == 1:
        return a[:-1] if len(b) == 1 else (*b[:-2], b[-1])
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


# --------------------------------------------------------------------------------------------------------------------
# Pooling and normalisation
# --------------------------------------------------------------------------------------------------------------------


def max_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """`npconv.max_pool`."""
    (x,) = inputs
    assert x is not None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    arguments = {name: node.attributes[name] for name in names}
    shape = _pooled_shape(x.shape, **arguments)

    def run(x: Array, y: Array) -> None:
        nc.max_pool(x, **arguments, backend=where.backend, out=y)

    return Bound((Value(shape, x.dtype),), run)


def avg_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """`npconv.avg_pool`, of floating numbers: a convolution of each channel by itself, planned once."""
    (x,) = inputs
    assert x is not None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    kernel, stride, padding, dilation, _ = arguments = [node.attributes[name] for name in names]
    shape = _pooled_shape(x.shape, *arguments)
    pads = _resolved(x.shape, kernel, stride, padding, dilation)
    if tuple(kernel) == x.shape[2:] and not any(map(sum, pads)):
        return mean(node, inputs, where)
    channels, taps = x.shape[1], math.prod(kernel)
    # What the last, partial windows of `ceil_mode` reach beyond the padding.
    beyond = [
        max((out - 1) * s + (k - 1) * d + 1 - n - low - high, 0)
        for out, s, k, d, n, (low, high) in zip(shape[2:], stride, kernel, dilation, x.shape[2:], pads, strict=True)
    ]
    counts_pads = node.attributes["count_include_pad"]
    counted = ((0, 0),) * len(kernel) if counts_pads else pads
    extent = [n + counts_pads * (low + high) for n, (low, high) in zip(x.shape[2:], pads, strict=True)]
    where.budget.check(8 * (math.prod(shape) + math.prod(extent) + channels * taps), f"node {node}")
    ones = np.ones(extent)
    edges = tuple((low, high + more) for (low, high), more in zip(counted, beyond, strict=True))
    one = np.full((1, 1, *kernel), 1 / taps)
    share = nc.conv(ones[None, None], one, None, stride, edges, dilation, backend="numpy", algorithm="direct")
    even = bool(np.abs(share - 1).max() < 1e-9)
    with np.errstate(divide="ignore"):
        factor = where.xp.asarray(np.where(share > 1e-9, 1 / share, math.nan).astype(x.dtype))
    edges = tuple((low, high + more) for (low, high), more in zip(pads, beyond, strict=True))
    weights = where.xp.full((channels, 1, *kernel), 1 / taps, x.dtype)
    plan = nc.plan(x.shape, weights.shape, stride, edges, dilation, channels, dtype=x.dtype, backend=where.backend)
    packed = plan.pack(weights)

    def run(x: Array, y: Array) -> None:
        packed(x, out=y)
        if not even:
            where.xp.multiply(y, factor, out=y)

    return Bound((Value(shape, x.dtype),), run)


def _resolved(x: Shape, kernel: Shape, stride: Shape, padding: Pairs | str, dilation: Shape) -> Pairs:
    """A padding in numbers."""
    if not isinstance(padding, str):
        return padding
    return nc.plan((1, 1, *x[2:]), (1, 1, *kernel), stride, padding, dilation).spec.window.padding


def _pooled_shape(
    x: Shape, kernel_size: Shape, stride: Shape, padding: Pairs | str, dilation: Shape, ceil_mode: bool
) -> Shape:
    """Shape of a pooled image."""
    if len(kernel_size) != len(x) - 2:
        raise ValueError(
            f"a window of {kernel_size} does not fit an array of shape {x}: one number for each axis from 2"
        )
    padding = _resolved(x, kernel_size, stride, padding, dilation)
    out = []
    for n, k, step, (low, high), d in zip(x[2:], kernel_size, stride, padding, dilation, strict=True):
        room = n + low + high - (k - 1) * d - 1
        count = room // step + 1
        # A last, partial window counts if it starts inside the input or the padding before it.
        if ceil_mode and room % step and count * step < n + low:
            count += 1
        out.append(count)
    if any(n < 1 for n in out):
        raise ValueError(f"a window of {kernel_size} with padding {padding} does not fit an image of {x[2:]}")
    return (*x[:2], *out)


def mean(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Mean over `axes`, by default all but the first two: global average pooling."""
    (x,) = inputs
    assert x is not None
    given, keepdims = node.attributes.get("axes"), node.attributes.get("keepdims", True)
    axes = tuple(range(2, len(x.shape))) if given is None else tuple(_axis(axis, len(x.shape)) for axis in given)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    shape = kept if keepdims else tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    if x.dtype.kind != "f":
        return Bound(None, lambda x: (where.xp.asarray(x.mean(axis=axes, keepdims=keepdims)).astype(x.dtype),))

    def run(x: Array, y: Array) -> None:
        x.mean(axis=axes, keepdims=True, out=y.reshape(kept))

    return Bound((Value(shape, x.dtype),), run)


def global_max_pool(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Largest element over all axes but the first two, which stay as axes of length 1."""
    (x,) = inputs
    assert x is not None
    axes = tuple(range(2, len(x.shape)))

    def run(x: Array, y: Array) -> None:
        x.max(axis=axes, out=y.reshape(x.shape[:2]))

    return Bound((Value(x.shape[:2] + (1,) * len(axes), x.dtype),), run)


def batch_norm(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with statistics that are computed by the graph itself."""
    x = inputs[0]
    assert x is not None
    eps, per_channel = node.attributes["eps"], (-1,) + (1,) * (len(x.shape) - 2)

    def run(x: Array, *rest: Array) -> None:
        scale, bias, mean, var = (value.reshape(per_channel) for value in rest[:4])
        factor = scale / where.xp.sqrt(var + eps)
        y = rest[4]
        where.xp.multiply(x, factor, out=y)
        y += bias - mean * factor

    return Bound((Value(x.shape, x.dtype),), run)


def lrn(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Local response normalisation across channels: ``x / (bias + alpha / size * sum of squares) ** beta``."""
    (x,) = inputs
    assert x is not None
    size, alpha, beta, bias = (node.attributes[name] for name in ("size", "alpha", "beta", "bias"))
    low = (size - 1) // 2

    def run(x: Array, y: Array) -> None:
        _lrn(where.xp, x, y, (low, size - 1 - low), alpha / size, beta, bias)

    return Bound((Value(x.shape, x.dtype),), run)


def _lrn(xp: ModuleType, x: Array, y: Array, reach: tuple[int, int], alpha: float, beta: float, bias: float) -> None:
    """LRN, one image after the other: running sums over the channels, in blocks that stay in the cache."""
    channels, low, high = x.shape[1], *reach
    for image, result in zip(x.reshape(*x.shape[:2], -1), y.reshape(*y.shape[:2], -1), strict=True):
        step = max(1, 2**16 // max(channels, 1))
        for start in range(0, image.shape[1], step):
            part = image[:, start : start + step]
            squares = part * part
            total = xp.zeros_like(squares)
            for offset in range(-low, high + 1):
                inside = slice(max(0, -offset), channels - max(0, offset))
                total[inside] += squares[max(0, offset) : channels - max(0, -offset)]
            total *= alpha
            total += bias
            if beta == 0.75:
                root = xp.sqrt(total)
                root *= xp.sqrt(root)
                xp.divide(part, root, out=result[:, start : start + step])
            else:
                xp.multiply(part, total**-beta, out=result[:, start : start + step])


def softmax(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Softmax along `axis`; with `flat` along all axes from `axis` on."""
    (x,) = inputs
    assert x is not None
    ndim = max(len(x.shape), 1)
    axis = _axis(node.attributes["axis"], ndim)
    axes = tuple(range(axis, ndim)) if node.attributes.get("flat") else axis

    def run(x: Array, y: Array) -> None:
        where.xp.subtract(x, x.max(axis=axes, keepdims=True), out=y)
        where.xp.exp(y, out=y)
        y /= y.sum(axis=axes, keepdims=True)

    return Bound((Value(x.shape, x.dtype),), run, in_place=True)


# --------------------------------------------------------------------------------------------------------------------
# Elementwise
# --------------------------------------------------------------------------------------------------------------------


def elementwise(function: str) -> Build:
    """A NumPy function of two or more arrays that broadcast, folded from the left."""

    def build(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
        values = [value for value in inputs if value is not None]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        dtype = _same_dtype(*inputs)
        activation = node.attributes.get("activation")
        ufunc = getattr(where.xp, function)
        alike = all(value.shape == shape for value in values)

        def run(*arrays: Array) -> None:
            *arrays_in, y = arrays
            if alike:
                # Block by block, so that the activation finds its operand in the cache.
                _blockwise(where.xp, ufunc, [a.reshape(-1) for a in arrays_in], y.reshape(-1), activation)
                return
            _fold(ufunc, arrays_in, y)
            activate(where.xp, y, activation)

        in_place = values[0].shape == shape
        return Bound((Value(shape, dtype),), run, in_place=in_place)

    return build


BLOCK = 2**15


def _blockwise(xp: ModuleType, ufunc: Any, arrays: list[Array], y: Array, activation: Activation | None) -> None:
    for start in range(0, y.size, BLOCK):
        part = slice(start, start + BLOCK)
        _fold(ufunc, [a[part] for a in arrays], y[part])
        activate(xp, y[part], activation)


def _fold(ufunc: Any, arrays: Sequence[Array], y: Array) -> None:
    """The function of all arrays, from the left, into `y`."""
    if len(arrays) == 1:
        y[...] = arrays[0]
        return
    ufunc(arrays[0], arrays[1], out=y)
    for other in arrays[2:]:
        ufunc(y, other, out=y)


def activation(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """An activation that could not be fused into what made its input."""
    (x,) = inputs
    assert x is not None

    def run(x: Array, y: Array) -> None:
        if y is not x:
            y[...] = x
        activate(where.xp, y, node.attributes["activation"])

    return Bound((Value(x.shape, x.dtype),), run, in_place=True)


# --------------------------------------------------------------------------------------------------------------------
# Shapes
# --------------------------------------------------------------------------------------------------------------------


def concat(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Arrays joined along `axis`. A result that already lies where it belongs is not copied."""
    values = [value for value in inputs if value is not None]
    axis = _axis(node.attributes["axis"], len(values[0].shape))
    shapes = [value.shape for value in values]
    if len({(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}) != 1:
        raise ValueError(f"arrays of shapes {shapes} cannot be joined along axis {axis}")
    total = sum(shape[axis] for shape in shapes)

    def run(*arrays: Array) -> None:
        *parts, y = arrays
        start = 0
        for part in parts:
            place = y[(slice(None),) * axis + (slice(start, start + part.shape[axis]),)]
            if place.size and _address(place) != _address(part):
                place[...] = part
            start += part.shape[axis]

    return Bound((Value((*shapes[0][:axis], total, *shapes[0][axis + 1 :]), _same_dtype(*inputs)),), run)


def _address(array: Array) -> int:
    """Where the first element is."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def reshape(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Another shape for the same elements.

    ``attributes["shape"]`` is a function: of the shape of the first input, and of the second input where there is one.
    """
    x, *more = inputs
    assert x is not None
    target = node.attributes["shape"]
    if more and (more[0] is None or more[0].constant is None):
        return Bound(None, lambda x, wanted: (x.reshape(target(x.shape, wanted)).copy(),))
    shape = tuple(int(n) for n in target(x.shape, *(value.constant for value in more if value is not None)))
    if math.prod(shape) != math.prod(x.shape) or any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {x.shape} cannot take the shape {shape}")
    return Bound((Value(shape, x.dtype),), _nothing, view=True)


def shape(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """The shape of an array, from axis `start` to `stop`: known before anything runs."""
    (x,) = inputs
    assert x is not None
    found = np.array(x.shape[node.attributes["start"] : node.attributes["stop"]], np.int64)
    return Bound((Value(found.shape, found.dtype, where.xp.asarray(found)),), _nothing)


def _nothing(*arrays: Array) -> None:
    """Nothing is left to do."""


def transpose(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Axes in another order, written down."""
    (x,) = inputs
    assert x is not None
    axes = node.attributes["axes"]
    axes = tuple(range(len(x.shape)))[::-1] if axes is None else tuple(axes)
    if sorted(axes) != list(range(len(x.shape))):
        raise ValueError(f"axes {axes} do not order those of an array of shape {x.shape}")

    def run(x: Array, y: Array) -> None:
        y[...] = x.transpose(axes)

    return Bound((Value(tuple(x.shape[a] for a in axes), x.dtype),), run)


def call(node: Node, inputs: Sequence[Value | None], where: Where) -> Bound:
    """Any function of arrays: ``attributes["function"](*inputs)`` returns a tuple of arrays."""
    return Bound(None, node.attributes["function"])


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is none of an array with {ndim} axes")
    return axis % ndim


def _same_dtype(*values: Value | None) -> np.dtype[Any]:
    dtypes = {value.dtype for value in values if value is not None}
    if len(dtypes) != 1:
        raise TypeError(f"all arrays must have one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()


def _split(activation: Activation | None, dtype: np.dtype[Any]) -> tuple[str | None, Activation | None]:
    """What the convolution applies itself, and what is applied after it."""
    if activation is not None and activation[0] in FUSED and dtype.kind == "f":
        return activation[0], None
    return None, activation


OPERATORS: dict[str, Build] = {
    "activation": activation,
    "add": elementwise("add"),
    "affine": affine,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "call": call,
    "concat": concat,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "global_max_pool": global_max_pool,
    "linear": linear,
    "lrn": lrn,
    "max_pool": max_pool,
    "mean": mean,
    "mul": elementwise("multiply"),
    "reshape": reshape,
    "shape": shape,
    "softmax": softmax,
    "transpose": transpose,
}
"""Every operation by the name that a `Node` calls it."""
