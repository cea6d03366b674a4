"""How long the compiled forward loops take on one core: so much an operation, an element staged, an element stored.

What that is, `rates.py` has for each kind of processor. These times order the algorithms, and they are what a plan
predicts.
"""

from __future__ import annotations

import math

from npconv.algorithms.rates import Rates
from npconv.geometry import ConvSpec

CALL = 6e-6
"""Seconds of a call, whatever it computes."""

NARROW_CHANNELS = 16
"""Results of so few channels are computed where the image was staged."""

PANEL_CALL, ROW_CALL = 2.5e-6, 6e-6
"""Seconds more of a call with weights in panels, and of a depthwise one."""

CACHED = 2**19
"""Elements of a result, or weights, that fit a cache."""


def forward_seconds(
    rates: Rates, spec: ConvSpec, itemsize: int, reused: bool, panels: bool = False, shallow: bool = False
) -> float:
    """Predicted time of a forward convolution on register tiles, by the driver that will run it.

    With `panels` it stages the image for weights that are laid out, before the call where they are `reused`; if the
    convolution is `shallow`, of few products, it reads the image where it was staged.
    """
    if panels:
        seconds = _panels(rates, spec, 2 * rates.lanes * 4 // itemsize) + (
            0 if reused else spec.parameters * rates.panel_laid_out
        )
    elif shallow:
        seconds = _shallow(rates, spec)
    elif spec.in_channels == spec.groups:
        seconds = _depthwise(rates, spec)
    elif spec.groups > 1 and not spec.is_pointwise:
        seconds = _grouped(rates, spec, reused)
    else:
        seconds = _dense(rates, spec)
    # Vectors hold half as many numbers of twice the size, and twice as many bytes move.
    return CALL + seconds * itemsize / 4


def _operations(rates: Rates, spec: ConvSpec) -> int:
    """Floating-point operations with the channels of a group rounded up to whole tiles."""
    channels = spec.out_channels // spec.groups
    rounded = min(-(-channels // rows) * rows for rows in rates.rows)
    return spec.flops // max(channels, 1) * rounded


def _pixels(spec: ConvSpec) -> int:
    return spec.batch * math.prod(spec.window.size)


def _dense(rates: Rates, spec: ConvSpec) -> float:
    positions = spec.batch * spec.window.positions
    seconds = _operations(rates, spec) * rates.dense_operation
    seconds += max(0, spec.parameters - CACHED) * rates.dense_weight
    if spec.out_channels <= NARROW_CHANNELS:
        return (
            seconds
            + positions * spec.out_channels * rates.narrow_stored
            + _pixels(spec) * spec.in_channels * rates.narrow_read
        )
    staged = positions * spec.in_channels * spec.window.taps
    return seconds + staged * rates.dense_staged + positions * spec.out_channels * rates.dense_stored


def _grouped(rates: Rates, spec: ConvSpec, reused: bool) -> float:
    seconds = _operations(rates, spec) * rates.group_operation + _pixels(spec) * spec.in_channels * rates.group_read
    return seconds if reused else seconds + spec.parameters * rates.group_packed


def _panels(rates: Rates, spec: ConvSpec, columns: int) -> float:
    outputs = spec.out_channels // spec.groups
    operations = spec.flops // outputs * -(-outputs // columns) * columns
    staged = _pixels(spec) * spec.in_channels * math.prod(spec.window.kernel[:-2])
    stored = spec.batch * spec.window.positions * spec.out_channels
    return PANEL_CALL + operations * rates.panel_operation + staged * rates.panel_staged + stored * rates.panel_stored


def _shallow(rates: Rates, spec: ConvSpec) -> float:
    width = spec.window.out[-1]
    operations = spec.flops * (-(-width // rates.lanes) * rates.lanes) / max(width, 1)
    staged = _pixels(spec) * spec.in_channels * math.prod(spec.window.kernel[:-2])
    stored = spec.batch * spec.window.positions * spec.out_channels
    return operations * rates.shallow_operation + staged * rates.shallow_staged + stored * rates.shallow_stored


def _depthwise(rates: Rates, spec: ConvSpec) -> float:
    planes = spec.batch * spec.out_channels
    rows = planes * math.prod(spec.window.out[:-1])
    vectors = -(-spec.window.out[-1] // rates.lanes) * rates.lanes
    seconds = (
        ROW_CALL + 2 * rows * vectors * spec.window.taps * rates.row_operation + rows * rates.row + planes * rates.plane
    )
    if spec.ndim > 2:
        seconds += rows * spec.window.taps * rates.leading_row
    seconds += max(0, planes * spec.window.positions - CACHED) * rates.row_stored
    return seconds + _pixels(spec) * spec.in_channels * rates.row_read


PANEL, COLUMNS, SUMMING, LANES = 16, 2, 96, 8
POINT_PRODUCT = 1.7e-7
"""Seconds of a product of a point and a group, however small."""


def panels(tiles: int, depth: int) -> float:
    """Panels of tiles that products with so many channels amount to.

    A few tiles behind whole panels are columns of dot products, `COLUMNS` at once, whose end costs as much as `SUMMING`
    channels more.
    """
    whole, tail = divmod(tiles, PANEL)
    dots = -(-tail // COLUMNS) * (1 + SUMMING / max(depth, 1)) / LANES
    return whole + min(dots, 1) if whole else float(tail > 0)


def winograd_seconds(
    rates: Rates,
    spec: ConvSpec,
    points: int,
    tiles: int,
    itemsize: int,
    reused: bool,
    passed: bool = False,
    filled: float = 1.0,
) -> float:  # fmt: skip
    """Predicted time of the compiled Winograd loops for so many tiles, each transformed to so many points.

    Weights that are not `reused` are transformed on the way where they are `passed`, else before. Only `filled` of the
    planes under the tiles are not zeros.
    """
    depth = spec.in_channels // spec.groups
    columns = panels(tiles, depth) * PANEL * filled
    channels = _operations(rates, spec) // max(2 * spec.batch * spec.window.positions * spec.window.taps, 1)
    weights = points * spec.parameters // spec.window.taps
    seconds = (
        2 * points * columns * channels * rates.point_operation
        + points * columns * spec.in_channels * rates.point_staged
    )
    seconds += spec.batch * spec.window.positions * spec.out_channels * rates.point_joined
    seconds += _pixels(spec) * spec.in_channels * rates.point_read
    seconds += weights * (rates.weight_read + (0 if reused or passed else rates.weight_made))
    seconds += spec.parameters * rates.weight_passed * passed
    return CALL + spec.groups * points * POINT_PRODUCT + seconds * itemsize / 4
