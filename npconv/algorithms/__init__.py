"""The ordered table of algorithms. A new one is one file here and one row below; the existing tests then sweep it."""

from __future__ import annotations

from npconv.algorithms.base import OPERATIONS, Algorithm, Work
from npconv.algorithms.depthwise import Depthwise
from npconv.algorithms.direct import Direct
from npconv.algorithms.fft import Fft
from npconv.algorithms.im2col import Im2col
from npconv.algorithms.pointwise import Pointwise
from npconv.algorithms.winograd import Winograd

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (Pointwise(), Depthwise(), Direct(), Im2col(), Winograd(), Fft())
}

TRANSFORMED = frozenset({"winograd", "fft"})
"""Those that do not sum the definition's products, so that they round in another way; `npconv.strict` forbids them."""

SUMS_OF_PRODUCTS = frozenset({"pointwise", "depthwise", "direct"})
"""Those whose compiled loops sum the definition's products where the operands lie: CUDA kernels read float16 and
bfloat16 as they are, and channels-last arrays need not be transposed."""

__all__ = ["ALGORITHMS", "OPERATIONS", "SUMS_OF_PRODUCTS", "TRANSFORMED", "Algorithm", "Work"]
