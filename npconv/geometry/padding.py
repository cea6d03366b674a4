"""What stands before and behind an image along each axis: numbers, pairs, or a word such as ``"same"``."""

from __future__ import annotations

from typing import Any

from npconv.geometry.arguments import Pairs, Size, choice, count_of, integer, sequence, show

PADDING_STRINGS = ("valid", "same", "same_upper", "same_lower", "full", "causal")


def resolve_padding(value: Any, size: Size, kernel: Size, stride: Size, dilation: Size) -> Pairs:
    """Turn any form of `padding` into one (low, high) pair per dimension.

    Parameters
    ----------
    value : int, str, or sequence
        An integer; one integer or one ``(low, high)`` pair per dimension; or ``"valid"`` (none), ``"same"`` =
        ``"same_upper"`` (output size ``ceil(size / stride)``, an odd leftover goes to the high side), ``"same_lower"``
        (it goes to the low side), ``"full"`` (every overlap) or ``"causal"`` (only the low side).
    size, kernel, stride, dilation : tuple of int
        The geometry that the strings are resolved against.
    """
    ndim = len(kernel)
    if isinstance(value, str):
        choice("padding", value, PADDING_STRINGS)
        return tuple(_padding_by_name(value, *axis) for axis in zip(size, kernel, stride, dilation, strict=True))
    items = sequence(value)
    if items is None:
        if value is None or not hasattr(value, "__index__"):
            raise TypeError(
                f"padding must be an integer, integers or (low, high) pairs per dimension, or one of "
                f"{', '.join(map(repr, PADDING_STRINGS))}; got {show(value)}"
            )
        p = integer("padding", value)
        return ((p, p),) * ndim
    if len(items) != ndim:
        hint = (
            f"; for one dimension's low and high side write (({items[0]}, {items[1]}),)"
            if _is_flat_pair(items, ndim)
            else ""
        )
        raise ValueError(
            f"padding must be one integer or one (low, high) pair for each of {count_of(ndim, 'dimension')}, "
            f"got {show(value)}{hint}"
        )
    return tuple(_padding_pair(f"padding[{i}]", item) for i, item in enumerate(items))


def _is_flat_pair(items: tuple[Any, ...], ndim: int) -> bool:
    return ndim == 1 and len(items) == 2 and all(type(i) is int for i in items)


def _padding_pair(name: str, item: Any) -> tuple[int, int]:
    pair = sequence(item)
    if pair is None:
        p = integer(name, item)
        return p, p
    if len(pair) != 2:
        raise ValueError(f"{name} must be an integer or a (low, high) pair, got {show(item)}")
    return integer(f"{name}[0]", pair[0]), integer(f"{name}[1]", pair[1])


def _padding_by_name(name: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    reach = (kernel - 1) * dilation
    if name == "valid":
        return 0, 0
    if name == "full":
        return reach, reach
    if name == "causal":
        return reach, 0
    out = -(-size // stride)
    total = max((out - 1) * stride + reach + 1 - size, 0)
    smaller, larger = total // 2, total - total // 2
    return (larger, smaller) if name == "same_lower" else (smaller, larger)
