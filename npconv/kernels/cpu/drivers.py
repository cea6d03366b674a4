"""Which loop of the register tiles computes a convolution, with which tile, blocks and tasks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npconv.geometry import ConvSpec, Window
from npconv.kernels.cpu import few_positions, packed, pointwise, shallow, workspace
from npconv.kernels.cpu.blocking import (
    LOW_ROWS,
    blocks_for,
    is_narrow,
    low_positions_for,
    low_tile_for,
    positions_for,
    processor,
    slice_for,
    tile_for,
)
from npconv.kernels.cpu.depthwise import conv_depthwise, forward_strips, is_written_out
from npconv.kernels.cpu.launch import Launch
from npconv.kernels.cpu.lying import Panels
from npconv.kernels.cpu.narrow import conv_narrow, matmul_narrow
from npconv.kernels.cpu.operands import ACTIVATIONS, BOUNDS, nothing
from npconv.kernels.cpu.shallow import conv_shallow
from npconv.kernels.cpu.tiled import conv_tiled
from npconv.kernels.cpu.winograd_driver import WinogradWeights

LAID_OUT = 0.75
"""Output channels of a group for each position, below which weights are worth being laid out for a single call."""


@functools.lru_cache(maxsize=1024)
def runner(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """The forward convolution on tiles, prepared for many calls; for a spec that `uses_tiles` lets pass."""
    if lays_out(spec, dtype):
        return runner_laying_out(spec, dtype, activation)
    depth = spec.parameters // max(spec.out_channels, 1)
    return tile_runner(dtype, spec.batch, spec.groups, spec.out_channels // spec.groups, depth, activation, spec.window)


def _panel_room(spec: ConvSpec, dtype: np.dtype[Any]) -> Any:
    """The room that is worth laying weights out for, or None."""
    if shallow.suits(spec, dtype, reused=True):
        return None
    return next((room for room in (pointwise, packed) if room.suits(spec, dtype)), None)


def lays_out(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a forward convolution is faster with its weights in panels even where each call lays them out anew.

    What panels save is done once for each product and position, what they cost once for each product and channel of the
    result.
    """
    outputs, positions = spec.out_channels // spec.groups, spec.batch * spec.window.positions
    return outputs < LAID_OUT * positions and _panel_room(spec, dtype) is packed


@functools.lru_cache(maxsize=1024)
def runner_laying_out(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """`runner` where it `lays_out` the weights."""
    lay_out, run_panels = _panel_room(spec, dtype).weight_layer(spec, dtype), panel_runner(spec, dtype, activation)

    def run(x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        run_panels(x, lay_out(w, workspace.empty, limit), bias, y, limit)

    return run


def is_shallow(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a forward convolution has so few products an output that its image is read where it was staged."""
    return shallow.suits(spec, dtype) and not lays_out(spec, dtype)


def takes_panels(spec: ConvSpec, dtype: np.dtype[Any]) -> bool:
    """Whether a forward convolution whose weights are used many times is faster with them in panels."""
    return _panel_room(spec, dtype) is not None


def panel_details(spec: ConvSpec, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    """How `panel_runner` would do it, as pairs of words for a person."""
    found: tuple[tuple[str, str], ...] = _panel_room(spec, dtype).details(spec, dtype)
    return found


def weight_panels(spec: ConvSpec, w: Any) -> Panels:
    """Weights for `panel_runner`, where `takes_panels`."""
    panels: Panels = _panel_room(spec, w.dtype).weight_layer(spec, w.dtype)(np.ascontiguousarray(w))
    return panels


@functools.lru_cache(maxsize=1024)
def panel_runner(spec: ConvSpec, dtype: np.dtype[Any], activation: str | None) -> Callable[..., None]:
    """The forward convolution with weights from `weight_panels`, prepared for many calls."""
    bounds, room = BOUNDS.get(activation, BOUNDS[None]), _panel_room(spec, dtype)
    run: Callable[..., None] = room.panel_runner(spec, dtype, bounds, activation == "hardswish")
    return run


def layout_of(packed: Any) -> str | None:
    """What the layout of packed weights depends on beside the convolution, for a person; None where on nothing."""
    parts = (packed, *packed) if isinstance(packed, tuple) else ()
    if not any(isinstance(part, (Panels, WinogradWeights)) for part in parts):
        return None
    rows, vectors = processor().tiles[0]
    return f"tiles of {rows} by {vectors} vectors of {processor().register_bytes} bytes"


def convolve(x: Any, w: Any, y: Any, groups: int, window: Window) -> None:
    """A convolution without a bias."""
    run_tiles(x, w, None, y, None, groups, window)


def multiply(a: Any, b: Any, product: Any) -> None:
    """A matrix product, ``(M, K)`` by ``(K, N)``."""
    one_tap = Window(product.shape[1:], (1,), (1,), ((0, 0),), (1,))
    run_tiles(b, a, None, product[None], None, 1, one_tap)


def run_tiles(x: Any, w: Any, bias: Any, y: Any, activation: str | None, groups: int, window: Window) -> None:
    """Convolve an image with weights ``(outputs, depth)``."""
    tile_runner(x.dtype, y.shape[0], groups, w.shape[0] // groups, w.shape[1], activation, window)(x, w, bias, y)


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
    if lays_out(spec, dtype):
        (_, panels), *rest = packed.details(spec, dtype)
        return ("driver", f"{panels}, laid out in each call"), *rest
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
    staging = not shallow.is_plain(window)
    planes = depth // max(1, math.prod(window.kernel[-2:]))
    line = Window((window.positions,), (1,), (1,), ((0, 0),), (1,))
    low_tile = low_tile_for(dtype, outputs, window.positions)
    if depth == window.taps and is_written_out(depth, size // batch * depth):
        strip, strips, number = forward_strips(window, dtype.itemsize)
        return Driver(
            "rows of one channel, the taps written out",
            f"{strip.rows} rows x {strip.vectors * strip.lanes} positions",
            f"{number} strips a channel",
            lambda: conv_depthwise(dtype, strip), (strips,), batch * groups * outputs * number,
        )  # fmt: skip
    spread = shallow.layout(window, outputs, planes, dtype) if staging else None
    if spread is not None:
        tile, blocks = spread
        return Driver(
            "few products, from the staged image", tile.text, blocks.text,
            lambda: conv_shallow(dtype, tile), (blocks[:4],), batch * groups * blocks.number,
        )  # fmt: skip
    if staging and is_narrow(outputs, planes, blocks_for(window, low_positions_for(planes)), dtype.itemsize):
        blocks = blocks_for(window, low_positions_for(planes))
        tile = low_tile_for(dtype, outputs, blocks.line)
        return Driver(
            "few channels, from the staged image", tile.text, blocks.text,
            lambda: conv_narrow(dtype, tile), (blocks[:4],), batch * groups * blocks.number,
        )  # fmt: skip
    if not staging and outputs <= LOW_ROWS and window.positions >= low_tile.columns:
        number = -(-window.positions // low_tile.columns)
        return Driver(
            "few channels, a matrix product", low_tile.text, f"{number} of {low_tile.columns} positions",
            lambda: matmul_narrow(dtype, low_tile), (blocks_for(line, 1)[:4],), batch * groups * number,
        )  # fmt: skip
    window = window if staging else line
    tile = tile_for(dtype, outputs, window.positions, depth)
    most = positions_for(outputs if depth > slice_for(tile, dtype.itemsize) else 1, dtype.itemsize)
    blocks = blocks_for(window, most, columns=tile.columns)
    slices = f"depth {depth} in slices of {min(depth, slice_for(tile, dtype.itemsize))}"
    return Driver(
        "implicit GEMM" if staging else "matrix product", tile.text, f"{blocks.text}, {slices}",
        lambda: conv_tiled(dtype, tile), (blocks[:4], staging),
        batch * groups * blocks.number * -(-outputs // tile.rows),
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def tile_runner(
    dtype: np.dtype[Any], batch: int, groups: int, outputs: int, depth: int, activation: str | None, window: Window
) -> Callable[..., None]:
    """Everything that can be known before the arrays are: the driver of tiles that suits, its tables and its tasks.

    The runner takes an image, weights of ``groups * outputs`` rows of `depth`, a bias or None and a result, of which
    nothing but the addresses is looked at: they must be in C order and of the dtype. `limit` is the number of threads,
    by default what `npconv.get_num_threads` says.
    """
    size = batch * groups * outputs * window.positions
    if size == 0:
        return nothing
    if few_positions.suits_forward(window, batch, size * depth):
        return _side_by_side(dtype, batch, groups, outputs, depth, activation, window)
    low, high = BOUNDS.get(activation, BOUNDS[None])
    settings = (float(low), float(high), ACTIVATIONS[activation], groups, outputs, depth)
    driver = _driver(dtype, batch, groups, outputs, depth, window)
    return Launch(
        driver.compile(), driver.tasks, size * depth, groups * outputs, dtype, (*settings, *driver.tables)
    )  # fmt: skip


def _side_by_side(
    dtype: np.dtype[Any], batch: int, groups: int, outputs: int, depth: int, activation: str | None, window: Window
) -> Callable[..., None]:
    """`tile_runner` for many images of few positions each, which would not fill the columns of a tile."""
    channels = groups * depth // window.taps
    at_once, _ = few_positions.lines(window, batch, channels, dtype.itemsize)

    def run(x: Any, w: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        def product(columns: Any, results: Any) -> None:
            line = few_positions.line(results.shape[1] * results.shape[2])
            tile_runner(dtype, 1, groups, outputs, depth, activation, line)(columns, w, bias, results, limit)

        images, planes = x.reshape(batch, channels, *window.size), y.reshape(batch, groups * outputs, window.positions)
        few_positions.forward(window, at_once, images, planes, product)

    return run
