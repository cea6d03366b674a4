"""Arrays as pictures: feature maps, kernels, a field of values over a photograph."""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.plot.axes import axes_for, host, tiled

OPACITY = 0.6
"""Of the largest value that is laid over a picture, which then still shows through."""


def feature_maps(maps: Any, *, columns: int | None = None, shared: bool = True, ax: Any = None) -> Any:
    """Draw the channels of a result as tiles.

    Parameters
    ----------
    maps : array of shape (C, H, W), or (1, C, H, W)
    columns : int, optional
        Tiles in a row; by default the picture becomes about square.
    shared : bool
        Whether all channels have one scale; otherwise each is stretched to its own range.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        If `maps` is not what is described here.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> y = nc.conv2d(np.random.rand(3, 16, 16), np.random.rand(6, 3, 3, 3))
    >>> ax = nc.plot.feature_maps(y)
    >>> ax.images[0].get_array().shape
    (29, 44)
    """
    values = host("maps", maps, (3, 4))
    if values.ndim == 4:
        if len(values) != 1:
            raise ValueError(f"maps must be those of one image, got shape {values.shape}")
        values = values[0]
    if not shared:
        low = values.min(axis=(1, 2), keepdims=True)
        values = (values - low) / np.maximum(values.max(axis=(1, 2), keepdims=True) - low, np.finfo(float).tiny)
    canvas, _ = tiled(values, columns)
    ax = axes_for(ax)
    ax.imshow(np.ma.masked_invalid(canvas), cmap="cividis", interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(f"{len(values)} channel{'s' if len(values) > 1 else ''} of {values.shape[1]}×{values.shape[2]}")
    return ax


def kernels(weights: Any, *, columns: int | None = None, ax: Any = None) -> Any:
    """Draw kernels as tiles, zero in the middle of the colours; three input channels are drawn as red, green and blue.

    Parameters
    ----------
    weights : array of shape (C_out, C, K, K)
        With another number of input channels than 3, there is a tile for each pair of channels.
    columns : int, optional
        Tiles in a row.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        If `weights` is not what is described here.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> ax = nc.plot.kernels(np.random.randn(8, 1, 3, 3))
    >>> ax.get_title()
    '8 kernels of 1×3×3'
    """
    values = host("weights", weights, (4,))
    limit = max(float(np.nanmax(np.abs(values))), np.finfo(float).tiny)
    ax = axes_for(ax)
    if values.shape[1] == 3:
        channels = [tiled(values[:, colour], columns)[0] for colour in range(3)]
        picture = 0.5 + 0.5 * np.stack(channels, axis=-1) / limit
        opaque = np.isfinite(picture).all(axis=-1, keepdims=True)
        ax.imshow(np.concatenate([np.nan_to_num(picture), opaque], axis=-1), interpolation="nearest")
    else:
        columns = columns or (values.shape[1] if values.shape[1] > 1 else None)
        canvas, _ = tiled(values.reshape(-1, *values.shape[2:]), columns)
        ax.imshow(np.ma.masked_invalid(canvas), cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(f"{len(values)} kernel{'s' if len(values) > 1 else ''} of {'×'.join(map(str, values.shape[1:]))}")
    return ax


def heat(image: Any, values: Any, *, opacity: float = OPACITY, ax: Any = None) -> Any:
    """Lay a field of values over a photograph: an activation, an occlusion, a gradient.

    Parameters
    ----------
    image : array of shape (3, H, W), (1, H, W) or (H, W)
        Between 0 and 1.
    values : array of shape (h, w)
        Stretched over the whole image, whatever its own size.
    opacity : float
        Of the largest value; the smallest is transparent.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is described here.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, npconv as nc
    >>> ax = nc.plot.heat(np.random.rand(3, 32, 48), np.random.rand(4, 6))
    >>> len(ax.images)
    2
    """
    picture, field = photograph(image), host("values", values, (2,))
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity}")
    ax = axes_for(ax)
    show(ax, picture)
    height, width = picture.shape[-2:]
    lay(ax, field - field.min(), opacity, (-0.5, width - 0.5, height - 0.5, -0.5))
    return ax


def lay(ax: Any, field: Any, opacity: float, extent: tuple[float, float, float, float]) -> None:
    """Draw values over what is shown already; 0 is transparent."""
    strength = field / max(float(field.max()), np.finfo(float).tiny)
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(
        strength, cmap="inferno", vmin=0, vmax=1, alpha=opacity * strength, extent=extent, interpolation="nearest"
    )
    ax.set(xlim=limits[0], ylim=limits[1])


def photograph(image: Any) -> Any:
    """An image that can be shown: ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``."""
    picture = host("image", image, (2, 3))
    if picture.ndim == 3 and picture.shape[0] not in (1, 3):
        raise ValueError(f"image must have 1 or 3 channels, got shape {picture.shape}")
    return picture


def show(ax: Any, picture: Any) -> None:
    """Draw what `photograph` let pass, without axes."""
    if picture.ndim == 3 and picture.shape[0] == 3:
        ax.imshow(picture.transpose(1, 2, 0).clip(0, 1))
    else:
        ax.imshow(picture.reshape(picture.shape[-2:]).clip(0, 1), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
