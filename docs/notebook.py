"""Make examples/channels.ipynb of examples/gallery/plot_channels.py, and run it: ``python -m docs.notebook``."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, TARGET = ROOT / "examples/gallery/plot_channels.py", ROOT / "examples/channels.ipynb"


def main() -> None:
    """Convert, execute in a kernel of its own, and write."""
    import nbformat
    from nbclient import NotebookClient
    from sphinx_gallery import gen_gallery, notebook, py_source_parser

    _, blocks = py_source_parser.split_code_and_text_blocks(str(SOURCE))
    blocks = [(kind, py_source_parser.remove_config_comments(text), line) for kind, text, line in blocks]
    settings = {**gen_gallery.DEFAULT_GALLERY_CONF, "notebook_images": False}
    cells = notebook.jupyter_notebook(blocks, settings, str(SOURCE.parent))
    book = nbformat.reads(json.dumps(cells), as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(book, TARGET)


if __name__ == "__main__":
    main()
