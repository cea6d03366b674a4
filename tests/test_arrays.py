"""Arrays of every memory layout and kind go in unchanged and give what a plain copy gives; `out` receives results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import DTYPES, identical, skip_unless_computed, values

import npconv as nc

# --------------------------------------------------------------------------------------------------------------------
# One small call of everything public that takes arrays
# --------------------------------------------------------------------------------------------------------------------

WINDOW = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
CONV = {**WINDOW, "groups": 2}
SHAPES = {"x": (2, 4, 7, 6), "w": (6, 2, 3, 2), "bias": (6,), "dy": (2, 6, 3, 7), "cols": (2, 24, 21)}


def pooled(pool_vjp: Callable[..., Any]) -> Callable[..., Any]:
    """A pool's gradient, with the result's own shape of `dy`."""

    def gradient(x: Any, dy: Any, **how: Any) -> Any:
        return pool_vjp(x, (3, 2), (2, 1), ((1, 0), (1, 1)), **how)[1](dy)

    return gradient


def vjp(x: Any, w: Any, bias: Any, dy: Any, **how: Any) -> Any:
    activation = "relu" if getattr(x, "dtype", np.dtype("f4")).kind != "c" else None
    y, pullback = nc.conv_vjp(x, w, bias, activation=activation, **CONV, **how)
    return (y, *pullback(dy))


def planned(x: Any, w: Any, bias: Any, backend: str) -> Any:
    dtype = next((value.dtype for value in (x, w, bias) if isinstance(value, np.ndarray)), "float32")
    plan = nc.plan(SHAPES["x"], SHAPES["w"], **CONV, dtype=dtype, backend=backend)
    return plan(x, w, bias), plan.pack(w, bias)(x)


CALLS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "conv": (lambda x, w, bias, **how: nc.conv(x, w, bias, **CONV, **how), ("x", "w", "bias")),
    "reflect": (lambda x, w, **how: nc.conv(x, w, **CONV, padding_mode="reflect", **how), ("x", "w")),
    "im2col": (lambda x, w, **how: nc.conv(x, w, **CONV, algorithm="im2col", **how), ("x", "w")),
    "direct": (lambda x, w, **how: nc.conv(x, w, **CONV, algorithm="direct", **how), ("x", "w")),
    "transpose": (
        lambda dy, w, **how: nc.conv_transpose(dy, w, **{**CONV, "padding": 0, "stride": 1}, **how),
        ("dy", "w"),
    ),
    "input_grad": (lambda dy, w, **how: nc.conv_input_grad(dy, w, SHAPES["x"], **CONV, **how), ("dy", "w")),
    "weight_grad": (lambda x, dy, **how: nc.conv_weight_grad(x, dy, SHAPES["w"], **CONV, **how), ("x", "dy")),
    "vjp": (vjp, ("x", "w", "bias", "dy")),
    "plan": (planned, ("x", "w", "bias")),
    "unfold": (lambda x, **how: nc.unfold(x, (3, 2), **WINDOW, **how), ("x",)),
    "fold": (lambda cols, **how: nc.fold(cols, (7, 6), (3, 2), **WINDOW, **how), ("cols",)),
    "max_pool": (lambda x, **how: nc.max_pool(x, (3, 2), **WINDOW, **how), ("x",)),
    "avg_pool": (lambda x, **how: nc.avg_pool(x, (3, 2), **WINDOW, **how), ("x",)),
    "max_pool_grad": (pooled(nc.max_pool_vjp), ("x", "pooled")),
    "avg_pool_grad": (pooled(nc.avg_pool_vjp), ("x", "pooled")),
}
SHAPES["pooled"] = (2, 4, 3, 7)


def operands(name: str, dtype: str) -> list[np.ndarray]:
    return [values(SHAPES[operand], dtype, seed) for seed, operand in enumerate(CALLS[name][1])]


def run(name: str, arguments: list[Any], backend: str) -> list[Any]:
    result = CALLS[name][0](*arguments, backend=backend)
    return list(result) if isinstance(result, tuple) else [result]


# --------------------------------------------------------------------------------------------------------------------
# Memory layouts
# --------------------------------------------------------------------------------------------------------------------


def strided(value: np.ndarray) -> np.ndarray:
    """Every second element of a larger array, in every axis."""
    larger = np.full([2 * n + 1 for n in value.shape], 99).astype(value.dtype)
    view = larger[tuple(slice(1, None, 2) for _ in value.shape)]
    view[...] = value
    return view


def reversed_in_memory(value: np.ndarray) -> np.ndarray:
    backwards = (slice(None, None, -1),) * value.ndim
    return value[backwards].copy()[backwards]


def read_only(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value.flags.writeable = False
    return value


def unaligned(value: np.ndarray) -> np.ndarray:
    """A field of packed records of one byte and one number."""
    records = np.zeros(value.shape, np.dtype([("byte", "i1"), ("number", value.dtype)]))
    records["number"] = value
    assert value.itemsize == 1 or not records["number"].flags.aligned
    return records["number"]


def transposed(value: np.ndarray) -> np.ndarray:
    """Axes stored in another order than they are named."""
    order = np.roll(np.arange(value.ndim), 1)
    return value.transpose(order).copy().transpose(np.argsort(order))


def subclassed(value: np.ndarray) -> np.ndarray:
    class Labelled(np.ndarray):
        pass

    return value.view(Labelled)


DISGUISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Fortran order": np.asfortranarray,
    "every second element": strided,
    "reversed": reversed_in_memory,
    "read-only": read_only,
    "byte-swapped": lambda value: value.astype(value.dtype.newbyteorder()),
    "unaligned": unaligned,
    "axes permuted": transposed,
    "byte-swapped, reversed, unaligned": lambda value: unaligned(
        reversed_in_memory(value.astype(value.dtype.newbyteorder()))
    )[...],
    "subclass": subclassed,
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", CALLS)
def test_any_memory_layout_gives_what_a_plain_copy_gives(backend: str, name: str, disguise: str) -> None:
    plain = operands(name, "float32")
    disguised = [DISGUISES[disguise](value) for value in plain]
    kept = [value.tobytes() for value in disguised]
    for actual, expected in zip(run(name, disguised, backend), run(name, plain, backend), strict=True):
        identical(actual, expected)
        assert actual.dtype.isnative
        assert type(actual) is np.ndarray
        assert actual.flags.writeable
    assert [value.tobytes() for value in disguised] == kept


@pytest.mark.parametrize("name", CALLS)
def test_zero_strides_read_one_element_many_times(backend: str, name: str) -> None:
    plain = [np.full(value.shape, 3.0) for value in operands(name, "float64")]
    broadcast = [np.broadcast_to(3.0, value.shape) for value in plain]
    for actual, expected in zip(run(name, broadcast, backend), run(name, plain, backend), strict=True):
        identical(actual, expected)


def test_a_memory_map_is_read_where_it_lies(backend: str, tmp_path: Path) -> None:
    x, w = values((1, 2, 9, 9), "float32"), values((3, 2, 3, 3), "float32")
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = nc.conv(mapped, w, backend=backend)
    identical(y, nc.conv(x, w, backend=backend))
    assert type(y) is np.ndarray
    result = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", y.dtype, y.shape)
    assert nc.conv(mapped, w, backend=backend, out=result) is result
    result.flush()
    identical(np.load(tmp_path / "y.npy"), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_inputs_are_never_changed(backend: str, name: str, dtype: str) -> None:
    plain = operands(name, dtype)
    kept = [value.copy() for value in plain]
    for result in run(name, plain, backend):
        assert not any(np.shares_memory(result, value) for value in plain)
        result[...] = 0
    for value, before in zip(plain, kept, strict=True):
        identical(value, before)


@pytest.mark.parametrize("algorithm", ["pointwise", "depthwise"])
def test_a_kernel_of_one_does_not_hand_the_input_back(backend: str, algorithm: str) -> None:
    """The result of doing nothing is still a new array."""
    x = values((1, 1, 5), "float64")
    one = np.ones((1, 1, 1))
    how = {"algorithm": algorithm, "backend": backend}
    y, pullback = nc.conv_vjp(x, one, **how)
    for result in (
        nc.conv(x, one, **how),
        nc.conv_transpose(x, one, **how),
        nc.conv_input_grad(x, one, x.shape, **how),
        nc.unfold(x, 1, backend=backend),
        nc.fold(x, (5,), 1, backend=backend),
        nc.max_pool(x, 1, backend=backend),
        nc.avg_pool(x, 1, backend=backend),
        y,
        pullback(x)[0],
    ):
        identical(result, x)
        assert not np.shares_memory(result, x)


# --------------------------------------------------------------------------------------------------------------------
# Sizes of zero and one
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int8", "complex64"])
def test_empty_batches_channels_and_images_give_empty_results_and_zeros(
    backend: str, algorithm: str, dtype: str
) -> None:
    skip_unless_computed(algorithm, dtype)
    how = {"backend": backend, "algorithm": algorithm}
    kernel, padding = ((1,), 0) if algorithm == "pointwise" else ((3,), 1)
    for batch, groups, per_group, out_per_group in ((0, 2, 1, 2), (2, 2, 1, 0), (0, 2, 1, 0)):
        x = values((batch, groups * per_group, 5), dtype)
        w = values((groups * out_per_group, per_group, *kernel), dtype)
        window = {"padding": padding, "groups": groups}
        y = nc.conv(x, w, **window, **how)
        identical(y, np.zeros((batch, groups * out_per_group, 5), dtype))
        identical(nc.conv_input_grad(y, w, x.shape, **window, **how), np.zeros_like(x))
        identical(nc.conv_weight_grad(x, y, w.shape, **window, **how), np.zeros_like(w))
        identical(nc.conv_transpose(y, w, **window, **how), np.zeros_like(x))
        identical(nc.conv(x, w, w[:, 0, 0].copy(), **window, **how), y)


@pytest.mark.parametrize("op", ["direct", "im2col", "auto"])
def test_no_channels_sum_to_nothing_but_the_bias(backend: str, op: str) -> None:
    x, w, bias = np.zeros((2, 0, 5)), np.zeros((3, 0, 2)), np.array([1.0, -2, 3])
    y = nc.conv(x, w, bias, algorithm=op, backend=backend)
    identical(y, np.broadcast_to(bias[:, None], (2, 3, 4)).copy())
    dx, dw, db = nc.conv_vjp(x, w, bias, algorithm=op, backend=backend)[1](y)
    assert (dx.shape, dw.shape) == (x.shape, w.shape)
    identical(db, 8 * bias)


def test_an_image_of_nothing_but_padding(backend: str, algorithm: str) -> None:
    if algorithm == "pointwise":
        with pytest.raises(ValueError, match="larger than the padded input"):
            nc.conv(np.zeros((1, 1, 0)), np.ones((1, 1, 1)), algorithm=algorithm, backend=backend)
        return
    x, w = np.zeros((2, 1, 0, 3)), np.ones((2, 1, 3, 3))
    window = {"padding": ((2, 1), (1, 1)), "algorithm": algorithm, "backend": backend}
    dy = np.ones((2, 2, 1, 3))
    identical(nc.conv(x, w, np.ones(2), **window), dy)
    identical(nc.conv_input_grad(dy, w, x.shape, **window), x)
    identical(nc.conv_weight_grad(x, dy, w.shape, **window), np.zeros_like(w))


def test_as_many_dimensions_as_numpy_has(backend: str) -> None:
    """NumPy's arrays have up to 64 dimensions (32 before version 2); unbatched, one is the channels'."""
    most = 62 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 30
    x, w = np.arange(3.0).reshape((1,) * (most - 2) + (3,)), np.ones((1,) * (most - 1) + (2,))
    identical(nc.conv(x, w, backend=backend).ravel(), np.array([1.0, 3]))


# --------------------------------------------------------------------------------------------------------------------
# out
# --------------------------------------------------------------------------------------------------------------------

INTO = ("conv", "reflect", "im2col", "direct", "transpose", "input_grad", "weight_grad", "max_pool", "avg_pool")

OUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": np.empty_like,
    "Fortran order": lambda value: np.empty(value.shape, value.dtype, "F"),
    "every second element": strided,
    "reversed": reversed_in_memory,
    "unaligned": unaligned,
    "subclass": subclassed,
}


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_out_receives_the_result_and_is_returned(backend: str, name: str, kind: str, dtype: str) -> None:
    plain = operands(name, dtype)
    (expected,) = run(name, plain, backend)
    out = OUTS[kind](np.zeros_like(expected))
    surroundings = None if out.base is None else out.base
    assert CALLS[name][0](*plain, backend=backend, out=out) is out
    identical(np.asarray(out), expected)
    if kind == "every second element":
        around = np.ones(surroundings.shape, bool)
        around[tuple(slice(1, None, 2) for _ in out.shape)] = False
        assert (surroundings[around] == 99).all()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("batched", [True, False])
def test_out_has_the_callers_layout(backend: str, layout: str, batched: bool) -> None:
    shape = (2, 7, 6, 4)[0 if batched else 1 :] if layout == "channels_last" else (2, 4, 7, 6)[0 if batched else 1 :]
    x, w = values(shape, "float32"), values((3, 4, 2, 2), "float32")
    expected = nc.conv(x, w, layout=layout, backend=backend)
    out = np.empty_like(expected)
    assert nc.conv(x, w, layout=layout, backend=backend, out=out) is out
    identical(out, expected)


def test_out_may_lie_between_the_elements_of_an_input(backend: str) -> None:
    """Sharing a buffer is not sharing elements."""
    buffer = np.arange(24.0).reshape(1, 1, 24)
    x, out = buffer[..., ::2], buffer[..., 1:20:2]
    w = np.ones((1, 1, 3))
    expected = nc.conv(x.copy(), w, backend=backend)
    nc.conv(x, w, backend=backend, out=out)
    identical(out, expected)
    identical(x, np.arange(0, 24.0, 2).reshape(1, 1, 12))


def test_a_plan_writes_into_out(backend: str) -> None:
    x, w = values((1, 2, 6), "float32"), values((3, 2, 3), "float32")
    plan = nc.plan(x.shape, w.shape, backend=backend)
    expected = nc.conv(x, w, backend=backend)
    for call in (lambda out: plan(x, w, out=out), lambda out: plan.pack(w)(x, out=out)):
        out = np.empty_like(expected)
        assert call(out) is out
        identical(out, expected)


def test_packed_weights_are_a_copy(backend: str) -> None:
    x, w, bias = values((1, 2, 6), "float32"), values((3, 2, 3), "float32"), values((3,), "float32")
    packed = nc.plan(x.shape, w.shape, backend=backend).pack(w, bias)
    expected = packed(x)
    w[...] = 0
    bias[...] = 0
    identical(packed(x), expected)


# --------------------------------------------------------------------------------------------------------------------
# DLPack
# --------------------------------------------------------------------------------------------------------------------


class Foreign:
    """An array of some library that speaks DLPack and nothing else."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __dlpack__(self, **options: Any) -> Any:
        return self.value.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.value.__dlpack_device__()


class OldForeign(Foreign):
    """One of before DLPack 1.0, which knows only `stream`."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.value.__dlpack__()


@pytest.mark.parametrize("kind", [Foreign, OldForeign])
@pytest.mark.parametrize("name", CALLS)
def test_anything_that_speaks_dlpack_is_read(backend: str, name: str, kind: type[Foreign]) -> None:
    plain = operands(name, "float32")
    # A NumPy operand first, so that NumPy comes out.
    mixed = [plain[0], *(kind(value) for value in plain[1:])]
    for actual, expected in zip(run(name, mixed, backend), run(name, plain, backend), strict=True):
        identical(actual, expected)


@pytest.mark.parametrize("name", CALLS)
def test_a_library_that_cannot_take_arrays_back_gets_numpy_arrays(backend: str, name: str) -> None:
    """There is nothing to call that would make a `Foreign`."""
    plain = operands(name, "float32")
    foreign = [Foreign(value) for value in plain]
    for actual, expected in zip(run(name, foreign, backend), run(name, plain, backend), strict=True):
        identical(actual, expected)


def test_the_first_operands_namespace_takes_the_result_back() -> None:
    class Wrapper(Foreign):
        def __array_namespace__(self) -> Any:
            class Namespace:
                @staticmethod
                def from_dlpack(value: Any) -> Wrapper:
                    return Wrapper(np.from_dlpack(value))

            return Namespace

    x, w = values((1, 2, 6), "float32"), values((3, 2, 3), "float32")
    y = nc.conv(Wrapper(x), w)
    assert type(y) is Wrapper
    identical(y.value, nc.conv(x, w))
    assert type(nc.conv(x, Wrapper(w))) is np.ndarray
