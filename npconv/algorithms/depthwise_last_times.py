"""How long the compiled depthwise convolution of channels-last arrays takes on one core.

What `rates.py` has for it was fitted to layers of 1 to 1024 channels, 7x7 to 224x224, 3 to 7 taps along an axis and
strides 1 and 2. Where a result is larger than a megabyte, what memory costs depends on who had it before.
"""

from __future__ import annotations

import math

from npconv.algorithms.rates import Rates
from npconv.geometry import ConvSpec

CALL = 7e-6
CACHED = 2**19
"""Elements of a result that fit a cache."""


def forward_seconds(rates: Rates, spec: ConvSpec, itemsize: int) -> float:
    """Predicted time of a forward convolution."""
    window, positions = spec.window, spec.batch * spec.window.positions
    lanes = rates.lanes * 4 // itemsize
    results = positions * -(-spec.in_channels // lanes) * lanes
    seconds = results * window.taps * (2 * rates.line_operation + rates.line_row / window.kernel[-1])
    seconds += spec.batch * math.prod(window.size) * spec.in_channels * rates.line_read
    seconds += max(0, positions * spec.in_channels - CACHED) * rates.line_stored
    if spec.in_channels < lanes:
        seconds += positions * window.taps * rates.line_masked
    # Vectors hold half as many numbers of twice the size, and twice as many bytes move.
    return CALL + seconds * itemsize / 4
