"""Every example runs, and the lecture's says what the lecture says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_lecture_s_numbers():
    path = next(path for path in EXAMPLES if path.name == "lecture.py")
    out = " ".join(subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout.split())
    for numbers in ("[[ 56 72] [104 120]]", "[[ 76 100] [148 172]]", "[[ 96 128] [192 224]]", "(2, 2)", "[[ 1. -1.]]",
                    "18.96 hours", "14.22 minutes"):  # fmt: skip
        assert numbers in out, numbers
