"""Does the built wheel hold everything, and work where nothing else is installed? ``python -m tests.release [WHEEL]``.

Without a path it takes the newest of ``dist/``. It makes an environment of its own, so it downloads NumPy and Numba.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

INSIDE = """
import pathlib, npconv
from npconv.kernels.cuda import loader
here = pathlib.Path(npconv.__file__).parent
assert str(here).startswith(r"{place}"), here
for source in sorted((here / "kernels" / "cuda").glob("*.cu")):
    assert "#include \\"" not in loader.source(source.name), source
print(npconv.__version__)
"""

COMMANDS = (
    "info --check",
    "cost --layers 10 --samples 1e6 100 100 5 5 64 64",
    "plan 1x64x56x56 64x64x3x3 --padding 1 --json",
)


def missing(wheel: Path) -> list[str]:
    """Files of the package that the wheel lacks, and files in it that are none of the package's."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "npconv").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    inside = {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith(".cu") for name in package), "there are CUDA sources to look for"
    wrong = [f"{name} is not in the wheel" for name in sorted(package - inside)]
    wrong += [f"{name} does not belong into the wheel" for name in sorted(inside - package)]
    for needed in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        wrong += [] if any(name.endswith(f".dist-info/{needed}") for name in names) else [f"there is no {needed}"]
    return wrong


def works(wheel: Path) -> None:
    """Install the wheel in an environment of its own, and use it there.

    Raises
    ------
    subprocess.CalledProcessError, AssertionError
        If something does not work.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        venv.create(place / "env", with_pip=True)
        programs = place / "env" / ("Scripts" if os.name == "nt" else "bin")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"NPCONV_CACHE_DIR": "off"}

        def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
            words = [str(word) for word in command]
            return subprocess.run(words, cwd=place, env=environment, text=True, check=True, **options)

        run(programs / "python", "-m", "pip", "install", "--quiet", wheel)
        version = run(programs / "python", "-c", INSIDE.format(place=place), stdout=subprocess.PIPE).stdout.strip()
        assert f"-{version}-" in wheel.name, (version, wheel.name)
        for command in COMMANDS:
            print(f"+ npconv {command}", flush=True)
            run(programs / "npconv", *command.split())
        asked = subprocess.run(
            [programs / "npconv", "filter", "x.png", "--kernel", "sobel"],
            cwd=place, env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert asked.returncode == 1, asked
        assert "npconv[image]" in asked.stderr, "a missing package names its extra"


def main() -> int:
    """Check a wheel; exit status 1 where something is missing."""
    built = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if len(sys.argv) < 2 and not built:
        print("there is no wheel in dist/: make wheel first", file=sys.stderr)
        return 1
    wheel = (Path(sys.argv[1]) if len(sys.argv) > 1 else built[-1]).resolve()
    wrong = missing(wheel)
    print("\n".join(wrong) or f"{wheel.name} holds all of npconv/, CUDA sources included", flush=True)
    if wrong:
        return 1
    works(wheel)
    print(f"{wheel.name} works in a clean environment")
    return 0


if __name__ == "__main__":
    sys.exit(main())
