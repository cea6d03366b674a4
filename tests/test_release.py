"""The check of a release sees what a wheel lacks; ``make release`` runs it on the built one."""

from __future__ import annotations

import zipfile

import release


def test_a_file_that_the_wheel_lacks_is_seen(tmp_path):
    package = [p for p in (release.ROOT / "npconv").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    kernel = next(path for path in package if path.suffix == ".cu")

    def built(files, *more):
        path = tmp_path / "npconv-0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(release.ROOT))
            for name in ("METADATA", "entry_points.txt", "licenses/LICENSE", *more):
                archive.writestr(f"npconv-0.dist-info/{name}" if name[0] != "/" else name[1:], "")
        return release.missing(path)

    assert built(package) == []
    assert built([path for path in package if path != kernel]) == [
        f"{kernel.relative_to(release.ROOT).as_posix()} is not in the wheel"
    ]
    assert built(package, "/tests/conftest.py") == ["tests/conftest.py does not belong into the wheel"]
