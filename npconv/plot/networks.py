"""What a network looks at: the receptive field of an output, and what happens where the image is covered."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from npconv.plot.arrays import OPACITY, lay, photograph, show
from npconv.plot.axes import COLORS, axes_for, host

Box = tuple[int, int, int, int]


def receptive_field_box(network: Any, shape: tuple[int, ...], position: tuple[int, int], *, rng: Any = 0) -> Box:
    """Find the part of an image that an output depends on, by sending a gradient back through the network.

    Parameters
    ----------
    network : npconv.nn.Module
        Whose output has a height and a width; its parameters' gradients are left as they were.
    shape : tuple of int
        ``(C, H, W)`` of the image.
    position : (int, int)
        Row and column of the output.
    rng : int or numpy.random.Generator
        Of the image that is sent through.

    Returns
    -------
    (int, int, int, int)
        Top, bottom, left and right, the last row and column not included.

    Raises
    ------
    ValueError, TypeError
        If the output has no such position, or depends on nothing.

    Examples
    --------
    >>> import npconv as nc
    >>> nn = nc.nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.Conv2d(4, 4, 3, stride=2, rng=0))
    >>> nc.plot.receptive_field_box(network, (1, 16, 16), (2, 3))
    (4, 9, 6, 11)
    """
    own = copy.deepcopy(network).train()
    image = np.random.default_rng(rng).random((1, *shape)).astype(np.float32)
    y = own(image)
    if y.ndim != 4:
        raise ValueError(f"the network's output must have a height and a width, got shape {y.shape}")
    row, column = position
    if not (0 <= row < y.shape[2] and 0 <= column < y.shape[3]):
        raise ValueError(f"position must be within {y.shape[2:]}, got {position}")
    dy = np.zeros_like(y)
    dy[:, :, row, column] = 1
    reached = np.abs(own.backward(dy)[0]).sum(axis=0) > 0
    rows, columns = np.flatnonzero(reached.any(axis=1)), np.flatnonzero(reached.any(axis=0))
    if not rows.size:
        raise ValueError(f"the output at {position} depends on nothing")
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def receptive_field(network: Any, image: Any, position: tuple[int, int], *, ax: Any = None) -> Any:
    """Draw the receptive field of an output on the image.

    Parameters
    ----------
    network : npconv.nn.Module
    image : array of shape (C, H, W), with 1 or 3 channels
    position : (int, int)
        Row and column of the output.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        As `receptive_field_box`.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> ax = nc.plot.receptive_field(nc.nn.Conv2d(3, 4, 5, rng=0), np.random.rand(3, 20, 20), (4, 6))
    >>> [float(bound) for bound in ax.patches[0].get_bbox().bounds]
    [5.5, 3.5, 5.0, 5.0]
    """
    picture = photograph(image)
    top, bottom, left, right = receptive_field_box(network, picture.shape, position)
    ax = axes_for(ax)
    show(ax, picture)
    from matplotlib.patches import Rectangle

    # White under colour, so that it is seen on any photograph.
    for width, color in ((4, "white"), (2, COLORS[1])):
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, linewidth=width, edgecolor=color))
    ax.set_title(f"output {position} sees {bottom - top}×{right - left} pixels")
    return ax


def occlusion_map(
    score: Callable[[Any], Any], image: Any, *, patch: int | tuple[int, int] = 16, stride: int = 8, fill: float = 0.5
) -> Any:
    """Measure how much a score drops where a patch of the image is covered.

    Parameters
    ----------
    score : callable
        From a batch ``(n, C, H, W)`` to ``n`` numbers, such as a network's output for one class.
    image : array of shape (C, H, W)
    patch : int or (int, int)
        Size of what is covered.
    stride : int
        From one patch to the next.
    fill : float
        What it is covered with.

    Returns
    -------
    numpy.ndarray
        The score of the whole image less that of the covered one, at each place of the patch.

    Raises
    ------
    ValueError, TypeError
        If the patch is larger than the image, or an argument is not what is described here.

    References
    ----------
    M. Zeiler, R. Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014, section 4.2.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> image = np.zeros((1, 8, 8))
    >>> image[0, 2, 5] = 1
    >>> nc.plot.occlusion_map(lambda x: x.max(axis=(1, 2, 3)), image, patch=4, stride=4, fill=0)
    array([[0., 1.],
           [0., 0.]])
    """
    picture = host("image", image, (3,))
    height, width = (_positive("patch", n) for n in (patch if isinstance(patch, tuple) else (patch, patch)))
    step = _positive("stride", stride)
    if height > picture.shape[1] or width > picture.shape[2]:
        raise ValueError(f"patch must fit into the image of {picture.shape[1:]}, got {(height, width)}")
    rows = range(0, picture.shape[1] - height + 1, step)
    columns = range(0, picture.shape[2] - width + 1, step)
    whole = float(np.asarray(score(picture[None].astype(np.float32))).ravel()[0])
    drop = np.empty((len(rows), len(columns)))
    for i, y in enumerate(rows):
        # A row of places at once: few calls, and memory for a row of images only.
        covered = np.repeat(picture[None].astype(np.float32), len(columns), axis=0)
        for j, x in enumerate(columns):
            covered[j, :, y : y + height, x : x + width] = fill
        drop[i] = whole - np.asarray(score(covered)).reshape(len(columns))
    return drop


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be positive, got {number}")
    return number


def occlusion(
    score: Callable[[Any], Any],
    image: Any,
    *,
    patch: int | tuple[int, int] = 16,
    stride: int = 8,
    fill: float = 0.5,
    ax: Any = None,
) -> Any:
    """Draw over the image how much a score drops where it is covered.

    Each drop is drawn around the centre of its patch. Where the score stays or rises the image is left as it is.

    Parameters
    ----------
    score, image, patch, stride, fill
        As for `occlusion_map`.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        As `occlusion_map`.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> ax = nc.plot.occlusion(lambda x: x.mean(axis=(1, 2, 3)), np.random.rand(3, 32, 32))
    >>> ax.images[1].get_array().shape
    (3, 3)
    """
    picture = photograph(image)
    drop = occlusion_map(score, image, patch=patch, stride=stride, fill=fill)
    height, width = patch if isinstance(patch, tuple) else (patch, patch)
    left, top = (width - 1 - stride) / 2, (height - 1 - stride) / 2
    rows, columns = drop.shape
    ax = axes_for(ax)
    show(ax, picture)
    lay(ax, drop.clip(min=0), OPACITY, (left, left + columns * stride, top + rows * stride, top))
    ax.set_title("covered here, the score drops")
    return ax
