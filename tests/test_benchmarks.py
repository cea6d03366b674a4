"""The table of layers says what npconv computes, and comparisons count what they were told."""

from __future__ import annotations

import importlib.util
import math
import re
import sys

import numpy as np
import pytest

import npconv as nc
from benchmarks import planner, report, tables
from benchmarks.cases import Case
from benchmarks.compare import TOLERANCE, Notes, distance, measure, parse, prepare, present, stem
from benchmarks.layers import LAYERS, TINY, Layer, select
from benchmarks.peers import Contestant, extra_memory, onnx_model
from benchmarks.sweep import GROW, STEPS, Series, sizes
from benchmarks.sweep import LAYERS as SWEPT
from benchmarks.tables import FUNCTIONAL, PACKED, Row
from benchmarks.workers import ROOT, Failed, Worker

SMALL = TINY[0]


def row(layer: Layer = SMALL, **seconds: float) -> Row:
    return Row(layer, peak=1e9, seconds={name.replace("_", "-"): time for name, time in seconds.items()})


def test_names_are_unique():
    names = [layer.name for layer in (*LAYERS, *TINY)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("layer", [*LAYERS, *TINY], ids=lambda layer: layer.name)
def test_a_layer_is_the_convolution_that_npconv_plans(layer):
    plan = nc.plan(layer.x_shape, layer.w_shape, **layer.options)
    assert plan.spec.y_shape == layer.y_shape
    assert plan.macs == layer.macs
    assert (
        layer.macs
        == math.prod(layer.y_shape) * layer.products
        == layer.batch * layer.out_channels * (layer.pixels * layer.products)
    )


@pytest.mark.parametrize(
    ("network", "count"),
    [("lecture", 2), ("resnet50", 23), ("vgg16", 9), ("mobilenet-v1", 19), ("resnext50", 5)],
)
def test_networks_are_complete(network, count):
    assert len(select([network])) == count


def test_selection_by_network_and_by_part_of_a_name():
    assert {layer.network for layer in select(["unet", "volume"])} == {"unet", "volume"}
    assert all(layer.kernel == (1, 7) for layer in select(["inception 1x7"]))
    assert [layer.name for layer in select(["3x3 64>64 @56", "resnet50 3x3 64>64"])] == ["resnet50 3x3 64>64 @56"]
    with pytest.raises(ValueError, match=r"'alexnet'.*resnet50"):
        select(["alexnet"])


def test_ratios_are_those_of_the_fastest_peer():
    one = row(npconv=2.0, npconv_packed=1.0, ncnn=4.0, jax=3.0)
    assert one.fastest == "jax"
    assert (one.ratio(FUNCTIONAL), one.ratio(PACKED), one.ratio(PACKED, "ncnn")) == (1.5, 3.0, 4.0)
    assert one.share(PACKED) == 2 * SMALL.macs / 1e9
    assert one.ratio(PACKED, "openvino") is None
    assert row(npconv=1.0).ratio(FUNCTIONAL) is None


def test_means_are_geometric_and_name_the_lowest():
    rows = [row(npconv=1.0, jax=8.0), row(LAYERS[0], npconv=1.0, jax=0.5)]
    assert f"| all | 2 | 2.00 | 0.50 ({LAYERS[0].name}) |\n" in tables.means(rows)
    assert "| lecture | 1 | 0.50 | 0.50 |\n" in tables.networks(rows)


def test_a_peer_that_is_missing_on_a_layer_is_a_dash():
    rows = [row(npconv=1.0, jax=8.0), row(npconv=1.0, ncnn=2.0)]
    first, second = tables.table(rows).splitlines()[2:]
    assert first.endswith("| **8000** | - | 8.00 |")
    assert second.endswith("| - | **2000** | 2.00 |")


def test_shares_leave_out_forms_with_fewer_products():
    direct, winograd = (row(LAYERS[0], npconv=10.0) for _ in range(2))
    direct.algorithm, winograd.algorithm = "direct", "winograd"
    assert "npconv 20% in the mean" in tables.shares([direct, winograd])
    assert tables.shares([winograd]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (12.3456, "12346"), (0.0123456, "12.3"), (1.23e-6, "0.0012"), (0.00123, "1.23")]
)
def test_times_have_three_digits(seconds, text):
    assert tables.milliseconds(seconds) == text


def test_text_between_markers_is_replaced():
    text = "a <!-- m --> old <!-- end of m --> b"
    once = tables.insert(text, "m", "new")
    assert once == "a <!-- m -->\n\nnew\n\n<!-- end of m --> b"
    assert tables.insert(once, "m", "new") == once
    with pytest.raises(ValueError, match="no place for n"):
        tables.insert(text, "n", "new")


def test_a_result_that_differs_is_seen():
    y = np.ones((2, 3), np.float32)
    assert distance(y, y) == 0
    assert distance(y * 1.01, y) > TOLERANCE["float32"]
    assert distance(y[:1], y) == distance(y * np.nan, y) == math.inf


class Told:
    """A contestant that says what it is told to say."""

    def __init__(self, name, y):
        self.name, self.y = name, y

    def ask(self, verb, value):
        if isinstance(self.y, Failed):
            raise self.y
        return "direct", self.y


def test_who_is_wrong_or_fails_is_not_measured_and_said_so_once(capsys):
    right = np.arange(12, dtype=np.float32)
    workers = [
        Told(FUNCTIONAL, right),
        Told("ncnn", right + 1),
        Told("jax", Failed("too many")),
        Told("pytorch", right),
    ]
    notes, one = Notes(), row()
    for _ in range(2):
        ready = prepare(workers, Case(SMALL), one, notes)
    assert [worker.name for worker in ready] == [FUNCTIONAL, "pytorch"]
    assert set(one.wrong) == {"ncnn"}
    said = capsys.readouterr().err
    assert said.count("WRONG") == said.count("too many") == 1
    assert "differs" in tables.table([one])


def test_files_of_a_part_do_not_replace_those_of_the_whole():
    assert stem(parse([])) == "compare-forward-1t"
    assert (
        stem(parse(["--dtype", "float64", "--layers", "tiny", "3x3/2 dw"]))
        == "compare-forward-1t-float64-tiny-3x3-2-dw"
    )
    with pytest.raises(SystemExit):
        parse(["--readme", "--layers", "tiny"])


def test_what_a_contestant_lacks_is_said():
    contestant = Contestant(pytest.fail, ("no_such_module",))
    assert "no_such_module" in contestant.refusal("forward", "float32")
    contestant = Contestant(pytest.fail, (), ("forward",), ("float32",))
    assert contestant.refusal("forward", "float32") == ""
    assert "weight_grad" in contestant.refusal("weight_grad", "float32")
    assert "float64" in contestant.refusal("forward", "float64")


def test_the_onnx_model_is_one_convolution():
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(onnx_model(Case(SMALL)))
    onnx.checker.check_model(model, full_check=True)


def test_a_layer_is_measured_in_processes_of_their_own(capfd):
    notes = Notes()
    with Worker("peak", 1) as peak, Worker(FUNCTIONAL, 1) as functional, Worker(PACKED, 1) as packed:
        found = measure(peak, present([functional, packed], "forward", "float32", notes), Case(SMALL), 0.01, notes)
        with pytest.raises(Failed, match="TypeError"):
            functional.ask("prepare", Case(SMALL, dtype="object"))
    assert set(found.seconds) == {FUNCTIONAL, PACKED}
    assert found.algorithm
    assert found.peak > 1e9
    assert not notes.said
    assert found.layer.name in tables.line(found)


def test_a_point_off_the_line_is_found_and_does_not_bend_it():
    seconds = [1.0 + n for n in range(1, 9)]
    seconds[3] *= 2
    off = Series(SMALL, "batch", range(1, 9), range(1, 9), seconds).off
    assert off[3] == pytest.approx(1)
    assert np.abs(np.delete(off, 3)).max() < 1e-9


@pytest.mark.parametrize("layer", SWEPT, ids=lambda layer: layer.name)
def test_all_that_grows_is_a_convolution(layer):
    for size in sizes(layer):
        for value in STEPS[size]:
            grown = GROW[size](layer, value)
            assert nc.plan(grown.x_shape, grown.w_shape, **grown.options).macs == grown.macs


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of one call")
def test_the_memory_of_a_call_is_seen():
    held = extra_memory(lambda: np.ones(4 * 2**20, np.uint8))
    assert held > 3.9 * 2**20
    assert held < 8 * 2**20


def test_a_layer_is_measured_in_every_form_and_the_planner_is_held_against_it(monkeypatch):
    monkeypatch.setattr(planner, "LAYERS", (SMALL,))
    found = {SMALL.name: planner.measure(SMALL, 0.005)}
    call, packed = planner.cases(found)
    assert (call.form, packed.form) == ("call", "packed")
    assert call.lost >= 0
    assert found[SMALL.name]["peak"] > 1e8
    assert "| call | 1 |" in planner.summary([call, packed])


def test_what_a_choice_loses_and_how_far_a_prediction_is_off():
    predicted, measured = (
        {"direct": 2.0, "pointwise": 2.0, "winograd": 3.0},
        {"direct": 2.5, "pointwise": 2.4, "winograd": 2.0},
    )
    case = planner.Case(SMALL, "call", measured, predicted)
    assert (case.chosen, case.fastest) == ("direct", "winograd")
    assert case.off == pytest.approx(-0.2)
    assert case.lost == pytest.approx(0.2), "direct and pointwise are the same loops: the faster time counts"


@pytest.mark.parametrize("form", planner.FORMS)
def test_predictions_and_choices_are_right_on_what_was_measured(form):
    # The figures of the planner against the times that are kept with it; `python -m benchmarks.planner` measures them.
    stored = planner.load(planner.kept())
    found = [case for case in planner.cases(stored["layers"]) if case.form == form]
    assert len(found) >= 100
    assert np.mean([abs(case.off) <= planner.NEAR for case in found]) >= 0.9
    assert np.mean([case.lost <= planner.CLOSE for case in found]) >= 0.95


def test_what_the_documentation_quotes_has_a_program_that_makes_it():
    quoted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks" / "results").iterdir()}
    quoted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "images").iterdir()}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name for page in pages for name in re.findall(r"(?:benchmarks/results|images)/[\w.-]+\.\w+", page.read_text())
    }
    quoted |= {name if name.startswith("benchmarks") else f"docs/{name}" for name in named}
    made = tuple(start for part in report.PARTS.values() for start in part.writes)
    assert not [name for name in sorted(quoted) if not name.startswith(made)]


def test_what_a_person_says_of_a_table_is_not_in_the_table(monkeypatch):
    models = pytest.importorskip("benchmarks.models")
    monkeypatch.setattr(models, "versions", ", ".join)  # ONNX Runtime may not be here
    text = models.report([["a", "2.00", "4.00", "2.00"], ["b", "1.00", "1.00", "1.00", "138"]])
    assert "| a | 2.00 | 4.00 | 2.00 |" in text
    assert "138 times as long as npconv on b." in text
    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    assert "results/models.md" in page, "where the table is taken from its file, and what is said of it stands"


def test_the_report_names_programs_that_exist(capsys):
    assert report.main(["--list"]) == 0
    for line in capsys.readouterr().out.splitlines():
        module = line.split(" -m ")[1].split()[0]
        assert importlib.util.find_spec(module) is not None


def test_a_report_goes_on_behind_what_fails_and_is_resumed(monkeypatch, tmp_path, capsys):
    """A part that writes nothing has failed, one that needs what is not there is left out, and both are said."""
    (tmp_path / "fine.py").write_text("from pathlib import Path\nPath('made.md').write_text('x')\n")
    (tmp_path / "mute.py").write_text("")
    parts = {
        "mute": report.Part("mute", ("nothing",)),
        "fails": report.Part("nobody", ()),
        "peerless": report.Part("fine", ("made",), needs=("no_such_package",)),
        "fine": report.Part("fine", ("made",)),
    }
    monkeypatch.setattr(report, "PARTS", parts)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "STATE", tmp_path / "build" / "report.json")
    assert report.main(["--only", *parts]) == 1
    said = capsys.readouterr().out
    assert "mute: FAILED: wrote no nothing" in said
    assert "fails: FAILED: exit status 1" in said
    assert "peerless: left out: it needs no_such_package" in said
    assert "fine: done" in said
    (tmp_path / "mute.py").write_text("from pathlib import Path\nPath('nothing.md').write_text('x')\n")
    (tmp_path / "made.md").unlink()
    assert report.main(["--resume", "--only", "mute", "fine"]) == 0
    said = capsys.readouterr().out
    assert "mute: done" in said
    assert "fine: was done before" in said
    assert not (tmp_path / "made.md").exists()
    assert not report.STATE.exists(), "all is done"
