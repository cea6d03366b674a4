"""Arrays whose memory ends where no page may be touched, under every operation of every algorithm.

A read or a write outside ends the process, so all of it runs in one of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from guards import PageGuarded, run_python

import npconv as nc
from npconv.algorithms import ALGORITHMS, OPERATIONS
from npconv.algorithms.base import image_shape, result_shape
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.kernels.cpu import depthwise_last
from npconv.planning import plan_for

SPECS = [
    ConvSpec.of((2, 17, 13, 11), (21, 17, 3, 3), padding=1),
    ConvSpec.of((1, 33, 9, 20), (6, 11, 2, 3), stride=(1, 2), dilation=(2, 1), padding=((1, 2), (0, 3)), groups=3),
    ConvSpec.of((3, 5, 7, 8), (9, 5, 1, 1)),
    ConvSpec.of((2, 5, 19, 23), (5, 1, 3, 3), padding=1, groups=5),
    ConvSpec.of((1, 4, 61, 67), (4, 1, 5, 3), stride=2, padding=2, groups=4),
    ConvSpec.of((1, 1, 33, 35), (3, 1, 5, 7), padding="full"),
    ConvSpec.of((2, 3, 301), (5, 3, 5), padding=3, dilation=2),
    ConvSpec.of((1, 6, 5, 6, 7), (7, 6, 3, 2, 3), padding=1),
    # Drivers of their own: few positions under many weights, with and without neighbours; few channels; one output.
    ConvSpec.of((2, 33, 4, 3), (61, 33, 3, 3), padding=1),
    ConvSpec.of((1, 131, 2, 3), (127, 131, 1, 1)),
    ConvSpec.of((8, 67, 2, 2), (129, 67, 3, 3), padding=1),
    ConvSpec.of((2, 3, 17, 19), (37, 3, 3, 3), stride=2, padding=1),
    ConvSpec.of((1, 7, 11, 13), (1, 7, 3, 3), padding=1),
]

FILTERS = [
    ((19, 61), (3, 3), "direct", "reflect"),
    ((3, 9, 40), (3, 5, 5), "direct", "constant"),
    ((40, 61), (9, 12), "fft", "wrap"),
    ((3, 700), (1, 90), "fft", "reflect"),
    ((41,), (64,), "fft", "constant"),
]
"""Shapes of an image and of a kernel, the method, and the boundary."""


POOLS = [((2, 3, 20, 17), (3, 3), 2, 1), ((1, 2, 9, 33), (2, 5), (1, 2), 0), ((3, 1, 40, 16), (2, 2), 2, 0)]
"""Shape of an image, kernel, stride and padding."""

LAST = [
    ((2, 5, 13, 94), (94, 1, 3, 3), {"padding": 1}),
    ((1, 3, 4, 2, 3), (3, 1, 3, 2, 3), {"padding": 2, "stride": (2, 1, 1)}),
]
"""Shapes of a channels-last image and of depthwise weights, and the rest."""


def inside(at_end: bool) -> int:
    """Run everything twice, the second time between guarded pages; returns the number of runs."""
    rng, numba, count = np.random.default_rng(0), require("numba"), 0
    for spec in SPECS:
        for op in OPERATIONS:
            shapes = (
                result_shape(spec) if op == "input_grad" else image_shape(spec),
                result_shape(spec) if op == "weight_grad" else spec.w_shape,
            )
            for dtype in map(np.dtype, ("f4", "f8", "i8")):
                a, b = (rng.integers(-3, 4, shape).astype(dtype) for shape in shapes)
                for name, row in ALGORITHMS.items():
                    if row.supports(spec, op, numba, dtype) is not None:
                        continue
                    plan = plan_for(spec, op, numba, dtype, name)
                    expected = plan.run(a, plan.packed(b) if op == "forward" else b)
                    print(op, name, dtype, spec, flush=True)  # the last line is the one that died
                    with PageGuarded(at_end) as guard:
                        left, right = guard.copy(a), guard.copy(b)
                        found = plan.run(left, plan.packed(right) if op == "forward" else right)
                    np.testing.assert_array_equal(found, expected)
                    count += 1
    for shape, kernel, method, boundary in FILTERS:
        x, w = (rng.integers(-3, 4, size).astype("f4") for size in (shape, kernel))
        expected = nc.correlate(x, w, method=method, boundary=boundary)
        with PageGuarded(at_end) as guard:
            found = nc.correlate(guard.copy(x), guard.copy(w), method=method, boundary=boundary)
        np.testing.assert_array_equal(found, expected)
        count += 1
    for shape, *window in POOLS:
        x = rng.integers(-3, 4, shape).astype("f4")
        expected = nc.max_pool(x, *window)
        with PageGuarded(at_end) as guard:
            nc.max_pool(guard.copy(x), *window, out=(found := guard.empty(expected.shape, "f4")))
        np.testing.assert_array_equal(found, expected)
        count += 1
        x, expected = np.moveaxis(x, 1, -1).copy(), np.moveaxis(expected, 1, -1)
        with PageGuarded(at_end) as guard:
            found = guard.empty(expected.shape, "f4")
            nc.max_pool(guard.copy(x), *window, layout="channels_last", out=found)
        np.testing.assert_array_equal(found, expected)
        count += 1
    for x_shape, w_shape, options in LAST:
        spec, dtype = (
            ConvSpec.of(x_shape, w_shape, groups=w_shape[0], layout="channels_last", **options),
            np.dtype("f4"),
        )
        x, w, bias = (rng.integers(-3, 4, shape).astype(dtype) for shape in (x_shape, w_shape, w_shape[:1]))
        expected = nc.conv(x, w, bias, groups=spec.groups, layout="channels_last", backend="numpy", **options)
        run = depthwise_last.runner(spec, dtype, (-np.inf, np.inf), False)
        with PageGuarded(at_end) as guard:
            packed = depthwise_last.pack_weights(spec, guard.copy(w))
            packed = packed._replace(values=guard.copy(packed.values))
            run(guard.copy(x), packed, guard.copy(bias), found := guard.empty(spec.y_shape, dtype))
        np.testing.assert_array_equal(found, expected)
        count += 1
    return count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages as Linux does")
@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
def test_nothing_is_read_or_written_outside(at_end):
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run_python(f"from test_guard_pages import inside; assert inside({at_end}) > 60", PYTHONPATH=path)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages as Linux does")
@pytest.mark.parametrize("at_end", [True, False])
def test_the_guard_itself_kills(at_end):
    place = "address + a.nbytes" if at_end else "address - 4"
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import ctypes
from guards import PageGuarded
a = PageGuarded({at_end}).empty((3, 5), 'f4')
address = a.ctypes.data
print('before', flush=True)
ctypes.c_float.from_address({place}).value
"""
    done = run_python(code)
    assert done.stdout.strip() == "before"
    assert done.returncode < 0
