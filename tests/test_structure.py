"""The house keeps its walls: who may import whom, what importing costs, and which names are public."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import npconv as nc

ROOT = Path(nc.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = {
    "numba",
    "llvmlite",
    "cupy",
    "scipy",
    "matplotlib",
    "sklearn",
    "torch",
    "jax",
    "PIL",
    "tqdm",
    "onnx",
    "dask",
    "distributed",
    "zarr",
}
ANYONE = frozenset({"__future__"})
PUBLIC_FACE_ONLY = (
    "nn/", "models/", "inference/", "onnx/", "dask/", "d2l.py", "demo.py", "cli.py", "commands/", "plot/",
)  # fmt: skip


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a file imports; those of this package in full."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "npconv" else {node.module}
            )
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=room)
def test_a_file_opens_with_its_subject(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [p for p in FILES if not room(p).startswith("kernels/")], ids=room)
def test_nothing_heavy_is_imported_at_the_top_of_a_file(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path, top_level_only=True)} & HEAVY


@pytest.mark.parametrize("path", [p for p in FILES if room(p).startswith("kernels/")], ids=room)
def test_kernels_know_no_algorithm(path: Path) -> None:
    allowed = (
        "npconv.kernels",
        "npconv.arrays",
        "npconv.config",
        "npconv.disk",
        "npconv.geometry",
        "npconv.interrupts",
        "npconv.leading",
        "npconv.runners",
    )
    assert all(name.startswith(allowed) for name in imports(path) if name.startswith("npconv"))


@pytest.mark.parametrize("path", [p for p in FILES if room(p).startswith(("geometry/", "cost/"))], ids=room)
def test_geometry_and_cost_never_see_an_array(path: Path) -> None:
    inside = room(path).startswith("geometry/")
    allowed = set() if inside else {"npconv.geometry", "npconv.machine", "npconv.units", "numpy"}
    if room(path) == "cost/model.py":  # has a network run once, to see its shapes
        allowed |= {"npconv.nn", "npconv.inference"}
    found = {n for n in imports(path) if n.startswith("npconv") or n.partition(".")[0] in HEAVY | {"numpy"}}
    own = "npconv.geometry." if inside else "npconv.cost"
    assert {n for n in found if not n.startswith(own)} <= allowed


@pytest.mark.parametrize("path", [p for p in FILES if not room(p).startswith("geometry/")], ids=room)
def test_there_is_one_road_to_the_geometry(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith("npconv.geometry.")]


@pytest.mark.parametrize("path", [p for p in FILES if room(p).startswith(PUBLIC_FACE_ONLY)], ids=room)
def test_users_of_the_public_face_use_nothing_else(path: Path) -> None:
    own = room(path).partition("/")[0].removesuffix(".py")
    allowed = {
        "npconv",
        "npconv.cli",
        "npconv.commands",
        "npconv.demo",
        "npconv.disk",  # a file is replaced as a whole in one way
        "npconv.report",
        "npconv.self_test",
        "npconv.units",
        *(f"npconv.{name}" for name in nc.__all__),
    }
    found = {n for n in imports(path) if n.startswith("npconv") and not n.startswith(f"npconv.{own}")}
    assert found <= allowed


@pytest.mark.parametrize("path", [p for p in FILES if room(p).startswith("filters/")], ids=room)
def test_filters_use_the_public_convolutions(path: Path) -> None:
    allowed = ("arrays", "config", "conv", "filters", "geometry", "gradients", "lazy", "padding", "planning")
    found = {name for name in imports(path) if name.startswith("npconv")}
    assert all(name.startswith(tuple(f"npconv.{a}." for a in allowed)) or name[7:] in allowed for name in found)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "config.py"], ids=room)
def test_only_config_reads_the_environment(path: Path) -> None:
    assert not re.search(r"os\.environ|getenv", path.read_text(encoding="utf-8"))


def test_the_reference_shares_no_line_with_the_rest() -> None:
    assert not {n for n in imports(ROOT / "reference.py") if n.startswith("npconv")}


def test_public_names() -> None:
    assert sorted(nc.__all__) == nc.__all__
    for name in nc.__all__:
        assert getattr(nc, name) is not None
        assert name in dir(nc)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        nc.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize("name", [n for n in nc.__all__ if callable(getattr(nc, n))])
def test_public_functions_are_documented(name: str) -> None:
    function = getattr(nc, name)
    text = inspect.getdoc(function) or ""
    assert ">>>" in text, "an example that runs"
    parameters = inspect.signature(function).parameters
    for parameter in parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{parameter} is not described"
    if parameters:
        assert "Raises\n------" in text


def test_every_room_is_described() -> None:
    pages = (ROOT.parent / "docs" / name for name in ("architecture.md", "kernels.md"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    rooms = {path.name + "/" * path.is_dir() for path in ROOT.iterdir() if not path.name.startswith(("_", "py.typed"))}
    for folder in ("algorithms", "filters", "kernels/cpu", "kernels/cuda", "planning"):
        rooms |= {path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"}
    rooms.remove("kernels/")  # cpu and cuda have each a line
    assert not {name for name in rooms if f"`{name}`" not in text}


def test_the_package_is_typed_and_holds_what_it_needs() -> None:
    assert resources.files("npconv").joinpath("py.typed").is_file()


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def test_importing_loads_nothing_heavy() -> None:
    loaded = json.loads(python("import sys, json, npconv; print(json.dumps(sorted(sys.modules)))"))
    assert not {name.partition(".")[0] for name in loaded} & HEAVY


def test_importing_adds_few_modules_to_those_of_numpy() -> None:
    # The bar is 1.5 times NumPy's import time; counting modules holds it without a clock.
    code = "import sys, numpy; before = set(sys.modules); import npconv; print(len(set(sys.modules) - before))"
    assert int(python(code)) < 60


def test_the_numpy_backend_never_loads_numba() -> None:
    code = (
        "import sys, numpy as np, npconv as nc; nc.conv2d(np.ones((1, 4, 4)), np.ones((1, 1, 2, 2)), backend='numpy'); "
        "print('numba' in sys.modules)"
    )
    assert python(code).strip() == "False"
