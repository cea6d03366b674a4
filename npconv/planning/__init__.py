"""A spec becomes a plan: which algorithm runs, why, and why not the others."""

from npconv.planning.plan import PackedConv, Plan
from npconv.planning.planner import plan_for

__all__ = ["PackedConv", "Plan", "plan_for"]
