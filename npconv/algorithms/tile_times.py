"""How long the compiled forward loops take on one core: so much an operation, an element staged, an element stored.

The figures are fitted to what `python -m benchmarks.planner` measured (float32, one core of an AMD EPYC at 81 GFLOP/s),
separately for each driver: tiles over all channels, tiles over groups, weights in panels, rows of one channel,
Winograd. They order the algorithms, and they are what a plan predicts.
"""

from __future__ import annotations

import math

from npconv.geometry import ConvSpec

CALL = 6e-6
"""Seconds of a call, whatever it computes."""

# Seconds for: an operation (register tiles hold 4 to 6 channels, so that odd numbers of channels are rounded up); an
# element of a window that is staged, which serves all channels of the result; an element of the result.
DENSE_OPERATION, DENSE_STAGED, DENSE_STORED = 1.39e-11, 1.85e-10, 1.6e-10
# Results of so few channels are computed where the image was staged, and an element of it is read once for all taps.
NARROW_CHANNELS, NARROW_STORED, NARROW_READ = 16, 3.7e-10, 1.0e-10
# Groups are small problems of their own: an operation; an element of the image; a weight that is packed.
GROUP_OPERATION, GROUP_READ, GROUP_PACKED = 1.8e-11, 6.0e-10, 3.0e-10
# Weights in panels: an operation; an element of the image, which is staged; an element of the result, whose sum is
# turned; a call. The root mean square error over 101 layers is 10 %. A weight that is laid out for a
# single call, which with a network's weights comes from beyond the caches and goes there.
PANEL_OPERATION, PANEL_STAGED, PANEL_STORED, PANEL_CALL = 1.22e-11, 1.2e-10, 0.9e-10, 2.5e-6
PANEL_LAID_OUT = 1.2e-9
# Few products an output, read where they were staged: an operation on whole vectors of a row; an element of the image
# that is staged; an element of the result.
SHALLOW_OPERATION, SHALLOW_STAGED, SHALLOW_STORED = 1.2e-11, 3.3e-10, 1.1e-10
# Depthwise: a call; an operation on whole vectors of a row; an element of the image; an element of a result that no
# longer fits a cache of so many; a row, a row of a tap before the last two axes, a plane.
ROW_CALL, ROW_OPERATION, ROW_READ, ROW_STORED, CACHED = 6e-6, 1.58e-11, 2.0e-10, 2.4e-10, 2**19
ROW, LEADING_ROW, PLANE = 1.0e-9, 1.7e-9, 8.7e-9

LANES = 8


def forward_seconds(spec: ConvSpec, itemsize: int, reused: bool, panels: bool = False, shallow: bool = False) -> float:
    """Predicted time of a forward convolution on register tiles, by the driver that will run it.

    With `panels` it stages the image for weights that are laid out, before the call where they are `reused`; if the
    convolution is `shallow`, of few products, it reads the image where it was staged.
    """
    if panels:
        seconds = _panels(spec, 2 * LANES * 4 // itemsize) + (0 if reused else spec.parameters * PANEL_LAID_OUT)
    elif shallow:
        seconds = _shallow(spec)
    elif spec.in_channels == spec.groups:
        seconds = _depthwise(spec)
    elif spec.groups > 1 and not spec.is_pointwise:
        seconds = _grouped(spec, reused)
    else:
        seconds = _dense(spec)
    # Vectors hold half as many numbers of twice the size, and twice as many bytes move.
    return CALL + seconds * itemsize / 4


def _operations(spec: ConvSpec) -> int:
    """Floating-point operations with the channels of a group rounded up to whole tiles."""
    channels = spec.out_channels // spec.groups
    rounded = min(-(-channels // rows) * rows for rows in (4, 5, 6))
    return spec.flops // max(channels, 1) * rounded


def _pixels(spec: ConvSpec) -> int:
    return spec.batch * math.prod(spec.window.size)


def _dense(spec: ConvSpec) -> float:
    positions = spec.batch * spec.window.positions
    seconds = _operations(spec) * DENSE_OPERATION
    if spec.out_channels <= NARROW_CHANNELS:
        return seconds + positions * spec.out_channels * NARROW_STORED + _pixels(spec) * spec.in_channels * NARROW_READ
    staged = positions * spec.in_channels * spec.window.taps
    return seconds + staged * DENSE_STAGED + positions * spec.out_channels * DENSE_STORED


def _grouped(spec: ConvSpec, reused: bool) -> float:
    seconds = _operations(spec) * GROUP_OPERATION + _pixels(spec) * spec.in_channels * GROUP_READ
    return seconds if reused else seconds + spec.parameters * GROUP_PACKED


def _panels(spec: ConvSpec, columns: int) -> float:
    outputs = spec.out_channels // spec.groups
    operations = spec.flops // outputs * -(-outputs // columns) * columns
    staged = _pixels(spec) * spec.in_channels * math.prod(spec.window.kernel[:-2])
    stored = spec.batch * spec.window.positions * spec.out_channels
    return PANEL_CALL + operations * PANEL_OPERATION + staged * PANEL_STAGED + stored * PANEL_STORED


def _shallow(spec: ConvSpec) -> float:
    width = spec.window.out[-1]
    operations = spec.flops * (-(-width // LANES) * LANES) / max(width, 1)
    staged = _pixels(spec) * spec.in_channels * math.prod(spec.window.kernel[:-2])
    stored = spec.batch * spec.window.positions * spec.out_channels
    return operations * SHALLOW_OPERATION + staged * SHALLOW_STAGED + stored * SHALLOW_STORED


def _depthwise(spec: ConvSpec) -> float:
    planes = spec.batch * spec.out_channels
    rows = planes * math.prod(spec.window.out[:-1])
    vectors = -(-spec.window.out[-1] // LANES) * LANES
    seconds = ROW_CALL + 2 * rows * vectors * spec.window.taps * ROW_OPERATION + rows * ROW + planes * PLANE
    if spec.ndim > 2:
        seconds += rows * spec.window.taps * LEADING_ROW
    seconds += max(0, planes * spec.window.positions - CACHED) * ROW_STORED
    return seconds + _pixels(spec) * spec.in_channels * ROW_READ


# Winograd: an operation of the products, on whole panels of tiles; a transformed number of the image; a number of the
# result, which is joined from its tile; one of the image, which is read; a transformed weight that is read, one that is
# made before; a weight that is transformed on the way; a product of a point and a group, however small.
POINT_OPERATION, POINT_STAGED, POINT_JOINED, POINT_READ = 1.54e-11, 6.8e-10, 1.8e-9, 2.1e-10
WEIGHT_READ, WEIGHT_MADE, WEIGHT_PASSED, POINT_PRODUCT = 5.6e-11, 7.0e-10, 8.5e-10, 1.7e-7
PANEL, COLUMNS, SUMMING = 16, 2, 96


def panels(tiles: int, depth: int) -> float:
    """Panels of tiles that products with so many channels amount to.

    A few tiles behind whole panels are columns of dot products, `COLUMNS` at once, whose end costs as much as `SUMMING`
    channels more.
    """
    whole, tail = divmod(tiles, PANEL)
    dots = -(-tail // COLUMNS) * (1 + SUMMING / max(depth, 1)) / LANES
    return whole + min(dots, 1) if whole else float(tail > 0)


def winograd_seconds(
    spec: ConvSpec, points: int, tiles: int, itemsize: int, reused: bool, passed: bool = False, filled: float = 1.0
) -> float:
    """Predicted time of the compiled Winograd loops for so many tiles, each transformed to so many points.

    Weights that are not `reused` are transformed on the way where they are `passed`, else before. Only `filled` of the
    planes under the tiles are not zeros.
    """
    depth = spec.in_channels // spec.groups
    columns = panels(tiles, depth) * PANEL * filled
    channels = _operations(spec) // max(2 * spec.batch * spec.window.positions * spec.window.taps, 1)
    weights = points * spec.parameters // spec.window.taps
    seconds = 2 * points * columns * channels * POINT_OPERATION + points * columns * spec.in_channels * POINT_STAGED
    seconds += spec.batch * spec.window.positions * spec.out_channels * POINT_JOINED
    seconds += _pixels(spec) * spec.in_channels * POINT_READ
    seconds += weights * (WEIGHT_READ + (0 if reused or passed else WEIGHT_MADE))
    seconds += spec.parameters * WEIGHT_PASSED * passed
    return CALL + spec.groups * points * POINT_PRODUCT + seconds * itemsize / 4
