"""The compiled loops as the algorithms call them: flatten the spatial axes, tabulate the geometry, spread over cores.

Every function takes arrays in C order and of one dtype, reads its operands, and writes the array that it is handed for
the result. Where `uses_tiles` says so the register tiles do the work, elsewhere the plain rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.arrays import flatten
from npconv.config import get_num_threads
from npconv.geometry import ConvSpec, Window
from npconv.kernels.cpu import (
    columns,
    depthwise_grad,
    few_positions,
    input_grad,
    loops,
    normalize,
    phases,
    pooling,
    threads,
    weight_grad,
    winograd,
    workspace,
)
from npconv.kernels.cpu import filters as filters
from npconv.kernels.cpu.blocking import (
    LOW_ROWS,
    Blocks,
    Tile,
    blocks_for,
    evenly,
    is_narrow,
    low_positions_for,
    low_tile_for,
    positions_for,
    processor,
    slice_for,
    tile_for,
)
from npconv.kernels.cpu.depthwise import MOST_TAPS, conv_depthwise, forward_strips, gradient_strips
from npconv.kernels.cpu.microkernel import CHUNK
from npconv.kernels.cpu.narrow import conv_narrow, matmul_narrow
from npconv.kernels.cpu.tiled import conv_tiled
from npconv.kernels.cpu.winograd import Factors

BOUNDS: dict[str | None, tuple[float, float]] = {None: (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}
"""Activations that are a clamp."""

ACTIVATIONS = {None: 0, "relu": loops.RELU, "relu6": loops.RELU6, "hardswish": loops.HARDSWISH}

# Products of an image from which on a depthwise kernel is worth machine code of its own, which takes seconds to make.
WORTH_WRITING_OUT = 2**15

# Winograd tiles that a task transforms at once, about: what they hold for all channels should stay in L2.
WINOGRAD_TILES = 48

# Weights that are transformed on the way: for so many register tiles of outputs, and half of an L2 cache.
WEIGHT_ROWS, WEIGHT_BYTES = 2, 256 * 1024

# Output channels below which a tile would be mostly empty rows.
FEWEST_TILE_ROWS = 4


def uses_tiles(dtype: np.dtype[Any]) -> bool:
    """Whether operations in a dtype run on register tiles."""
    return dtype.kind == "f"


def multiplies_on_tiles(spec: ConvSpec, op: str, dtype: np.dtype[Any]) -> bool:
    """Whether the matrix product of an operation's columns runs on register tiles."""
    rows = spec.parameters // max(spec.out_channels, 1) if op == "input_grad" else spec.out_channels // spec.groups
    return dtype.kind == "f" and rows >= FEWEST_TILE_ROWS


def conv_forward(spec: ConvSpec, x: Any, w: Any, bias: Any, activation: str | None, y: Any) -> None:
    if uses_tiles(x.dtype):
        _run_tiles(x, flatten(w, 1), bias, y, activation, spec.groups, spec.window)
        return
    code, bias = ACTIVATIONS[activation], np.zeros(spec.out_channels, x.dtype) if bias is None else bias
    rows = spec.window.positions // spec.window.out[-1]
    threads.run(
        loops.conv_forward, spec.batch * spec.out_channels * rows, spec.macs,
        _read(flatten(x, 2)), _read(flatten(w, 2)), _read(bias), flatten(y, 2), spec.groups, code, *tables(spec.window),
        stoppable=True,
    )  # fmt: skip


def conv_input_grad(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> None:
    if uses_tiles(dy.dtype) and _input_grad_tiles(spec, dy, w, dx):
        return
    rows = math.prod(spec.window.size[:-1])
    if dx.size:
        threads.run(
            loops.conv_input_grad, spec.batch * spec.in_channels * rows, spec.macs,
            _read(flatten(dy, 2)), _read(flatten(w, 2)), flatten(dx, 2), spec.groups, *tables(spec.window),
            stoppable=True,
        )  # fmt: skip


def _input_grad_tiles(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> bool:
    """Compute an input gradient on tiles; False if the result may not be used.

    There a zero that stands for an output which does not exist meets an infinite weight, and NaN spreads further than
    in the definition. It would show in the result, so the smaller of the two is looked at.
    """
    if columns.suits(spec.window, spec.batch, spec.out_channels // spec.groups, spec.in_channels // spec.groups):
        columns.run(spec.window, spec.groups, _read(dy), _read(flatten(w, 2)), dx, _product)
        return True
    guarded, before = input_grad.reads_padding(spec.window), w.size <= dx.size
    if guarded and before and not _is_finite(w):
        return False
    if _is_written_out(spec, spec.parameters // spec.groups) and spec.window.stride[-1] <= 2:
        _depthwise_input_grad(spec, dy, w, dx)
    else:
        input_grad.run(spec.window, spec.groups, _read(dy), _read(flatten(w, 2)), dx, _forward)
    return not guarded or before or _is_finite(dx) or _is_finite(w)


def _depthwise_input_grad(spec: ConvSpec, dy: Any, w: Any, dx: Any) -> None:
    """The input gradient of a group of one input channel, whose outputs count as leading taps."""
    strip, tables, number = gradient_strips(spec.window, spec.out_channels // spec.groups, dx.dtype.itemsize)
    threads.run(
        conv_depthwise(dx.dtype, strip), spec.batch * spec.groups * number, spec.macs,
        dy, w, np.zeros(spec.groups, dx.dtype), dx, -np.inf, np.inf, 0, spec.groups, 1, strip.taps, tables,
    )  # fmt: skip


def _is_written_out(spec: ConvSpec, taps: int) -> bool:
    """Whether a convolution is depthwise and worth machine code of its own for so many taps."""
    return spec.is_depthwise and taps <= MOST_TAPS and spec.macs >= WORTH_WRITING_OUT * spec.batch


def conv_weight_grad(spec: ConvSpec, x: Any, dy: Any, dw: Any) -> None:
    if uses_tiles(x.dtype) and spec.groups == spec.out_channels and _is_written_out(spec, spec.window.taps) and dy.size:
        depthwise_grad.run(spec.window, x, dy, dw)
    elif uses_tiles(x.dtype):
        sizes = spec.batch, spec.groups, spec.in_channels, spec.out_channels, x.dtype.itemsize
        way = few_positions if few_positions.suits(spec.window, *sizes) else weight_grad
        way.run(spec.window, spec.groups, _read(x), _read(dy), flatten(dw, 1))
    else:
        threads.run(
            loops.conv_weight_grad, dw.size // spec.window.kernel[-1], spec.macs,
            _read(flatten(x, 2)), _read(flatten(dy, 2)), flatten(dw, 2), spec.groups, *tables(spec.window),
            stoppable=True,
        )  # fmt: skip


def matmul(a: Any, b: Any, product: Any) -> None:
    """``product[n, g] = a[g] @ b[n, g]`` for ``(G, M, K)`` and ``(N, G, K, P)``."""
    batch, groups, rows, positions = product.shape
    if b.dtype.kind == "f" and rows >= FEWEST_TILE_ROWS and positions:
        one_tap = Window((positions,), (1,), (1,), ((0, 0),), (1,))
        weights = np.ascontiguousarray(a).reshape(groups * rows, a.shape[2])
        _run_tiles(b, weights, None, product, None, groups, one_tap)
        return
    threads.run(
        loops.matmul, batch * groups * rows, product.size * a.shape[-1],
        _read(np.ascontiguousarray(a)), _read(b), product, stoppable=True,
    )  # fmt: skip


def unfold(window: Window, x: Any, columns: Any) -> None:
    threads.run(
        loops.unfold, math.prod(columns.shape[:3]), columns.size, _read(flatten(x, 2)), columns, *tables(window)
    )


def fold(window: Window, columns: Any, x: Any) -> None:
    threads.run(
        loops.fold, x.shape[0] * x.shape[1], columns.size, _read(columns), flatten(x, 2), *tables(window),
        stoppable=True,
    )  # fmt: skip


def max_pool(window: Window, x: Any, y: Any, winner: Any) -> None:
    geometry, spans = tables(window)
    images, planes = (_read(flatten(x, 2)), flatten(y, 2), flatten(winner, 2)), x.shape[0] * x.shape[1]
    if window.ndim == 2 and y.size and x.dtype.kind != "c":
        threads.run(pooling.max_planes(True), planes, 2 * y.size * sum(window.kernel), *images, geometry)
    else:
        rows = planes * window.positions // window.out[-1]
        threads.run(pooling.max_pool, rows, y.size * window.taps, *images, geometry, spans, stoppable=True)


def max_values(window: Window, x: Any, y: Any) -> None:
    geometry, spans = tables(window)
    images, planes = (_read(flatten(x, 2)), flatten(y, 2)), x.shape[0] * x.shape[1]
    if window.ndim == 2 and y.size and window.stride[0] > 1:
        threads.run(pooling.max_strided, planes, y.size * sum(window.kernel), *images, geometry)
    elif window.ndim == 2 and y.size:
        nobody = np.empty((*images[1].shape[:2], 0), np.int64)
        threads.run(pooling.max_planes(False), planes, y.size * sum(window.kernel), *images, nobody, geometry)
    else:
        rows = planes * window.positions // window.out[-1]
        threads.run(pooling.max_values, rows, y.size * window.taps, *images, geometry, spans)


def max_pool_grad(window: Window, dy: Any, winner: Any, dx: Any) -> None:
    threads.run(
        pooling.max_pool_grad, dx.shape[0] * dx.shape[1], dy.size * window.taps,
        _read(flatten(dy, 2)), _read(flatten(winner, 2)), flatten(dx, 2), *linear_places(window),
    )  # fmt: skip


def batch_norm(x: Any, weight: Any, bias: Any, y: Any, mean: Any, var: Any, eps: float, activation: str | None) -> None:
    threads.run(
        normalize.batch_norm, x.shape[1], x.size * 3, _read(x), _read(weight), _read(bias), y, mean, var, eps,
        _bounds(activation, x.dtype),
    )  # fmt: skip


def batch_norm_grad(
    dy: Any, x: Any, y: Any, weight: Any, mean: Any, var: Any, eps: float, activation: str | None,
    dx: Any, dweight: Any, dbias: Any,
) -> None:  # fmt: skip
    threads.run(
        normalize.batch_norm_grad(activation is not None), x.shape[1], x.size * 5, _read(dy), _read(x), _read(y),
        _read(weight), _read(mean), _read(var), eps, _bounds(activation, x.dtype), dx, dweight, dbias,
    )  # fmt: skip


@functools.lru_cache(maxsize=32)
def _bounds(clamp: str | None, dtype: np.dtype[Any]) -> Any:
    return _read(np.array(BOUNDS[clamp], dtype))


@functools.lru_cache(maxsize=512)
def tables(window: Window) -> tuple[Any, Any]:
    """The `geometry` and `spans` arrays of the kernels' contract."""
    low = [lo for lo, _ in window.padding]
    geometry = np.array([window.size, window.kernel, window.stride, window.dilation, low, window.out], np.int64)
    last = window.ndim - 1
    stride, out = window.stride[last], window.out[last]
    offset = np.arange(window.kernel[last]) * window.dilation[last] - low[last]
    first = np.maximum(0, -(offset // stride))
    stop = np.minimum(out, (window.size[last] - 1 - offset) // stride + 1)
    spans = np.stack([first, np.maximum(first, stop)], axis=1)
    return _read(geometry), _read(spans)


@functools.lru_cache(maxsize=8)
def linear_places(window: Window) -> tuple[Any, Any]:
    """Where the first tap of each window lies in a flat plane, and how much further each tap does.

    Their sum is the place of a tap that lies inside the plane, and means nothing for one in the padding.
    """
    starts, steps, pitch = np.zeros(1, np.int64), np.zeros(1, np.int64), 1
    for size, kernel, stride, (low, _), dilation, out in reversed(
        list(zip(window.size, window.kernel, window.stride, window.padding, window.dilation, window.out, strict=True))
    ):
        starts = (((np.arange(out) * stride - low) * pitch)[:, None] + starts).reshape(-1)
        steps = ((np.arange(kernel) * dilation * pitch)[:, None] + steps).reshape(-1)
        pitch *= size
    return _read(starts), _read(steps)


def _read(value: Any) -> Any:
    """An operand as a read-only view.

    Read-only arrays have a type of their own in compiled code: so there is one variant of each loop, whatever the
    caller's array was, and the compiler refuses a loop that writes into an operand.
    """
    view = value.view()
    view.flags.writeable = False
    return view


class WinogradWeights(NamedTuple):
    """Weights for `winograd_runner`: transformed, with the distance of points; or, where that is 0, as they came."""

    values: Any
    points_apart: int
    layout: Any


def winograd_weights(
    spec: ConvSpec, transforms: tuple[Any, ...], w: Any, turned: bool = False, stacked: int = 1, ahead: bool = True
) -> WinogradWeights:
    """Weights for what `winograd_runner` makes, transformed `ahead` or by it on the way.

    `turned` weights are those of the convolution whose input gradient `spec` is: outputs and inputs change places, and
    the order of the taps is the opposite one. They are read where they lie, as all are: ``(C_out, C / groups, stacked,
    *kernel)``, with so many planes of an image that follow each other as channels of `spec`.
    """
    layout, values = _weights_layout(spec, turned, stacked), _read(w.reshape(-1))
    if not ahead:
        return WinogradWeights(values, 0, layout)
    groups, depth = spec.groups, spec.in_channels // spec.groups
    outputs = spec.out_channels // groups
    loop, rows, points = _winograd_weights(w.dtype, transforms)
    u = workspace.empty(winograd.weights_shape(groups, outputs, depth, points, rows), w.dtype)
    threads.run(loop, groups * -(-outputs // rows), depth * spec.out_channels * points * 4, values, u, layout)
    return WinogradWeights(_read(u.reshape(-1)), u.shape[1], layout)


@functools.lru_cache(maxsize=1024)
def _weights_layout(spec: ConvSpec, turned: bool, stacked: int) -> Any:
    """The `layout` of `winograd.weights_transform`."""
    outputs, depth, taps = spec.out_channels // spec.groups, spec.in_channels // spec.groups, spec.window.taps
    row, channel = (stacked * taps, outputs * stacked * taps) if turned else (depth * taps, stacked * taps)
    first, tap = ((stacked - 1) * taps, -taps) if turned else (0, taps)
    layout = outputs, depth, depth // stacked, outputs * depth * taps, row, channel, tap, first, turned
    return _read(np.array(layout, np.int64))


@functools.lru_cache(maxsize=64)
def _winograd_weights(dtype: np.dtype[Any], transforms: tuple[Any, ...]) -> tuple[Callable[..., None], int, int]:
    """The loop that transforms weights, the rows of a tile, and the number of points."""
    rows, (down, across) = winograd_tile(dtype).rows, _factors(transforms)
    return winograd.winograd_weights(dtype, rows, down, across), rows, len(down.g) * len(across.g)


def winograd_runner(
    spec: ConvSpec, dtype: np.dtype[Any], transforms: tuple[Any, ...], clamp: str | None, planes: Any
) -> Callable[..., None]:
    """The forward convolution over one or two axes by these transforms, with an activation of `BOUNDS`.

    Images and results are ``(N, C, planes, *size)``: `planes` says which plane lies under every plane of the result,
    for each of what follow each other as channels of `spec`; -1 is a plane of zeros. The runner takes an image, weights
    from `winograd_weights`, a bias or None, a result, and the number of threads, by default what
    `npconv.get_num_threads` says.
    """
    if spec.batch * spec.out_channels * spec.window.positions == 0:
        return _nothing
    (down, across), tile = _factors(transforms), winograd_tile(dtype)
    groups, channels, outputs = spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups
    window = spec.window
    # A signal is an image of one row.
    missing = 2 - window.ndim
    size, out = ((1,) * missing + part for part in (window.size, window.out))
    low = (0,) * missing + tuple(low for low, _ in window.padding)
    total = spec.batch * -(-out[0] // len(down.at)) * -(-out[1] // len(across.at))
    panels = -(-total // tile.columns)
    most_tiles = -(-panels // max(1, round(panels * tile.columns / WINOGRAD_TILES))) * tile.columns
    tasks, most_shares = groups * -(-total // most_tiles), -(-outputs // tile.rows)
    images, channels = spec.batch // len(planes), channels // planes.shape[1]
    shape = _read(np.array([images, channels, *size, *low, *out], np.int64))
    loop = winograd.conv_winograd(dtype, tile, down, across)
    none, bounds = _read(np.zeros(spec.out_channels, dtype)), np.array(BOUNDS[clamp], dtype)

    spans, depth = _spans(planes, channels), channels * planes.shape[1]
    some_rows = min(most_shares, WEIGHT_ROWS)
    some_depth = WEIGHT_BYTES // (len(down.bt) * len(across.bt) * WEIGHT_ROWS * tile.rows * dtype.itemsize)
    some_depth = -(-evenly(depth, max(CHUNK, some_depth)) // CHUNK) * CHUNK

    def run(x: Any, u: WinogradWeights, bias: Any, y: Any, limit: int | None = None) -> None:
        limit = get_num_threads() if limit is None else limit
        shares = max(1, min(most_shares, -(-limit // tasks)))
        threads.run(
            loop, tasks * shares, spec.macs, _read(x.reshape(-1)), u.values, u.points_apart, u.layout,
            none if bias is None else _read(bias), y.reshape(-1), bounds, groups, shares, most_tiles,
            some_rows, some_depth, shape, planes, spans, limit=limit,
        )  # fmt: skip

    return run


def _spans(planes: Any, channels: int) -> Any:
    """The part of the depth, in whole chunks, that is not planes of zeros: see `winograd.conv_winograd`."""
    spans = np.empty((len(planes), 2), np.int64)
    for span, under in zip(spans, planes >= 0, strict=True):
        taps = np.flatnonzero(under)
        if len(taps) and channels:
            span[:] = taps[0] * channels // CHUNK * CHUNK, -(-(taps[-1] + 1) * channels // CHUNK) * CHUNK
        else:
            span[:] = -(-planes.shape[1] * channels // CHUNK) * CHUNK, 0
    return _read(spans)


def divide_phases(planes: Any, before: tuple[int, ...], parts: Any) -> None:
    """Planes ``(P, height, width)`` divided into phases: see `npconv.kernels.cpu.phases`."""
    threads.run(phases.divide, len(parts), parts.size, _read(planes), *before, parts)


def join_phases(parts: Any, before: tuple[int, ...], planes: Any) -> None:
    """Planes ``(P, height, width)`` put together from their phases."""
    threads.run(phases.join, len(planes), planes.size, _read(parts), *before, planes)


def free_workspace() -> None:
    """See `npconv.free_workspace`."""
    workspace.free()


def winograd_tile(dtype: np.dtype[Any]) -> Tile:
    """The register tile of Winograd's products."""
    rows, vectors = processor().tiles[0]
    return Tile(rows, vectors, processor().register_bytes // dtype.itemsize)


def largest(value: Any) -> Any:
    """Largest magnitude of a float array; not finite where an element is not."""
    bits = value.reshape(-1).view(np.int32 if value.dtype.itemsize == 4 else np.int64)
    return np.array([loops.largest_magnitude(_read(bits))], bits.dtype).view(value.dtype)[0]


@functools.lru_cache(maxsize=64)
def _factors(transforms: tuple[Any, ...]) -> tuple[Factors, Factors]:
    """The matrices of rows and columns from objects with `at`, `g` and `bt`; a signal is an image of one row."""
    factors = [Factors(*(tuple(map(tuple, matrix.tolist())) for matrix in (f.at, f.g, f.bt))) for f in transforms]
    one = ((1.0,),)
    down = Factors(one, one, one) if len(factors) == 1 else factors[0]
    return down, factors[-1]


def runner(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """The forward convolution on tiles, prepared for many calls; for a spec that `uses_tiles` lets pass."""
    depth = spec.parameters // max(spec.out_channels, 1)
    return _tile_runner(
        dtype, spec.batch, spec.groups, spec.out_channels // spec.groups, depth, activation, spec.window
    )


def _is_finite(value: Any) -> bool:
    return not value.size or bool(np.isfinite(largest(value)))


def _forward(x: Any, w: Any, y: Any, groups: int, window: Window) -> None:
    """A convolution without a bias."""
    _run_tiles(x, w, None, y, None, groups, window)


def _product(a: Any, b: Any, product: Any) -> None:
    """A matrix product, ``(M, K)`` by ``(K, N)``."""
    one_tap = Window(product.shape[1:], (1,), (1,), ((0, 0),), (1,))
    _run_tiles(b, a, None, product[None], None, 1, one_tap)


def _run_tiles(x: Any, w: Any, bias: Any, y: Any, activation: str | None, groups: int, window: Window) -> None:
    """Convolve an image with weights ``(outputs, depth)``."""
    _tile_runner(x.dtype, y.shape[0], groups, w.shape[0] // groups, w.shape[1], activation, window)(x, w, bias, y)


class Driver(NamedTuple):
    """What computes a convolution: its name, its tile and its blocks for a person; its code, tables and tasks."""

    name: str
    tile: str
    blocks: str
    compile: Callable[[], Callable[..., None]]
    tables: tuple[Any, ...]
    tasks: int


def details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How `runner` would do it, as pairs of words for a person; nothing is compiled."""
    if not math.prod(spec.y_shape):
        return ()
    depth, batch, window = spec.parameters // max(spec.out_channels, 1), spec.batch, spec.window
    together = few_positions.suits_forward(window, batch, spec.macs)
    if together:
        _, window = few_positions.lines(window, batch, spec.in_channels, dtype.itemsize)
        batch = 1
    driver = _driver(dtype, batch, spec.groups, spec.out_channels // spec.groups, depth, window)
    name = driver.name + ", images side by side" * together
    return ("driver", name), ("tile", driver.tile), ("blocks", driver.blocks)


def _driver(dtype: np.dtype[Any], batch: int, groups: int, outputs: int, depth: int, window: Window) -> Driver:
    """The driver of tiles that suits, its tables and its tasks."""
    size = batch * groups * outputs * window.positions
    staging = window.taps > 1 or window.has_padding or set(window.stride) != {1}
    planes = depth // max(1, math.prod(window.kernel[-2:]))
    line = Window((window.positions,), (1,), (1,), ((0, 0),), (1,))
    low_tile = low_tile_for(dtype, outputs, window.positions)
    if depth == window.taps <= MOST_TAPS and size // batch * depth >= WORTH_WRITING_OUT:
        strip, strips, number = forward_strips(window, dtype.itemsize)
        return Driver(
            "rows of one channel, the taps written out",
            f"{strip.rows} rows x {strip.vectors * strip.lanes} positions",
            f"{number} strips a channel",
            lambda: conv_depthwise(dtype, strip), (strips,), batch * groups * outputs * number,
        )  # fmt: skip
    if staging and is_narrow(outputs, planes, blocks_for(window, low_positions_for(planes)), dtype.itemsize):
        blocks = blocks_for(window, low_positions_for(planes))
        tile = low_tile_for(dtype, outputs, blocks.line)
        return Driver(
            "few channels, from the staged image", _tile_text(tile), _block_text(blocks),
            lambda: conv_narrow(dtype, tile), (blocks[:4],), batch * groups * blocks.number,
        )  # fmt: skip
    if not staging and outputs <= LOW_ROWS and window.positions >= low_tile.columns:
        number = -(-window.positions // low_tile.columns)
        return Driver(
            "few channels, a matrix product", _tile_text(low_tile), f"{number} of {low_tile.columns} positions",
            lambda: matmul_narrow(dtype, low_tile), (blocks_for(line, 1)[:4],), batch * groups * number,
        )  # fmt: skip
    window = window if staging else line
    tile = tile_for(dtype, outputs, window.positions)
    blocks = blocks_for(
        window, positions_for(outputs if depth > slice_for(tile, dtype.itemsize) else 1, dtype.itemsize)
    )
    slices = f"depth {depth} in slices of {min(depth, slice_for(tile, dtype.itemsize))}"
    return Driver(
        "implicit GEMM" if staging else "matrix product", _tile_text(tile), f"{_block_text(blocks)}, {slices}",
        lambda: conv_tiled(dtype, tile), (blocks[:4], staging),
        batch * groups * blocks.number * -(-outputs // tile.rows),
    )  # fmt: skip


def _tile_text(tile: Tile) -> str:
    return f"{tile.rows} channels x {tile.columns} positions, {tile.rows * tile.vectors} registers of {tile.lanes}"


def _block_text(blocks: Blocks) -> str:
    return f"{blocks.number} of {blocks.shape[7]}x{blocks.shape[8]} positions"


@functools.lru_cache(maxsize=1024)
def _tile_runner(
    dtype: np.dtype[Any], batch: int, groups: int, outputs: int, depth: int, activation: str | None, window: Window
) -> Callable[..., None]:
    """Everything that can be known before the arrays are: the driver of tiles that suits, its tables and its tasks.

    The runner takes an image, weights of ``groups * outputs`` rows of `depth`, a bias or None and a result, of which
    nothing but the addresses is looked at: they must be in C order and of the dtype. `limit` is the number of threads,
    by default what `npconv.get_num_threads` says.
    """
    size = batch * groups * outputs * window.positions
    if size == 0:
        return _nothing
    if few_positions.suits_forward(window, batch, size * depth):
        return _side_by_side(dtype, batch, groups, outputs, depth, activation, window)
    low, high = BOUNDS.get(activation, BOUNDS[None])
    settings = (float(low), float(high), ACTIVATIONS[activation], groups, outputs, depth)
    none = _read(np.zeros(groups * outputs, dtype))
    driver = _driver(dtype, batch, groups, outputs, depth, window)
    kernel, tasks = driver.compile(), driver.tasks
    work, rest = size * depth, (*settings, *driver.tables)

    def run_alone(x: Any, w: Any, bias: Any, y: Any, _: int | None = None) -> None:
        kernel(0, tasks, x, w, none if bias is None else bias, y, *rest)

    def run_spread(x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        threads.run(kernel, tasks, work, x, w, none if bias is None else bias, y, *rest, limit=limit)

    return run_spread if threads.most_parts(work) > 1 else run_alone


def _side_by_side(
    dtype: np.dtype[Any], batch: int, groups: int, outputs: int, depth: int, activation: str | None, window: Window
) -> Callable[..., None]:
    """`_tile_runner` for many images of few positions each, which would not fill the columns of a tile."""
    channels = groups * depth // window.taps
    at_once, _ = few_positions.lines(window, batch, channels, dtype.itemsize)

    def run(x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        def product(columns: Any, results: Any) -> None:
            line = few_positions.line(results.shape[1] * results.shape[2])
            _tile_runner(dtype, 1, groups, outputs, depth, activation, line)(columns, w, bias, results, limit)

        images, planes = x.reshape(batch, channels, *window.size), y.reshape(batch, groups * outputs, window.positions)
        few_positions.forward(window, at_once, images, planes, product)

    return run


def _nothing(*_: Any) -> None:
    """A runner for a result without elements."""
