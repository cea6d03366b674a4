"""What a plan says of itself: geometry, algorithm, tiles, work, times, and why every other algorithm lost."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from npconv.algorithms import ALGORITHMS
from npconv.algorithms.rates import rates_of
from npconv.arrays import compute_dtype
from npconv.roofs import remembered
from npconv.units import amount, duration

if TYPE_CHECKING:
    from npconv.planning.plan import Plan


def text(plan: Plan) -> str:
    """For ``print``: a line a fact."""
    facts = _facts(plan)
    width = max(len(label) for label, _ in facts)
    return "\n".join([f"{_head(plan)}, {plan.dtype}", *(f"  {k:<{width}}  {v}" for k, v in facts)])


def table(plan: Plan) -> str:
    """For notebooks; without colours, so that it is right in light and in dark ones."""
    left = ' style="text-align: left"'
    cells = "".join(f"<tr><th{left}>{html.escape(k)}</th><td{left}>{html.escape(v)}</td></tr>" for k, v in _facts(plan))
    return f"<table><caption{left}>{html.escape(f'{_head(plan)}, {plan.dtype}')}</caption>{cells}</table>"


def _head(plan: Plan) -> str:
    return f"{plan.op} {_times(plan.spec.x_shape)} * {_times(plan.spec.w_shape)} -> {_times(plan.spec.y_shape)}"


def _facts(plan: Plan) -> list[tuple[str, str]]:
    window, spec = plan.spec.window, plan.spec
    padding = " ".join(f"{low}:{high}" for low, high in window.padding)
    facts = [
        ("window", f"stride {_times(window.stride)}, dilation {_times(window.dilation)}, groups {spec.groups}"),
        ("padding", f"{padding} {spec.padding_mode}, {spec.layout}"),
        ("backend", plan.backend.name + (f", {_threads(plan.threads)}" if plan.backend.name != "cupy" else "")),
        ("algorithm", f"{plan.algorithm} ({plan.kernel})"),
        *_details(plan),
        ("work", _work(plan)),
        ("memory", f"{amount(plan.bytes, 'B')} of operands, {amount(plan.workspace, 'B')} of workspace"),
        ("predicted", f"{duration(plan.predicted_seconds)} on a typical machine{_rates(plan)}"),
    ]  # fmt: skip
    if (here := _here(plan)) is not None:
        facts.append(("here", here))
    if plan.measured_seconds is not None:
        facts.append(("measured", f"{duration(plan.measured_seconds)} on {_threads(plan.measured_threads or 1)}"))
    return facts + [(f"not {name}", reason) for name, reason in plan.rejections]


def _details(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Driver, tile and blocks, as pairs of words."""
    if plan.reads_channels_last and plan.backend.name == "numba":
        kernels: Any = plan.backend.kernels
        found: tuple[tuple[str, str], ...] = kernels.last_details(plan.spec, plan.operand_dtype)
        return found
    algorithm = ALGORITHMS[plan.algorithm]
    return algorithm.details(plan.core, plan.op, plan.backend, plan.operand_dtype, plan.reused)


def _work(plan: Plan) -> str:
    """The definition's sums of products, and what the algorithm makes of them where that is something else."""
    defined = f"{amount(plan.macs, 'MAC')} = {amount(2 * plan.macs, 'FLOP')}"
    return defined if plan.flops == 2 * plan.macs else f"{defined} by definition, {amount(plan.flops, 'FLOP')} this way"


def _rates(plan: Plan) -> str:
    """The rate that the prediction stands for, and which part of the peak that is, where it is known."""
    if not plan.flops or plan.predicted_seconds <= 0:
        return ""
    rate = plan.flops / plan.predicted_seconds
    share = f", {rate / _typical_peak(plan):.0%} of its peak" if _has_peak(plan) else ""
    return f": {amount(rate, 'FLOP/s')}{share}"


def _here(plan: Plan) -> str | None:
    """What the prediction is on this machine, where `npconv.this_machine` has measured its peak."""
    machine = remembered(compute_dtype(plan.dtype), plan.threads) if _has_peak(plan) else None
    if machine is None:
        return None
    seconds = plan.predicted_seconds * _typical_peak(plan) / machine.flops_per_second
    return f"{duration(seconds)}, this machine's peak being {amount(machine.flops_per_second, 'FLOP/s')}"


def _has_peak(plan: Plan) -> bool:
    return plan.backend.name == "numba" and compute_dtype(plan.dtype).kind == "f"


def _typical_peak(plan: Plan) -> float:
    """FLOP/s of the machine that predictions are typical of."""
    return rates_of(plan.backend).peak * plan.threads * 4 / compute_dtype(plan.dtype).itemsize


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
