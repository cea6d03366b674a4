"""A plan is a value: print it to see what will run and why, call it, or pack weights into it to run it often."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np

from npconv import epilogue
from npconv.algorithms import ALGORITHMS, SUMS_OF_PRODUCTS
from npconv.algorithms.base import Work
from npconv.arrays import (
    NARROW,
    Array,
    Backend,
    ConvOperands,
    Operands,
    check_shape,
    compute_dtype,
    from_channels_first,
    is_float,
    is_plain,
)
from npconv.config import limit_threads
from npconv.geometry import ConvSpec
from npconv.padding import pad, pad_adjoint
from npconv.planning import explanation
from npconv.runners import Runner, on_arrays
from npconv.units import amount

Compute = Callable[..., Array]


@dataclass(frozen=True, repr=False)
class Plan:
    """How one operation of one convolution will run.

    Attributes
    ----------
    spec : ConvSpec
    op : {"forward", "input_grad", "weight_grad"}
    backend : Backend
    dtype : numpy.dtype
        Of the result; float16 and integers are computed in a wider one.
    activation : str or None
    threads : int
    algorithm, kernel : str
    work : Work
    predicted_seconds : float
        From typical rates of the backend, not measured on this machine.
    rejections : tuple of (str, str)
        Every other algorithm with the reason why it lost.
    reused : bool
        Whether the choice counts on weights that are packed once.
    measured_seconds : float or None
        What `npconv.autotune` measured, with `measured_threads`; None where a prediction made the choice.
    measured_threads : int or None

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> plan = nc.plan((1, 1, 3), (1, 1, 2), dtype="float64")
    >>> plan.macs, plan.spec.y_shape
    (4, (1, 1, 2))
    >>> plan(np.array([[[1.0, 2.0, 3.0]]]), np.array([[[1.0, 10.0]]]))
    array([[[21., 32.]]])
    """

    spec: ConvSpec
    op: str
    backend: Backend
    dtype: np.dtype[Any]
    activation: str | None
    threads: int
    algorithm: str
    kernel: str
    work: Work
    predicted_seconds: float
    rejections: tuple[tuple[str, str], ...]
    reused: bool = False
    measured_seconds: float | None = None
    measured_threads: int | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the convolution."""
        return self.spec.macs

    @property
    def flops(self) -> int:
        """Floating-point operations that the algorithm performs: two per multiply-accumulate."""
        return self.work.flops

    @property
    def bytes(self) -> int:
        """Bytes of input, weights and output, each counted once."""
        return self.spec.bytes(self.dtype.itemsize)

    @property
    def workspace(self) -> int:
        """Bytes needed beyond operands and result."""
        return self.work.workspace

    @property
    def rejected(self) -> dict[str, str]:
        """Every other algorithm with the reason why it lost."""
        return dict(self.rejections)

    def __call__(self, x: Array, w: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
        """Run the forward convolution on arrays of the planned shapes and dtype.

        Parameters
        ----------
        x, w, bias : array
            As for `npconv.conv`.
        out : array, optional

        Returns
        -------
        array

        Raises
        ------
        ValueError, TypeError
            If an array is not what was planned for.
        """
        if out is None and self._is_planned(x, w, bias) and (compute := self._ready) is not None:
            return compute(x, self.packed(w, once=True), bias, None, self.threads)
        operands = ConvOperands(self.backend.name, x=x, w=w, bias=bias)
        self._check(operands)
        operands.check_out(out, self.spec.y_shape, self.dtype)
        packed = self.packed(operands.load("w", self.operand_dtype), once=True)
        return self.finish(operands, packed, self._bias(operands), out)

    def pack(self, w: Array, bias: Array | None = None) -> PackedConv:
        """Take the weights in once; the result is called with images alone.

        Parameters
        ----------
        w, bias : array
            As for `npconv.conv`.

        Raises
        ------
        ValueError, TypeError
            If an array is not what was planned for.
        """
        operands = ConvOperands(self.backend.name, w=w, bias=bias)
        self._check(operands)
        own = operands.load("w", self.operand_dtype).copy()
        return PackedConv(self, self.packed(own), self._bias(operands, copy=True))

    def packed(self, w: Array, once: bool = False) -> Any:
        """Weights as the algorithm's forward takes them; for a call that uses them `once` no more is done to them."""
        if self.reads_channels_last and self.backend.name == "numba":
            kernels: Any = self.backend.kernels
            return kernels.last_weights(self.spec, w)
        return ALGORITHMS[self.algorithm].pack(self.core, self.backend, w, self.reused and not once)

    def _is_planned(self, x: Array, w: Array, bias: Array | None) -> bool:
        """Whether the operands are plain arrays just as planned, so that there is nothing to check or to convert."""
        spec = self.spec
        return (
            (is_plain(x) and x.shape == spec.x_shape and x.dtype == self.dtype)
            and (is_plain(w) and w.shape == spec.w_shape and w.dtype == self.dtype)
            and (bias is None or (is_plain(bias) and bias.shape == (spec.out_channels,) and bias.dtype == self.dtype))
        )

    @cached_property
    def _ready(self) -> Compute | None:
        return self.ready()

    def __getstate__(self) -> dict[str, Any]:
        # What is found out when it is asked for is found out anew, perhaps on another processor.
        return {name: value for name, value in self.__dict__.items() if name not in ("_ready", "reads_channels_last")}

    def _check(self, operands: Operands) -> None:
        """Raise unless the operands of a call are those that were planned for."""
        if self.op != "forward":
            raise ValueError(f"only a forward plan can be called, this one is for {self.op}")
        for name, shape in (("x", self.spec.x_shape), ("w", self.spec.w_shape), ("bias", (self.spec.out_channels,))):
            if operands.has(name):
                check_shape(name, operands.shape(name), shape, "as planned")
                operands.check_dtype(name, self.dtype, "as planned")

    def _bias(self, operands: Operands, copy: bool = False) -> Array | None:
        if not operands.has("bias"):
            return None
        bias = operands.load("bias", self.operand_dtype)
        return bias.copy() if copy else bias

    @property
    def core(self) -> ConvSpec:
        """The convolution that the algorithm sees: any padding that is not zeros is written down before."""
        return self.spec if self.spec.padding_mode == "zeros" else self.spec.without_padding()

    def ready(self) -> Compute | None:
        """The forward operation without conversions, as ``compute(x, packed, bias, y=None, limit=None)``.

        It takes plain arrays of the planned shapes and dtype, and writes into `y` where it is given. None where arrays
        must be converted or reordered first.
        """
        if not self._takes_arrays:
            return None
        run, shape, dtype = self.runner(), self.spec.y_shape, self.dtype
        if run is None:
            return self._compute

        def compute(x: Array, packed: Any, bias: Array | None, y: Array | None = None, limit: int | None = None) -> Any:
            if y is None:
                y = np.empty(shape, dtype)
            run(x, packed, bias, y, limit)
            return y

        return compute

    @property
    def _takes_arrays(self) -> bool:
        """Whether plain arrays of the planned shapes and dtype need neither be converted nor reordered."""
        as_they_are = self.op == "forward" and self.backend.xp is np and self.dtype == compute_dtype(self.dtype)
        return as_they_are and (self.spec.layout != "channels_last" or self.reads_channels_last)

    def runner(self) -> Runner | None:
        """What writes a forward result, for plain arrays of the planned shapes and dtype; None where nothing does."""
        spec, dtype = self.spec, self.dtype
        if not self._takes_arrays:
            return None
        if spec.layout == "channels_last":
            kernels: Any = self.backend.kernels
            found: Runner = kernels.last_runner(spec, dtype, self.activation)
            return found
        if spec.padding_mode != "zeros":
            return None
        return ALGORITHMS[self.algorithm].prepare(spec, self.backend, dtype, self.activation)

    def ready_gradient(self) -> Callable[[Array, Array], Array]:
        """`run` for a gradient of plain, batched, channels-first arrays of the planned shapes and dtype."""
        spec, dtype, run = self.spec, self.dtype, None
        if spec.padding_mode == "zeros":
            run = ALGORITHMS[self.algorithm].prepare_gradient(spec, self.op, self.backend, dtype, self.threads)
        if run is None:
            return self.run
        shape = spec.x_shape if self.op == "input_grad" else spec.w_shape

        def compute(a: Array, b: Array) -> Any:
            result = np.empty(shape, dtype)
            run(a, b, result)
            return result

        return compute

    def _compute(
        self, x: Array, packed: Any, bias: Array | None, y: Array | None = None, limit: int | None = None
    ) -> Array:
        """`ready` for algorithms that prepare nothing."""
        x = x if self.spec.batched else x[None]
        with nullcontext() if limit is None else limit_threads(limit):
            result = self._run(x, packed, bias)
        result = result if self.spec.batched else result[0]
        if y is None:
            return result
        y[...] = result
        return y

    def finish(self, operands: Operands, packed: Any, bias: Array | None, out: Array | None) -> Array:
        """Run on an image that was taken in, and hand the result over."""
        spec = self.spec
        if self.reads_channels_last:
            if is_plain(out) and (compute := self.ready()) is not None:
                return compute(operands.load("x", self.operand_dtype), packed, bias, out, self.threads)
            y = self.run_last(operands.load("x", self.operand_dtype), packed, bias)
            return operands.deliver(y, out, self.dtype)
        x = operands.load_image("x", spec.layout, spec.batched, self.operand_dtype)
        if is_plain(out) and (compute := self.ready()) is not None:
            return compute(x.reshape(spec.x_shape), packed, bias, out, self.threads)
        y = self.run(x, packed, bias)
        return operands.deliver(from_channels_first(self.backend, y, spec.layout, spec.batched), out, self.dtype)

    @cached_property
    def reads_channels_last(self) -> bool:
        """Whether `run_last` takes channels-last arrays as they are."""
        if self.activation is not None and not is_float(self.dtype):
            return False
        return reads_channels_last(self.spec, self.op, self.backend, self.operand_dtype, self.algorithm)

    def run_last(self, a: Array, b: Array, bias: Array | None = None) -> Array:
        """`run` on channels-last arrays, with or without a batch, where `reads_channels_last`; `b` as there."""
        with limit_threads(self.threads):
            return self._run_last(a, b, bias)

    def _run_last(self, a: Array, b: Array, bias: Array | None) -> Array:
        spec, kernels, xp = self.spec, self.backend.kernels, self.backend.xp
        assert kernels is not None
        if self.op == "forward":
            result = xp.empty(spec.y_shape, a.dtype)
            kernels.conv_forward_last(spec, a, b, bias, self.activation, result)
        elif self.op == "input_grad":
            result = xp.empty(spec.x_shape, a.dtype)
            kernels.conv_input_grad_last(spec, a, b, result)
        else:
            result = xp.empty(spec.w_shape, a.dtype)
            kernels.conv_weight_grad_last(spec, a, b, result)
        return result

    def run(self, a: Array, b: Array, bias: Array | None = None) -> Array:
        """Run on arrays as algorithms take them: ``(x, packed(w))``, ``(dy, w)`` or ``(x, dy)``, depending on `op`.

        Their channels come first; weights packed for `run_last` are not for this.
        """
        if self.op == "forward" and self.backend.name == "numba" and self.reads_channels_last:
            raise ValueError("the weights of this plan are packed for channels-last arrays, which run_last takes")
        with limit_threads(self.threads):
            return self._run(a, b, bias)

    def _run(self, a: Array, b: Array, bias: Array | None) -> Array:
        algorithm, spec, mode = ALGORITHMS[self.algorithm], self.core, self.spec.padding_mode
        padding = self.spec.window.padding
        if self.op == "input_grad":
            dx = algorithm.input_grad(spec, self.backend, a, b)
            return dx if mode == "zeros" else pad_adjoint(self.backend, dx, padding, self.spec.window.size, mode)
        if mode != "zeros":
            a = pad(self.backend, a, padding, mode)
        if self.op == "weight_grad":
            return algorithm.weight_grad(spec, self.backend, a, b)
        if is_float(self.dtype):
            return algorithm.forward(spec, self.backend, a, b, bias, self.activation)
        y = algorithm.forward(spec, self.backend, a, b, bias, None)
        return epilogue.activate(self.backend, epilogue.wrapped(y, self.dtype), self.activation)

    def __str__(self) -> str:
        return explanation.text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return explanation.table(self)

    @property
    def operand_dtype(self) -> np.dtype[Any]:
        """What operands are handed to the algorithm in."""
        return operand_dtype(self.algorithm, self.spec, self.op, self.backend, self.dtype)


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A plan with its weights taken in: call it with images.

    Attributes
    ----------
    plan : Plan
    packed : object
        The weights as the plan's algorithm wants them.
    bias : array or None

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.plan((1, 1, 3), (1, 1, 2), dtype="float64").pack(np.array([[[1.0, 10.0]]]))
    >>> layer(np.array([[[1.0, 2.0, 3.0]]]))
    array([[[21., 32.]]])
    """

    plan: Plan
    packed: Any
    bias: Array | None
    _ready: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spec, compute, limit = self.plan.spec, self.plan.ready(), self.plan.threads
        packed, bias = self.packed, self.bias
        fast = None if compute is None else lambda x: compute(x, packed, bias, None, limit)
        into = None if compute is None else lambda x, out: compute(x, packed, bias, out, limit)
        object.__setattr__(self, "_ready", (spec.x_shape, spec.y_shape, self.plan.dtype, fast, into))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.plan, self.packed, self.bias, _layout(self.plan, self.packed))

    def __str__(self) -> str:
        return f"{self.plan}\n  packed     {amount(self.nbytes, 'B')} of weights and bias"

    __repr__ = __str__

    @property
    def nbytes(self) -> int:
        """Bytes of memory that weights and bias take as they are held."""
        return _nbytes(self.packed) + _nbytes(self.bias)

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        """Convolve `x`, an array of the planned shape and dtype.

        Raises
        ------
        ValueError, TypeError
            If `x` or `out` is not what was planned for.
        """
        shape, y_shape, dtype, fast, into = self._ready
        if fast is not None and is_plain(x) and x.shape == shape and x.dtype == dtype:
            if out is None:
                return fast(x)
            if _is_ready(out, y_shape, dtype) and not np.may_share_memory(x, out):
                return into(x, out)
        return self.plan.finish(self._check(x, out), self.packed, self.bias, out)

    def _check(self, x: Array, out: Array | None) -> Operands:
        """The image as an operand; raise unless it and the result are what was planned for."""
        operands = ConvOperands(self.plan.backend.name, x=x)
        self.plan._check(operands)
        operands.check_out(out, self.plan.spec.y_shape, self.plan.dtype)
        return operands

    def bound(self, x: Array, out: Array) -> Callable[[], Any]:
        """The same call over and over, on arrays that stay where they are while their numbers change.

        Everything that a call finds out is found out here, so that hardly more than the arithmetic is left.

        Parameters
        ----------
        x, out : array
            The image and its result, which do not overlap, of the planned shapes and dtype.

        Returns
        -------
        callable
            ``again()`` convolves what `x` holds then, and writes into `out`.

        Raises
        ------
        ValueError, TypeError
            If `x` or `out` is not what was planned for.

        Examples
        --------
        >>> import numpy as np
        >>> import npconv as nc
        >>> x, y, w = np.zeros((1, 1, 3)), np.empty((1, 1, 2)), np.array([[[1.0, 10.0]]])
        >>> again = nc.plan(x.shape, w.shape, dtype=x.dtype).pack(w).bound(x, y)
        >>> x[...] = 1, 2, 3
        >>> _ = again()
        >>> print(y)
        [[[21. 32.]]]
        """
        shape, y_shape, dtype, *_ = self._ready
        run = self.plan.runner()
        straight = is_plain(x) and x.shape == shape and x.dtype == dtype and _is_ready(out, y_shape, dtype)
        if run is None or not straight or np.may_share_memory(x, out):
            self._check(x, out)
            return lambda: self(x, out=out)
        return on_arrays(run, x, self.packed, self.bias, out, self.plan.threads)


def reads_channels_last(spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any], algorithm: str) -> bool:
    """Whether an algorithm has loops for channels-last arrays on a backend, which then need not be transposed."""
    kernels: Any = backend.kernels
    if spec.layout != "channels_last" or spec.padding_mode != "zeros" or algorithm not in SUMS_OF_PRODUCTS:
        return False
    return kernels is not None and bool(kernels.reads_channels_last(spec, op, dtype))


def _layout(plan: Plan, packed: Any) -> str | None:
    """What the layout of packed weights depends on beside the plan."""
    kernels: Any = plan.backend.kernels
    layout: str | None = kernels.layout_of(packed) if plan.backend.name == "numba" else None
    return layout


def _unpickled(plan: Plan, packed: Any, bias: Array | None, layout: str | None) -> PackedConv:
    """Weights from a pickle; loops made for other tiles would read anything in them, and beyond them."""
    here = _layout(plan, packed)
    if here != layout:
        raise ValueError(
            f"these weights were packed on another processor, for {layout}; on this one they are {here}: "
            "send the plan and the weights, and pack them where they are used"
        )
    return PackedConv(plan, packed, bias)


def operand_dtype(algorithm: str, spec: ConvSpec, op: str, backend: Backend, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What an algorithm computes a result's dtype from: narrow floats as they are where a GPU sums them in float32.

    The adjoint of a padding mode adds elements of a gradient, which then must not have been rounded.
    """
    adds = op == "input_grad" and spec.padding_mode != "zeros"
    if backend.name == "cupy" and dtype.name in NARROW and algorithm in SUMS_OF_PRODUCTS and not adds:
        return dtype
    return compute_dtype(dtype)


def measured_dtype(backend: Backend, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that times are remembered by: on a GPU narrow floats take times of their own."""
    return dtype if backend.name == "cupy" and dtype.name in NARROW else compute_dtype(dtype)


def _is_ready(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether a result can be written there without further checks."""
    return is_plain(out) and out.shape == shape and out.dtype == dtype and bool(out.flags.writeable)


def _nbytes(value: Any) -> int:
    """Bytes of an array, or of all arrays in what an algorithm made of the weights."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    parts = tuple(vars(value).values()) if is_dataclass(value) else value
    return sum(map(_nbytes, parts)) if isinstance(parts, tuple) else 0
