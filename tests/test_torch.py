"""The same calls give what PyTorch gives, forward and by its autograd, where PyTorch is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PoolProblem, Problem, identical, pool_problems, problems, values

import npconv as nc

torch = pytest.importorskip("torch")
F = torch.nn.functional

DIMS = st.sampled_from((1, 2, 3))
EXACT = st.sampled_from(("float32", "float64", "complex64", "complex128"))
PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}

convs = problems(dims=DIMS, empty=False, layouts=("channels_first",), batched=True)


def by_rank(name: str, ndim: int) -> Any:
    return getattr(F, f"{name}{ndim}d")


def leaf(value: np.ndarray) -> Any:
    return torch.from_numpy(value).requires_grad_()


def torch_conv(problem: Problem, x: Any, w: Any, bias: Any = None) -> Any:
    """PyTorch pads symmetrically in the call, and in any way beforehand; last axis first."""
    widths = [width for pair in reversed(problem.pairs) for width in pair]
    padded = F.pad(x, widths, PAD_MODES[problem.mode])
    conv = by_rank("conv", len(problem.size))
    return conv(padded, w, bias, stride=problem.stride, dilation=problem.dilation, groups=problem.groups)


def everything(problem: Problem, dtype: str, **options: Any) -> None:
    """Compare the result and all gradients."""
    x, w, bias, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    tx, tw, tbias = leaf(x), leaf(w), leaf(bias)
    expected = torch_conv(problem, tx, tw, tbias)
    expected.backward(torch.from_numpy(dy))
    y, pullback = problem.vjp(x, w, bias, **options)
    for actual, wanted in zip((y, *pullback(dy)), (expected.detach(), tx.grad, tw.grad, tbias.grad), strict=True):
        identical(actual, wanted.numpy())


@given(problem=convs, dtype=EXACT)
def test_conv_and_its_gradients(backend: str, problem: Problem, dtype: str) -> None:
    """Complex ones too: both conjugate."""
    everything(problem, dtype, backend=backend)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@given(problem=convs, dtype=st.sampled_from(("float32", "float64")))
def test_padding_modes_and_their_gradients(backend: str, mode: str, problem: Problem, dtype: str) -> None:
    # PyTorch pads no wider than the image (reflect: than its reach).
    widest = [n - 1 if mode == "reflect" else n for n in problem.size]
    pairs = tuple((min(lo, n), min(hi, n)) for (lo, hi), n in zip(problem.pairs, widest, strict=True))
    fits = all(lo + n + hi > r for (lo, hi), n, r in zip(pairs, problem.size, problem.reach, strict=True))
    problem = problem.but(mode=mode, padding=pairs, pairs=pairs)
    problem = (
        problem if fits else problem.but(size=tuple(n + r for n, r in zip(problem.size, problem.reach, strict=True)))
    )
    everything(problem, dtype, backend=backend)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(problem=convs)
def test_calls_run_unchanged(problem: Problem) -> None:
    """Names and order of parameters are PyTorch's, in either form: numbers, tuples, "same", "valid", no batch."""
    ndim = len(problem.size)
    x, w, bias = problem.x(), problem.w(), problem.bias()
    tx, tw, tbias = (torch.from_numpy(value) for value in (x, w, bias))
    ours, theirs = getattr(nc, f"conv{ndim}d"), by_rank("conv", ndim)
    enough = tuple(r + 1 for r in problem.reach)
    for arguments in (
        (problem.stride, enough, problem.dilation, problem.groups),
        (2, max(enough), 1, problem.groups),
        (1, "same", problem.dilation, problem.groups),
    ):
        identical(ours(x, w, bias, *arguments), theirs(tx, tw, tbias, *arguments).numpy())
        identical(ours(x[0], w, bias, *arguments), theirs(tx[0], tw, tbias, *arguments).numpy())


@given(problem=convs, dtype=EXACT, padding=st.integers(0, 2), extra=st.integers(0, 2))
def test_conv_transpose_and_its_gradients(backend: str, problem: Problem, dtype: str, padding: int, extra: int) -> None:
    ndim = len(problem.size)
    output_padding = tuple(min(extra, s - 1) for s in problem.stride)
    axes = zip(problem.out, problem.stride, problem.reach, output_padding, strict=True)
    pads = tuple(min(padding, ((n - 1) * s + r + op) // 2) for n, s, r, op in axes)
    arguments = (problem.stride, pads, output_padding, problem.groups, problem.dilation)
    x, w = problem.dy(dtype), problem.w(dtype)
    bias = values((problem.channels,), dtype, problem.seed)
    tx, tw, tbias = leaf(x), leaf(w), leaf(bias)
    expected = by_rank("conv_transpose", ndim)(tx, tw, tbias, *arguments)
    ours = getattr(nc, f"conv_transpose{ndim}d")
    y = ours(x, w, bias, *arguments, backend=backend)
    identical(y, expected.detach().numpy())
    identical(ours(x[0], w, bias, *arguments, backend=backend), y[0])
    # Its gradient in x is a convolution again, and its weight gradient that of a convolution with x and dy exchanged.
    dy = values(y.shape, dtype, problem.seed + 1)
    expected.backward(torch.from_numpy(dy))
    window = {"stride": problem.stride, "padding": pads, "dilation": problem.dilation, "groups": problem.groups}
    identical(nc.conv(dy, w.conj(), **window, backend=backend), tx.grad.numpy())
    identical(nc.conv_weight_grad(dy, x, w.shape, **window, backend=backend), tw.grad.numpy().conj())


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_activations_and_their_slopes(backend: str, activation: str) -> None:
    x = np.arange(-8, 9, 0.25).reshape(1, 1, -1)
    tx = leaf(x)
    expected = getattr(F, activation)(tx)
    dy = values(x.shape, "float64")
    expected.backward(torch.from_numpy(dy))
    y, pullback = nc.conv_vjp(x, np.ones((1, 1, 1)), activation=activation, backend=backend)
    # Four roundings, of numbers up to 11 / 6 * 8 * 4.
    tolerance = 4 * np.finfo("float64").eps * 64
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(pullback(dy)[0], tx.grad.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(problem=pool_problems(dims=DIMS, torch=True))
def test_max_pool_and_its_gradient(backend: str, dtype: str, problem: PoolProblem) -> None:
    x, dy = problem.x(dtype), problem.dy(dtype)
    tx = leaf(x)
    arguments = (problem.kernel, problem.stride, [lo for lo, _ in problem.pairs], problem.dilation, problem.ceil_mode)
    expected = by_rank("max_pool", len(problem.kernel))(tx, *arguments)
    expected.backward(torch.from_numpy(dy))
    y, pullback = nc.max_pool_vjp(x, *arguments, backend=backend)
    identical(y, expected.detach().numpy())
    identical(pullback(dy), tx.grad.numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(problem=pool_problems(dims=DIMS, torch=True), count_include_pad=st.booleans())
def test_avg_pool_and_its_gradient(backend: str, dtype: str, problem: PoolProblem, count_include_pad: bool) -> None:
    kernel, padding = problem.kernel, [lo for lo, _ in problem.pairs]
    x = problem.x(dtype)
    ours = {"ceil_mode": problem.ceil_mode, "count_include_pad": count_include_pad}
    tx = leaf(x)
    expected = by_rank("avg_pool", len(kernel))(tx, kernel, problem.stride, padding, **ours)
    y, pullback = nc.avg_pool_vjp(x, kernel, problem.stride, padding, **ours, backend=backend)
    identical(y, expected.detach().numpy())
    dy = values(y.shape, dtype, problem.seed + 1)
    expected.backward(torch.from_numpy(dy))
    # Up to prod(kernel) quotients, each of a number up to 4, are rounded and summed.
    tolerance = 4 * np.prod(kernel) * (np.prod(kernel) + 1) * np.finfo(dtype).eps
    np.testing.assert_allclose(pullback(dy), tx.grad.numpy(), rtol=0, atol=tolerance)


@given(problem=problems(dims=st.just(2), empty=False, layouts=("channels_first",), batched=True))
def test_unfold_and_fold(backend: str, problem: Problem) -> None:
    padding = tuple(max(pair) for pair in problem.pairs)
    arguments = (problem.kernel, problem.dilation, padding, problem.stride)
    x = problem.x()
    columns = F.unfold(torch.from_numpy(x), *arguments)
    identical(nc.unfold(x, *arguments, backend=backend), columns.numpy())
    other = values(tuple(columns.shape), "float64", problem.seed)
    folded = F.fold(torch.from_numpy(other), problem.size, *arguments)
    identical(nc.fold(other, problem.size, *arguments, backend=backend), folded.numpy())


def test_tensors_come_and_go() -> None:
    """What comes in decides what goes out: PyTorch speaks DLPack."""
    x, w, bias = torch.arange(12.0).reshape(1, 2, 6), torch.ones(3, 2, 3), torch.ones(3)
    y = nc.conv1d(x, w, bias)
    assert torch.equal(y, F.conv1d(x, w, bias))
    result, pullback = nc.conv_vjp(x, w, bias, activation="relu")
    assert torch.equal(result, F.relu(F.conv1d(x, w, bias)))
    for gradient, value in zip(pullback(torch.ones_like(y)), (x, w, bias), strict=True):
        assert isinstance(gradient, torch.Tensor)
        assert gradient.shape == value.shape
    assert torch.equal(nc.conv_transpose1d(y, w), F.conv_transpose1d(y, w))
    assert torch.equal(nc.max_pool(x, 2), F.max_pool1d(x, 2))
    assert torch.equal(nc.avg_pool(x, 2), F.avg_pool1d(x, 2))
    assert torch.equal(nc.fold(nc.unfold(x, 3), (6,), 3), torch.tensor([1.0, 2, 3, 3, 2, 1]) * x)
    # The first operand decides.
    assert isinstance(nc.conv1d(x.numpy(), w), np.ndarray)
    assert isinstance(nc.conv1d(x, w.numpy()), torch.Tensor)


def test_a_tensor_can_receive_the_result() -> None:
    x, w, out = torch.arange(6.0).reshape(1, 1, 6), torch.ones(1, 1, 3), torch.zeros(1, 1, 4)
    assert nc.conv1d(x, w, out=out) is out
    assert torch.equal(out, F.conv1d(x, w))
    with pytest.raises(TypeError, match="out"):
        nc.conv1d(x, w, out=torch.zeros(1, 1, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="out"):
        nc.conv1d(x, w, out=torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="share memory with x"):
        nc.conv1d(x, torch.ones(1, 1, 1), out=x)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 1, 5, requires_grad=True),
        torch.zeros(1, 1, 5, dtype=torch.bfloat16),
        torch.zeros(1, 1, 5, dtype=torch.complex64).conj(),
        torch.zeros(1, 1, 5, device="meta"),
        torch.zeros(1, 1, 5).to_sparse(),
    ],
    ids=["requires grad", "bfloat16", "conjugated", "meta", "sparse"],
)
def test_tensors_that_cannot_be_read_are_named(tensor: Any) -> None:
    with pytest.raises(TypeError, match=r"^x\b"):
        nc.conv(tensor, torch.zeros(1, 1, 3))
    with pytest.raises(TypeError, match=r"^w\b"):
        nc.conv(torch.zeros(1, 1, 5), tensor)
