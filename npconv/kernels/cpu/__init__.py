"""The compiled loops as the algorithms call them: flatten the spatial axes, tabulate the geometry, spread over cores.

Every function takes arrays in C order and of one dtype, reads its operands, and writes the array that it is handed for
the result. Where `uses_tiles` says so the register tiles do the work, elsewhere the plain rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from npconv.arrays import flatten
from npconv.geometry import ConvSpec, Window
from npconv.kernels.cpu import (
    depthwise_last,
    loops,
    normalize,
    phases,
    pooling,
    pooling_last,
    threads,
    workspace,
)
from npconv.kernels.cpu import filters as filters
from npconv.kernels.cpu.blocking import processor
from npconv.kernels.cpu.channels_last import conv_forward_last as conv_forward_last
from npconv.kernels.cpu.channels_last import last_details as last_details
from npconv.kernels.cpu.channels_last import last_runner as last_runner
from npconv.kernels.cpu.channels_last import last_weights as last_weights
from npconv.kernels.cpu.channels_last import reads_channels_last as reads_channels_last
from npconv.kernels.cpu.drivers import details as details
from npconv.kernels.cpu.drivers import is_shallow as is_shallow
from npconv.kernels.cpu.drivers import layout_of as layout_of
from npconv.kernels.cpu.drivers import lays_out as lays_out
from npconv.kernels.cpu.drivers import panel_details as panel_details
from npconv.kernels.cpu.drivers import panel_runner as panel_runner
from npconv.kernels.cpu.drivers import run_tiles
from npconv.kernels.cpu.drivers import runner as runner
from npconv.kernels.cpu.drivers import takes_panels as takes_panels
from npconv.kernels.cpu.drivers import weight_panels as weight_panels
from npconv.kernels.cpu.elementwise import add as add
from npconv.kernels.cpu.gradients import input_grad_runner as input_grad_runner
from npconv.kernels.cpu.gradients import weight_grad_runner as weight_grad_runner
from npconv.kernels.cpu.operands import ACTIVATIONS, BOUNDS, clamp_bounds, linear_places, read_only, tables
from npconv.kernels.cpu.operands import largest as largest
from npconv.kernels.cpu.turning import turned as turned
from npconv.kernels.cpu.turning import turns as turns
from npconv.kernels.cpu.winograd_driver import winograd_runner as winograd_runner
from npconv.kernels.cpu.winograd_driver import winograd_tile as winograd_tile
from npconv.kernels.cpu.winograd_driver import winograd_weights as winograd_weights
from npconv.kernels.cpu.winograd_grad import winograd_weight_grad as winograd_weight_grad

# Output channels below which a tile would be mostly empty rows.
FEWEST_TILE_ROWS = 4


def register_bytes() -> int:
    return processor().register_bytes


def uses_tiles(dtype: np.dtype[Any]) -> bool:
    """Whether operations in a dtype run on register tiles."""
    return dtype.kind == "f"


def multiplies_on_tiles(spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> bool:
    """Whether the matrix product of an operation's columns runs on register tiles."""
    rows = spec.parameters // max(spec.out_channels, 1) if op == "input_grad" else spec.out_channels // spec.groups
    return dtype.kind == "f" and rows >= FEWEST_TILE_ROWS


def conv_forward(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    if uses_tiles(x.dtype):
        runner(spec, x.dtype, activation)(x, w, bias, y)
        return
    code, bias = ACTIVATIONS[activation], np.zeros(spec.out_channels, x.dtype) if bias is None else bias
    rows = spec.window.positions // spec.window.out[-1]
    threads.run(
        loops.conv_forward, spec.batch * spec.out_channels * rows, spec.macs,
        read_only(flatten(x, 2)), read_only(flatten(w, 2)), read_only(bias), flatten(y, 2), spec.groups, code,
        *tables(spec.window), stoppable=True,
    )  # fmt: skip


def conv_input_grad(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> None:
    if uses_tiles(dy.dtype) and input_grad_runner(spec, dy.dtype)(dy, w, dx):
        return
    rows = math.prod(spec.window.size[:-1])
    if dx.size:
        threads.run(
            loops.conv_input_grad, spec.batch * spec.in_channels * rows, spec.macs,
            read_only(flatten(dy, 2)), read_only(flatten(w, 2)), flatten(dx, 2), spec.groups, *tables(spec.window),
            stoppable=True,
        )  # fmt: skip


def conv_weight_grad(spec: ConvSpec, x: Any, dy: Any, dw: Any) -> None:
    if uses_tiles(x.dtype):
        weight_grad_runner(spec, x.dtype)(x, dy, dw)
    else:
        threads.run(
            loops.conv_weight_grad, dw.size // spec.window.kernel[-1], spec.macs,
            read_only(flatten(x, 2)), read_only(flatten(dy, 2)), flatten(dw, 2), spec.groups, *tables(spec.window),
            stoppable=True,
        )  # fmt: skip


def matmul(a: Any, b: Any, product: Any) -> None:
    """``product[n, g] = a[g] @ b[n, g]`` for ``(G, M, K)`` and ``(N, G, K, P)``."""
    batch, groups, rows, positions = product.shape
    if b.dtype.kind == "f" and rows >= FEWEST_TILE_ROWS and positions:
        one_tap = Window((positions,), (1,), (1,), ((0, 0),), (1,))
        weights = np.ascontiguousarray(a).reshape(groups * rows, a.shape[2])
        run_tiles(b, weights, None, product, None, groups, one_tap)
        return
    threads.run(
        loops.matmul, batch * groups * rows, product.size * a.shape[-1],
        read_only(np.ascontiguousarray(a)), read_only(b), product, stoppable=True,
    )  # fmt: skip


def unfold(window: Window, x: Any, columns: Any) -> None:
    threads.run(
        loops.unfold, math.prod(columns.shape[:3]), columns.size, read_only(flatten(x, 2)), columns, *tables(window)
    )


def fold(window: Window, columns: Any, x: Any) -> None:
    threads.run(
        loops.fold, x.shape[0] * x.shape[1], columns.size, read_only(columns), flatten(x, 2), *tables(window),
        stoppable=True,
    )  # fmt: skip


def max_pool(window: Window, x: Any, y: Any, winner: Any) -> None:
    geometry, spans = tables(window)
    images, planes = (read_only(flatten(x, 2)), flatten(y, 2), flatten(winner, 2)), x.shape[0] * x.shape[1]
    if window.ndim == 2 and y.size and x.dtype.kind != "c":
        threads.run(pooling.max_planes(True), planes, 2 * y.size * sum(window.kernel), *images, geometry)
    else:
        rows = planes * window.positions // window.out[-1]
        threads.run(pooling.max_pool, rows, y.size * window.taps, *images, geometry, spans, stoppable=True)


def max_values(window: Window, x: Any, y: Any) -> None:
    geometry, spans = tables(window)
    images, planes = (read_only(flatten(x, 2)), flatten(y, 2)), x.shape[0] * x.shape[1]
    if window.ndim == 2 and y.size and window.stride[0] > 1:
        loop = pooling.max_halved(x.dtype) if pooling.suits_halved(window, x.dtype) else pooling.max_strided
        threads.run(loop, planes, y.size * sum(window.kernel), *images, geometry)
    elif window.ndim == 2 and y.size:
        nobody = np.empty((*images[1].shape[:2], 0), np.int64)
        threads.run(pooling.max_planes(False), planes, y.size * sum(window.kernel), *images, nobody, geometry)
    else:
        rows = planes * window.positions // window.out[-1]
        threads.run(pooling.max_values, rows, y.size * window.taps, *images, geometry, spans)


def max_values_last(window: Window, x: Any, lowest: Any, y: Any) -> None:
    """`max_values` of ``(N, positions, C)``; `lowest` is an array of one element, for windows of padding alone."""
    rows = y.shape[0] * window.positions // window.out[-1]
    threads.run(
        pooling_last.max_last, rows, y.size * window.taps, read_only(x), y, read_only(lowest), *tables(window)
    )  # fmt: skip


def sum_windows_last(window: Window, x: Any, y: Any) -> bool:
    """Sums over each window of ``(N, *size, C)``; False, and nothing done, where no loop does that."""
    batch, channels = x.shape[0], x.shape[-1]
    spec = ConvSpec(batch, channels, channels, channels, window, layout="channels_last")
    if not depthwise_last.suits(spec, x.dtype):
        return False
    ones = depthwise_last.pack_weights(spec, np.ones(spec.w_shape, x.dtype))
    depthwise_last.runner(spec, x.dtype, BOUNDS[None], False)(x, ones, None, y)
    return True


def mean_last(x: Any, y: Any) -> None:
    """Mean of floats ``(N, positions, C)`` over the positions, as ``(N, C)``."""
    tasks = len(x) * -(-x.shape[2] // pooling_last.CHANNELS)
    threads.run(pooling_last.mean_last, tasks, x.size, read_only(x), y)


def max_pool_grad(window: Window, dy: Any, winner: Any, dx: Any) -> None:
    threads.run(
        pooling.max_pool_grad, dx.shape[0] * dx.shape[1], dy.size * window.taps,
        read_only(flatten(dy, 2)), read_only(flatten(winner, 2)), flatten(dx, 2), *linear_places(window),
    )  # fmt: skip


def batch_norm(x: Any, weight: Any, bias: Any, y: Any, mean: Any, var: Any, eps: float, activation: str | None) -> None:
    """Images ``(N, C, S)``; see `npconv.kernels.cpu.normalize`."""
    planes = normalize.planes_of(x)
    loop = normalize.batch_norm(planes.small)
    threads.run(
        loop, planes.tasks, x.size * 3, read_only(flatten(x, 1)), read_only(weight), read_only(bias), flatten(y, 1),
        mean, var, eps, clamp_bounds(activation, x.dtype), planes.size, planes.together,
    )  # fmt: skip


def batch_norm_grad(
    dy: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float, activation: str | None,
    dx: Any, dweight: Any, dbias: Any,
) -> None:  # fmt: skip
    """The gradients; see `npconv.kernels.cpu.normalize`."""
    planes = normalize.planes_of(x)
    loop = normalize.batch_norm_grad(activation is not None, planes.small)
    threads.run(
        loop, planes.tasks, x.size * 5, read_only(flatten(dy, 1)), read_only(flatten(x, 1)), read_only(weight),
        read_only(bias), read_only(mean), read_only(var), eps, clamp_bounds(activation, x.dtype), flatten(dx, 1),
        dweight, dbias, planes.size, planes.together,
    )  # fmt: skip


def divide_phases(planes: Any, before: tuple[int, ...], parts: Any) -> None:
    """Planes ``(P, height, width)`` divided into phases: see `npconv.kernels.cpu.phases`."""
    threads.run(phases.divide, len(parts), parts.size, read_only(planes), *before, parts)


def join_phases(parts: Any, before: tuple[int, ...], planes: Any) -> None:
    """Planes ``(P, height, width)`` put together from their phases."""
    threads.run(phases.join, len(planes), planes.size, read_only(parts), *before, planes)


def free_workspace() -> None:
    """See `npconv.free_workspace`."""
    workspace.free()
