"""The attributes that ONNX's convolutions and poolings share, as the arguments that npconv takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Attributes = Mapping[str, Any]
Pairs = tuple[tuple[int, int], ...]

SAME = {"SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower"}


def window(attributes: Attributes, ndim: int) -> dict[str, Any]:
    """``strides``, ``pads``, ``dilations`` and ``auto_pad`` as stride, padding and dilation.

    Raises
    ------
    ValueError
        If an attribute does not fit `ndim` axes.
    """
    return {
        "stride": steps(attributes, "strides", ndim),
        "padding": padding(attributes, ndim),
        "dilation": steps(attributes, "dilations", ndim),
    }


def steps(attributes: Attributes, name: str, ndim: int) -> tuple[int, ...]:
    """``strides`` or ``dilations``, which are positive and 1 where they are not given."""
    value = per_axis(attributes, name, ndim, 1)
    if any(n < 1 for n in value):
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def per_axis(attributes: Attributes, name: str, ndim: int, default: int) -> tuple[int, ...]:
    """An attribute with one integer per axis."""
    value = attributes.get(name)
    if value is None or not len(value):
        return (default,) * ndim
    return _of_length(name, value, ndim)


def padding(attributes: Attributes, ndim: int) -> Pairs | str:
    """``pads``, or the word that ``auto_pad`` stands for."""
    auto = attributes.get("auto_pad") or "NOTSET"
    if auto in SAME:
        return SAME[auto]
    if auto not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad must be NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {auto!r}")
    given = attributes.get("pads")
    if auto == "VALID" or given is None or not len(given):
        return ((0, 0),) * ndim
    pads = _of_length("pads", given, 2 * ndim)
    return tuple(zip(pads[:ndim], pads[ndim:], strict=True))


def check_kernel(attributes: Attributes, kernel: Sequence[int]) -> None:
    """Raise ValueError if ``kernel_shape`` is given and not that of the weights."""
    given = attributes.get("kernel_shape")
    if given is not None and len(given) and tuple(given) != tuple(kernel):
        raise ValueError(f"kernel_shape is {tuple(given)}, but the weights have {tuple(kernel)}")


def pool(attributes: Attributes) -> dict[str, Any]:
    """The arguments of a pooling but for ``count_include_pad``."""
    kernel = tuple(int(k) for k in attributes["kernel_shape"])
    if not kernel or min(kernel) < 1:
        raise ValueError(f"kernel_shape must be positive numbers, got {kernel}")
    ceil_mode = bool(attributes.get("ceil_mode") or 0)
    return {"kernel_size": kernel, **window(attributes, len(kernel)), "ceil_mode": ceil_mode}


def transposed(attributes: Attributes, size: Sequence[int], kernel: Sequence[int]) -> dict[str, Any]:
    """The arguments of a transposed convolution of an image of `size`, but for ``groups``.

    ``output_shape`` decides the padding, which ``auto_pad`` divides: SAME_UPPER cuts an odd leftover off at the end.
    Where even no padding gives too little, output padding is added.
    """
    ndim = len(kernel)
    stride, dilation = steps(attributes, "strides", ndim), steps(attributes, "dilations", ndim)
    extra = per_axis(attributes, "output_padding", ndim, 0)
    auto = attributes.get("auto_pad") or "NOTSET"
    wanted = attributes.get("output_shape")
    if wanted is not None and len(wanted):
        wanted = tuple(wanted)[-ndim:]
    elif auto in SAME:
        wanted = tuple(n * s for n, s in zip(size, stride, strict=True))
    else:
        pads = padding(attributes, ndim)
        return {"stride": stride, "padding": pads, "output_padding": extra, "dilation": dilation}
    pairs, extras = [], []
    for n, k, s, d, e, out in zip(size, kernel, stride, dilation, extra, _of_length("output_shape", wanted, ndim),
                                  strict=True):  # fmt: skip
        total = s * (n - 1) + e + (k - 1) * d + 1 - out
        less, more = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
        pairs.append((less, more) if auto == "SAME_UPPER" else (more, less))
        extras.append(e + max(-total, 0))
    return {"stride": stride, "padding": tuple(pairs), "output_padding": tuple(extras), "dilation": dilation}


def _of_length(name: str, value: Sequence[Any], length: int) -> tuple[int, ...]:
    if len(value) != length:
        raise ValueError(f"{name} must have {length} numbers, got {tuple(value)}")
    return tuple(int(n) for n in value)
