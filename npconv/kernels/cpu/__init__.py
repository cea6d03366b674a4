"""The compiled loops as the algorithms call them: flatten the spatial axes, tabulate the geometry, spread over cores.

Every function takes arrays in C order and one dtype, and writes the array that it is handed for the result.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from npconv.arrays import flatten
from npconv.geometry import ConvSpec, Window
from npconv.kernels.cpu import loops, threads

ACTIVATIONS = {None: 0, "relu": loops.RELU, "relu6": loops.RELU6, "hardswish": loops.HARDSWISH}


@functools.lru_cache(maxsize=512)
def tables(window: Window) -> tuple[Any, Any]:
    """The `geometry` and `spans` arrays of the kernels' contract."""
    low = [lo for lo, _ in window.padding]
    geometry = np.array([window.size, window.kernel, window.stride, window.dilation, low, window.out], np.int64)
    last = window.ndim - 1
    spans = np.array([window.tap_range(last, k) for k in range(window.kernel[last])], np.int64)
    return geometry, spans


def conv_forward(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    rows = spec.window.positions // spec.window.out[-1]
    threads.run(
        loops.conv_forward, spec.batch * spec.out_channels * rows, spec.macs,
        flatten(x, 2), flatten(w, 2), bias, flatten(y, 2), spec.groups, ACTIVATIONS[activation], *tables(spec.window),
    )  # fmt: skip


def conv_input_grad(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> None:
    rows = math.prod(spec.window.size[:-1])
    if dx.size:
        threads.run(
            loops.conv_input_grad, spec.batch * spec.in_channels * rows, spec.macs,
            flatten(dy, 2), flatten(w, 2), flatten(dx, 2), spec.groups, *tables(spec.window),
        )  # fmt: skip


def conv_weight_grad(spec: ConvSpec, x: Any, dy: Any, dw: Any) -> None:
    kernel_rows = dw.size // spec.window.kernel[-1]
    threads.run(
        loops.conv_weight_grad, kernel_rows, spec.macs,
        flatten(x, 2), flatten(dy, 2), flatten(dw, 2), spec.groups, *tables(spec.window),
    )  # fmt: skip


def matmul(a: Any, b: Any, product: Any) -> None:
    """``a @ b`` for ``(N or 1, G, M, K)`` and ``(N, G, K, P)``."""
    threads.run(loops.matmul, math.prod(product.shape[:3]), product.size * a.shape[-1], a, b, product)


def unfold(window: Window, x: Any, columns: Any) -> None:
    threads.run(loops.unfold, math.prod(columns.shape[:3]), columns.size, flatten(x, 2), columns, *tables(window))


def fold(window: Window, columns: Any, x: Any) -> None:
    threads.run(loops.fold, x.shape[0] * x.shape[1], columns.size, columns, flatten(x, 2), *tables(window))


def max_pool(window: Window, x: Any, y: Any, winner: Any) -> None:
    rows = x.shape[0] * x.shape[1] * window.positions // window.out[-1]
    threads.run(
        loops.max_pool, rows, y.size * window.taps, flatten(x, 2), flatten(y, 2), flatten(winner, 2), *tables(window)
    )


def max_pool_grad(window: Window, dy: Any, winner: Any, dx: Any) -> None:
    geometry, _ = tables(window)
    planes = dx.shape[0] * dx.shape[1]
    threads.run(loops.max_pool_grad, planes, dy.size, flatten(dy, 2), flatten(winner, 2), flatten(dx, 2), geometry)
