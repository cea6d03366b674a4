"""A spec becomes a plan: which algorithm runs, why, and why not the others; `tuning` measures it.

Planner and algorithms are loaded at the first convolution, so that importing npconv stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npconv.planning.plan import PackedConv, Plan
    from npconv.planning.planner import checked, plan_for
    from npconv.planning.tuning import autotune

__all__ = ["PackedConv", "Plan", "autotune", "checked", "plan_for"]

_HOMES = {"PackedConv": "plan", "Plan": "plan", "autotune": "tuning", "checked": "planner", "plan_for": "planner"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'npconv.planning' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"npconv.planning.{_HOMES[name]}"), name)
    return globals()[name]
