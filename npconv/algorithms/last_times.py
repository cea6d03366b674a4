"""How long channels-last arrays take on one core: read as they lie, or transposed for loops that want channels first.

Fitted to 24 layers, dense and in groups, so that both layouts' predictions are in the proportion of their times.
"""

from __future__ import annotations

from npconv.algorithms import depthwise_last_times
from npconv.geometry import ConvSpec

CALL = 4e-6

# Seconds for: an operation on whole panels of output channels; an element of the result; a run of taps that a position
# looks up; a run that a tile begins, for each panel; a weight that is packed for the call.
OPERATION, STORED, LOOKED_UP, BEGUN, PACKED = 1.34e-11, 1.2e-10, 4e-10, 1.2e-8, 5e-10
# Output channels of a panel, in vectors, and how much longer a product takes then.
PANELS = ((2, 1.0), (3, 1.03), (1, 1.35))
# An element that is transposed.
TRANSPOSED = 4e-10

LANES, ROWS, FEW_CHANNELS = 8, 6, 16


def last_seconds(spec: ConvSpec, itemsize: int, reused: bool) -> float:
    """Predicted time of a forward convolution of channels-last arrays, read as they lie."""
    if spec.is_depthwise:
        return depthwise_last_times.forward_seconds(spec, itemsize)
    lanes = LANES * 4 // itemsize
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    positions = spec.batch * spec.window.positions * spec.groups
    side_by_side = spec.groups == 1 and channels < FEW_CHANNELS and spec.window.dilation[-1] == 1
    joined = spec.window.kernel[-1] if side_by_side else 1
    runs = spec.window.taps // joined
    computed, panels = min(
        (-(-outputs // (n * lanes)) * n * lanes * time, -(-outputs // (n * lanes))) for n, time in PANELS
    )
    seconds = 2 * positions * computed * channels * spec.window.taps * OPERATION + positions * outputs * STORED
    if spec.window.taps > 1:
        seconds += positions * runs * LOOKED_UP
    seconds += positions / ROWS * panels * runs * BEGUN
    if not reused:
        seconds += spec.parameters * PACKED
    return CALL + seconds * itemsize / 4


def transposed_seconds(elements: int, itemsize: int) -> float:
    """Predicted time of writing so many elements down in the other layout."""
    return elements * TRANSPOSED * itemsize / 4
