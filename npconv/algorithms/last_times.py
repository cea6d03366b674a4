"""How long channels-last arrays take on one core: read as they lie, or transposed for loops that want channels first.

Fitted as `tile_times.py` is, to 60 layers of ResNet-50, MobileNet v1 and v2, Inception and ResNeXt.
"""

from __future__ import annotations

import math

from npconv.algorithms import depthwise_last_times
from npconv.geometry import ConvSpec

CALL = 4e-6

# Seconds for: an operation on whole vectors of output channels; a channel of a position that meets a vector of outputs
# that is not full; an element of the result; a run of taps that a position looks up; a run that a tile begins, for each
# panel of output channels; a weight that is packed for the call.
OPERATION, PARTIAL, STORED, LOOKED_UP, BEGUN, PACKED = 1.36e-11, 1.5e-9, 8e-11, 4e-10, 4e-9, 4e-10
# An element that is transposed.
TRANSPOSED = 4e-10

LANES, ROWS, FEW_CHANNELS = 8, 6, 16


def last_seconds(spec: ConvSpec, itemsize: int, reused: bool) -> float:
    """Predicted time of a forward convolution of channels-last arrays, read as they lie."""
    if spec.is_depthwise:
        return depthwise_last_times.forward_seconds(spec, itemsize)
    lanes = LANES * 4 // itemsize
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    vectors = -(-outputs // lanes)
    positions = spec.batch * spec.window.positions * spec.groups
    joined = spec.window.kernel[-1] if spec.groups == 1 and channels < FEW_CHANNELS else 1
    runs = spec.window.taps // joined
    seconds = 2 * positions * vectors * lanes * channels * spec.window.taps * OPERATION + positions * outputs * STORED
    if outputs % (2 * lanes):
        seconds += positions * channels * spec.window.taps * PARTIAL
    if spec.window.taps > 1:
        seconds += positions * runs * LOOKED_UP
    seconds += positions / ROWS * math.ceil(vectors / 2) * runs * BEGUN
    if not reused:
        seconds += spec.parameters * PACKED
    return CALL + seconds * itemsize / 4


def transposed_seconds(elements: int, itemsize: int) -> float:
    """Predicted time of writing so many elements down in the other layout."""
    return elements * TRANSPOSED * itemsize / 4
