"""Memory that nothing was written to takes no part in the arithmetic, not even for results that nobody looks at.

Whatever lies there may look like numbers that are nearly zero, for which processors take a hundred times as long: a
result is right then, and comes late. glibc fills what it hands out with a byte, here such that it is tiny numbers, and
the processor remembers whether anything was so small that it had to be rounded to less than its usual precision.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from guards import OTHER_PROCESSORS, run_python
from test_guard_pages import SPECS

import npconv as nc
from npconv.algorithms import ALGORITHMS, OPERATIONS
from npconv.algorithms.base import image_shape, result_shape
from npconv.arrays import require
from npconv.geometry import ConvSpec
from npconv.kernels.cpu.blocking import features
from npconv.planning import plan_for

MORE = [
    ConvSpec.of((1, 64, 20, 20), (64, 64, 1, 1)),
    ConvSpec.of((1, 40, 24, 23), (40, 40, 3, 3), padding=1),
    ConvSpec.of((1, 16, 6, 8, 9), (16, 16, 3, 3, 3), padding=1),
    ConvSpec.of((1, 130, 7, 7), (66, 130, 1, 1)),
    ConvSpec.of((1, 20, 300), (28, 20, 3)),
]
"""Outputs and tiles that fill no whole register tile."""

ALL = [*SPECS, *MORE]

INVALID, NEARLY_ZERO, UNDERFLOW = 1, 2, 16
"""Bits of a processor's status: an operation on NaN, an operand and a result with fewer digits than usual."""

BYTE = 0x80
"""Of which all memory consists: floats of 1e-38 and doubles of 1e-307."""

SMALL = 2.0**-12
"""What operands are multiples of, so that a product with a tiny number is too small, and none without one is."""


def status_reader():
    """``status()``: the bits since the last call."""
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    @intrinsic
    def status(_):
        def generate(context, builder, signature, arguments):
            word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
            slot = builder.alloca(word)
            kind = ir.FunctionType(ir.VoidType(), [byte])
            load, store = (
                builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), kind) for name in ("ldmxcsr", "stmxcsr")
            )
            place = builder.bitcast(slot, byte)
            builder.call(store, [place])
            found = builder.load(slot)
            builder.store(builder.and_(found, ir.Constant(word, 0xFFFFFFC0)), slot)
            builder.call(load, [place])
            return found

        return numba.types.int32(), generate

    @numba.njit
    def read():
        return status()

    return read


def inside(specs) -> int:
    """Run everything twice and look at the processor's status after the second time; returns the number of runs."""
    nc.set_num_threads(1)  # the status is a thread's own
    status, rng, numba, count = status_reader(), np.random.default_rng(0), require("numba"), 0
    bits = INVALID | NEARLY_ZERO | UNDERFLOW
    probe = np.empty(2**20, np.float32)  # of smaller ones NumPy keeps some
    assert probe.view(np.uint8)[0] == BYTE, "memory is not filled"
    status()
    probe *= np.float32(SMALL)
    assert status() & bits, "what is looked for is not seen"

    def numbers(shape, dtype):
        return (rng.integers(1, 9, shape) * SMALL).astype(dtype)

    def run(what, call, *operands):
        nonlocal count
        call(*operands)
        status()
        call(*operands)
        assert not status() & bits, what
        count += 1

    def packed(plan, x, w):
        plan.pack(w)(x)

    def once(plan, a, b):
        plan.run(a, plan.packed(b) if plan.op == "forward" else b)

    for spec in specs:
        for dtype in map(np.dtype, ("f4", "f8")):
            for op in OPERATIONS:
                a = numbers(result_shape(spec) if op == "input_grad" else image_shape(spec), dtype)
                b = numbers(result_shape(spec) if op == "weight_grad" else spec.w_shape, dtype)
                for name in ("direct", "pointwise", "depthwise", "winograd", "fft"):
                    if ALGORITHMS[name].supports(spec, op, numba, dtype) is not None:
                        continue
                    plan = plan_for(spec, op, numba, dtype, name)
                    run((op, name, dtype, spec), once, plan, a, b)
                    if op == "forward":
                        run((name, "packed", dtype, spec), packed, plan, a, b)
            window = spec.window
            x = numbers((spec.batch, *window.size, spec.in_channels), dtype)
            geometry = {name: getattr(window, name) for name in ("stride", "padding", "dilation")}
            last = nc.plan(x.shape, spec.w_shape, **geometry, groups=spec.groups, layout="channels_last", dtype=dtype)
            run(("channels last", dtype, spec), packed, last, x, numbers(spec.w_shape, dtype))
    return count


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or platform.libc_ver()[0] != "glibc",
    reason="the processor's status is read as on x86, and glibc fills the memory",
)
@pytest.mark.parametrize(("processor", "specs"), [("this one", "ALL"), ("AVX2", "MORE")])
def test_what_nobody_wrote_takes_no_part(processor, specs):
    """As code for this processor, and for one whose tiles have other heights and widths."""
    here, other = Path(__file__).parent, {**OTHER_PROCESSORS, "this one": {}}[processor]
    if processor == "AVX2" and not {"avx2", "fma"} <= features():
        pytest.skip("this processor has no such instructions")
    found = run_python(
        f"import sys; sys.path.insert(0, {str(here)!r}); from test_unwritten import *; print(inside({specs}))",
        MALLOC_PERTURB_=str(0xFF ^ BYTE), PYTHONPATH=os.pathsep.join(filter(None, sys.path)), **other,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout.split()[-1]) >= 50
