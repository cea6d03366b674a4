"""Hostile arguments to every public function: an answer, or one of four errors; no hang, no crash, no gigabytes.

``python -m tests.stress`` draws more of them.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npconv as nc

ALLOWED = (ValueError, TypeError, MemoryError, NotImplementedError)

_HUGE = st.sampled_from([2**15, 2**31, 2**62, 2**63, 2**64, 10**30, -(2**63)])
_INTS = st.one_of(st.integers(-3, 9), st.integers(-3, 9), _HUGE, st.booleans())
_ODD = st.one_of(
    st.none(), st.floats(), st.text(max_size=3), st.complex_numbers(), st.binary(max_size=3),
    st.sampled_from([object(), {}, {1: 2}, [], (), [[1, 2], [3]], np.int64(3), np.float32(2), np.array(2), int, len]),
)  # fmt: skip
_NUMBERS = st.one_of(
    _INTS,
    st.lists(_INTS, max_size=4).map(tuple),
    st.lists(st.tuples(_INTS, _INTS), max_size=4).map(tuple),
    st.sampled_from(["same", "valid", "full", "causal", "same_lower", "SAME"]),
    _ODD,
)
_SHAPES = st.lists(st.one_of(st.integers(0, 6), st.integers(1, 6), _HUGE), max_size=6).map(tuple)
_DTYPES = st.sampled_from(
    ["f2", "f4", "f8", "g", "c8", "c16", "i1", "u8", "i4", "?", "O", "U3", "M8[s]", "V4", ">f4", "i4,f4"]
)


@st.composite
def _arrays(draw):
    """An array of any kind: small, or of any size without memory behind it."""
    dtype = np.dtype(draw(st.one_of(st.sampled_from(["f4", "f4", "f8", "i4", "c8"]), _DTYPES)))
    shape = draw(st.lists(st.integers(0, 6), max_size=6).map(tuple))
    value = np.zeros(shape, dtype)
    if dtype.kind in "fc" and value.size:
        with np.errstate(all="ignore"):
            value.flat[draw(st.integers(0, value.size - 1))] = draw(st.sampled_from([np.nan, np.inf, 1e300, -0.0, 1]))
    kind = draw(st.integers(0, 6))
    if kind == 0 and dtype.kind not in "OV":
        return np.broadcast_to(value, (draw(st.sampled_from([2**20, 2**34, 2**50])), *shape))
    if kind == 1:
        return value.T
    if kind == 2:
        return np.ma.masked_array(value)
    if kind == 3:
        return value[..., ::-1] if value.ndim else value
    return value


_WORDS = st.sampled_from(
    ["auto", "direct", "im2col", "winograd", "fft", "depthwise", "pointwise", "numpy", "numba", "zeros", "reflect",
     "circular", "channels_last", "relu", "hardswish", "nearest", "wrap", "omit", "propagate", "raise", "same", ""]
)  # fmt: skip
_ANYTHING = {
    "arrays": st.one_of(_arrays(), _arrays(), _arrays(), _ODD, st.lists(st.integers(0, 3), max_size=3)),
    "numbers": _NUMBERS,
    "words": st.one_of(_WORDS, _WORDS, _ODD),
    "shapes": st.one_of(_SHAPES, _ODD),
}
_KINDS = {
    "arrays": ("x", "w", "bias", "dy", "columns", "cols", "out", "mask"),
    "words": ("padding_mode", "layout", "activation", "algorithm", "backend", "mode", "boundary", "nan_policy",
              "method", "op", "name", "dtype"),
    "shapes": ("x_shape", "w_shape", "input_shape", "weight_shape", "output_size"),
}  # fmt: skip
_ACCORDING_TO = {name: kind for kind, names in _KINDS.items() for name in names}

FUNCTIONS = [
    "conv", "conv1d", "conv2d", "conv3d", "conv_transpose", "conv_transpose2d", "conv_input_grad", "conv_weight_grad",
    "conv_vjp", "unfold", "fold", "max_pool", "max_pool_vjp", "avg_pool", "avg_pool_vjp", "plan", "correlate",
    "convolve", "filters.correlate_vjp", "filters.convolve_vjp", "filters.gaussian", "filters.box", "filters.sobel",
    "filters.laplace", "filters.gabor", "filters.factors", "set_num_threads", "set_backend", "use_backend",
]  # fmt: skip


def find(name):
    room, _, function = name.rpartition(".")
    return getattr(getattr(nc, room) if room else nc, function)


@st.composite
def calls(draw, function):
    """Arguments for a function: what its parameters' names suggest, or not even that."""
    parameters = inspect.signature(function).parameters.values()
    arguments = {}
    for parameter in parameters:
        if parameter.default is not parameter.empty and draw(st.integers(0, 2)):
            continue
        kind = _ACCORDING_TO.get(parameter.name, "numbers")
        if not draw(st.integers(0, 15)):
            kind = draw(st.sampled_from(sorted(_ANYTHING)))
        arguments[parameter.name] = draw(_ANYTHING[kind])
    return arguments


class AddressSpace:
    """So little more memory than there is that gigabytes for a bad shape are an error."""

    def __enter__(self):
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, self._before[1]))

    def __exit__(self, *_):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, self._before)


def attempt(function, arguments):
    """Call with hostile arguments; whatever is not an answer must be an error that a caller can expect."""
    limits = AddressSpace() if sys.platform.startswith("linux") else warnings.catch_warnings()
    with np.errstate(all="ignore"), warnings.catch_warnings(), limits:
        warnings.simplefilter("ignore")
        try:
            result = function(**arguments)
            if isinstance(result, tuple) and len(result) == 2 and callable(result[1]):
                y, pullback = result
                pullback(y)
        except ALLOWED:
            pass
        except ImportError:
            assert "cupy" in str(arguments) or "cupy" in str(sys.exc_info()[1])
        finally:
            nc.set_num_threads(None)
            nc.set_backend(None)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data())
def test_an_answer_or_an_expected_error(name, data):
    function = find(name)
    attempt(function, data.draw(calls(function)))
