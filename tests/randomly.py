"""Random convolutions, computed in every way there is and compared with the definition, to the last bit.

Sums are exact in any order, because the numbers are small integers or the arithmetic wraps; see `strategies`.
"""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import vectorised
from strategies import BACKENDS, DTYPES, PAD_MODES, PADDING_STRINGS, Problem, agree, meaning_of

from npconv.algorithms import ALGORITHMS, OPERATIONS
from npconv.arrays import compute_dtype, require
from npconv.geometry import ConvSpec

MOST_PRODUCTS = 1500
"""Of one convolution: the textbook's loops take 3 microseconds for each."""


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def random_problem(rng) -> Problem:
    """Any convolution of one to four dimensions, of a size that the textbook's loops can do."""
    while True:
        problem = _candidate(rng)
        if problem is not None and (problem.batch or 1) * math.prod(problem.w_shape) * math.prod(problem.out) <= (
            MOST_PRODUCTS
        ):
            return problem


def _candidate(rng) -> Problem | None:
    ndim = pick(rng, (1, 2, 2, 2, 3, 4))
    most = {1: 9, 2: 5, 3: 3, 4: 2}[ndim]
    kernel = (1,) * ndim if rng.random() < 0.15 else tuple(rng.integers(1, most + 1, ndim).tolist())
    plain = rng.random() < 0.4
    stride = (1,) * ndim if plain else tuple(rng.integers(1, 4, ndim).tolist())
    dilation = (1,) * ndim if plain else tuple(rng.integers(1, 4, ndim).tolist())
    reach = tuple((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
    size = tuple(rng.integers(1, {1: 60, 2: 14, 3: 6, 4: 4}[ndim], ndim).tolist())
    mode = pick(rng, ("zeros", "zeros", *PAD_MODES))
    padding = pick(rng, (None, None, *PADDING_STRINGS))
    if padding is None:
        padding = pairs = tuple(map(tuple, rng.integers(0, 4, (ndim, 2)).tolist()))
    else:
        pairs = meaning_of(padding, size, reach, stride)
    if any(n + lo + hi <= r for n, (lo, hi), r in zip(size, pairs, reach, strict=True)):
        return None
    groups = pick(rng, (1, 1, 1, 2, 3, 5))
    per_group = 1 if rng.random() < 0.3 else int(rng.integers(1, 8))
    return Problem(
        batch=pick(rng, (None, 1, 2, 3)), channels=groups * per_group, out_channels=groups * int(rng.integers(1, 9)),
        groups=groups, size=size, kernel=kernel, stride=stride, dilation=dilation, padding=padding, pairs=pairs,
        mode=mode, layout=pick(rng, ("channels_first", "channels_last")), seed=int(rng.integers(2**32)),
    )  # fmt: skip


def arranged(rng, value):
    """The same array, as somebody might have it in memory."""
    how = int(rng.integers(8))
    if how == 0:
        return np.asfortranarray(value)
    if how == 1 and value.dtype.kind in "fiu":
        return value.astype(value.dtype.newbyteorder())
    if how == 2:
        wide = np.full((*value.shape[:-1], 2 * value.shape[-1]), 7, value.dtype)
        wide[..., ::2] = value
        return wide[..., ::2]
    if how == 3:
        return np.ascontiguousarray(value[..., ::-1])[..., ::-1]
    if how == 4:
        value = value.copy()
        value.flags.writeable = False
    return value


def ways(problem, op, dtype):
    """Every backend with every algorithm that can compute an operation of a problem."""
    spec = ConvSpec.of(problem.x_shape, problem.w_shape, **problem.keywords)
    spec = spec if problem.mode == "zeros" else spec.without_padding()
    for backend, (name, row) in itertools.product(BACKENDS, ALGORITHMS.items()):
        if row.supports(spec, op, require(backend), compute_dtype(np.dtype(dtype))) is None:
            yield backend, name
    yield from ((backend, "auto") for backend in BACKENDS)


def check(seed: int) -> int:
    """Compare one random convolution and its gradients with the definition; returns how many results there were."""
    rng = np.random.default_rng(seed)
    problem, dtype = random_problem(rng).but(definition=vectorised), pick(rng, DTYPES)
    x, w, dy = problem.x(dtype), problem.w(dtype), problem.dy(dtype)
    bias = problem.bias(dtype) if rng.random() < 0.5 else None
    jobs = {
        "forward": (problem.expected, problem.conv, (x, w, bias)),
        "input_grad": (problem.expected_input_grad, problem.input_grad, (dy, w)),
        "weight_grad": (problem.expected_weight_grad, problem.weight_grad, (x, dy)),
    }
    count = 0
    for op in OPERATIONS:
        define, compute, arrays = jobs[op]
        expected = define(*arrays)
        for backend, name in ways(problem, op, dtype):
            given = [None if a is None else arranged(rng, a) for a in arrays]
            try:
                agree(name, compute(*given, backend=backend, algorithm=name), expected)
            except BaseException as error:
                error.add_note(f"seed {seed}: {op} of {problem} in {dtype} by {name} on {backend}")
                raise
            count += 1
    return count


@contextlib.contextmanager
def every_loop_in_threads():
    """Share even the smallest convolution among threads."""
    from npconv.kernels.cpu import threads

    before, threads.WORTH_A_THREAD = threads.WORTH_A_THREAD, 1
    try:
        yield
    finally:
        threads.WORTH_A_THREAD = before
