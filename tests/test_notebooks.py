"""Every notebook runs from top to bottom on the demo's lake (embedded files), shows pictures, and defines nothing.

The notebooks are committed as they ran. ``python -m tests.test_notebooks LAKE`` runs all of them anew on a demo's lake and writes them back.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_S = 300  # for one cell, on a busy machine
KEPT_BYTES = 1 << 20  # of one committed notebook: pictures, not albums


def executed(path: Path, lake: Path) -> Any:
    """The notebook after a run in a kernel of its own; what goes to standard error (Spark's warnings, paths) is left out."""
    book = nbformat.read(path, as_version=4)
    # The kernel is this interpreter: IPython's own specification of "python3" may name another.
    client = NotebookClient(book, timeout=LONGEST_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute(env={**os.environ, "MEDSPARK_LAKE": str(lake), "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable})
    for cell in code(book):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        cell.metadata.pop("execution", None)
    return book


def code(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def pictures(book: Any) -> list[np.ndarray]:
    """(rows, cols, 3) uint8 each"""
    found = [output.data["image/png"] for cell in code(book) for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in found]


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(demo_folder: Path, path: Path) -> None:
    book = executed(path, demo_folder / "lake")
    shown = pictures(book)
    assert shown and all(picture.std() > 5 for picture in shown), "no picture, or an empty one"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_as_it_ran_and_defines_nothing(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = code(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it: python -m tests.test_notebooks LAKE"
    assert pictures(book) and path.stat().st_size < KEPT_BYTES
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in cells)
    said = path.read_text()
    assert not re.search(r"/(tmp|home|root|work)/", said), "a path of the machine that it ran on"


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        nbformat.write(executed(notebook, Path(sys.argv[1]).resolve()), notebook)
        print(notebook.name)
