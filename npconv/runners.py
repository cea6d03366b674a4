"""Operations made ready: a runner is ``run(x, packed, bias, y, limit=None)``, and writes into `y`.

It looks at nothing of the arrays but their addresses. What is known of arrays that stay where they are can be found out
once: a runner that knows how has a method ``on``, with the same arguments, which gives a function without any.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Runner = Callable[..., None]


def on_arrays(run: Runner, *arguments: Any) -> Callable[[], None]:
    """What runs on these very arrays whenever it is called."""
    settle: Any = getattr(run, "on", None)
    return functools.partial(run, *arguments) if settle is None else settle(*arguments)


class ByWeights:
    """A runner that is another one for each form that packed weights have: ``choose(packed)``."""

    def __init__(self, choose: Callable[[Any], Runner]) -> None:
        self._choose = choose

    def __call__(self, x: Any, packed: Any, bias: Any, y: Any, limit: int | None = None) -> None:
        """Run the one for these weights."""
        self._choose(packed)(x, packed, bias, y, limit)

    def on(self, x: Any, packed: Any, bias: Any, y: Any, limit: int | None = None) -> Callable[[], None]:
        """The one for these weights, on arrays that stay where they are."""
        return on_arrays(self._choose(packed), x, packed, bias, y, limit)
