"""The geometry of sliding windows and of convolutions: pure integers, no arrays.

Every rule about sizes, strides, padding, dilation and groups is here, and so is every error message about a shape.
Two values come out: a `Window` (how a kernel slides over spatial axes) and a `ConvSpec` (a window plus batch, channels
and groups). Both are frozen, hashable and already normalised, so the rest of the package never asks again.

The rest of the package imports from here, not from the rooms inside.
"""

from npconv.geometry.arguments import (
    LAYOUTS,
    PADDING_MODES,
    Pairs,
    Size,
    check_extent,
    choice,
    integer,
    per_axis,
    sequence,
    shape,
)
from npconv.geometry.padding import PADDING_STRINGS, resolve_padding
from npconv.geometry.spec import ConvSpec, join_shape, split_shape
from npconv.geometry.window import Window

__all__ = [
    "LAYOUTS",
    "PADDING_MODES",
    "PADDING_STRINGS",
    "ConvSpec",
    "Pairs",
    "Size",
    "Window",
    "check_extent",
    "choice",
    "integer",
    "join_shape",
    "per_axis",
    "resolve_padding",
    "sequence",
    "shape",
    "split_shape",
]
