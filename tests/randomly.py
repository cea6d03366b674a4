"""Random convolutions and filters, computed in every way there is and compared with the definition, to the last bit.

Sums are exact in any order, because the numbers are small integers or the arithmetic wraps; see `strategies`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math

import numpy as np
import vectorised
from strategies import BACKENDS, DTYPES, PAD_MODES, PADDING_STRINGS, Problem, agree, meaning_of, values

import npconv as nc
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


# --------------------------------------------------------------------------------------------------------------------
# Filters
# --------------------------------------------------------------------------------------------------------------------

BOUNDARIES = {
    **dict.fromkeys(("reflect", "grid-mirror"), "symmetric"),
    **dict.fromkeys(("constant", "grid-constant"), "constant"),
    **dict.fromkeys(("wrap", "grid-wrap"), "wrap"),
    "nearest": "edge",
    "mirror": "reflect",
}
"""SciPy's names of what lies beyond the edge, and `numpy.pad`'s."""


def check_filter(seed: int) -> int:
    """Compare one random filter with a padded copy and the definition; returns how many results there were."""
    rng = np.random.default_rng(seed)
    x, w, how, separable = _random_filter(rng)
    flip = rng.random() < 0.5
    expected = _filtered(x, w, flip, **how)
    methods, count = ["auto", "direct"], 0
    if x.dtype.kind in "fc":
        overlapping = any(k > s for k, s in zip(w.shape, how["stride"], strict=True))
        methods += ["fft"] * overlapping + ["separable"] * bool(separable and w.any())
    for backend, method in itertools.product(BACKENDS, methods):
        given = {**how, "method": method, "backend": backend}
        try:
            y = (nc.convolve if flip else nc.correlate)(arranged(rng, x), arranged(rng, w), **given)
            agree("direct" if method == "direct" else "auto", y, expected)
        except BaseException as error:
            error.add_note(f"seed {seed}: filter of {x.dtype}{x.shape} with {w.dtype}{w.shape}, {flip=}, {given}")
            raise
        count += 1
    return count


def _random_filter(rng):
    """An array, a kernel, the arguments of a filter, and whether the kernel is a product of one for each axis."""
    ndim = int(rng.integers(1, 4))
    axes = tuple(rng.permutation(ndim)[: rng.integers(1, ndim + 1)].tolist())
    shape = [int(rng.integers(1, {1: 60, 2: 20, 3: 9}[ndim])) for _ in range(ndim)]
    kernel = [int(rng.integers(1, {1: 20, 2: 7, 3: 4}[len(axes)])) for _ in axes]
    mode = pick(rng, ("same", "same", "full", "valid"))
    if mode == "valid":
        kernel = [min(k, shape[a]) for k, a in zip(kernel, axes, strict=True)]
    dtype = pick(rng, DTYPES)
    x = values(tuple(shape), dtype, int(rng.integers(2**32)))
    separable = rng.random() < 0.5
    parts = [(k,) for k in kernel] if separable else [tuple(kernel)]
    factors = [values(part, dtype, int(rng.integers(2**32))) for part in parts]
    if np.dtype(dtype).kind in "fc":  # so that sums of products stay exact, in half precision, too
        factors = [np.sign(factor.real).astype(dtype) for factor in factors]
    w = functools.reduce(np.multiply.outer, factors)
    if w.dtype.kind == "c":
        w = w * w.dtype.type(pick(rng, (1, 1j, 1 - 1j)))
    flip_limits = [min(k // 2, (k - 1) // 2) for k in kernel]
    origin = tuple(int(rng.integers(-n, n + 1)) for n in flip_limits) if mode == "same" else 0
    return x, w, {
        "mode": mode, "boundary": pick(rng, tuple(BOUNDARIES)), "cval": int(rng.integers(-2, 3)), "origin": origin,
        "axes": axes, "stride": tuple(rng.integers(1, 4, len(axes)).tolist()),
    }, separable  # fmt: skip


def _filtered(x, w, flip, *, mode, boundary, cval, origin, axes, stride):
    """A filter by its definition."""
    origins = origin or (0,) * len(axes)
    kernel = w[(slice(None, None, -1),) * w.ndim] if flip else np.conj(w)
    wide = {"f": np.float64, "c": np.complex128}.get(x.dtype.kind, np.int64)
    image, pairs = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim)).astype(wide), []
    for k, o in zip(w.shape, origins, strict=True):
        low = {"same": k // 2 + (-o if flip else o), "full": k - 1, "valid": 0}[mode]
        pairs.append((low, {"same": k - 1 - low, "full": k - 1, "valid": 0}[mode]))
    more = {"constant_values": cval} if BOUNDARIES[boundary] == "constant" else {}
    rest = ((0, 0),) * (x.ndim - len(axes))
    image = np.pad(image, (*rest, *pairs), BOUNDARIES[boundary], **more)
    flat = image.reshape(-1, 1, *image.shape[len(rest) :])
    y = vectorised.conv(
        flat, kernel.astype(wide)[None, None], stride=stride, padding=((0, 0),) * len(axes),
        dilation=(1,) * len(axes), groups=1,
    )  # fmt: skip
    y = y.reshape(*image.shape[: len(rest)], *y.shape[2:])
    return np.moveaxis(y, range(x.ndim - len(axes), x.ndim), axes).astype(x.dtype)


@contextlib.contextmanager
def every_loop_in_threads():
    """Share even the smallest convolution among threads."""
    from npconv.kernels.cpu import threads

    before, threads.WORTH_A_THREAD = threads.WORTH_A_THREAD, 1
    try:
        yield
    finally:
        threads.WORTH_A_THREAD = before
