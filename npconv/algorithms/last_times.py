"""How long channels-last arrays take on one core: read as they lie, or transposed for loops that want channels first.

What `rates.py` has for it was fitted to layers, dense and in groups, so that both layouts' predictions are in the
proportion of their times.
"""

from __future__ import annotations

from npconv.algorithms import depthwise_last_times
from npconv.algorithms.rates import Rates
from npconv.geometry import ConvSpec

CALL = 4e-6

# Output channels of a panel, in vectors, and how much longer a product takes then.
PANELS = ((2, 1.0), (3, 1.03), (1, 1.35))
# An element that is transposed.
TRANSPOSED = 4e-10

FEW_CHANNELS = 16


def last_seconds(rates: Rates, spec: ConvSpec, itemsize: int, reused: bool) -> float:
    """Predicted time of a forward convolution of channels-last arrays, read as they lie."""
    if spec.is_depthwise:
        return depthwise_last_times.forward_seconds(rates, spec, itemsize)
    lanes = rates.lanes * 4 // itemsize
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    positions = spec.batch * spec.window.positions * spec.groups
    side_by_side = spec.groups == 1 and channels < FEW_CHANNELS and spec.window.dilation[-1] == 1
    joined = spec.window.kernel[-1] if side_by_side else 1
    runs = spec.window.taps // joined
    computed, panels = min(
        (-(-outputs // (n * lanes)) * n * lanes * time, -(-outputs // (n * lanes))) for n, time in PANELS
    )
    seconds = (
        2 * positions * computed * channels * spec.window.taps * rates.last_operation
        + positions * outputs * rates.last_stored
    )
    if spec.window.taps > 1:
        seconds += positions * runs * rates.last_looked_up
    seconds += positions / rates.rows[-1] * panels * runs * rates.last_begun
    if not reused:
        seconds += spec.parameters * rates.last_packed
    return CALL + seconds * itemsize / 4


def transposed_seconds(elements: int, itemsize: int) -> float:
    """Predicted time of writing so many elements down in the other layout."""
    return elements * TRANSPOSED * itemsize / 4
