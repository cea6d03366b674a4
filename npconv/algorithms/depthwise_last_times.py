"""How long the compiled depthwise convolution of channels-last arrays takes on one core.

The figures are fitted to 39 layers (1 to 1024 channels, 7x7 to 224x224, 3 to 7 taps along an axis, strides 1 and 2),
float32, at the pace of `tile_times`. Without those whose result is larger than a megabyte, where what memory costs
depends on who had it before, the root mean square error is 16 %.
"""

from __future__ import annotations

import math

from npconv.geometry import ConvSpec

CALL = 7e-6
# Seconds for: an operation on whole vectors of channels; a row of the kernel that an element of the result meets; an
# element of the image; one of a result that no longer fits a cache of so many; a product of a vector that is not full.
OPERATION, ROW, READ, STORED, CACHED, MASKED = 1.74e-11, 2.3e-11, 1.28e-10, 2.4e-10, 2**19, 8.4e-10
LANES = 8


def forward_seconds(spec: ConvSpec, itemsize: int) -> float:
    """Predicted time of a forward convolution."""
    window, positions = spec.window, spec.batch * spec.window.positions
    lanes = LANES * 4 // itemsize
    results = positions * -(-spec.in_channels // lanes) * lanes
    seconds = results * window.taps * (2 * OPERATION + ROW / window.kernel[-1])
    seconds += spec.batch * math.prod(window.size) * spec.in_channels * READ
    seconds += max(0, positions * spec.in_channels - CACHED) * STORED
    if spec.in_channels < lanes:
        seconds += positions * window.taps * MASKED
    # Vectors hold half as many numbers of twice the size, and twice as many bytes move.
    return CALL + seconds * itemsize / 4
