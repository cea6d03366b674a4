"""In which order the gallery shows its pages: as a newcomer would read them."""

from __future__ import annotations

ORDER = (
    "plot_channels.py",
    "plot_photograph.py",
    "plot_train.py",
    "plot_own_pictures.py",
    "plot_onnx.py",
    "plot_gpu.py",
    "plot_larger_than_memory.py",
    "plot_inverse.py",
    "plot_algorithms.py",
)


class ReadingOrder:
    """A sort key, as sphinx-gallery asks for it; a page that is not listed is an error."""

    def __init__(self, folder: str) -> None:
        """Take the folder of the gallery, which makes no difference."""

    def __call__(self, name: str) -> int:
        """Return the place of a page."""
        return ORDER.index(name)
