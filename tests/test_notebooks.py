"""Notebooks are small, take their layers from the model, and say what every figure means."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 500_000
HARD_CODED = re.compile(r"\blayers?\s*=\s*\[?\d")


def shows_a_figure(cell):
    return cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_was_run_to_its_end(path):
    assert path.stat().st_size < MOST_BYTES
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_says_where_the_checkout_lay(path):
    texts = [o.get("text", "") for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
    assert not [text for text in texts if re.search(r"(^|\s)(/|[A-Z]:).*out/notebooks", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_layer_is_written_into_it(path):
    sources = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert not [source for source in sources if HARD_CODED.search(source)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_followed_by_how_to_read_it(path):
    cells = nbformat.read(path, 4).cells
    unread = [
        cell.source
        for cell, after in zip(cells, [*cells[1:], None], strict=True)
        if shows_a_figure(cell) and (after is None or after.cell_type != "markdown")
    ]
    assert not unread
