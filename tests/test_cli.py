"""The command line as a person meets it: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npconv as nc
from npconv import demo
from npconv.cli import main


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "npconv", *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=cwd
    )


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """One run of the whole demonstration, in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    done = run("demo", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, folder / "npconv-demo"


def test_demo_reports_every_part(demonstration):
    done, _ = demonstration
    for part in (
        "3×427×640", "edges", "blur", "sharpen", "emboss", "1x1 channel mix", "stride", "depthwise",
        "1x1 convolution against the matrix product: equal", "backend numba against numpy: equal",
        "held-back digits recognised", "18.96 hours", "14.22 minutes", "10.2 PMAC", "1.02 GMAC", "FLOP", "this machine",
        "feature_maps.png", "training.png",
    ):  # fmt: skip
        assert part in done.stdout, part
    recognised = float(done.stdout.split("% of 360 held-back digits")[0].split()[-1])
    assert recognised >= 97


def test_demo_is_quiet_when_piped(demonstration):
    assert demonstration[0].stderr == ""


@pytest.mark.parametrize("name", ["feature_maps.png", "training.png"])
def test_demo_writes_pictures(demonstration, name):
    from PIL import Image

    with Image.open(demonstration[1] / name) as picture:
        assert min(picture.size) > 400
        assert np.asarray(picture.convert("L")).std() > 10, "not blank"


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (40, 30)), ("L", (33, 64)), ("RGBA", (17, 9)), ("P", (8, 8)), ("1", (9, 12))]
)
def test_any_picture_can_be_loaded(tmp_path, mode, size):
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.new(mode, size, 1).save(path)
    loaded = demo.load_image(path)
    assert loaded.shape == (3, size[1], size[0])
    assert loaded.dtype == np.float32
    assert loaded.min() >= 0
    assert loaded.max() <= 1


def test_filters_run_on_a_tiny_picture():
    lines = []
    results = [demo.apply(f, np.full((3, 4, 5), 0.5, np.float32), lines.append) for f in demo.filters()]
    assert len(lines) == len(results)
    blurred = dict(results)["blur 7x7"]
    np.testing.assert_allclose(blurred, 0.5, rtol=1e-6)  # the kernel sums to 1, 49 products of rounded weights


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_missing_or_broken_picture_is_one_line_and_status_2(tmp_path, content):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    done = run("demo", "--image", path, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
    assert not (tmp_path / "npconv-demo").exists()


def test_a_truncated_picture_is_one_line_and_status_2(tmp_path):
    from PIL import Image

    path = tmp_path / "picture.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500])
    done = run("demo", "--image", path, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_folder_in_place_of_a_picture_is_one_line_and_status_2(tmp_path):
    done = run("demo", "--image", tmp_path, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_an_output_folder_that_cannot_be_made_is_one_line_and_status_1(tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = run("demo", "--output", tmp_path / "taken", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "taken" in done.stderr


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "tqdm", "PIL"])
def test_without_its_packages_the_demo_names_the_extra(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo"]) == 1
    assert "pip install 'npconv[demo]'" in capsys.readouterr().err


def test_info_as_text_and_as_json(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (nc.__version__, np.__version__, "numba", "threads", "cache", "NPCONV_BACKEND", "BLAS", "GPU  "):
        assert part in text
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backends"][:2] == ["numpy", "numba"]
    assert facts["threads"] == nc.get_num_threads()
    assert (facts["gpu"]["name"] is None) == ("cupy" not in facts["backends"])
    assert facts["gpu"]["name"] or "CuPy" in facts["gpu"]["missing"] or "GPU" in facts["gpu"]["missing"]


def test_plan_prints_the_plan(capsys):
    assert main(shlex.split("plan 1x64x56x56 64x64x3x3 --padding 1 --stride 2x1 --backend numpy")) == 0
    expected = nc.plan((1, 64, 56, 56), (64, 64, 3, 3), padding=1, stride=(2, 1), backend="numpy")
    assert capsys.readouterr().out.strip() == str(expected)


def test_cost_gives_macs_and_flops_under_their_names(capsys):
    assert main(shlex.split("cost 1x100x64x64 100x100x5x5 --padding same")) == 0
    out = capsys.readouterr().out
    assert "MACs        1,024,000,000" in out
    assert "FLOPs       2,048,000,000" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "required"),
        ("frobnicate", "invalid choice"),
        ("plan 1x3 4x3x3", "x_shape"),
        ("plan 1x3x8 4x3x3 --groups 2", "groups=2"),
        ("plan 1x3x8 4x3x9", "larger than the padded input"),
        ("plan 1x3x8 4x3x3 --padding sane", "'same'"),
        ("plan 1x3xx 4x3x3", "expected sizes"),
        ("plan 1x3x8 4x3x3 --backend torch", "backend"),
        ("plan 1x3x8 4x3x3 --algorithm fast", "algorithm"),
        ("plan 1x3x8 4x3x3 --dtype float7", "dtype"),
        ("cost 1x3x8 4x3x3 --stride 0", "stride"),
        ("warmup float7", "float7"),
    ],
)
def test_a_wrong_call_is_explained_with_status_2(line, words):
    done = run(*shlex.split(line))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert words in done.stderr


def test_help_teaches_by_example():
    done = run("--help")
    assert done.returncode == 0
    assert "npconv demo --image" in done.stdout


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{shlex.quote(sys.executable)} -m npconv info | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_the_script_is_installed():
    assert (Path(sys.executable).parent / "npconv").exists()
