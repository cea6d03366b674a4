"""Examples in docstrings run as tests; those of a room whose package is not installed are left out."""

from __future__ import annotations

from importlib.util import find_spec

NEEDS = {"npconv/dask/*": "dask", "npconv/onnx/*": "onnx"}
collect_ignore_glob = [files for files, package in NEEDS.items() if find_spec(package) is None]
