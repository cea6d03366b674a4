"""Hypothesis strategies: convolution and pooling problems, arrays of every dtype, and the reference's answers.

Everything that a problem says about geometry is worked out here anew, so that nothing of `npconv.geometry` is taken on
trust. Arrays hold small integers where the dtype is inexact, so that every order of summation gives the same bits, and
the dtype's whole range where it is an integer, so that sums wrap.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import npconv as nc
from npconv import reference
from npconv.algorithms import ALGORITHMS, TRANSFORMED, fft, winograd
from npconv.arrays import compute_dtype, require
from npconv.geometry import ConvSpec

FLOATS = ("float16", "float32", "float64")
COMPLEX = ("complex64", "complex128")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = FLOATS + COMPLEX + INTEGERS

BACKENDS = nc.available_backends()
ON_GPU = [pytest.mark.gpu] if "cupy" in BACKENDS else []
"""The mark of tests that run on a GPU, if there is one: ``-m gpu`` selects them."""

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""npconv's names of the padding modes, and `numpy.pad`'s."""

Size = tuple[int, ...]


def values(shape: Size, dtype: str, seed: int = 0) -> np.ndarray:
    """An array whose sums of products are exact in any order: small integers, or any where arithmetic wraps."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, kind, endpoint=True)
    numbers = rng.integers(-4, 5, shape).astype(kind)
    return numbers + kind.type(1j) * rng.integers(-4, 5, shape).astype(kind) if kind.kind == "c" else numbers


def identical(actual: Any, expected: Any) -> None:
    """Assert the same shape, dtype and elements."""
    np.testing.assert_array_equal(actual, expected, strict=True)


ERROR_BOUNDS = {"winograd": winograd.error_bound, "fft": fft.error_bound}
"""Of algorithms that round in a way of their own: ``(spec, op, a, b, dtype)`` to how far results may be off."""


def agree(algorithm: str, actual: Any, expected: Any) -> None:
    """Assert the same result, which is made of integers: of a form that rounds, after rounding to the nearest ones.

    The planner may choose such a form too. For the size of its errors there are tests of their own.
    """
    if actual.dtype.kind in "fc" and (algorithm == "auto" or algorithm in TRANSFORMED):
        actual = np.rint(actual)
    identical(actual, expected)


def can_compute(algorithm: str, dtype: str) -> bool:
    """Whether an algorithm computes in a dtype at all, whatever the geometry."""
    if algorithm == "auto":
        return True
    spec = ConvSpec.of((1, 1, 9), (1, 1, 1 if algorithm == "pointwise" else 3))
    return ALGORITHMS[algorithm].supports(spec, "forward", require("numpy"), compute_dtype(np.dtype(dtype))) is None


def skip_unless_computed(algorithm: str, dtype: str) -> None:
    """Skip a test that was parametrised with a dtype in which an algorithm does not compute."""
    if not can_compute(algorithm, dtype):
        pytest.skip(f"{algorithm} does not compute in {dtype}")


def rounding_bound(dtype: str, n: int, exact: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """How far a sum of `n` products may be from `exact`; `absolute` is the sum of their absolute values.

    In any order, fused or not, it is off by at most n * u / (1 - n * u) * absolute with u = eps / 2, which is less than
    n * eps * absolute (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1). Complex products have
    twice the terms. float16 is summed in float32 and rounded once more.
    """
    eps = float(np.finfo("float32" if dtype == "float16" else dtype).eps)
    bound = n * eps * absolute * (2 if dtype.startswith("c") else 1)
    if dtype == "float16":
        half = np.finfo(dtype)
        bound = bound + float(half.eps) / 2 * (np.abs(exact) + bound) + float(half.smallest_subnormal) / 2
    return bound


# --------------------------------------------------------------------------------------------------------------------
# Convolution problems
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One convolution. `padding` is what a call is given, `pairs` what it means; `batch` None means unbatched."""

    batch: int | None
    channels: int
    out_channels: int
    groups: int
    size: Size
    kernel: Size
    stride: Size
    dilation: Size
    padding: Any
    pairs: tuple[tuple[int, int], ...]
    mode: str = "zeros"
    layout: str = "channels_first"
    seed: int = 0
    definition: Any = field(default=reference, repr=False, compare=False)

    @property
    def reach(self) -> Size:
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def padded(self) -> Size:
        return tuple(n + lo + hi for n, (lo, hi) in zip(self.size, self.pairs, strict=True))

    @property
    def out(self) -> Size:
        return tuple((n - r - 1) // s + 1 for n, r, s in zip(self.padded, self.reach, self.stride, strict=True))

    @property
    def x_shape(self) -> Size:
        return self.shape(self.channels, self.size)

    @property
    def y_shape(self) -> Size:
        return self.shape(self.out_channels, self.out)

    @property
    def w_shape(self) -> Size:
        return (self.out_channels, self.channels // self.groups, *self.kernel)

    @property
    def terms(self) -> int:
        """Number of products in one element of the result."""
        return math.prod(self.w_shape[1:])

    def shape(self, channels: int, size: Size) -> Size:
        """An image's shape in this problem's layout."""
        rest = (channels, *size) if self.layout == "channels_first" else (*size, channels)
        return rest if self.batch is None else (self.batch, *rest)

    def but(self, **changes: Any) -> Problem:
        return replace(self, **changes)

    # Arrays

    def x(self, dtype: str = "float64", seed: int = 0) -> np.ndarray:
        return values(self.x_shape, dtype, self.seed + seed)

    def w(self, dtype: str = "float64", seed: int = 1) -> np.ndarray:
        return values(self.w_shape, dtype, self.seed + seed)

    def bias(self, dtype: str = "float64", seed: int = 2) -> np.ndarray:
        return values((self.out_channels,), dtype, self.seed + seed)

    def dy(self, dtype: str = "float64", seed: int = 3) -> np.ndarray:
        return values(self.y_shape, dtype, self.seed + seed)

    # Calls

    @property
    def window(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def keywords(self) -> dict[str, Any]:
        return {**self.window, "groups": self.groups, "padding_mode": self.mode, "layout": self.layout}

    def conv(self, x: Any, w: Any, bias: Any = None, **how: Any) -> Any:
        return nc.conv(x, w, bias, **self.keywords, **how)

    def input_grad(self, dy: Any, w: Any, **how: Any) -> Any:
        return nc.conv_input_grad(dy, w, self.x_shape, **self.keywords, **how)

    def weight_grad(self, x: Any, dy: Any, **how: Any) -> Any:
        return nc.conv_weight_grad(x, dy, self.w_shape, **self.keywords, **how)

    def vjp(self, x: Any, w: Any, bias: Any = None, **how: Any) -> Any:
        return nc.conv_vjp(x, w, bias, **self.keywords, **how)

    def supported_by(self, algorithm: str) -> bool:
        """Whether an algorithm can run every operation of this problem."""
        spec = ConvSpec.of(self.x_shape, self.w_shape, **self.keywords)
        spec = spec if self.mode == "zeros" else spec.without_padding()
        row = ALGORITHMS[algorithm]
        return all(
            row.supports(spec, op, require(name)) is None
            for op in ("forward", "input_grad", "weight_grad")
            for name in BACKENDS
        )

    def taps(self) -> Iterator[tuple[Size, tuple[slice, ...]]]:
        """Every kernel tap, and the part of the padded image that it meets."""
        axes = tuple(zip(self.stride, self.dilation, self.out, strict=True))
        for tap in np.ndindex(*self.kernel):
            yield tap, tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, (s, d, n) in zip(tap, axes, strict=True))

    def rounding_bound(
        self, algorithm: str, op: str, dtype: str, n: int, operands: Any, exact: np.ndarray, absolute: np.ndarray
    ) -> np.ndarray:
        """`rounding_bound`, and more where an algorithm has a bound of its own; without a padding mode."""
        bound = rounding_bound(dtype, n, exact, absolute)
        for name, error_bound in ERROR_BOUNDS.items():
            supported = self.supported_by(name) and can_compute(name, dtype)
            if algorithm == name or (algorithm == "auto" and supported):
                spec = ConvSpec.of(self.x_shape, self.w_shape, **self.keywords)
                a, b = operands
                a, b = self.channels_first(a), self.channels_first(b) if op == "weight_grad" else b
                own = error_bound(spec, op, a, b, compute_dtype(np.dtype(dtype)))
                bound = bound + (own if op == "weight_grad" else self.as_given(own))
        return bound

    # The reference's answers. Its loops warn where 64-bit integers wrap.

    def channels_first(self, value: np.ndarray) -> np.ndarray:
        """The caller's image as ``(N, C, *spatial)``."""
        value = value[None] if self.batch is None else value
        return value if self.layout == "channels_first" else np.moveaxis(value, -1, 1)

    def as_given(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `channels_first`."""
        value = value if self.layout == "channels_first" else np.moveaxis(value, 1, -1)
        return value[0] if self.batch is None else value

    @property
    def _reference(self) -> dict[str, Any]:
        """The reference's parameters, for images that have been padded already."""
        nothing = ((0, 0),) * len(self.size)
        return {"stride": self.stride, "padding": nothing, "dilation": self.dilation, "groups": self.groups}

    def pad(self, x: np.ndarray) -> np.ndarray:
        """``(N, C, *spatial)`` padded by `numpy.pad`."""
        return np.pad(x, ((0, 0), (0, 0), *self.pairs), PAD_MODES[self.mode])

    def pad_adjoint(self, dx: np.ndarray) -> np.ndarray:
        """The gradient of what was padded: every padded element's goes to the element that was copied there."""
        inside = tuple(slice(lo, lo + n) for n, (lo, _) in zip(self.size, self.pairs, strict=True))
        if self.mode == "zeros":
            return dx[:, :, *inside]
        sources = np.pad(np.arange(math.prod(self.size)).reshape(self.size), self.pairs, PAD_MODES[self.mode])
        flat = np.zeros((*dx.shape[:2], math.prod(self.size)), dx.dtype)
        np.add.at(flat, (slice(None), slice(None), sources.ravel()), dx.reshape(*dx.shape[:2], sources.size))
        return flat.reshape(*dx.shape[:2], *self.size)

    def expected(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(over="ignore"):
            y = self.definition.conv(self.pad(self.channels_first(x)), w, bias, **self._reference)
        return self.as_given(y)

    def expected_input_grad(self, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
        dtype = np.result_type(dy, w)
        # Padding modes add to what the reference would have rounded.
        wide = np.result_type(dtype, np.float64) if dtype.kind in "fc" else dtype
        with np.errstate(over="ignore"):
            dx = self.definition.conv_input_grad(
                self.channels_first(dy).astype(wide), w.astype(wide), self.padded, **self._reference
            )
        return self.as_given(self.pad_adjoint(dx).astype(dtype))

    def expected_weight_grad(self, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return self.definition.conv_weight_grad(
                self.pad(self.channels_first(x)), self.channels_first(dy), self.kernel, **self._reference
            )


PADDING_STRINGS = ("valid", "same", "same_upper", "same_lower", "full", "causal")


def meaning_of(padding: str, size: Size, reach: Size, stride: Size) -> tuple[tuple[int, int], ...]:
    """The pairs that a padding string stands for."""

    def one(n: int, r: int, s: int) -> tuple[int, int]:
        if padding.startswith("same"):
            missing = max((math.ceil(n / s) - 1) * s + r + 1 - n, 0)
            half = missing // 2
            return (missing - half, half) if padding == "same_lower" else (half, missing - half)
        return {"valid": (0, 0), "full": (r, r), "causal": (r, 0)}[padding]

    return tuple(one(*axis) for axis in zip(size, reach, stride, strict=True))


# Largest kernel and largest number of outputs beyond the first, per axis: keeps the textbook's loops short.
_EXTENT = {1: (5, 5), 2: (3, 3), 3: (2, 2), 4: (2, 1)}

_DIMENSIONS = st.sampled_from((1, 2, 1, 2, 3, 2, 4))
_FEW = st.integers(1, 2)
_FEW_OR_NONE = st.integers(0, 2)
_MORE = st.sampled_from((1, 2, 4, 5, 7))
_GROUPS = st.sampled_from((1, 2, 1, 3))
_FLAG = st.booleans()
_SEED = st.integers(0, 2**32)
_PAIR = st.tuples(st.integers(0, 3), st.integers(0, 3))
_DILATION = st.sampled_from((1, 1, 2, 3))


@functools.cache
def _integers(ndim: int, low: int, high: int) -> st.SearchStrategy[Size]:
    """One integer per axis."""
    return st.tuples(*[st.integers(low, high)] * ndim)


@st.composite
def problems(
    draw: st.DrawFn,
    algorithm: str = "auto",
    *,
    dims: st.SearchStrategy[int] = _DIMENSIONS,
    modes: tuple[str, ...] = ("zeros",),
    layouts: tuple[str, ...] = ("channels_first", "channels_last"),
    empty: bool = True,
    pointwise: bool = False,
    depthwise: bool = False,
    unit_stride: bool = False,
    batched: bool = False,
) -> Problem:
    """Convolution problems that `algorithm` supports.

    With `empty` there may be no images, channels or elements at all; the other flags restrict what is drawn.
    """
    pointwise |= algorithm == "pointwise"
    depthwise |= algorithm == "depthwise"
    tiled = algorithm == "winograd"
    unit_stride |= tiled
    ndim = draw(dims)
    largest, extra = _EXTENT[ndim]
    few = _FEW_OR_NONE if empty else _FEW

    kernel = (1,) * ndim if pointwise else draw(_integers(ndim, 1, largest))
    stride = (1,) * ndim if unit_stride else draw(_integers(ndim, 1, 3))
    dilation = (1,) * ndim if pointwise or tiled else draw(st.tuples(*[_DILATION] * ndim))
    reach = tuple((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
    mode = modes[0] if len(modes) == 1 else draw(st.sampled_from(modes))

    padding: Any = draw(st.sampled_from(("valid", "same") if pointwise else (None, None, *PADDING_STRINGS)))
    if padding is None:
        pairs = draw(st.tuples(*[_PAIR] * ndim))
        if tiled:  # whose input gradient needs padding within the kernel
            pairs = tuple((min(lo, r), min(hi, r)) for r, (lo, hi) in zip(reach, pairs, strict=True))
        padding = _spelling(pairs)
        least = [r + 1 - lo - hi for r, (lo, hi) in zip(reach, pairs, strict=True)]
    else:
        least = [r + 1 if padding == "valid" else 1 for r in reach]
    smallest = 0 if empty and mode == "zeros" else 1
    size = tuple(max(n, smallest) + more for n, more in zip(least, draw(_integers(ndim, 0, extra)), strict=True))
    if isinstance(padding, str):
        pairs = meaning_of(padding, size, reach, stride)

    groups = draw(_GROUPS)
    # Register tiles begin at four channels.
    channels = _MORE if groups == 1 and ndim < 3 else few
    per_group = 1 if depthwise else draw(channels)
    return Problem(
        batch=draw(few) if batched or draw(_FLAG) else None,
        channels=groups * per_group,
        out_channels=groups * draw(channels),
        groups=groups,
        size=size,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
        pairs=pairs,
        mode=mode,
        layout=layouts[draw(_FLAG)] if len(layouts) > 1 else layouts[0],
        seed=draw(_SEED),
    )


def problems_for(algorithm: str, dtype: str = "float64", **restrictions: Any) -> st.SearchStrategy[Problem]:
    """Problems that `algorithm` supports; if it hardly supports any, Hypothesis says so.

    A test parametrised with dtypes names its `dtype`, and is skipped where the algorithm does not compute in it.
    """
    skip_unless_computed(algorithm, dtype)
    drawn = problems(algorithm, **restrictions)
    return drawn if algorithm == "auto" else drawn.filter(lambda problem: problem.supported_by(algorithm))


LARGE = {
    "many channels": Problem(2, 47, 33, 1, (23, 19), (3, 3), (1, 1), (1, 1), 1, ((1, 1), (1, 1))),
    "groups": Problem(2, 60, 45, 3, (17, 40), (2, 3), (1, 2), (2, 1), "same", ((1, 1), (0, 1))),
    "stride": Problem(1, 70, 20, 1, (30, 31), (3, 2), (2, 3), (1, 1), ((2, 0), (0, 1)), ((2, 0), (0, 1))),
    "one dimension": Problem(3, 65, 29, 1, (700,), (5,), (1,), (3,), "causal", ((12, 0),)),
    "three dimensions": Problem(1, 20, 31, 1, (7, 9, 11), (3, 3, 3), (1, 1, 1), (1, 1, 1), "full", ((2, 2),) * 3),
    "one channel": Problem(4, 1, 64, 1, (65, 66), (5, 7), (1, 1), (1, 1), 0, ((0, 0), (0, 0))),
    "one pixel": Problem(3, 300, 77, 1, (3, 3), (3, 3), (1, 1), (1, 1), 0, ((0, 0), (0, 0))),
    "pointwise": Problem(2, 150, 42, 2, (19, 21), (1, 1), (1, 1), (1, 1), 0, ((0, 0), (0, 0))),
    "pointwise with a stride": Problem(2, 133, 41, 1, (19, 21), (1, 1), (2, 3), (1, 1), 0, ((0, 0), (0, 0))),
    "depthwise": Problem(2, 37, 37, 37, (40, 35), (5, 3), (1, 1), (1, 2), "same", ((2, 2), (2, 2))),
    "depthwise times four": Problem(2, 19, 76, 19, (20, 35), (3, 3), (2, 1), (1, 1), 1, ((1, 1), (1, 1))),
}
"""Problems of many tiles, panels and blocks, with remainders of each, that several threads share."""

LARGE_FOR = [
    (algorithm, name)
    for algorithm in ("auto", *ALGORITHMS)
    for name, problem in LARGE.items()
    if algorithm == "auto" or problem.supported_by(algorithm)
]
"""Every algorithm with the names of the large problems that it supports."""


def _spelling(pairs: tuple[tuple[int, int], ...]) -> Any:
    """The shortest form of `padding` that means these pairs."""
    if any(lo != hi for lo, hi in pairs):
        return pairs
    ints = tuple(lo for lo, _ in pairs)
    return ints[0] if len(set(ints)) == 1 else ints


# --------------------------------------------------------------------------------------------------------------------
# Pooling problems
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolProblem:
    """One pooling or unfolding call. `pairs` is the padding that was asked for, before `ceil_mode`."""

    x_shape: Size
    kernel: Size
    stride: Size
    dilation: Size
    pairs: tuple[tuple[int, int], ...]
    ceil_mode: bool
    seed: int

    @property
    def size(self) -> Size:
        return self.x_shape[-len(self.kernel) :]

    @property
    def out(self) -> Size:
        """PyTorch's rule: `ceil_mode` rounds up, but no window starts beyond the input and its low padding."""

        def one(n: int, k: int, s: int, d: int, lo: int, hi: int) -> int:
            slack = n + lo + hi - (k - 1) * d - 1
            count = (-(-slack // s) if self.ceil_mode else slack // s) + 1
            return count - 1 if self.ceil_mode and (count - 1) * s >= n + lo else count

        axes = zip(self.size, self.kernel, self.stride, self.dilation, self.pairs, strict=True)
        return tuple(one(n, k, s, d, lo, hi) for n, k, s, d, (lo, hi) in axes)

    @property
    def y_shape(self) -> Size:
        return (*self.x_shape[: -len(self.kernel)], *self.out)

    @property
    def window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.pairs,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def keywords(self) -> dict[str, Any]:
        return {"kernel_size": self.kernel, **self.window}

    def x(self, dtype: str = "float64") -> np.ndarray:
        return values(self.x_shape, dtype, self.seed)

    def dy(self, dtype: str = "float64") -> np.ndarray:
        return values(self.y_shape, dtype, self.seed + 1)

    def windows(self) -> Iterator[tuple[Size, list[Size]]]:
        """Every output position, with the positions under its taps in row-major order; some lie outside the input."""
        axes = tuple(zip(self.stride, self.dilation, self.pairs, strict=True))
        for position in np.ndindex(*self.out):
            taps = np.ndindex(*self.kernel)
            yield (
                position,
                [
                    tuple(p * s + t * d - lo for p, t, (s, d, (lo, _)) in zip(position, tap, axes, strict=True))
                    for tap in taps
                ],
            )

    def inside(self, place: Size, margins: bool = False) -> bool:
        """Whether a position lies in the input, or, with `margins`, in the input or its padding."""
        return all(
            -lo * margins <= p < n + hi * margins for p, n, (lo, hi) in zip(place, self.size, self.pairs, strict=True)
        )


@st.composite
def pool_problems(draw: st.DrawFn, *, dims: st.SearchStrategy[int] = _DIMENSIONS, torch: bool = False) -> PoolProblem:
    """Pooling problems in which every window touches the input; with `torch`, only what PyTorch can express."""
    ndim = draw(dims)
    largest, extra = _EXTENT[ndim]
    kernel = draw(_integers(ndim, 1, largest))
    dilation = draw(_integers(ndim, 1, 2))
    if torch:
        pairs = tuple((p, p) for p in (draw(_integers(1, 0, k // 2))[0] for k in kernel))
    else:
        # Padding of more than a dilation may leave a window without any element.
        pairs = tuple(
            tuple(draw(st.integers(0, min(d, (k - 1) * d))) for _ in "lh")
            for k, d in zip(kernel, dilation, strict=True)
        )
    size = tuple(
        max((k - 1) * d + 1 - (0 if torch else lo + hi), d) + more
        for k, d, (lo, hi), more in zip(kernel, dilation, pairs, draw(_integers(ndim, 0, extra)), strict=True)
    )
    lead = (draw(st.integers(0 if not torch else 1, 2)), draw(st.integers(1, 2)))
    return PoolProblem(
        x_shape=(*lead[draw(st.integers(0, 1)) :], *size),
        kernel=kernel,
        stride=draw(_integers(ndim, 1, 3)),
        dilation=dilation,
        pairs=pairs,
        ceil_mode=draw(_FLAG),
        seed=draw(_SEED),
    )
