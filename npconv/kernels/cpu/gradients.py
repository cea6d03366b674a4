"""Which loop computes a gradient of floats on register tiles, made ready for many calls.

Arrays are in C order and of the dtype, with their batch axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.arrays import flatten
from npconv.geometry import ConvSpec
from npconv.kernels.cpu import columns, depthwise_grad, few_positions, input_grad, threads, weight_grad
from npconv.kernels.cpu.depthwise import MOST_TAPS, conv_depthwise, gradient_strips
from npconv.kernels.cpu.drivers import WORTH_WRITING_OUT, convolve, multiply, tile_runner
from npconv.kernels.cpu.operands import is_finite, read_only

WeightGrad = Callable[[Any, Any, Any], None]
"""``run(x, dy, dw)``."""

InputGrad = Callable[[Any, Any, Any], bool]
"""``run(dy, w, dx)``; False where the result may not be used."""


def weight_grad_runner(spec: ConvSpec, dtype: np.dtype[Any], limit: int | None = None) -> WeightGrad:
    """The weight gradient on at most `limit` threads, by default what `npconv.get_num_threads` says."""
    window, groups = spec.window, spec.groups
    if groups == spec.out_channels and _is_written_out(spec, window.taps) and spec.batch * window.positions:
        return depthwise_grad.runner(window, spec.batch, groups, dtype, limit)
    if few_positions.suits(window, spec.batch, groups, spec.in_channels, spec.out_channels, dtype.itemsize):
        return lambda x, dy, dw: few_positions.run(window, groups, read_only(x), read_only(dy), flatten(dw, 1))
    shape = spec.out_channels, spec.parameters // max(1, spec.out_channels)
    return weight_grad.runner(window, groups, spec.batch, shape, dtype, limit)


def input_grad_runner(spec: ConvSpec, dtype: np.dtype[Any], limit: int | None = None) -> InputGrad:
    """The input gradient on at most `limit` threads, by default what `npconv.get_num_threads` says.

    There a zero that stands for an output which does not exist may meet an infinite weight, and NaN spread further than
    in the definition. It would show in the result, so the smaller of the two is looked at.
    """
    window, groups, images = spec.window, spec.groups, spec.batch * spec.in_channels * math.prod(spec.window.size)
    if columns.suits(window, spec.batch, spec.out_channels // groups, spec.in_channels // groups):
        return _always(lambda dy, w, dx: columns.run(window, groups, read_only(dy), _flat(w), dx, multiply))
    run = _phases(spec, dtype, limit)
    if not input_grad.reads_padding(window):
        return _always(run)

    def guarded(dy: Any, w: Any, dx: Any) -> bool:
        if not is_finite(w):
            return False
        run(dy, w, dx)
        return True

    def guarded_after(dy: Any, w: Any, dx: Any) -> bool:
        run(dy, w, dx)
        return is_finite(dx) or is_finite(w)

    return guarded if spec.parameters <= images else guarded_after


def _always(run: Callable[[Any, Any, Any], None]) -> InputGrad:
    """A runner whose result may always be used."""

    def used(dy: Any, w: Any, dx: Any) -> bool:
        run(dy, w, dx)
        return True

    return used


def _phases(spec: ConvSpec, dtype: np.dtype[Any], limit: int | None) -> Callable[[Any, Any, Any], None]:
    """The input gradient by phases, which multiplies weights with the zeros of the padding."""
    window, groups = spec.window, spec.groups
    if _is_written_out(spec, spec.parameters // groups) and window.stride[-1] <= 2:
        # Outputs of a group of one input channel count as leading taps.
        strip, tables, number = gradient_strips(window, spec.out_channels // groups, dtype.itemsize)
        call = threads.prepared(conv_depthwise(dtype, strip), spec.batch * groups * number, spec.macs, limit)
        none, rest = np.zeros(groups, dtype), (-np.inf, np.inf, 0, groups, 1, strip.taps, tables)
        return lambda dy, w, dx: call(dy, w, none, dx, *rest)
    run = input_grad.at_once(window, groups, spec.batch, _flat_shape(spec), dtype, tile_runner, limit)
    return run or (lambda dy, w, dx: input_grad.run(window, groups, read_only(dy), _flat(w), dx, convolve))


def _flat_shape(spec: ConvSpec) -> tuple[int, int, int]:
    """``(outputs, depth, taps)`` of the weights."""
    return spec.out_channels, spec.in_channels // spec.groups, spec.window.taps


def _flat(w: Any) -> Any:
    return read_only(flatten(w, 2))


def _is_written_out(spec: ConvSpec, taps: int) -> bool:
    """Whether a convolution is depthwise and worth machine code of its own for so many taps."""
    return spec.is_depthwise and taps <= MOST_TAPS and spec.macs >= WORTH_WRITING_OUT * spec.batch
