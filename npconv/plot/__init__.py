"""Pictures of what a convolution does: each function draws on one Axes and returns it. Needs the extra ``plot``.

Colours are those of matplotlib's current style, so that a dark style gives a dark picture; where a function chooses
colours itself they are told apart by people who confuse red and green.
"""

from npconv.plot.arrays import feature_maps, heat, kernels
from npconv.plot.machines import algorithm_map, roofline
from npconv.plot.networks import occlusion, occlusion_map, receptive_field, receptive_field_box
from npconv.plot.training import confusion_matrix, training_curves

__all__ = [
    "algorithm_map",
    "confusion_matrix",
    "feature_maps",
    "heat",
    "kernels",
    "occlusion",
    "occlusion_map",
    "receptive_field",
    "receptive_field_box",
    "roofline",
    "training_curves",
]
