"""Every bad argument is a `ValueError` or `TypeError` that names it, before anything is converted or compiled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import npconv as nc


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


class OnAnotherDevice:
    """A CUDA array, as far as DLPack tells."""

    shape = (1, 4, 6, 7)
    dtype = np.dtype("float32")

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("read, although it is on another device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


# --------------------------------------------------------------------------------------------------------------------
# Calls that work, to be spoilt in one argument each
# --------------------------------------------------------------------------------------------------------------------


@functools.cache
def conv_pullback() -> Callable[..., Any]:
    return nc.conv_vjp(array(1, 4, 6, 7), array(6, 2, 3, 2), groups=2)[1]


@functools.cache
def max_pullback() -> Callable[..., Any]:
    return nc.max_pool_vjp(array(1, 4, 6, 7), 2)[1]


@functools.cache
def avg_pullback() -> Callable[..., Any]:
    return nc.avg_pool_vjp(array(1, 4, 6, 7), 2)[1]


@functools.cache
def a_plan() -> Any:
    return nc.plan((1, 4, 6, 7), (6, 2, 3, 2), groups=2)


@functools.cache
def a_packed_plan() -> Any:
    return a_plan().pack(array(6, 2, 3, 2))


Good = tuple[Callable[..., Any], dict[str, Any]]

X, W, BIAS, DY = array(1, 4, 6, 7), array(6, 2, 3, 2), array(6), array(1, 6, 4, 6)

CONVS: dict[str, Good] = {
    "conv": (nc.conv, {"x": X, "w": W, "bias": BIAS, "groups": 2}),
    "conv2d": (nc.conv2d, {"x": X, "w": W, "bias": BIAS, "groups": 2}),
    "conv_vjp": (nc.conv_vjp, {"x": X, "w": W, "bias": BIAS, "groups": 2}),
}
TRANSPOSES: dict[str, Good] = {
    "conv_transpose": (nc.conv_transpose, {"x": DY, "w": W, "bias": array(4), "groups": 2}),
    "conv_transpose2d": (nc.conv_transpose2d, {"x": DY, "w": W, "bias": array(4), "groups": 2}),
}
GRADIENTS: dict[str, Good] = {
    "conv_input_grad": (nc.conv_input_grad, {"dy": DY, "w": W, "input_shape": (1, 4, 6, 7), "groups": 2}),
    "conv_weight_grad": (nc.conv_weight_grad, {"x": X, "dy": DY, "weight_shape": (6, 2, 3, 2), "groups": 2}),
}
PLANS: dict[str, Good] = {"plan": (nc.plan, {"x_shape": (1, 4, 6, 7), "w_shape": (6, 2, 3, 2), "groups": 2})}
POOLS: dict[str, Good] = {
    "max_pool": (nc.max_pool, {"x": X, "kernel_size": (3, 2)}),
    "avg_pool": (nc.avg_pool, {"x": X, "kernel_size": (3, 2)}),
    "max_pool_vjp": (nc.max_pool_vjp, {"x": X, "kernel_size": (3, 2)}),
    "avg_pool_vjp": (nc.avg_pool_vjp, {"x": X, "kernel_size": (3, 2)}),
}
PATCHES: dict[str, Good] = {
    "unfold": (nc.unfold, {"x": X, "kernel_size": (3, 2)}),
    "fold": (nc.fold, {"cols": array(1, 24, 24), "output_size": (6, 7), "kernel_size": (3, 2)}),
}
PULLBACKS: dict[str, Good] = {
    "conv pullback": (lambda dy: conv_pullback()(dy), {"dy": DY}),
    "max_pool pullback": (lambda dy: max_pullback()(dy), {"dy": array(1, 4, 3, 3)}),
    "avg_pool pullback": (lambda dy: avg_pullback()(dy), {"dy": array(1, 4, 3, 3)}),
}
PLANNED: dict[str, Good] = {
    "plan()": (lambda **k: a_plan()(**k), {"x": X, "w": W, "bias": BIAS}),
    "plan.pack": (lambda **k: a_plan().pack(**k), {"w": W, "bias": BIAS}),
    "packed()": (lambda **k: a_packed_plan()(**k), {"x": X}),
}
WINDOWED = {**CONVS, **TRANSPOSES, **GRADIENTS, **PLANS, **POOLS, **PATCHES}
EVERY = {**WINDOWED, **PULLBACKS, **PLANNED}


@pytest.mark.parametrize("name", EVERY)
def test_the_calls_work_before_they_are_spoilt(name: str) -> None:
    function, arguments = EVERY[name]
    function(**arguments)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make any conversion of an operand and any compiled loop fail the test."""
    from npconv import arrays
    from npconv.kernels.cpu import threads

    for make in (conv_pullback, max_pullback, avg_pullback, a_packed_plan):
        make()

    def too_early(*_: Any, **__: Any) -> None:
        raise AssertionError("an operand was converted, or a loop run, before all arguments were checked")

    monkeypatch.setattr(arrays, "contiguous", too_early)
    monkeypatch.setattr(threads, "run", too_early)


Case = tuple[str, dict[str, Any], type[Exception], str]
"""Which call, what is changed in it, the error, and what the message must name."""


def cases(
    calls: dict[str, Good], argument: str, error: type[Exception], values: list[Any], names: str = ""
) -> list[Any]:
    return [
        pytest.param(
            call, {argument: value}, error, rf"\b{names or argument}\b", id=f"{call} {argument}={describe(value)}"
        )
        for call in calls
        for value in values
    ]


def describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__} {value.dtype} {value.shape}"
    return type(value).__name__ if " at 0x" in repr(value) else repr(value)


def holders(argument: str) -> dict[str, Good]:
    return {name: good for name, good in EVERY.items() if argument in good[1]}


NOT_INTEGERS = [
    1.0,
    1.5,
    True,
    np.True_,
    np.float64(1),
    np.array(1.5),
    "2",
    b"2",
    {1, 2},
    1j,
    [1, 1.0],
    (1, True),
    (1, None),
]
WRONG_LENGTHS = [(), (1,), (1, 1, 1), np.array([1, 1, 1])]

NOT_ARRAYS: list[Any] = [
    [[[[1.0]]]],
    (1.0, 2.0),
    "array",
    b"bytes",
    3.5,
    np.float32(1),
    True,
    {"x": 1},
    memoryview(b"1234"),
    range(4),
    object(),
    np.array([[[[1, None]]]], dtype=object),
    np.array([[[["a"]]]]),
    np.array([[[[b"a"]]]]),
    np.zeros((1, 4, 6, 7), "M8[s]"),
    np.zeros((1, 4, 6, 7), "m8[s]"),
    np.zeros((1, 4, 6, 7), "f4,f4"),
    np.zeros((1, 4, 6, 7), "V3"),
    np.zeros((1, 4, 6, 7), "longdouble"),
    np.zeros((1, 4, 6, 7), "clongdouble"),
    np.ma.masked_array(np.zeros((1, 4, 6, 7)), mask=True),
    OnAnotherDevice(),
]

TABLE = [
    # Windows
    *cases(WINDOWED, "dilation", TypeError, [*NOT_INTEGERS, None]),
    *cases(WINDOWED, "dilation", ValueError, [0, -1, (1, 0), (-2, 1), *WRONG_LENGTHS, 2**70, (1, 2**64)]),
    *cases(TRANSPOSES, "dilation", ValueError, [2**61], "output"),
    *cases(TRANSPOSES, "stride", ValueError, [2**61], "output"),
    *cases(WINDOWED, "stride", TypeError, NOT_INTEGERS),
    *cases({k: v for k, v in WINDOWED.items() if k not in POOLS}, "stride", TypeError, [None]),
    *cases(WINDOWED, "stride", ValueError, [0, -1, (1, 0), (-2, 1), *WRONG_LENGTHS, 2**70, (1, 2**64)]),
    *cases(WINDOWED, "padding", TypeError, [1.0, True, np.True_, np.float64(1), None, b"same", {1, 2}, 1j]),
    *cases(WINDOWED, "padding", TypeError, [(1, 1.0), (True, 1), ((0, 0), (0, 1.0)), (None, 1), ("same", "same")]),
    *cases(WINDOWED, "padding", ValueError, [-1, (-1, 0), ((0, -1), (0, 0)), ((-1, 0), (0, 0))]),
    *cases(WINDOWED, "padding", ValueError, [(), (1,), (1, 1, 1), ((1, 1),), ((1, 1), (1,)), ((1, 1, 1), (1, 1))]),
    *cases(WINDOWED, "padding", ValueError, ["", "SAME", "reflect", "same_middle", "0"]),
    *cases(WINDOWED, "padding", ValueError, [2**70, ((0, 2**70), (0, 0))]),
    *cases({**POOLS, **PATCHES}, "kernel_size", TypeError, [*NOT_INTEGERS, None], "kernel_size"),
    *cases({**POOLS, **PATCHES}, "kernel_size", ValueError, [0, -1, (3, 0), (-1, 2), (), (3,), 2**70], "kernel_size|x"),
    *cases(POOLS, "padding", ValueError, [3, (0, 2), ((3, 0), (0, 0))]),
    *cases(POOLS, "ceil_mode", TypeError, [0, 1, None, "no", 1.0]),
    *cases(
        {k: v for k, v in POOLS.items() if k.startswith("avg")}, "count_include_pad", TypeError, [0, 1, None, "no", 1.0]
    ),
    # Channels
    *cases(
        {**CONVS, **TRANSPOSES, **GRADIENTS, **PLANS}, "groups", TypeError, [1.0, 2.0, True, "2", None, (2,), np.True_]
    ),
    *cases({**CONVS, **TRANSPOSES, **GRADIENTS, **PLANS}, "groups", ValueError, [0, -1, 4, 2**70]),
    *cases({**CONVS, **GRADIENTS, **PLANS}, "groups", ValueError, [1, 3]),
    *cases(CONVS, "x", ValueError, [array(1, 3, 6, 7), array(1, 0, 6, 7), array(1, 6, 7, 4)]),
    *cases(TRANSPOSES, "x", ValueError, [array(1, 5, 4, 6), array(1, 4, 4, 6)]),
    *cases(CONVS, "w", ValueError, [array(6, 4, 3, 2), array(6, 0, 3, 2), array(5, 2, 3, 2)], "w"),
    *cases({"plan": PLANS["plan"]}, "w_shape", ValueError, [(6, 4, 3, 2), (5, 2, 3, 2)]),
    *cases(
        {**CONVS, "plan()": PLANNED["plan()"], "plan.pack": PLANNED["plan.pack"]},
        "bias",
        ValueError,
        [array(1), array(5), array(6, 1), array(1, 6), array(), array(0)],
    ),
    *cases(TRANSPOSES, "bias", ValueError, [array(1), array(6), array(4, 1), array()]),
    # Ranks and sizes
    *cases(CONVS, "x", ValueError, [np.array(1.0), array(4), array(4, 6), array(1, 1, 4, 6, 7)]),
    *cases(TRANSPOSES, "x", ValueError, [np.array(1.0), array(6), array(6, 4), array(1, 1, 6, 4, 6)]),
    *cases(
        {**POOLS, "unfold": PATCHES["unfold"]},
        "x",
        ValueError,
        [np.array(1.0), array(4), array(4, 6), array(1, 1, 4, 6, 7)],
    ),
    *cases(
        {**CONVS, **TRANSPOSES}, "w", ValueError, [np.array(1.0), array(2), array(6, 2), array(6, 2, 3, 3, 3)], "[wx]"
    ),
    *cases({**CONVS, **TRANSPOSES}, "w", ValueError, [array(6, 2, 0, 2), array(6, 2, 3, 0)], "kernel"),
    *cases({"plan": PLANS["plan"]}, "w_shape", ValueError, [(6, 2, 0, 2), (6, 2, 7, 2), (6, 2, 1, 8)], "kernel"),
    *cases(CONVS, "x", ValueError, [array(1, 4, 2, 7), array(1, 4, 6, 1), array(1, 4, 0, 7)], "kernel"),
    *cases({**POOLS, "unfold": PATCHES["unfold"]}, "kernel_size", ValueError, [(7, 2), (3, 8), 8], "kernel"),
    *cases(CONVS, "dilation", ValueError, [3, (1, 7)], "kernel"),
    # Gradients
    *cases(
        {**GRADIENTS, **PULLBACKS},
        "dy",
        ValueError,
        [array(1, 6, 4), array(1, 5, 4, 6), array(2, 6, 4, 6), array(6, 4, 6)],
    ),
    *cases({**GRADIENTS, **PULLBACKS}, "dy", ValueError, [array(1, 6, 4, 7), array(1, 6, 0, 6), np.array(1.0)]),
    *cases(
        {"conv_input_grad": GRADIENTS["conv_input_grad"]},
        "input_shape",
        ValueError,
        [(), (4,), (1, 4, 6), (1, 3, 6, 7), (1, 4, -6, 7), (1, 4, 2**40, 2**40), (2**70, 4, 6, 7)],
    ),
    *cases(
        {"conv_input_grad": GRADIENTS["conv_input_grad"]},
        "input_shape",
        ValueError,
        [(2, 4, 6, 7), (4, 6, 7), (1, 4, 7, 7)],
        "dy",
    ),
    *cases(
        {"conv_input_grad": GRADIENTS["conv_input_grad"]},
        "input_shape",
        TypeError,
        [None, 4, "1467", (1, 4, 6.0, 7), (1, 4, True, 7), {1, 4, 6, 7}],
    ),
    *cases(
        {"conv_weight_grad": GRADIENTS["conv_weight_grad"]},
        "weight_shape",
        ValueError,
        [(), (6,), (6, 2), (6, 4, 3, 2), (6, 2, -3, 2), (2**31, 2, 2**31, 2)],
    ),
    *cases(
        {"conv_weight_grad": GRADIENTS["conv_weight_grad"]},
        "weight_shape",
        TypeError,
        [None, 4, "6232", (6, 2, 3.0, 2), (6, 2, True, 2)],
    ),
    *cases(
        {"conv_weight_grad": GRADIENTS["conv_weight_grad"]},
        "weight_shape",
        ValueError,
        [(6, 2, 3, 3), (4, 2, 3, 2)],
        "dy",
    ),
    # Transposed
    *cases(TRANSPOSES, "output_padding", ValueError, [-1, 1, (0, 1), (0,), (0, 0, 0), (), 2**70]),
    *cases(TRANSPOSES, "output_padding", TypeError, [0.0, True, None, "0", (0, 0.0)]),
    *cases(TRANSPOSES, "padding", ValueError, [5, ((0, 7), (0, 0))], "padding"),
    # Folding
    *cases(
        {"fold": PATCHES["fold"]},
        "output_size",
        ValueError,
        [(6,), (6, 7, 8), (-6, 7), (1, 7), (6, 0), (2**40, 2**40)],
        "output_size|input|cols|kernel_size",
    ),
    *cases({"fold": PATCHES["fold"]}, "output_size", TypeError, [(6.0, 7), (6, True), (None, 7), "67"]),
    *cases(
        {"fold": PATCHES["fold"]},
        "cols",
        ValueError,
        [array(1, 23, 24), array(1, 24, 23), array(24), array(1, 1, 24, 24), np.array(1.0)],
    ),
    # Words
    *cases(WINDOWED, "layout", ValueError, ["NCHW", "", None, 1, ["channels_first"]]),
    *cases({**CONVS, **GRADIENTS, **PLANS}, "padding_mode", ValueError, ["zero", "constant", "edge", "", None, 0]),
    *cases({**CONVS, **TRANSPOSES, **PLANS}, "activation", ValueError, ["gelu", "ReLU", "", True, 0, ["relu"]]),
    *cases(
        {**CONVS, **TRANSPOSES, **GRADIENTS, **PLANS}, "algorithm", ValueError, ["fastest", "", None, 0, ["direct"]]
    ),
    *cases({**CONVS, **TRANSPOSES, **GRADIENTS, **PLANS}, "algorithm", ValueError, ["pointwise", "depthwise"]),
    *cases(WINDOWED, "backend", ValueError, ["tpu", "NumPy", "", 0, ["numpy"]]),
    # Kinds of arrays
    *(case for name in ("x", "w", "dy", "cols") for case in cases(holders(name), name, TypeError, [*NOT_ARRAYS, None])),
    *cases(holders("bias"), "bias", TypeError, NOT_ARRAYS),
    # Plans
    *cases(
        PLANS,
        "x_shape",
        ValueError,
        [(), (4,), (4, 6), (1, 3, 6, 7), (1, 4, -6, 7), (1, 4, 2**40, 2**40), (2**63, 4, 6, 7)],
    ),
    *cases(PLANS, "x_shape", TypeError, [None, 4, "1467", (1, 4, 6.0, 7), (1, 4, True, 7)]),
    *cases(PLANS, "w_shape", ValueError, [(), (6,), (6, 2), (6, 2, -3, 2), (2**40, 2, 2**40, 2)]),
    *cases(PLANS, "w_shape", TypeError, [None, 4, "6232", (6, 2, 3.0, 2), (6, 2, True, 2)]),
    *cases(PLANS, "dtype", TypeError, [None, "bool", "object", "U4", "longdouble", "M8[s]", 3, "float", [1]][:7]),
    *cases(PLANS, "dtype", TypeError, ["f4,f4", "nonsense", [1]]),
    *cases(PLANS, "threads", TypeError, [1.0, True, "2"]),
    *cases(PLANS, "threads", ValueError, [0, -1, 2**40]),
    *cases(PLANS, "max_workspace", TypeError, [1.0, True, "2"]),
    *cases(PLANS, "max_workspace", ValueError, [-1]),
    *cases(
        {"plan()": PLANNED["plan()"], "packed()": PLANNED["packed()"]},
        "x",
        ValueError,
        [array(2, 4, 6, 7), array(4, 6, 7), array(1, 4, 7, 6)],
    ),
    *cases(
        {"plan()": PLANNED["plan()"], "plan.pack": PLANNED["plan.pack"]},
        "w",
        ValueError,
        [array(6, 2, 2, 3), array(6, 2, 3), array(4, 2, 3, 2)],
    ),
    *cases(
        {"plan()": PLANNED["plan()"], "packed()": PLANNED["packed()"]},
        "x",
        TypeError,
        [X.astype("float64"), X.astype("complex64"), X.astype("int64")],
    ),
]


@pytest.mark.parametrize(("call", "change", "error", "names"), TABLE)
@pytest.mark.usefixtures("nothing_runs")
def test_a_bad_argument_is_named(call: str, change: dict[str, Any], error: type[Exception], names: str) -> None:
    function, arguments = EVERY[call]
    with pytest.raises(error, match=names):
        function(**{**arguments, **change})


# --------------------------------------------------------------------------------------------------------------------
# What a table of single arguments does not say
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.usefixtures("nothing_runs")
def test_the_functions_for_one_rank_refuse_the_others(name: str, rank: int, dims: int) -> None:
    function = getattr(nc, f"{name}{rank}d")
    if dims != rank:
        with pytest.raises(ValueError, match=rf"\bw\b.*{rank}-D"):
            function(array(1, 1, *[3] * dims), array(1, 1, *[2] * dims))


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "name", [name for name, (_, arguments) in EVERY.items() if "x" in arguments or "dy" in arguments]
)
def test_arrays_of_nothing_but_bool_are_refused(name: str) -> None:
    function, arguments = EVERY[name]
    bools = {key: value.astype(bool) if isinstance(value, np.ndarray) else value for key, value in arguments.items()}
    with pytest.raises(TypeError, match="bool"):
        function(**bools)


def test_bool_masks_may_be_convolved_with_numbers() -> None:
    mask = array(1, 4, 6, 7) > 80
    assert np.array_equal(nc.conv(mask, W, groups=2), nc.conv(mask.astype("float32"), W, groups=2))


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
@pytest.mark.usefixtures("nothing_runs")
def test_complex_numbers_have_no_activation(activation: str) -> None:
    for function in (nc.conv, nc.conv_vjp):
        with pytest.raises(TypeError, match="activation"):
            function(X.astype("complex64"), W, groups=2, activation=activation)
    with pytest.raises(TypeError, match="activation"):
        nc.conv_transpose(DY, W.astype("complex64"), groups=2, activation=activation)
    with pytest.raises(TypeError, match="activation"):
        nc.plan((1, 4, 6, 7), (6, 2, 3, 2), groups=2, activation=activation, dtype="complex64")


@pytest.mark.usefixtures("nothing_runs")
def test_integers_have_no_hardswish() -> None:
    x, w = X.astype("int32"), W.astype("int8")
    for function in (nc.conv, nc.conv_vjp):
        with pytest.raises(TypeError, match="activation"):
            function(x, w, groups=2, activation="hardswish")
    with pytest.raises(TypeError, match="activation"):
        nc.conv_transpose(DY.astype("int8"), w, groups=2, activation="hardswish")
    with pytest.raises(TypeError, match="activation"):
        nc.plan((1, 4, 6, 7), (6, 2, 3, 2), groups=2, activation="hardswish", dtype="int32")


@pytest.mark.parametrize("stride", [1, 2, 3, (3, 2)])
def test_same_with_a_stride_works(stride: Any) -> None:
    """PyTorch refuses it; here the output has the size of the input divided by the stride, rounded up."""
    down, across = (stride, stride) if isinstance(stride, int) else stride
    y = nc.conv(X, W, groups=2, stride=stride, padding="same")
    assert y.shape == (1, 6, -(-6 // down), -(-7 // across))


def test_a_flat_pair_in_one_dimension_is_explained() -> None:
    """(1, 2) could mean low and high, but one entry per dimension is the rule."""
    with pytest.raises(ValueError, match=r"padding.*\(\(1, 2\),\)"):
        nc.conv1d(array(1, 1, 5), array(1, 1, 3), padding=(1, 2))


# Sizes. No array is this large, but a view that repeats one element may be, and a parameter may ask for it.

HUGE = np.broadcast_to(np.float32(0), (2**30, 1, 2**28))

MANY = np.broadcast_to(np.float32(0), (2**40, 1, 4))

TOO_LARGE: dict[str, Callable[[], Any]] = {
    "padding": lambda: nc.conv(array(1, 1, 5), array(1, 1, 3), padding=2**61),
    "padding of two axes": lambda: nc.conv(array(1, 1, 5, 5), array(1, 1, 3, 3), padding=2**31),
    "padding of many images": lambda: nc.conv(
        np.broadcast_to(np.float32(0), (2**40, 1, 4)), array(1, 1, 3), padding=2**20
    ),
    "padding of no image": lambda: nc.conv(np.zeros((0, 1, 5)), array(1, 1, 3), padding=2**61),
    "output channels": lambda: nc.conv(HUGE, np.broadcast_to(np.float32(0), (8, 1, 1))),
    "columns": lambda: nc.unfold(np.broadcast_to(np.float32(0), (1, 2**20, 2**20)), 2**19, padding=2**19, stride=1),
    "full": lambda: nc.unfold(np.broadcast_to(np.float32(0), (1, 1, 2**30, 2**30)), 3, padding="full"),
    "transposed": lambda: nc.conv_transpose(array(1, 1, 5), array(1, 1, 3), stride=2**60),
    "transposed dilation": lambda: nc.conv_transpose(array(1, 1, 5), array(1, 1, 3), dilation=2**60),
    "input_shape": lambda: nc.conv_input_grad(array(1, 1, 3, 3), array(1, 1, 1, 1), (1, 1, 2**40, 2**40)),
    "weight_shape": lambda: nc.conv_weight_grad(array(1, 1, 3), array(1, 1, 3), (2**40, 2**40, 1)),
    "output_size": lambda: nc.fold(array(1, 9, 4), (2**40, 2**40), 3),
    "folded channels": lambda: nc.fold(np.broadcast_to(np.float32(0), (2**20, 2**22, 1)), (2**20,), 1, stride=2**20),
    "pool": lambda: nc.max_pool(array(1, 1, 5), 2**61, padding=2**60),
    "plan": lambda: nc.plan((2**40, 1, 2**40), (1, 1, 1)),
}


@pytest.mark.parametrize("name", TOO_LARGE)
@pytest.mark.usefixtures("nothing_runs")
def test_sizes_whose_product_overflows_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"too many elements|too large|must have shape|larger than"):
        TOO_LARGE[name]()


# out

X4, W4 = array(1, 4, 6, 7), array(4, 4, 1, 1)


def interleaved() -> np.ndarray:
    """The right shape, but one image's rows are another's: elements share memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(400, "float32"), (1, 4, 6, 7), (400, 28, 28, 4))


def frozen(value: np.ndarray) -> np.ndarray:
    value.flags.writeable = False
    return value


OUTS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "too few images": (lambda: array(4, 6, 7), ValueError),
    "too many images": (lambda: array(2, 4, 6, 7), ValueError),
    "another shape of the same size": (lambda: array(1, 4, 7, 6), ValueError),
    "no elements": (lambda: array(1, 4, 0, 7), ValueError),
    "one number": (lambda: array(), ValueError),
    "float64": (lambda: np.zeros((1, 4, 6, 7)), TypeError),
    "int32": (lambda: np.zeros((1, 4, 6, 7), "int32"), TypeError),
    "bool": (lambda: np.zeros((1, 4, 6, 7), bool), TypeError),
    "object": (lambda: np.zeros((1, 4, 6, 7), object), TypeError),
    "structured": (lambda: np.zeros((1, 4, 6, 7), "f4,f4"), TypeError),
    "swapped bytes": (lambda: np.zeros((1, 4, 6, 7), np.dtype("float32").newbyteorder()), TypeError),
    "read-only": (lambda: frozen(array(1, 4, 6, 7)), ValueError),
    "broadcast": (lambda: np.broadcast_to(np.float32(0), (1, 4, 6, 7)), ValueError),
    "overlapping itself": (interleaved, ValueError),
    "list": (lambda: [[[[0.0]]]], TypeError),
    "string": (lambda: "out", TypeError),
    "number": (lambda: 0.0, TypeError),
    "True": (lambda: True, TypeError),
    "masked": (lambda: np.ma.masked_array(np.zeros((1, 4, 6, 7), "float32"), mask=True), TypeError),
    "another device": (OnAnotherDevice, TypeError),
}

INTO: dict[str, Callable[[Any], Any]] = {
    "conv": lambda out: nc.conv(X4, W4, out=out),
    "channels last": lambda out: nc.conv2d(X4, array(7, 7, 1, 1), layout="channels_last", out=out),
    "conv_transpose": lambda out: nc.conv_transpose(X4, W4, out=out),
    "conv_input_grad": lambda out: nc.conv_input_grad(X4, W4, (1, 4, 6, 7), out=out),
    "conv_weight_grad": lambda out: nc.conv_weight_grad(array(1, 4, 7, 8), array(1, 1, 2, 2), (1, 4, 6, 7), out=out),
    "max_pool": lambda out: nc.max_pool(X4, 1, out=out),
    "avg_pool": lambda out: nc.avg_pool(X4, 1, out=out),
    "plan": lambda out: nc.plan((1, 4, 6, 7), (4, 4, 1, 1))(X4, W4, out=out),
}


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("name", INTO)
def test_a_bad_out_is_named_and_left_alone(name: str, kind: str) -> None:
    make, error = OUTS[kind]
    out = make()
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=r"\bout\b"):
        INTO[name](out)
    if before is not None:
        assert np.array_equal(out, before)


@pytest.mark.parametrize("name", [name for name in INTO if name != "plan"])
@pytest.mark.usefixtures("nothing_runs")
def test_a_bad_out_is_found_before_anything_runs(name: str) -> None:
    with pytest.raises(TypeError, match=r"\bout\b"):
        INTO[name](np.zeros((1, 4, 6, 7)))


SQUARE = (4, 4, 1, 1)
PLAN = nc.plan(SQUARE, SQUARE)

# `a` and `b` of this shape, of which one, the operand, shares memory with `out`.
SHARING: dict[str, Callable[..., Any]] = {
    "conv": lambda x, w, out: nc.conv(x, w, out=out),
    "conv_transpose": lambda x, w, out: nc.conv_transpose(x, w, out=out),
    "conv_input_grad": lambda dy, w, out: nc.conv_input_grad(dy, w, SQUARE, out=out),
    "conv_weight_grad": lambda x, dy, out: nc.conv_weight_grad(x, dy, SQUARE, out=out),
    "max_pool": lambda x, out: nc.max_pool(x, 1, out=out),
    "avg_pool": lambda x, out: nc.avg_pool(x, 1, out=out),
    "plan": lambda x, w, out: PLAN(x, w, out=out),
    "packed": lambda x, out: PLAN.pack(array(*SQUARE))(x, out=out),
}
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda buffer: buffer[1:],
    "a view one element on": lambda buffer: buffer[:-1],
    "a view backwards": lambda buffer: buffer[:0:-1],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("call", "operand"),
    [(call, name) for call, f in SHARING.items() for name in inspect.signature(f).parameters if name != "out"],
)
def test_an_out_that_shares_memory_with_an_operand_is_refused(call: str, operand: str, view: str) -> None:
    buffer = np.full(17, 7, "float32")
    names = [name for name in inspect.signature(SHARING[call]).parameters if name != "out"]
    operands = {name: array(*SQUARE) for name in names}
    operands[operand] = buffer[1:].reshape(SQUARE)
    out = VIEWS[view](buffer).reshape(SQUARE)
    with pytest.raises(ValueError, match=rf"\bout\b.*share memory with {operand}\b"):
        SHARING[call](**operands, out=out)
    assert (buffer == 7).all()


@pytest.mark.parametrize(
    "call", [nc.conv, nc.conv_transpose, nc.plan((4, 1), (4, 4, 1))], ids=["conv", "transpose", "plan"]
)
def test_an_out_that_shares_memory_with_the_bias_is_refused(call: Callable[..., Any]) -> None:
    bias = array(4)
    with pytest.raises(ValueError, match=r"\bout\b.*share memory with bias\b"):
        call(array(4, 1), array(4, 4, 1), bias, out=bias.reshape(4, 1))
    assert np.array_equal(bias, array(4))
