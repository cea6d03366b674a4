"""How the documentation is built: ``make docs``, or ``python -m sphinx -E -W docs docs/_build/html``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "agg")

from docutils import nodes  # noqa: E402
from docutils.utils.math.latex2mathml import tex2mathml  # noqa: E402

import npconv  # noqa: E402

project = "npconv"
author = copyright = "the npconv authors"  # noqa: A001
version = release = npconv.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "images", "gallery/*.ipynb", "gallery/*.py", "sg_execution_times.rst"]
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"npconv {version}"
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
default_role = "code"
html_math_renderer = "mathml"

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples" / "gallery")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "docs.reading_order.ReadingOrder",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "plot_gallery": True,
    "min_reported_time": 1e9,
    "show_memory": False,
    "write_computation_times": False,
}

# `make links`: docs/links.py follows the links inside the site, without a network; linkcheck those to elsewhere.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_workers = 4
linkcheck_rate_limit_timeout = 60
linkcheck_report_timeouts_as_broken = False
linkcheck_allowed_redirects = {r"https://docs\.dask\.org": r"https://docs\.dask\.org/en/.*"}
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]  # made by a program after the page has arrived


def setup(app: Any) -> None:
    """Write formulas as MathML, which browsers read by themselves: no script is loaded from anywhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _displayed(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode
