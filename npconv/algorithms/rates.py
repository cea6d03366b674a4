"""How fast the compiled loops are on one core, by the width of the registers: what `tile_times.py` reckons with.

Seconds for each of the things that a convolution has many of, float32, fitted to what `python -m benchmarks.planner`
measured, separately for each driver: tiles over all channels, tiles over groups, weights in panels, few products, rows
of one channel, Winograd. Arithmetic is twice as fast where registers are twice as wide; what moves memory is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from npconv.arrays import Backend


@dataclass(frozen=True)
class Rates:
    """Seconds, but for the first attributes.

    Attributes
    ----------
    peak : float
        FLOP/s that the register tile reached on the core where the rest was measured.
    lanes : int
        Numbers in a vector.
    rows : tuple of int
        Channels that register tiles hold: odd numbers of channels are rounded up.
    dense_operation, dense_staged, dense_stored, dense_weight : float
        An operation; an element of a window that is staged, which serves all channels of the result; an element of the
        result; a weight of those that no longer fit a cache.
    narrow_stored, narrow_read : float
        Where results of few channels are computed from the staged image: an element of the result; one of the image,
        which is read once for all taps.
    group_operation, group_read, group_packed : float
        Groups are small problems of their own: an operation; an element of the image; a weight that is packed.
    panel_operation, panel_staged, panel_stored, panel_laid_out : float
        Weights in panels: an operation; an element of the image, which is staged; an element of the result, whose sum
        is turned; a weight that is laid out for a single call, which with a network's weights comes from beyond the
        caches and goes there.
    shallow_operation, shallow_staged, shallow_stored : float
        Few products an output, read where they were staged: an operation on whole vectors of a row; an element of the
        image that is staged; an element of the result.
    row_operation, row_read, row_stored, row, leading_row, plane : float
        Depthwise: an operation on whole vectors of a row; an element of the image; an element of a result that no
        longer fits a cache; a row, a row of a tap before the last two axes, a plane.
    point_operation, point_staged, point_joined, point_read : float
        Winograd: an operation of the products, on whole panels of tiles; a transformed number of the image; a number
        of the result, which is joined from its tile; one of the image, which is read.
    weight_read, weight_made, weight_passed : float
        Winograd: a transformed weight that is read, one that is made before; a weight that is transformed on the way.
    last_operation, last_stored, last_looked_up, last_begun, last_packed : float
        Channels-last images: an operation on whole panels of output channels; an element of the result; a run of taps
        that a position looks up; a run that a tile begins, for each panel; a weight that is packed for the call.
    line_operation, line_row, line_read, line_stored, line_masked : float
        Depthwise ones: an operation on whole vectors of channels; a row of the kernel that an element of the result
        meets; an element of the image; one of a result that no longer fits a cache; a product of a vector that is not
        full.
    """

    peak: float
    lanes: int
    rows: tuple[int, ...]
    dense_operation: float
    dense_staged: float
    dense_stored: float
    dense_weight: float
    narrow_stored: float
    narrow_read: float
    group_operation: float
    group_read: float
    group_packed: float
    panel_operation: float
    panel_staged: float
    panel_stored: float
    panel_laid_out: float
    shallow_operation: float
    shallow_staged: float
    shallow_stored: float
    row_operation: float
    row_read: float
    row_stored: float
    row: float
    leading_row: float
    plane: float
    point_operation: float
    point_staged: float
    point_joined: float
    point_read: float
    weight_read: float
    weight_made: float
    weight_passed: float
    last_operation: float
    last_stored: float
    last_looked_up: float
    last_begun: float
    last_packed: float
    line_operation: float
    line_row: float
    line_read: float
    line_stored: float
    line_masked: float


AVX2 = Rates(
    peak=81.1e9, lanes=8, rows=(4, 5, 6),
    dense_operation=1.39e-11, dense_staged=1.85e-10, dense_stored=1.6e-10, dense_weight=0.0,
    narrow_stored=3.7e-10, narrow_read=1.0e-10,
    group_operation=1.8e-11, group_read=6.0e-10, group_packed=3.0e-10,
    panel_operation=1.22e-11, panel_staged=1.2e-10, panel_stored=0.9e-10, panel_laid_out=1.2e-9,
    shallow_operation=1.2e-11, shallow_staged=3.3e-10, shallow_stored=1.1e-10,
    row_operation=1.58e-11, row_read=2.0e-10, row_stored=2.4e-10, row=1.0e-9, leading_row=1.7e-9, plane=8.7e-9,
    point_operation=1.54e-11, point_staged=6.8e-10, point_joined=1.8e-9, point_read=2.1e-10,
    weight_read=5.6e-11, weight_made=7.0e-10, weight_passed=8.5e-10,
    last_operation=1.34e-11, last_stored=1.2e-10, last_looked_up=4e-10, last_begun=1.2e-8, last_packed=5e-10,
    line_operation=1.74e-11, line_row=2.3e-11, line_read=1.28e-10, line_stored=2.4e-10, line_masked=8.4e-10,
)  # fmt: skip
"""Vectors of 32 bytes: an AMD EPYC (Zen 3)."""

AVX512 = Rates(
    peak=165e9, lanes=16, rows=(8, 10, 12),
    dense_operation=0.74e-11, dense_staged=0.8e-10, dense_stored=0.4e-10, dense_weight=3.0e-10,
    narrow_stored=2.0e-10, narrow_read=0.4e-10,
    group_operation=0.8e-11, group_read=0.4e-10, group_packed=5.0e-10,
    panel_operation=0.71e-11, panel_staged=2.0e-10, panel_stored=0.8e-10, panel_laid_out=0.5e-9,
    shallow_operation=0.72e-11, shallow_staged=5.0e-10, shallow_stored=0.2e-10,
    row_operation=0.73e-11, row_read=1.6e-10, row_stored=2.8e-10, row=0.01e-9, leading_row=0.6e-9, plane=0.06e-9,
    point_operation=0.83e-11, point_staged=0.3e-10, point_joined=1.04e-9, point_read=15e-10,
    weight_read=1.1e-10, weight_made=0.8e-9, weight_passed=5.4e-10,
    last_operation=0.69e-11, last_stored=0.5e-10, last_looked_up=1e-10, last_begun=4.3e-8, last_packed=3.1e-10,
    line_operation=0.79e-11, line_row=3.2e-11, line_read=1.0e-10, line_stored=0.5e-10, line_masked=2.7e-9,
)  # fmt: skip
"""Vectors of 64 bytes: an Intel Xeon (Emerald Rapids)."""


def rates_of(backend: Backend) -> Rates:
    """The rates of the registers that a backend's compiled loops use; the narrower ones where it has none."""
    kernels = backend.kernels if backend.name == "numba" else None
    return AVX512 if kernels is not None and kernels.register_bytes() == 64 else AVX2
