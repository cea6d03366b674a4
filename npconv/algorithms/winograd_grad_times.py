"""How long the compiled Winograd weight gradient takes on one core, and what it holds: what chooses its tiles.

The figures are fitted to 26 layers (3 to 512 channels, 2x2 to 112x112, batches of 16, groups, signals; 2 to 7 taps
along an axis) with each of their tiles, float32, at the pace of `tile_times`.
"""

from __future__ import annotations

from npconv.geometry import ConvSpec

CALL, GROUP = 5e-5, 6e-7
# Seconds for: an operation of the products, on whole register tiles; a transformed number of the image; a patch of
# the image, one of the result's gradient; a number of the sums, transformed back; one of both operands, which is read.
OPERATION, IMAGE, IMAGE_PATCH, RESULT_PATCH, BACK, READ = 1.8e-11, 7.4e-10, 6.8e-9, 5.8e-9, 5.1e-10, 6e-10
ROWS, COLUMNS, CHUNK = 6, 16, 8
"""The register tile that the figures are for, and the tiles of which a multiple is transformed."""
CHANNELS, TILES = 256, 128
"""Channels that a task owns at most on either side, and tiles that it transforms at once."""


def weight_grad_seconds(spec: ConvSpec, points: int, tiles: int, itemsize: int) -> float:
    """Predicted time for so many tiles, each transformed to so many points."""
    outputs, depth = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    blocks = -(-tiles // TILES)
    padded = blocks * _whole(-(-tiles // max(blocks, 1)), CHUNK)
    planes, patches = _whole(depth, COLUMNS), padded * -(-outputs // CHANNELS)
    seconds = 2 * points * padded * _whole(outputs, ROWS) * planes * OPERATION
    seconds += patches * planes * (points * IMAGE + IMAGE_PATCH)
    seconds += padded * outputs * -(-depth // CHANNELS) * RESULT_PATCH + points * outputs * depth * BACK
    read = spec.bytes(1) - spec.parameters
    return CALL + spec.groups * GROUP + (spec.groups * seconds + read * READ) * itemsize / 4


def weight_grad_elements(spec: ConvSpec, points: int, tiles: int) -> int:
    """Numbers that a task holds."""
    outputs = min(CHANNELS, _whole(spec.out_channels // spec.groups, ROWS))
    depth = min(CHANNELS, _whole(spec.in_channels // spec.groups, COLUMNS))
    return points * (min(TILES, _whole(tiles, CHUNK)) * (outputs + depth) + outputs * depth)


def _whole(count: int, step: int) -> int:
    return -(-count // step) * step
