"""Filters without channels: an image, a signal or a volume and one kernel, with the boundaries and modes of SciPy.

A filter is a convolution with one input and one output channel, so what is here is the geometry of `scipy.signal`'s
modes and `scipy.ndimage`'s boundaries, kernels split into one factor per axis, missing values, and kernels ready made.
"""

from npconv.filters.frame import BOUNDARIES, MODES
from npconv.filters.gradients import convolve_vjp, correlate_vjp
from npconv.filters.kernels import box, gabor, gaussian, laplace, sobel
from npconv.filters.operations import NAN_POLICIES, convolve, correlate
from npconv.filters.separable import factors
from npconv.filters.sums import METHODS

__all__ = [
    "BOUNDARIES",
    "METHODS",
    "MODES",
    "NAN_POLICIES",
    "box",
    "convolve",
    "convolve_vjp",
    "correlate",
    "correlate_vjp",
    "factors",
    "gabor",
    "gaussian",
    "laplace",
    "sobel",
]
