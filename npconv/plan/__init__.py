"""A spec becomes a plan: which algorithm runs, why, and why not the others."""

from npconv.plan.plan import PackedConv, Plan
from npconv.plan.planner import plan_for

__all__ = ["PackedConv", "Plan", "plan_for"]
