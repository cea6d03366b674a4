"""Quantities and times as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npconv.units import amount, duration

SI = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "minute": 60, "hour": 3600, "day": 86400, "year": 31557600}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 MAC"),
        (0.25, "0.25 MAC"),
        (999, "999 MAC"),
        (999.4, "999 MAC"),
        (999.7, "1 kMAC"),
        (999_600_000, "1 GMAC"),
        (1_024_000_000, "1.02 GMAC"),
        (10_240_000_000_000_000, "10.2 PMAC"),
        (-1500, "-1.5 kMAC"),
        (2.5e27, "2.5e+03 YMAC"),
    ],
)
def test_amount(value, text):
    assert amount(value, "MAC") == text


@given(st.floats(1e-3, 9.99e26))
def test_amount_keeps_three_digits_and_never_needs_an_exponent_above_one(value):
    number, unit = amount(value, "B").split()
    assert float(number) * SI[unit.removesuffix("B")] == pytest.approx(value, rel=0.5e-2)
    assert abs(float(number)) < 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-11, "0.025 ns"),
        (3.1e-3, "3.1 ms"),
        (0.99996, "1 s"),
        (1, "1 s"),
        (59.9999, "1 minute"),
        (60, "1 minute"),
        (10.24e15 / 12e12, "14.22 minutes"),
        (10.24e15 / 0.15e12, "18.96 hours"),
        (3600, "1 hour"),
        (24 * 3600, "1 day"),
        (10 * 365.25 * 86400, "10 years"),
        (12_345 * 365.25 * 86400, "12,340 years"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@given(st.floats(1e-9, 1e12))
def test_duration_keeps_four_digits(seconds):
    number, unit = duration(seconds).split()
    size = SECONDS[unit if unit in SECONDS else unit.removesuffix("s")]
    assert float(number.replace(",", "")) * size == pytest.approx(seconds, rel=0.5e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="value must be finite"):
        amount(value, "B")
    with pytest.raises(ValueError, match="seconds must be finite"):
        duration(value)


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match="seconds must be finite and not negative, got -1"):
        duration(-1)
