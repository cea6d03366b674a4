"""Sizes of results where `onnx`'s own rules fall short, and of what operators make on the way to a smaller result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from npconv.onnx.package import require

Array = Any
Size = Callable[[Any, Sequence[Array]], int]


def _range(_node: Any, inputs: Sequence[Array]) -> int:
    start, limit, delta = (float(np.asarray(value).reshape(-1)[0]) for value in inputs)
    return max(math.ceil((limit - start) / delta), 0) if delta and math.isfinite((limit - start) / delta) else 0


def _unpooled(_node: Any, inputs: Sequence[Array]) -> int:
    return math.prod(map(int, inputs[2])) if len(inputs) > 2 else 4096 * int(inputs[0].size)


def _nonzero(_node: Any, inputs: Sequence[Array]) -> int:
    return max(int(inputs[0].ndim), 1) * int(np.count_nonzero(inputs[0]))


def _regressed(node: Any, inputs: Sequence[Array]) -> int:
    return len(inputs[0]) * int(given(node, "targets", 1))


# NumPy makes every string of an array as long as the longest, at four bytes a letter.


def _labels(node: Any, inputs: Sequence[Array]) -> int:
    words = [*given(node, "values_strings", ()), given(node, "default_string", b"")]
    return int(inputs[0].size) * _words(max(map(len, words)))


def _joined_strings(_node: Any, inputs: Sequence[Array]) -> int:
    a, b = inputs
    return math.prod(np.broadcast_shapes(a.shape, b.shape)) * _words(_longest(a) + _longest(b))


def _split_strings(node: Any, inputs: Sequence[Array]) -> int:
    (x,) = inputs
    delimiter = given(node, "delimiter", b"").decode() or None
    parts = max((len(str(text).split(delimiter)) for text in x.reshape(-1)), default=0)
    return int(x.size) * max(parts, _words(_longest(x)))


def _longest(x: Array) -> int:
    return max((len(str(text)) for text in x.reshape(-1)), default=0)


def _words(letters: int) -> int:
    return max(letters, 2) // 2 + 1


SIZES: dict[str, Size] = {
    "LabelEncoder": _labels,
    "LinearRegressor": _regressed,
    "MaxUnpool": _unpooled,
    "NonZero": _nonzero,
    "Range": _range,
    "StringConcat": _joined_strings,
    "StringSplit": _split_strings,
}
"""Elements of 8 bytes in a result."""


def _scores(node: Any, inputs: Sequence[Array]) -> int:
    """Scores of all pairs of positions: before the softmax, after it, and a mask."""
    q, k, *_, past = (*inputs, *(None,) * 6)[:5]
    heads = q.shape[1] if q.ndim == 4 else int(given(node, "q_num_heads", 1))
    keys = k.shape[-2] + (0 if past is None else past.shape[-2])
    return 24 * math.prod((q.shape[0], heads, q.shape[-2], keys))


def _frame(_node: Any, inputs: Sequence[Array]) -> int:
    return 8 * int(np.max(inputs[3])) if len(inputs) > 3 and inputs[3] is not None else 0


SCRATCH: dict[str, Size] = {"Attention": _scores, "STFT": _frame}
"""Bytes that an operator takes besides its inputs and results, where these are many times smaller."""


def given(node: Any, name: str, default: Any) -> Any:
    """An attribute of a node. One that a function hands down has no value here, which is a ValueError."""
    found = [attribute for attribute in node.attribute if attribute.name == name]
    return require("onnx.helper").get_attribute_value(found[0]) if found else default
