"""`benchmarks.gpu` on CuPy's stand-in: what it measures is computed rightly there, and what fails leaves the rest."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401 - a fixture

from benchmarks import gpu, gpu_cases, gpu_timers
from benchmarks.layers import conv, depthwise
from npconv import reference

SMALL = (conv("small", 3, 4, 5, 3, batch=2), depthwise("small", 3, 6, stride=2))


class HostTimer:
    """The clock of the processor; a graph is the work itself."""

    def chill(self) -> None:
        pass

    def elapsed(self, work) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def captured(self, work):
        raise RuntimeError("no graphs here")


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_every_contestant_of_ours_computes_the_layer(layer) -> None:
    x, w, dy = gpu_cases.operands(layer)
    pairs = tuple((p, p) for p in layer.paddings)
    options = {"stride": (layer.stride,) * 2, "padding": pairs, "dilation": (1, 1), "groups": layer.groups}
    right = {
        "forward": reference.conv(x, w, **options),
        "input_grad": reference.conv_input_grad(dy, w, layer.size, **options),
        "weight_grad": reference.conv_weight_grad(x, dy, layer.kernel, **options),
    }
    for op, expected in right.items():
        for layout in ("channels_first", "channels_last"):
            call, back = gpu_cases.npconv_call(layer, op, layout)
            np.testing.assert_allclose(back(call()), expected, rtol=0, atol=1e-4)
    for dtype, loss in (("float16", 2e-3), ("bfloat16", 2e-2), ("tf32", 2e-3), ("3xtf32", 1e-5)):
        if dtype == "bfloat16":
            pytest.importorskip("ml_dtypes")
        call, back = gpu_cases.first_images(gpu_cases.npconv_call(layer, "forward", dtype=dtype), "forward")
        expected = right["forward"][: gpu_cases.CHECKED]
        np.testing.assert_allclose(back(call()), expected, rtol=0, atol=loss * abs(expected).max())


@pytest.mark.usefixtures("cupy")
def test_a_section_whose_peers_fail_still_has_our_times(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_cases, "TIMERS", dict.fromkeys(gpu_cases.TIMERS, HostTimer))
    monkeypatch.setattr(gpu_cases, "LAYERS", SMALL)

    def broken(*_):
        raise RuntimeError("no cuDNN")

    monkeypatch.setattr(gpu_cases, "pytorch_call", broken)
    gpu.measure("forward", tmp_path / "rows")
    rows, begun = gpu.written("forward", tmp_path / "rows")
    assert [row["kind"] for row in rows] == ["3x3 stride 1", "depthwise"]
    assert begun == 1
    for row in rows:
        assert set(row["seconds"]) == {"npconv", "npconv channels-last"}
        assert row["errors"] == dict.fromkeys(gpu_cases.PYTORCH, "RuntimeError: no cuDNN")
        assert "in broken" in row["tracebacks"]["PyTorch"]
        assert row["differs"] == {}
        assert gpu.ratio(row) is None


def test_a_result_that_differs_is_no_ratio(monkeypatch) -> None:
    monkeypatch.setattr(gpu_cases, "TIMERS", dict.fromkeys(gpu_cases.TIMERS, HostTimer))
    contestants = {"npconv": 1.0, "PyTorch": 1.1}
    row = gpu_cases.measured(
        {name: lambda v=v: (lambda: v, lambda y: np.full(3, y)) for name, v in contestants.items()}, 1e-3, case="a"
    )
    assert row["differs"] == {"PyTorch": pytest.approx(0.1)}
    assert gpu.ratio(row) is None
    assert gpu.ratio({**row, "differs": {}}) > 0
    assert any("DIFFERS" in line for line in gpu.remarks([row]))
    assert gpu.failed(gpu.Section("forward", "done", rows=[row]))
    nan = {name: lambda v=v: (lambda: v, lambda y: np.full(3, y)) for name, v in {"npconv": 1.0, "x": np.nan}.items()}
    monkeypatch.setitem(gpu_cases.TIMERS, "x", HostTimer)
    assert "x" in gpu_cases.measured(nan, 1.0, case="b")["differs"]


class Simulated(HostTimer):
    """A device on which the cache is emptied in 1 ms and a cold call takes 20 µs."""

    now, cold = 0.0, True

    def chill(self) -> None:
        self.now, self.cold = self.now + 1e-3, True

    def call(self) -> None:
        self.now, self.cold = self.now + (2e-5 if self.cold else 1e-6), False

    def elapsed(self, work) -> float:
        start = self.now
        work()
        return self.now - start

    def captured(self, work):
        return work


def test_a_time_is_that_of_a_call_with_a_cold_cache() -> None:
    timer = Simulated()
    assert gpu_timers.seconds(timer, timer.call) == (pytest.approx(2e-5), "graph")
    host = HostTimer()
    took, how = gpu_timers.seconds(host, lambda: None)
    assert took >= 0
    assert how == "events: RuntimeError when captured"


def test_sections_that_fail_or_take_too_long_leave_the_others(monkeypatch, tmp_path, capsys) -> None:
    row = {"section": "forward", "number": 0, "case": "a", "seconds": {"npconv": 1e-3, "PyTorch": 2e-3}}
    text = json.dumps({**row, "kind": "depthwise", "how": {}, "errors": {}, "differs": {}}) + "\n{"
    programs = {
        "device": "print('x')",
        "check": "import sys; print('1 failed'); sys.exit(1)",
        "forward": f"import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text({text!r}); time.sleep(60)",
        "memcheck": None,
        "scipy": "raise RuntimeError('an illegal address')",
    }  # fmt: skip

    def command(name, rows, *_):
        return programs[name] and [sys.executable, "-c", programs[name], str(rows)]

    monkeypatch.setattr(gpu, "command", command)
    monkeypatch.setattr(gpu, "LIMITS", {**gpu.LIMITS, "forward": 1})
    monkeypatch.setattr(gpu, "ALL", sum(gpu.LIMITS[name] for name in programs))
    monkeypatch.setattr("npconv.arrays.require", lambda _: None)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert gpu.main(["--only", "check", "memcheck", "forward", "scipy"]) == 1
    page = (tmp_path / "out" / "gpu-unknown.md").read_text()
    assert "FAILED with status 1: 1 failed" in page
    assert "not run: compute-sanitizer was not found" in page
    assert "stopped after its 1 s" in page
    assert "FAILED with status 1: RuntimeError: an illegal address" in page
    assert "| forward | depthwise | 1 | 2.00 | 2 | 3 |" in page
    assert "| gradients | all | 0 | unmeasured |" in page
    found = json.loads((tmp_path / "out" / "gpu-unknown.json").read_text())
    assert list(found["sections"]) == ["device", "check", "memcheck", "forward", "scipy"]
    assert "written" in capsys.readouterr().out


def test_a_case_that_breaks_its_process_leaves_the_next_ones(monkeypatch, tmp_path) -> None:
    program = """
import os, pathlib, sys
from benchmarks import gpu

def cases():
    yield lambda: {"case": "good"}
    yield lambda: {"case": "breaks", "errors": {"npconv": "cudaErrorIllegalAddress: an illegal memory access"}}
    yield lambda: os._exit(3)
    yield lambda: 1 / 0
    yield lambda: {"case": "last"}

gpu.MEASURED["forward"] = cases
gpu.measure("forward", pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""
    monkeypatch.setattr(
        gpu, "command", lambda _, rows, first, *__: [sys.executable, "-c", program, str(rows), str(first)]
    )
    section = gpu.run("forward", 60, tmp_path / "rows")
    assert [row["case"] for row in section.rows] == ["good", "breaks", "case 3", "last"]
    assert "ZeroDivisionError" in section.rows[2]["tracebacks"]["npconv"]
    assert section.state.startswith("FAILED with status 3")
    assert gpu.failed(section)
    assert "broke the GPU's context" in section.output


def test_what_a_section_started_ends_with_it() -> None:
    sleeper = (
        "import subprocess, sys; print('begun', flush=True); "
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(30)'])"
    )
    start = time.perf_counter()
    assert gpu.finished([sys.executable, "-c", sleeper], 2) == (None, "begun\n")
    assert time.perf_counter() - start < 15


def test_the_tests_that_a_gpu_runs_exist() -> None:
    for name in ("check", "check-public"):
        files = [part for part in gpu.command(name, None) if part.endswith(".py")]
        assert files
        assert all(Path(file).exists() for file in files)


def test_no_gpu_is_said(monkeypatch, capsys) -> None:
    def missing(_):
        raise RuntimeError("the backend 'cupy' needs an NVIDIA GPU")

    monkeypatch.setattr("npconv.arrays.require", missing)
    assert gpu.main([]) == 2
    assert "no GPU can be used here: the backend 'cupy' needs" in capsys.readouterr().err


def test_a_few_sections_share_the_time_and_none_begins_after_it(monkeypatch, tmp_path) -> None:
    limits = []
    monkeypatch.setattr("npconv.arrays.require", lambda _: None)
    monkeypatch.setattr(gpu, "run", lambda name, limit, _: limits.append(limit) or gpu.Section(name, "done"))
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--only", "memcheck"]) == 0
    assert sum(limits) == pytest.approx(gpu.ALL)
    monkeypatch.setattr(gpu, "ALL", 3)
    assert gpu.main(["--only", "memcheck"]) == 0
    assert len(limits) == 2
    assert "not run: the time was up" in (tmp_path / "gpu-unknown.md").read_text()


def test_all_sections_fit_into_eight_minutes() -> None:
    assert sum(gpu.LIMITS.values()) < 480
    assert set(gpu.MEASURED) <= set(gpu.LIMITS)
    assert {name for name, _ in gpu.GOALS} <= set(gpu.MEASURED)
    assert {gpu_cases.kind(layer) for layer in gpu_cases.LAYERS} == {
        "depthwise",
        "3x3 stride 1",
        "other",
    }
