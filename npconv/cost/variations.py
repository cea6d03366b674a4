"""What a change of a layer does to its cost: no padding, half the image, twice the channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npconv.cost.layer import Cost, conv
from npconv.geometry import shape


def variations(
    x_shape: Any,
    w_shape: Any,
    stride: Any = 1,
    padding: Any = "same",
    dilation: Any = 1,
    groups: Any = 1,
    *,
    bias: bool = False,
    dtype: Any = "float32",
) -> tuple[Cost, ...]:
    """Costs of a layer and of what people do to it.

    Halving the image quarters the arithmetic of two dimensions and leaves the parameters; doubling the channels
    quadruples both; together they keep the arithmetic, which is why networks do both at once.

    Parameters
    ----------
    x_shape, w_shape, stride, padding, dilation, groups, bias, dtype
        As for `npconv.cost.conv`; here the default padding is ``"same"``.

    Returns
    -------
    tuple of Cost
        As it is, without padding, with half the image, with twice the channels in and out, with both. The variation
        without padding is left out where the kernel is larger than the image.

    Raises
    ------
    ValueError, TypeError
        As for `npconv.cost.conv`.

    Examples
    --------
    >>> from npconv import cost
    >>> print(cost.table(cost.variations((1, 64, 56, 56), (64, 64, 3, 3))))
                                               MACs       FLOPs  parameters    bytes
    conv 64 -> 64, 3x3                     116 MMAC   231 MFLOP      36,864  1.75 MB
    without padding                        107 MMAC   215 MFLOP      36,864   1.7 MB
    half the image                        28.9 MMAC  57.8 MFLOP      36,864   549 kB
    twice the channels                     462 MMAC   925 MFLOP     147,456   3.8 MB
    half the image, twice the channels     116 MMAC   231 MFLOP     147,456  1.39 MB
    """
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias, "dtype": dtype}
    layer = conv(x_shape, w_shape, padding=padding, **options)
    x, w = shape("x_shape", x_shape), shape("w_shape", w_shape)
    axes = len(w) - 2
    half = (*x[:-axes], *(-(-n // 2) for n in x[-axes:]))
    wide = (*x[: -axes - 1], 2 * x[-axes - 1], *x[-axes:])
    both = (*wide[:-axes], *half[-axes:])
    twice = (2 * w[0], 2 * w[1], *w[2:])
    found = [layer]
    if all(n > d for n, d in zip(x[-axes:], _reach(w[2:], dilation), strict=True)):
        found.append(replace(conv(x, w, padding=0, **options), name="without padding"))
    for name, image, weights in (
        ("half the image", half, w),
        ("twice the channels", wide, twice),
        ("half the image, twice the channels", both, twice),
    ):
        found.append(replace(conv(image, weights, padding=padding, **options), name=name))
    return tuple(found)


def _reach(kernel: tuple[int, ...], dilation: Any) -> tuple[int, ...]:
    steps = dilation if isinstance(dilation, tuple | list) else (dilation,) * len(kernel)
    return tuple(d * (k - 1) for k, d in zip(kernel, steps, strict=True))
