"""What the documentation shows, runs; what it names, is there; the version is one."""

from __future__ import annotations

import inspect
import itertools
import json
import operator
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import stress

import npconv as nc
from docs import figures, links, reading_order
from npconv.commands import NAMES

ROOT = Path(nc.__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def test_the_lectures_notebook_runs(monkeypatch):
    import matplotlib as mpl

    mpl.use("agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    book = json.loads((ROOT / "examples" / "channels.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "channels.ipynb", "exec"), names)
    mpl.pyplot.close("all")
    np.testing.assert_array_equal(
        names["corr2d_multi_in_out"](np.ones((2, 3, 3)), np.ones((1, 2, 2, 2))), np.full((1, 2, 2), 8)
    )
    assert (names["guesses"] == names["digits"].target[names["held_back"]]).mean() > 0.98, "the MobileNet is trained"
    assert names["split"] * 8 > names["dense"] > names["split"] * 7.5
    # The notebook is the gallery's page; `python -m docs.notebook` makes it.
    source = (ROOT / "examples" / "gallery" / "plot_channels.py").read_text(encoding="utf-8")
    for cell in cells:
        assert cell.strip() in source


NEEDS = {"plot_onnx": ["onnx"], "plot_larger_than_memory": ["dask.array"]}
"""Packages of extras that the examples need and the tests' extra may not have."""

GALLERY = sorted((ROOT / "examples" / "gallery").glob("plot_*.py"))


def test_the_gallery_has_an_order():
    assert sorted(reading_order.ORDER) == [path.name for path in GALLERY]


# The lecture is the notebook, which has run.
@pytest.mark.parametrize("path", [p for p in GALLERY if p.stem != "plot_channels"], ids=lambda path: path.stem)
def test_the_gallery_runs(path, monkeypatch):
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    runpy.run_path(str(path))
    assert plt.get_fignums(), "it draws"
    plt.close("all")


def execute(block, page, names):
    """Run a block of a page as it stands, on NumPy: nothing has to be compiled to see whether it is right."""
    with nc.use_backend("numpy"):
        exec(compile(block, page, "exec"), names)


def blocks_of(page):
    """Python on a page that is not a session with its answers."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if not block.startswith(">>>")]


def given(page):
    """What the reader of a page has already."""
    rng = np.random.default_rng(0)
    pixels, size = {"docs/networks.md": ((2, 1, 32, 32), 2)}.get(page, ((6, 1, 8, 8), 6))
    pictures, classes = rng.random(pixels, np.float32), np.arange(size) % 10
    images = {"images": pictures, "labels": classes, "others": pictures, "their_labels": classes}
    big = rng.random((70, 20))
    slices = {"big": big, "k": 3, "step": 16, "result": np.zeros((68, 18))}
    if page != "docs/howto.md":
        return images
    layer = {"x": rng.random((1, 3, 9, 9)), "w": rng.random((4, 3, 3, 3)), "bias": np.zeros(4)}
    return {"nc": nc, "np": np, "network": nc.nn.Conv2d(3, 4, 3, stride=16, rng=0), **slices, **layer}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/howto.md", "docs/networks.md"])
def test_what_a_page_says_to_type_runs(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nc, "autotune", nc.plan)  # measures for seconds, and remembers
    monkeypatch.setattr(nc, "this_machine", lambda: nc.machine.NAMED["h100"])
    names = given(page)
    blocks = blocks_of(page)
    assert blocks
    for block in blocks:
        if "big[" in block:
            names["w"] = np.ones((3, 3))
        execute(block.replace("epochs=20", "epochs=2"), page, names)
    if page == "docs/howto.md":
        np.testing.assert_allclose(names["result"], nc.correlate(names["big"], names["w"], mode="valid"))
    if page == "README.md":
        with pytest.raises(ValueError, match="expects 2 x 1 = 2"):
            nc.conv2d(names["x"], names["w"][:, :2])


def test_what_the_explanation_computes_is_so(tmp_path):
    text = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    blocks = blocks_of("docs/engine.md")
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for block in blocks:
        execute(block, "engine.md", names)
    # Its pictures compare what they show; each is on the page.
    with nc.use_backend("numpy"):
        figures.explanation(tmp_path)
    for picture in tmp_path.iterdir():
        assert f"](images/{picture.name})" in text
        assert (ROOT / "docs" / "images" / picture.name).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        if target.startswith("gallery/"):
            target = f"../examples/{target.removesuffix('.rst')}.py".replace("gallery/index.py", "gallery/README.rst")
        # CONTRIBUTING.md and CHANGELOG.md are included into docs/.
        assert (page.parent / target).exists(), target


def their_names(library):
    """What the left column calls functions by, and how it takes an array."""
    if library == "PyTorch":
        torch = pytest.importorskip("torch")
        return {"torch": torch, "F": torch.nn.functional}, torch.from_numpy
    if library == "astropy":
        convolution = pytest.importorskip("astropy.convolution")
        return {name: getattr(convolution, name) for name in ("convolve", "convolve_fft")}, np.asarray
    pytest.importorskip("scipy.ndimage")
    import scipy.signal

    return {"scipy": scipy}, np.asarray


@pytest.mark.parametrize("library", ["PyTorch", "SciPy", "astropy"])
def test_what_is_called_what_is_equal(library):
    page = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {library}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\S[^`]*\))`[^|`]*\| `(nc\.[^`]*\))`[^|`]*\|$", section, re.MULTILINE)
    assert len(rows) >= 4
    rng = np.random.default_rng(0)
    if library == "PyTorch":
        numbers = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 1}
        shapes = {"x": (2, 4, 9, 11), "w": (4, 4, 3, 3), "b": (4,), "dy": (2, 4, 7, 9), "columns": (2, 36, 63)}
        arrays = {name: rng.random(shape) for name, shape in shapes.items()}
    else:
        numbers, arrays = {}, {"x": rng.random((12, 14)), "w": rng.random((3, 5)), "m": rng.random((12, 14)) < 0.1}
        arrays["gaps"] = np.where(arrays["m"], np.nan, arrays["x"])
    theirs, take = their_names(library)
    for left, right in rows:
        # With groups a kernel has half of the channels.
        mine = arrays | ({"w": arrays["w"][:, :2]} if "groups" in left else {})
        expected = eval(left, theirs | numbers | {name: take(array) for name, array in mine.items()})
        with nc.use_backend("numpy"):
            found = eval(right, {"nc": nc, "np": np} | numbers | mine)
        np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-10, atol=1e-12, err_msg=right)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_skip_no_level(page):
    """Which `make docs` refuses, and takes minutes to find."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert not levels or levels[0] == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = '<h1 id="top">x</h1><a href="b.html#there">b</a><a href="#top">up</a><a href="https://d2l.ai/">d2l</a>'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<a name="there" href="a.html">a</a><img src="data:image/png;base64,AA">')
    assert links.problems(tmp_path) == []
    for wrong, why in {
        "b.html#here": "place", "c.html": "not there", "https://nowhere/": "no address", "ftp://a.b/": "no address",
        "https://a.b/c d": "space", "c.png": "not there",
    }.items():  # fmt: skip
        (tmp_path / "a.html").write_text(f'{page}<a href="{wrong}">x</a>')
        (found,) = links.problems(tmp_path)
        assert wrong in found
        assert why in found
    assert "make docs" in links.problems(tmp_path / "nothing")[0]


def test_every_promise_is_held_by_a_test_that_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    for row in rows:
        tests = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", row)
        scenes = re.findall(r"`stress: ([^`]*)`", row)
        assert tests, row
        for file, name in tests:
            assert f"\ndef {name}(" in f"\n{(ROOT / 'tests' / file).read_text(encoding='utf-8')}" or not name, (
                file,
                name,
            )
        assert set(scenes) <= set(stress.SCENES), row


def test_every_command_is_described():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"`npconv {name}" in text for name in NAMES)


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^   ([\w.]+)$", pages, re.MULTILINE))
    # Rooms have pages; im2col and col2im are other names of unfold and fold.
    rooms = {name for name in nc.__all__ if inspect.ismodule(getattr(nc, name))}
    assert set(nc.__all__) - rooms - {"__version__", "im2col", "col2im"} <= listed
    for room in (nc.cost, nc.models, nc.nn, nc.plot):
        assert {name for name in room.__all__ if not inspect.ismodule(getattr(room, name))} <= listed
    for name in ("dask", "filters", "inference"):
        room = getattr(nc, name)
        here = {f"{name}.{entry}" for entry in room.__all__ if callable(getattr(room, entry))}
        assert here - {"filters.convolve", "filters.correlate"} <= listed, "those two are npconv's own"


def test_everything_in_the_reference_shows_an_example():
    """Which the doctests run."""
    without = []
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for room, part in re.findall(r"currentmodule:: npconv\.?(\S*)(.*?)(?=currentmodule|\Z)", text, re.DOTALL):
            for name in re.findall(r"^   ([\w.]+)$", part, re.MULTILINE):
                doc = inspect.getdoc(operator.attrgetter(f"{room}.{name}".lstrip("."))(nc)) or ""
                if ">>> " not in doc or "+SKIP" in doc:
                    without.append(name)
    assert not without


def test_there_is_one_version():
    assert f"\nversion: {nc.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version\b", project, re.MULTILINE)
    assert "BSD-3-Clause" in project


def test_the_page_on_networks_counts_right():
    page = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+)(?: \(28x28\))? \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == ["lenet5", "mobilenet_v1", "mobilenet_v2", "resnet18"]
    for name, parameters, macs in rows:
        shape = (1, 1, 28, 28) if name == "lenet5" else (1, 3, 224, 224)
        cost = nc.cost.stack(nc.cost.model(getattr(nc.models, name)(rng=0), shape))
        assert (f"{cost.parameters:,}", f"{cost.macs:,}") == (parameters, macs)
