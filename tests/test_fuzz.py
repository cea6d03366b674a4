"""Hostile arguments to every public function: an answer, or one of four errors; no hang, no crash, no gigabytes.

``python -m tests.stress`` draws more of them.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import EVERY

import npconv as nc
from npconv import nn

LINUX = sys.platform.startswith("linux")
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
        return np.broadcast_to(value, (draw(st.sampled_from([2**20, 2**34, 2**43])), *shape))
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
    "add", "avg_pool", "avg_pool_vjp", "batch_norm_vjp", "col2im", "conv", "conv1d", "conv2d", "conv3d",
    "conv_input_grad", "conv_transpose", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv_vjp",
    "conv_weight_grad", "convolve", "correlate", "float32_as", "fold", "im2col", "max_pool", "max_pool_vjp", "plan",
    "set_backend", "set_num_threads", "unfold", "use_backend",
    "cost.conv", "cost.job", "cost.separable", "cost.stack", "cost.table", "cost.variations",
    "d2l.comp_conv2d", "d2l.corr2d", "d2l.corr2d_multi_in", "d2l.corr2d_multi_in_out", "d2l.corr2d_multi_in_out_1x1",
    "filters.box", "filters.convolve", "filters.convolve_vjp", "filters.correlate", "filters.correlate_vjp",
    "filters.factors", "filters.gabor", "filters.gaussian", "filters.laplace", "filters.sobel",
]  # fmt: skip
"""Public functions of arrays, shapes and settings."""

ELSEWHERE = {
    "available_backends": "takes nothing", "free_workspace": "takes nothing", "get_backend": "takes nothing",
    "get_num_threads": "takes nothing", "show_config": "takes nothing", "strict": "takes nothing",
    "autotune": "measures for seconds; its arguments are those of plan", "this_machine": "measures for seconds",
    "warmup": "compiles for minutes", "cost.lecture": "takes machines alone", "cost.model": "takes a network",
    "cost.Cost": "holds numbers", "cost.Row": "holds costs", "cost.Separable": "holds costs",
    "d2l.learn_kernel": "takes as many steps as it is told",
}  # fmt: skip
"""What is public besides, and why nothing is drawn for it: test_bad_input.py and their own tests have what they refuse.

Files have tests of their own: test_onnx_untrusted.py, test_nn_files.py, test_disk.py.
"""

LAYERS = [
    name for name, layer in vars(nn).items()
    if inspect.isclass(layer) and issubclass(layer, nn.Module) and not issubclass(layer, nn.Container)
    and layer is not nn.Module
]  # fmt: skip


def test_no_public_function_is_forgotten():
    public = {name for name in nc.__all__ if callable(getattr(nc, name))}
    public |= {f"cost.{name}" for name in nc.cost.__all__}
    public |= {f"filters.{name}" for name in nc.filters.__all__ if callable(getattr(nc.filters, name))}
    public |= {
        f"d2l.{name}" for name, value in vars(nc.d2l).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public == {*FUNCTIONS, *ELSEWHERE}


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


LONGEST = 120.0
"""Seconds that a call may take, of which compiling what it needs takes most."""


@contextlib.contextmanager
def no_hang():
    """End what takes too long with an error: by a signal, which comes through whatever runs (see test_limits.py)."""

    def too_long(*_):
        raise AssertionError(f"a call did not end in {LONGEST:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(function, arguments):
    """Call with hostile arguments; whatever is not an answer must be an error that a caller can expect."""
    limits = AddressSpace() if LINUX else contextlib.nullcontext()
    with np.errstate(all="ignore"), warnings.catch_warnings(), no_hang(), limits:
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


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_a_good_call_with_one_argument_spoilt(name, data):
    """What is checked late is reached by calls that are right in everything else."""
    function, good = EVERY[name]
    names = [parameter for parameter in inspect.signature(function).parameters if parameter != "k"] or good
    for spoilt in names:
        value = data.draw(_ANYTHING[_ACCORDING_TO.get(spoilt, "numbers")], label=spoilt)
        attempt(function, {**good, spoilt: value})


@pytest.mark.parametrize("name", LAYERS)
@given(data=st.data())
def test_a_layer_is_made_and_runs_or_says_why_not(name, data):
    layer, x = getattr(nn, name), data.draw(_ANYTHING["arrays"])

    def there_and_back(**arguments):
        made = layer(**arguments)
        made.backward(made(x))

    attempt(there_and_back, data.draw(calls(layer)))


def test_a_call_that_hangs_is_found(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LONGEST", 0.05)
    with pytest.raises(AssertionError, match="did not end"):
        attempt(lambda: time.sleep(5), {})


def _wide(*shape, dtype="f4"):
    """An array of any shape, without memory behind it."""
    return np.broadcast_to(np.dtype(dtype).type(1), shape)


_DEEP, _TAPS = _wide(2**17, 3, 256, 256), np.ones((4, 3, 3, 3), "f4")  # 100 GB
WRONG = {
    "channels": lambda: nc.conv(_DEEP, np.ones((4, 2, 3, 3), "f4")),
    "groups": lambda: nc.conv(_DEEP, _TAPS, groups=2),
    "a bias": lambda: nc.conv(_DEEP, _TAPS, np.ones(5)),
    "a result": lambda: nc.conv(_DEEP, _TAPS, out=np.empty((1, 4, 254, 254), "f4")),
    "an algorithm": lambda: nc.conv(_DEEP, _TAPS, algorithm="pointwise"),
    "a kernel too large": lambda: nc.conv(_wide(1, 3, 9, 9), _wide(2**17, 3, 256, 256)),
    "an output no index reaches": lambda: nc.conv(_wide(1, 3, 9, 9), _TAPS, padding=2**40),
    "kinds of numbers": lambda: nc.conv(_wide(2**17, 3, 256, 256, dtype="U1"), _TAPS),
    "one gradient": lambda: nc.conv_input_grad(_DEEP, _TAPS, (2**17, 3, 256, 256)),
    "the other gradient": lambda: nc.conv_weight_grad(_DEEP, _DEEP, (4, 3, 3, 3)),
    "both": lambda: nc.conv_vjp(_DEEP, _TAPS, stride=0),
    "transposed": lambda: nc.conv_transpose(_DEEP, _TAPS),
    "pooling": lambda: nc.max_pool(_DEEP, 300),
    "patches": lambda: nc.unfold(_DEEP, 300),
    "columns": lambda: nc.fold(_wide(1, 27, 2**32), (10, 10), 3),
    "axes": lambda: nc.correlate(_DEEP, np.ones((3, 3)), axes=(1, 1)),
    "a boundary": lambda: nc.correlate(_DEEP, np.ones((3, 3)), axes=(2, 3), boundary="edge"),
    "a mask": lambda: nc.correlate(_DEEP, np.ones((3, 3)), axes=(2, 3), nan_policy="omit", mask=np.ones(5, bool)),
    "normalisation": lambda: nc.batch_norm_vjp(_DEEP, np.ones(4)),
    "a sum": lambda: nc.add(_DEEP, _wide(2**17, 3, 256, 255)),
}


@pytest.mark.skipif(not LINUX, reason="limits are Linux's here")
@pytest.mark.parametrize("what", WRONG)
def test_a_bad_shape_is_found_before_its_gigabytes_are_taken(what):
    """A `MemoryError` would do for a good one."""
    with AddressSpace(), pytest.raises((ValueError, TypeError)):
        WRONG[what]()


@pytest.mark.skipif(not LINUX, reason="limits are Linux's here")
def test_gigabytes_that_are_taken_are_found():
    with AddressSpace(), pytest.raises(MemoryError):
        np.empty(2**31, np.uint8)
