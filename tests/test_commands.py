"""The commands of the command line, in this process: what they print, write and refuse."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import npconv as nc
from npconv import disk, roofs, self_test
from npconv.cli import main
from npconv.commands import NAMES, bench


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is measured stays in this test."""
    monkeypatch.setattr(roofs, "_remembered", {})
    monkeypatch.setattr(disk, "_warned", set())
    monkeypatch.setattr(roofs, "_path", lambda: tmp_path / "cache" / "roofs.json")
    monkeypatch.setattr(roofs, "SECONDS", 0.01)


def run(line, capsys):
    status = main(shlex.split(line))
    out, err = capsys.readouterr()
    return status, out, err


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture, np.float32) / 255


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (12, 17, 3), np.uint8)).save("colour.png")
    Image.fromarray(rng.integers(0, 256, (9, 8), np.uint8)).save("grey.png")
    np.save("mine.npy", np.eye(3) / 3)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_command_teaches_by_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    words, _, examples = capsys.readouterr().out.partition("examples:")
    assert f"npconv {name}" in examples
    description = re.split(r"\n(?:positional|options)", words.partition("\n\n")[2])[0]
    assert description.strip()
    assert not re.search(r"^ ", description, re.MULTILINE), "paragraphs of a docstring are not indented"


def test_the_lectures_table_with_this_machine(capsys):
    status, out, _ = run("cost --layers 10 --samples 1e6 100 100 5 5 64 64", capsys)
    assert status == 0
    for part in ("1.02 GMAC", "10.2 PMAC", "18.96 hours", "14.22 minutes", "this machine"):
        assert part in out


def test_cost_as_json_counts_machines(capsys):
    line = "cost 1x8x16x16 8x8x3x3 --padding 1 --training --machines h100 --count 4 --json"
    _, out, _ = run(line, capsys)
    (row,) = json.loads(out)
    layer = nc.cost.conv((1, 8, 16, 16), (8, 8, 3, 3), padding=1).training()
    assert row["macs"] == layer.macs
    assert row["seconds"] == {"4 x H100, float32": layer.seconds(nc.machine.NAMED["h100"].times(4))}


def test_cost_of_a_separable_pair_and_of_variations(capsys):
    out = run("cost --separable 512 512 3 3 14 14", capsys)[1]
    assert "52.3 MMAC" in out
    dense, *_ = json.loads(run("cost --separable 8x3x9x9 4x3x3x3 --json", capsys)[1])
    assert dense["macs"] == nc.cost.conv((8, 3, 9, 9), (4, 3, 3, 3)).macs
    saved = 1 / nc.cost.separable(512, 512, 3, (14, 14)).ratio
    assert f"The dense layer has {saved:.3g} times the MACs, 8.84 times the parameters" in out
    assert "twice the channels" in run("cost --vary 64 64 3 3 56 56", capsys)[1]


def test_plan_measures_what_can_run(capsys):
    status, out, _ = run("plan 1x4x9x9 4x4x3x3 --measure --json --backend numpy", capsys)
    values = json.loads(out)
    assert status == 0
    assert set(values["measured_seconds"]) == {values["algorithm"], *values["rejected"]} - {"depthwise", "pointwise"}
    assert min(values["measured_seconds"].values()) > 0
    assert (values["stride"], values["padding"], values["groups"]) == ([1, 1], [[0, 0], [0, 0]], 1)
    table = run("plan 1x4x9x9 4x4x3x3 --measure --backend numpy", capsys)[1].partition("measured")[2].splitlines()
    assert "predicted" in table[0]
    assert {line.split()[-1] for line in table[1:]} == set(values["measured_seconds"])


def test_cost_of_a_network_by_name(capsys):
    line = "cost lenet5 4x1x28x28 --backward --machines h100 --json"
    *layers, whole = json.loads(run(line, capsys)[1])
    forward = nc.cost.model(nc.models.lenet5(), (4, 1, 28, 28))
    assert whole["macs"] == sum(layer["macs"] for layer in layers) == 2 * sum(c.macs for c in forward) - forward[0].macs


@pytest.mark.parametrize("line", ["autotune 1x2x8x8 2x2x3x3 --backend numpy --json", "warmup float32 --json"])
def test_answers_for_programs(line, capsys, monkeypatch):
    monkeypatch.setattr(nc, "warmup", lambda _: 0.5)
    status, out, err = run(line, capsys)
    assert (status, err) == (0, "")
    assert json.loads(out)


def test_info_checks_itself(capsys, monkeypatch):
    monkeypatch.setattr(self_test, "CASES", self_test.CASES[2:3])
    monkeypatch.setattr(self_test, "available_backends", lambda: ("numpy",))
    status, out, err = run("info --check", capsys)
    assert (status, err) == (0, "")
    assert "ok         numpy direct weight_grad" in out
    monkeypatch.setattr(self_test, "conv", lambda *a, **k: nc.conv(*a, **k) + 1)
    status, out, err = run("info --check --json", capsys)
    assert status == 1
    assert {check["right"] for check in json.loads(out)["check"]} == {True, False}
    assert "numpy direct forward" in err
    assert "gradient" not in err


def test_bench_names_every_layer(capsys, monkeypatch):
    monkeypatch.setattr(bench, "LAYERS", [("small", (1, 2, 8, 8), (3, 2, 3, 3), {"padding": 1})])
    status, out, _ = run("bench --seconds 0.01 --backend numpy --json", capsys)
    values = json.loads(out)
    assert status == 0
    assert [layer["layer"] for layer in values["layers"]] == ["small"]
    assert values["machine"]["flops_per_second"] > 0


def test_filter_is_correlate(pictures, capsys):
    assert run("filter colour.png --kernel mine.npy -o out.png", capsys)[0] == 0
    pixels = pixels_of("colour.png")
    expected = nc.correlate(pixels, np.eye(3, dtype=np.float32) / 3, axes=(0, 1))
    assert np.abs(pixels_of("out.png") - expected).max() <= 0.5 / 255 + 1e-6


def test_filter_takes_folders_and_patterns_and_is_quiet_when_piped(pictures, capsys):
    (pictures / "folder.png").mkdir()
    assert run("filter . --kernel gaussian:1.5", capsys)[1:] == (
        "2 pictures written, the last to npconv-filtered/grey.png\n",
        "",
    )
    with Image.open("npconv-filtered/grey.png") as picture:
        assert picture.mode == "L"
    written = json.loads(run("filter '*.png' --kernel sobel -o edges --json", capsys)[1])
    assert [row["written"] for row in written] == ["edges/colour.png", "edges/grey.png"]
    assert sorted(path.name for path in (pictures / "edges").iterdir()) == ["colour.png", "grey.png"]


def test_one_broken_picture_does_not_stop_the_others(pictures, capsys):
    (pictures / "broken.png").write_bytes(b"no picture")
    status, out, err = run("filter . --kernel box:3 -o out", capsys)
    assert (status, out, len(err.splitlines())) == (1, "", 2)
    assert "broken.png" in err
    assert len(list((pictures / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("filter colour.png --kernel gaussian", "gaussian:SIGMA"),
        ("filter colour.png --kernel gaussian:wide", "gaussian:SIGMA"),
        ("filter colour.png --kernel box:-1", "size"),
        ("filter colour.png --kernel box:2.5", "size of a box must be an integer, got 2.5"),
        ("filter colour.png --kernel box:inf", "size of a box must be an integer, got inf"),
        ("filter colour.png --kernel none.npy", "no kernel at none.npy"),
        ("filter colour.png --kernel huge.npy", "must be finite"),
        ("filter colour.png --kernel colour.npy", "not an array"),
        ("filter colour.png --kernel line.npy", "two dimensions"),
        ("filter colour.png --kernel sobel --boundary edge", "boundary"),
        ("filter colour.png --kernel sobel -o colour.png", "over a picture"),
        ("filter colour.png --kernel sobel -o out.txt", "kind of picture"),
        ("filter . --kernel sobel -o out.png", "a folder"),
        ("filter nothing.png --kernel sobel", "no picture at nothing.png"),
        ("filter '*.webp' --kernel sobel", "*.webp"),
        ("filter '' --kernel sobel", "a picture must have a name"),
        ("cost nothing.onnx", "nothing.onnx: No such file"),
        ("cost folder.png.onnx", "folder.png.onnx: Is a directory"),
        ("cost 4 4 3 3 8 8 --layers 1e300 --samples 1e300", "at most 1e300"),
        ("cost 1 2 3", "100 100 5 5 64 64"),
        ("cost mobilenet_v1", "give the shape"),
        ("cost mobilenet_v1 1x3x8", "takes pictures"),
        ("cost lenet5 1x1x28x28 --groups 2", "got --groups"),
        ("cost mine.npz", "no file of weights"),
        ("cost 1x3x8 4x3xx", "sizes must be"),
        ("cost --separable --groups 2 4 4 3 3 8 8", "--groups"),
        ("cost mobilenet_v9", "mobilenet_v2"),
        ("cost --separable 1x3x8x8 4x7x3x3", "has 3 channels"),
        ("cost --separable --samples 10 4 4 3 3 8 8", "no --samples"),
        ("cost --vary --layers 10 4 4 3 3 8 8", "no --layers"),
        ("filter colour.png --kernel gaussian:1e9", "1000 pixels or less"),
    ],
)
def test_mistakes_are_one_line_and_status_2(line, words, pictures, capsys):
    (pictures / "colour.npy").write_bytes(b"no array")
    np.save("line.npy", np.ones(3))
    (pictures / "folder.png.onnx").mkdir()
    np.save("huge.npy", np.full((3, 3), 1e300))
    status, out, err = run(line, capsys)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    "line",
    [
        "", "frobnicate", "plan", "cost --layers ten 1 1 3 3 8 8", "cost 4 4 3 3 8 8 --count 0",
        "cost 4 4 3 3 8 8 --samples 0", "predict weights.npz x.png --top 0", "demo --seed -1",
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line_and_status_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_warning_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(nc, "show_config", lambda: warnings.warn("the cache\ncannot be written", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("info", capsys) == (0, "", "npconv: warning: the cache cannot be written\n")


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "0", "soon"])
def test_a_measurement_that_never_ends_is_refused(seconds, capsys):
    with pytest.raises(SystemExit) as error:
        run(f"bench --seconds {seconds}", capsys)
    assert error.value.code == 2
    assert "expected seconds" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("filter x.png --kernel sobel", "PIL"), ("completion bash", "shtab")])
def test_a_missing_package_names_its_extra(name, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run(name, capsys)
    assert status == 1
    assert "pip install 'npconv[" in err


COMPLETING = """
source npconv.bash
for line in "npconv" "npconv cost --machines h" "npconv train --model" "npconv filter gr"; do
    COMP_WORDS=($line); [[ $line == *-* || $line == npconv ]] && [[ $line != *h ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _shtab_npconv npconv "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo ${COMPREPLY[*]}
done
"""


def test_completion_completes(capsys, pictures, monkeypatch):
    """In bash and fish themselves; zsh at least reads its script. Where there is such a shell."""
    shtab = pytest.importorskip("shtab")
    monkeypatch.setattr(shtab, "SUPPORTED_SHELLS", [shell for shell in shtab.SUPPORTED_SHELLS if shell != "tcsh"])
    status, out, err = run("completion tcsh", capsys)
    assert (status, out) == (1, "")
    assert "knows bash" in err
    for shell in set(shtab.SUPPORTED_SHELLS) & {"bash", "zsh", "fish"}:
        status, out, _ = run(f"completion {shell}", capsys)
        assert status == 0
        (pictures / f"npconv.{shell}").write_text(out)
        if shutil.which(shell):
            subprocess.run([shell, "-n", f"npconv.{shell}"], check=True)
    if shutil.which("fish") and "fish" in shtab.SUPPORTED_SHELLS:
        ask = "source npconv.fish; complete -C 'npconv train --model mobile'"
        done = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["mobilenet", "mobilenet_v2"]
    if not shutil.which("bash") or os.name != "posix":
        pytest.skip("there is no bash here")
    done = subprocess.run(["bash", "-c", COMPLETING], capture_output=True, text=True, check=True)
    commands, machines, models, files = done.stdout.splitlines()
    assert commands.split() == list(NAMES)
    assert machines.split() == [name for name in nc.machine.NAMED if name.startswith("h")]
    assert "mobilenet" in models.split()
    assert files == "grey.png"


def test_roofs_are_remembered_and_measured_anew_when_asked(monkeypatch):
    first = nc.this_machine("float64", threads=1)
    monkeypatch.setattr(roofs, "_fastest", lambda _: 1.0)
    assert nc.this_machine("float64", threads=1) == first
    roofs._remembered.clear()
    assert nc.this_machine("float64", threads=1) == first, "from the file"
    assert nc.this_machine("float64", threads=1, fresh=True) != first
    with pytest.raises(TypeError, match="dtype"):
        nc.this_machine("int8")
    with pytest.raises(ValueError, match="threads"):
        nc.this_machine(threads=0)


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
def test_roofs_are_the_user_s_alone(tmp_path):
    nc.this_machine(threads=1)
    path = tmp_path / "cache" / "roofs.json"
    assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
    roofs._remembered.clear()
    path.chmod(0o622)
    with pytest.warns(RuntimeWarning, match="others may write it"):
        assert roofs.remembered("float32", 1) is None


BROKEN_ROOFS = ["", "{", "[]", "[" * 100_000, '{"format": 0}', '{"format": 1, "machines": {"a": 3}}'] + [
    f'{{"format": 1, "machines": {{"a": ["here", {rates}]}}}}' for rates in ("1.0, NaN", "Infinity, 1.0", "-1.0, 1.0")
]


@pytest.mark.parametrize("text", [*BROKEN_ROOFS, " " * (roofs.LARGEST + 1)], ids=lambda text: text[:50].strip())
def test_a_broken_file_of_roofs_is_one_warning_and_is_written_anew(text, tmp_path):
    path = tmp_path / "cache" / "roofs.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.warns(RuntimeWarning, match=r"roofs\.json is ignored"):
        assert roofs.remembered("float32", 1) is None
    # Said once; from here on a warning would be an error.
    assert nc.this_machine(threads=1).macs_per_second > 0
    assert json.loads(path.read_text())["format"] == roofs.FORMAT


def test_roofs_that_cannot_be_kept_are_one_warning(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        first = nc.this_machine(threads=1)
    assert nc.this_machine("float64", threads=1) != first, "measured and not kept, without a word"
    assert nc.this_machine(threads=1) == first
