"""Quantities and times as people write them: ``1.02 GMAC``, ``18.96 hours``."""

from __future__ import annotations

import math

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
# The size of each unit in seconds, how many of it make the next one, and its name.
_TIMES = (
    (1e-9, 1e3, "ns"),
    (1e-6, 1e3, "µs"),
    (1e-3, 1e3, "ms"),
    (1.0, 60, "s"),
    (60.0, 60, "minute"),
    (3600.0, 24, "hour"),
    (86400.0, 365.25, "day"),
    (31557600.0, math.inf, "year"),
)


def amount(value: float, unit: str) -> str:
    """Write a quantity with an SI prefix and three significant digits.

    Parameters
    ----------
    value : float
        In `unit`, without a prefix.
    unit : str
        Such as ``"MAC"`` or ``"B"``; prefixes are powers of 1000.

    Raises
    ------
    ValueError
        If `value` is not finite.

    Examples
    --------
    >>> amount(1024000000, "MAC"), amount(999.7, "B"), amount(0, "B")
    ('1.02 GMAC', '1 kB', '0 B')
    """
    if not math.isfinite(value):
        raise ValueError(f"value must be finite, got {value}")
    step = 0
    # Rounding comes before the choice of the prefix: 999.7 is 1 k, not 1e+03.
    while abs(float(f"{value:.3g}")) >= 1000 and step < len(_PREFIXES) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.3g} {_PREFIXES[step]}{unit}"


def duration(seconds: float) -> str:
    """Write a time with four significant digits, in the largest unit that makes it at least one.

    Parameters
    ----------
    seconds : float
        Zero or more. A year has 365.25 days.

    Raises
    ------
    ValueError
        If `seconds` is negative or not finite.

    Examples
    --------
    >>> duration(68266.7), duration(853.33), duration(0.0031), duration(59.9999)
    ('18.96 hours', '14.22 minutes', '3.1 ms', '1 minute')
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be finite and not negative, got {seconds}")
    if seconds == 0:
        return "0 s"
    counts = ((float(f"{seconds / size:.4g}"), limit, name) for size, limit, name in _TIMES)
    count, name = next((count, name) for count, limit, name in counts if count < limit)
    plural = "s" if len(name) > 2 and count != 1 else ""
    return f"{count:,g} {name}{plural}"
