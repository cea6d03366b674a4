"""What a convolution costs: multiply-accumulates, floating-point operations, parameters and bytes. Numbers, no arrays.

A multiply-accumulate (MAC) is one multiplication and one addition, so FLOPs are always twice the MACs, and a machine's
rate has to say which of the two it counts: `npconv.machine.Machine` counts MACs. Taps that fall into the padding are
counted, as everybody does; the additions of a bias and an activation are not, being one per output.
"""

from npconv.cost.jobs import job, lecture, stack
from npconv.cost.layer import Cost, conv
from npconv.cost.model import model
from npconv.cost.separable import Separable, separable
from npconv.cost.tables import Row, table
from npconv.cost.variations import variations

__all__ = ["Cost", "Row", "Separable", "conv", "job", "lecture", "model", "separable", "stack", "table", "variations"]
