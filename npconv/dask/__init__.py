"""Convolutions and filters of dask arrays: larger than memory, on all cores of a machine, or on many machines.

Every function has the name and the arguments of npconv's own and takes a dask array first. Nothing is computed until
dask is asked: ``y.compute()``, ``y.to_zarr(...)``, with `dask.diagnostics.ProgressBar` or a `dask.distributed.Client`
if one likes. A block of the result is computed from the part of the input that it depends on, by the geometry and to
the element; blocks of the result follow those of the input. Weights must fit into memory. Channels are gathered into
one chunk, since every result needs all of them. Which algorithm runs may depend on the size of a block, so results
agree with those of one call to rounding; sums of integers are equal.
"""

from npconv.dask.blocks import as_dask
from npconv.dask.convolutions import conv, conv_input_grad, conv_transpose, conv_weight_grad
from npconv.dask.filters import convolve, correlate
from npconv.dask.pooling import avg_pool, max_pool

__all__ = [
    "as_dask",
    "avg_pool",
    "conv",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
    "convolve",
    "correlate",
    "max_pool",
]
