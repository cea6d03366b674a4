"""Calls like an earlier one: what was decided then is used again, so that a small convolution costs no more than it is.

One dictionary leads from everything that decides a call to the call made ready. A call that is out of the ordinary in
any way (another kind of array, an argument of another type) has no key: it takes the long road through `npconv.conv`,
where all checks and all errors are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from npconv import config
from npconv.arrays import Array, is_plain

Call = Callable[[Array, Array, Array | None], Array]
"""``call(x, w, bias)``, or ``call(a, b, None)`` for a gradient from `a` and `b`.

For arrays that are like those of an earlier call.
"""

MOST = 1024
"""Calls that are remembered; the oldest makes room for a new one."""

_calls: dict[Any, Call] = {}
_epoch = 0  # part of every key, so that a call under way while all are forgotten is not remembered for those after it
_lock = threading.Lock()


def key(
    kind: int | str | None, x: Array, w: Array, bias: Array | None, geometry: tuple[Any, ...], words: tuple[Any, ...],
    alike: bool = True,
) -> Any:  # fmt: skip
    """Everything that decides a call, or None where it is out of the ordinary.

    `kind` is the number of spatial axes that a forward call insists on, or the name of a gradient. `geometry` are the
    arguments that are numbers: 1, 1.0 and True are the same to a dictionary, but not to a check, so only integers,
    words, and tuples and lists of them have a key. `words` are the names among the arguments. The arrays must be
    `alike`, of one dtype, or else the caller looks at the dtype of `w`.
    """
    if not (is_plain(x) and is_plain(w)):
        return None
    dtype = x.dtype
    if not dtype.isnative or (alike and w.dtype != dtype):
        return None
    if bias is not None and not (is_plain(bias) and bias.dtype == dtype):
        return None
    for value in geometry:
        if type(value) is not int and not _is_exact(value):
            geometry = _without_lists(geometry)
            if not _is_exact(geometry):
                return None
            break
    return (
        kind,
        x.shape,
        w.shape,
        None if bias is None else bias.shape,
        dtype if alike else (dtype, w.dtype),
        geometry,
        words,
        config.settings(),
        _epoch,
    )


def find(key: Any) -> Call | None:
    """The call with this key, if there was one."""
    try:
        return _calls.get(key)
    except TypeError:  # an unhashable word, which the long road refuses
        return None


def remember(key: Any, call: Call) -> None:
    """Keep a call that went well."""
    with _lock:
        while len(_calls) >= MOST:
            del _calls[next(iter(_calls))]
        _calls[key] = call


def forget() -> None:
    """Forget all calls: what decides about a plan has changed."""
    global _epoch
    with _lock:
        _epoch += 1
        _calls.clear()


def _without_lists(value: Any) -> Any:
    """A list, or a tuple, with tuples for all lists in it, which a dictionary can find."""
    return tuple(map(_without_lists, value)) if type(value) in (list, tuple) else value


def _is_exact(value: Any) -> bool:
    kind = type(value)
    return kind is int or kind is str or (kind is tuple and all(map(_is_exact, value)))
