"""Measured choices: what `autotune` remembers, who may use it, and what a damaged or shared file does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import npconv as nc
from npconv import arrays, config, disk
from npconv.algorithms import TRANSFORMED
from npconv.planning import measurements, plan_for, tuning

SHAPES = (1, 2, 9, 9), (3, 2, 3, 3)
CANDIDATES = ("direct", "im2col", "winograd", "fft")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder for measurements; compiled code stays where it is."""
    from npconv.kernels.cpu import compile as compiling

    arrays.require("numba")
    compiling.cache_folder()
    monkeypatch.setenv("NPCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measurements, "cache_dir", config.cache_dir)
    monkeypatch.setattr(disk, "_warned", set())
    measurements.forget()
    yield tmp_path / "autotune"
    measurements.forget()


@pytest.fixture
def clock(monkeypatch):
    """Call it with the times that will be "measured": by algorithm, or by (form, algorithm)."""

    def set_times(**seconds):
        def medians(jobs, wait):
            return {(form, name): seconds.get(f"{form}_{name}", seconds.get(name, 1.0)) for form, name in jobs}

        monkeypatch.setattr(tuning, "medians", medians)
        monkeypatch.setattr(tuning, "HOPELESS", 1e9)

    set_times()
    return set_times


def files(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def entries(cache):
    (path,) = cache.glob("*.json")
    return json.loads(path.read_text())["entries"]


# --------------------------------------------------------------------------------------------------------------------
# What is chosen
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("best", CANDIDATES)
def test_the_fastest_is_chosen_from_then_on(cache, clock, backend, best):
    clock(**{best: 0.5})
    before = nc.plan(*SHAPES, backend=backend)
    plan = nc.autotune(*SHAPES, backend=backend)
    assert before.measured_seconds is None
    assert nc.plan(*SHAPES, backend=backend) == plan
    assert (plan.algorithm, plan.measured_seconds) == (best, 0.5)
    measurements.forget()  # what the next process knows
    assert nc.plan(*SHAPES, backend=backend) == plan

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in SHAPES)
    np.testing.assert_array_equal(nc.conv(x, w, backend=backend), nc.conv(x, w, backend=backend, algorithm=best))


def test_a_plan_says_what_was_measured(cache, clock):
    clock(direct=0.002, im2col=0.003)
    plan = nc.autotune(*SHAPES, threads=2)
    assert "  measured       2 ms on 2 threads" in str(plan).splitlines()
    assert plan.rejected["im2col"] == "measured 3 ms, 1.5 times as long"
    assert plan.rejected["pointwise"].startswith("a pointwise convolution has")
    assert "measured" not in str(nc.plan((1, 2, 9, 10), SHAPES[1]))


def test_an_algorithm_asked_for_by_name_is_taken(cache, clock):
    clock(direct=0.5)
    nc.autotune(*SHAPES)
    plan = nc.plan(*SHAPES, algorithm="im2col")
    assert plan.algorithm == "im2col"
    assert plan.measured_seconds is None


def test_calls_and_packed_plans_have_times_of_their_own(cache, clock):
    clock(call_im2col=0.1, packed_winograd=0.1)
    assert nc.autotune(*SHAPES).algorithm == "winograd"
    spec, numba = nc.plan(*SHAPES).spec, arrays.require("numba")
    assert plan_for(spec, "forward", numba, np.dtype("f4")).algorithm == "im2col"


def test_strict_takes_the_fastest_that_it_allows(cache, clock):
    clock(winograd=0.1, fft=0.2, im2col=0.3, direct=0.4)
    assert nc.autotune(*SHAPES).algorithm == "winograd"
    with nc.strict():
        plan = nc.plan(*SHAPES)
        assert (plan.algorithm, plan.measured_seconds) == ("im2col", 0.3)
        assert {plan.rejected[name] for name in TRANSFORMED} == {"strict arithmetic was asked for"}


def test_what_strict_did_not_measure_is_not_decided(cache, clock):
    clock(im2col=0.1)
    with nc.strict():
        assert nc.autotune(*SHAPES).algorithm == "im2col"
        assert nc.plan(*SHAPES).measured_seconds == 0.1
    assert nc.plan(*SHAPES).measured_seconds is None, "Winograd might be faster: nobody looked"


def test_less_memory_takes_the_fastest_that_fits(cache, clock):
    clock(im2col=0.1, direct=0.2)
    assert nc.autotune(*SHAPES).algorithm == "im2col"
    assert nc.plan(*SHAPES, max_workspace=0).algorithm == "direct"
    # Measured again with less memory, the others' times are still known.
    clock(im2col=0.9, direct=0.05)
    assert nc.autotune(*SHAPES, max_workspace=0).algorithm == "direct"
    assert nc.plan(*SHAPES).rejected["im2col"].startswith("measured 100 ms, ")


def test_the_number_of_threads_does_not_change_the_choice(cache, clock):
    clock(im2col=0.1)
    nc.autotune(*SHAPES, threads=1)
    assert {nc.plan(*SHAPES, threads=n).algorithm for n in (1, 2, 3)} == {"im2col"}


@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
def test_gradients_are_measured_by_themselves(cache, clock, op):
    clock(im2col=0.1)
    plan = nc.autotune(*SHAPES, op=op, padding=1)
    assert (plan.op, plan.algorithm, plan.measured_seconds) == (op, "im2col", 0.1)
    assert nc.plan(*SHAPES, padding=1).measured_seconds is None


def test_layout_batch_axis_and_storage_type_are_the_same_question(cache, clock):
    clock(im2col=0.1)
    nc.autotune(*SHAPES)
    for x_shape, options in [
        ((2, 9, 9), {}),
        ((1, 9, 9, 2), {"layout": "channels_last"}),
        (SHAPES[0], {"dtype": "f2"}),
    ]:
        assert nc.plan(x_shape, SHAPES[1], **options).measured_seconds == 0.1
    for options in ({"dtype": "f8"}, {"padding": 1}, {"stride": 2}, {"backend": "numpy"}):
        assert nc.plan(*SHAPES, **options).measured_seconds is None


def test_what_is_predicted_to_be_hopeless_is_not_run(cache, monkeypatch):
    ran = []
    monkeypatch.setattr(tuning, "medians", lambda jobs, _: ran.extend(jobs) or dict.fromkeys(jobs, 0.1))
    monkeypatch.setattr(tuning, "HOPELESS", 1)
    plan = nc.autotune(*SHAPES, backend="numba")
    assert len(ran) == 2, "one candidate, in both forms"
    assert sum(reason.endswith("too slow to be measured") for reason in plan.rejected.values()) == 3


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "i1", "u4", "i8"])
def test_every_dtype_and_padding_mode_can_be_measured(cache, dtype):
    plan = nc.autotune((2, 5), (2, 2, 3), padding=1, padding_mode="circular", dtype=dtype, backend="numpy")
    assert plan.measured_seconds > 0


def test_empty_convolutions_can_be_measured(cache):
    assert nc.autotune((0, 2, 5), (2, 2, 3), backend="numpy").measured_seconds > 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"op": "backward"}, ValueError, "op must be one of 'forward', 'input_grad', 'weight_grad'; got 'backward'"),
        ({"dtype": "no"}, TypeError, "dtype must be"),
        ({"threads": 0}, ValueError, "threads must be positive"),
        ({"backend": "torch"}, ValueError, "backend must be one of"),
        ({"max_workspace": -1}, ValueError, "max_workspace must be zero or more"),
        ({"groups": 2}, ValueError, "groups"),
    ],
)
def test_bad_input_names_the_argument(cache, options, error, words):
    with pytest.raises(error, match=words):
        nc.autotune(*SHAPES, **options)
    assert files(cache) == []


# --------------------------------------------------------------------------------------------------------------------
# How time is taken
# --------------------------------------------------------------------------------------------------------------------


def test_runs_are_interleaved_and_the_hopeless_and_the_slow_run_once_more_only(monkeypatch):
    ran, length = [], {"quick": 1e-4, "slow": 1e-3, "long": 10.0, "lame": 2e-1}
    jobs = {("call", name): lambda name=name: ran.append(name) for name in length}

    def seconds(run, repeats, wait):
        for _ in range(repeats):
            run()
        return length[ran[-1]]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    times = tuning.medians(jobs, lambda: None)
    assert times == {("call", name): value for name, value in length.items()}
    assert ran[:8] == list(length) * 2, "once untimed, once timed, in turn"
    assert [ran.count(name) for name in length] == [2 + 10 * (tuning.RUNS - 1), 2 + tuning.RUNS - 1, 2, 2]


def test_a_real_measurement_is_kept_for_the_next_process(cache):
    plan = nc.autotune(*SHAPES, padding=1, activation="relu")
    assert plan.algorithm in CANDIDATES
    (entry,) = entries(cache)
    assert entry["threads"] == nc.get_num_threads()
    assert entry["algorithm"]["packed"] == plan.algorithm
    assert (entry["op"], entry["x_shape"], entry["padding"]) == ("forward", [1, 2, 9, 9], [[1, 1], [1, 1]])
    code = "import npconv as nc; p = nc.plan((1, 2, 9, 9), (3, 2, 3, 3), padding=1); print(p.measured_seconds)"
    assert float(run_python(code).stdout) == plan.measured_seconds


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)


def test_a_convolution_loads_nothing_that_measures():
    code = (
        "import sys, numpy as np, npconv as nc; print('npconv.planning' in sys.modules and 'npconv.planning.plan' in "
        "sys.modules); nc.conv1d(np.ones((1, 4)), np.ones((1, 1, 2)), backend='numpy'); "
        "print('npconv.planning.tuning' in sys.modules, 'numba' in sys.modules)"
    )
    assert run_python(code).stdout.split() == ["False"] * 3


# --------------------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------------------


def test_the_file_has_one_line_for_each_answer(cache, clock):
    for size in (5, 6, 7, 6):
        nc.autotune((1, 2, size), (2, 2, 3))
    (path,) = cache.iterdir()
    assert path.name.startswith("numba-")
    data = json.loads(path.read_text())
    assert data["machine"]["npconv"] == nc.__version__
    assert [entry["x_shape"][2] for entry in data["entries"]] == [5, 7, 6], "asked again is newest"
    assert len(path.read_text().splitlines()) == 3 + len(data["entries"]) + 1


def test_the_oldest_answers_are_dropped(cache, clock, monkeypatch):
    monkeypatch.setattr(measurements, "MOST", 3)
    for size in range(5, 10):
        nc.autotune((1, 2, size), (2, 2, 3))
    assert [entry["x_shape"][2] for entry in entries(cache)] == [7, 8, 9]
    assert nc.plan((1, 2, 5), (2, 2, 3)).measured_seconds is None


def test_off_keeps_answers_in_memory(cache, clock, monkeypatch):
    monkeypatch.setenv("NPCONV_CACHE_DIR", "off")
    clock(im2col=0.1)
    assert nc.autotune(*SHAPES).algorithm == "im2col"
    assert nc.plan(*SHAPES).algorithm == "im2col"
    assert files(cache) == []


def whole(cache):
    (path,) = cache.glob("*.json")
    return path, json.loads(path.read_text())


BROKEN = {
    "empty": "",
    "half": lambda data: json.dumps(data)[:100],
    "a list": "[]",
    "nothing": "null",
    "deep": "[" * 100_000,
    "of another format": lambda data: json.dumps(data | {"format": 99}),
    "of another machine": lambda data: json.dumps(data | {"machine": data["machine"] | {"processor": "other"}}),
    "without entries": lambda data: json.dumps({k: v for k, v in data.items() if k != "entries"}),
    "not numbers": lambda data: json.dumps(data).replace("1.0", "NaN"),
    "negative": lambda data: json.dumps(data).replace("1.0", "-1.0"),
    "text": lambda data: json.dumps(data).replace("1.0", '"1.0"'),
    "no names": lambda data: json.dumps(data).replace("x_shape", "y_shape"),
    "too large": " " * (measurements.LARGEST + 1),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_file_is_one_warning_and_is_replaced(cache, clock, damage):
    nc.autotune(*SHAPES)
    path, data = whole(cache)
    made = BROKEN[damage]
    path.write_text(made if isinstance(made, str) else made(data))
    measurements.forget()
    with pytest.warns(RuntimeWarning, match=r"measurements in .*numba-.*\.json are ignored") as caught:
        assert nc.plan(*SHAPES).measured_seconds is None
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    # Said once; from here on a warning would be an error.
    assert nc.plan((1, 2, 5), (2, 2, 3)).measured_seconds is None
    assert nc.autotune(*SHAPES).measured_seconds == 1.0
    measurements.forget()
    assert nc.plan(*SHAPES).measured_seconds == 1.0


def test_a_warning_that_is_an_error_comes_once(cache, clock):
    nc.autotune(*SHAPES)
    path, _ = whole(cache)
    path.write_bytes(b"\xff\xfe")
    measurements.forget()
    with pytest.raises(RuntimeWarning, match="are ignored"):
        nc.plan(*SHAPES)
    assert nc.plan(*SHAPES).measured_seconds is None


def test_a_folder_that_cannot_be_made_is_a_warning_and_answers_hold_here(cache, clock, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("NPCONV_CACHE_DIR", str(blocked))
    clock(im2col=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert nc.autotune(*SHAPES).algorithm == "im2col"
    assert any("NPCONV_CACHE_DIR" in str(w.message) and w.category is RuntimeWarning for w in caught)
    assert nc.plan(*SHAPES).algorithm == "im2col"


def test_what_another_process_wrote_meanwhile_stays(cache, clock):
    nc.autotune(*SHAPES)
    path, data = whole(cache)
    other = json.loads(json.dumps(data["entries"][0]).replace("[1, 2, 9, 9]", "[1, 2, 8, 8]"))
    path.write_text(json.dumps(data | {"entries": [other]}))  # and it dropped ours
    nc.autotune((1, 2, 5), (2, 2, 3))
    assert [entry["x_shape"][2] for entry in entries(cache)] == [9, 8, 5]
    assert nc.plan((1, 2, 8, 8), SHAPES[1]).measured_seconds == 1.0
    assert files(cache) == [path.name], "no draft and no lock is left"


def test_a_lock_left_behind_is_passed(cache, clock, monkeypatch):
    nc.autotune(*SHAPES)
    path, _ = whole(cache)
    path.with_suffix(".lock").touch()
    monkeypatch.setattr(measurements, "PATIENCE", 0.05)
    nc.autotune((1, 2, 5), (2, 2, 3))
    assert len(entries(cache)) == 2
    assert files(cache) == [path.name]


def test_processes_that_measure_at_once_lose_nothing(cache, tmp_path):
    # They begin together, and each holds what it has read for a while before it writes.
    code = """
import pathlib, sys, time, npconv as nc
from npconv.planning import measurements, tuning
channels, folder, write = int(sys.argv[1]), pathlib.Path(sys.argv[2]), measurements._write
tuning.medians = lambda jobs, wait: dict.fromkeys(jobs, 1.0)
measurements._write = lambda *arguments: (time.sleep(0.01), write(*arguments))
(folder / f"ready{channels}").touch()
while len(list(folder.glob("ready*"))) < 3:
    time.sleep(0.001)
for size in range(5, 15):
    nc.autotune((1, channels, size), (2, channels, 3), backend="numpy")
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(channels), str(tmp_path)], env={**os.environ})
        for channels in (1, 2, 3)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    assert len(entries(cache)) == 30


def test_threads_that_measure_and_plan_at_once_agree(cache, clock):
    clock(im2col=0.1)
    start = threading.Barrier(4)

    def work(i):
        start.wait(10)
        return [
            (nc.autotune if i % 2 else nc.plan)((1, 2, size), (2, 2, 3), backend="numpy").algorithm
            for size in range(5, 25)
        ]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, range(4)))
    assert answers[1] == answers[3] == ["im2col"] * 20
    assert [nc.plan((1, 2, size), (2, 2, 3), backend="numpy").algorithm for size in range(5, 25)] == ["im2col"] * 20
    assert len(entries(cache)) == 20


def test_the_command_line_measures(cache, clock, capsys):
    from npconv.cli import main

    clock(im2col=0.1)
    assert main(["autotune", "1x2x9x9", "3x2x3x3", "--op", "weight_grad", "--backend", "numpy"]) == 0
    assert "measured       100 ms" in capsys.readouterr().out
    assert main(["autotune", "1x2x9x9", "3x2x3x3", "--op", "sideways"]) == 2


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/there"}, "/there/npconv"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/npconv"),
        ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Caches/npconv"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/npconv"),
        ("win32", {"HOME": "/me"}, "/me/AppData/Local/npconv"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="a POSIX home folder is set")
def test_the_default_cache_folder_is_the_system_s(monkeypatch, system, variables, expected):
    for name in ("NPCONV_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert config.cache_dir().as_posix() == expected
