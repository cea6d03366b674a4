"""The comparison of filters: what it measures, what it refuses to, and what it writes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import filters as bench

pytest.importorskip("scipy")


def test_a_case_is_measured_and_a_wrong_result_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case, x, w):
        return lambda: np.zeros_like(x)

    monkeypatch.setitem(bench.CONTESTANTS, "skimage", bench.Contestant(wrong))
    names = ["ndimage", "signal direct", "signal fft", "oaconvolve", "skimage"]
    cases = (bench.Case((12, 13), (3, 3)), bench._gaussian(2, 16, 0.5), bench.Case((50,), (5,)))
    rows = [bench.measure(case, names, 0.001) for case in cases]
    for row in rows:
        assert set(row.seconds) == {"npconv", *names[:-1]}
        assert row.wrong["skimage"] == 1
        assert row.ratio() == row.seconds[row.fastest] / row.seconds["npconv"]
    text = bench.table(rows)
    assert "differs" in text
    assert "12x13 dense 3x3" in text
    assert bench.means(rows).count("\n") == 1 + 3 + 1


def test_slow_contestants_filter_a_corner() -> None:
    row = bench.measure(bench.Case((300, 300), (15, 15)), ["ndimage"], 0.001)
    assert row.scaled == {"ndimage"}
    assert "~" in bench.table([row])


def test_cases_are_named_once_and_chosen_by_name() -> None:
    names = [case.name for case in bench.CASES]
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit):
        bench.main(["--cases", "nothing of the kind"])
