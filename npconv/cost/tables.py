"""Costs as aligned text, with the time on each machine."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from npconv.cost.layer import Cost
from npconv.machine import Machine
from npconv.units import amount, duration


@dataclass(frozen=True)
class Row:
    """A line of a table: a cost, and the machines on which its time is of interest.

    Examples
    --------
    >>> import npconv as nc
    >>> layer = nc.cost.conv((1, 3, 224, 224), (64, 3, 7, 7), 2, 3)
    >>> nc.cost.Row(layer, (nc.machine.NAMED["h100"],)).seconds
    (3.522804537313433e-06,)
    """

    cost: Cost
    machines: tuple[Machine, ...] = ()

    @property
    def seconds(self) -> tuple[float, ...]:
        """Time on each machine."""
        return tuple(self.cost.seconds(machine) for machine in self.machines)


def table(rows: Iterable[Row | Cost]) -> str:
    """Write costs as aligned text, one line each.

    Parameters
    ----------
    rows : iterable of Row or Cost
        A `Row` adds a column with the time for each of its machines, headed by the machine's name and rate.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If something in `rows` is neither.

    Examples
    --------
    >>> from npconv import cost
    >>> layer = cost.separable(100, 100, 5, (64, 64))
    >>> print(cost.table([layer.dense, layer.depthwise, layer.pointwise, layer.pair]))
                                    MACs       FLOPs  parameters    bytes
    conv 100 -> 100, 5x5       1.02 GMAC  2.05 GFLOP     250,000  4.28 MB
    depthwise 100, 5x5         10.2 MMAC  20.5 MFLOP       2,500  3.29 MB
    pointwise 100 -> 100         41 MMAC  81.9 MFLOP      10,000  3.32 MB
    separable 100 -> 100, 5x5  51.2 MMAC   102 MFLOP      12,500   6.6 MB
    """
    items: list[Row] = []
    for i, row in enumerate(rows):
        if not isinstance(row, Row | Cost):
            raise TypeError(f"rows[{i}] must be a Row or a Cost, got {row!r}")
        items.append(Row(row) if isinstance(row, Cost) else row)
    machines = tuple(dict.fromkeys(machine for item in items for machine in item.machines))
    columns = [["", *(item.cost.name for item in items)]]
    columns += [[title, *(text(item.cost) for item in items)] for title, text in _COLUMNS.items()]
    columns += [[_heading(machine), *(_time(item, machine) for item in items)] for machine in machines]
    return "\n".join(_align(columns))


_COLUMNS: dict[str, Callable[[Cost], str]] = {
    "MACs": lambda cost: amount(cost.macs, "MAC"),
    "FLOPs": lambda cost: amount(cost.flops, "FLOP"),
    "parameters": lambda cost: f"{cost.parameters:,}",
    "bytes": lambda cost: amount(cost.bytes, "B"),
}


def _heading(machine: Machine) -> str:
    # One unit for all rates, so that machines compare at a glance, and the lecture's own figures are recognised.
    return "\n".join([*textwrap.wrap(machine.name, 16), f"{machine.macs_per_second / 1e12:.3g} TMAC/s"])


def _time(row: Row, machine: Machine) -> str:
    return duration(row.cost.seconds(machine)) if machine in row.machines else ""


def _align(columns: list[list[str]]) -> list[str]:
    """Lines of text from columns of a heading and cells; the first column is flush left, the others are flush right."""
    height = max(column[0].count("\n") + 1 for column in columns)
    padded = []
    for number, (heading, *cells) in enumerate(columns):
        lines = [*([""] * (height - heading.count("\n") - 1)), *heading.split("\n"), *cells]
        width = max(map(len, lines))
        padded.append([line.rjust(width) if number else line.ljust(width) for line in lines])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
