"""Writes sections as one page of HTML, with tables and figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from moe_probe.figures.saving import FileKind, write_figure
from moe_probe.files import make_folder, whole_file
from moe_probe.parallel import map_items
from moe_probe.report.section import Section
from moe_probe.shown import csv_cell, file_name

TEMPLATE = Path(__file__).parent / "page.html"
FIGURES = "figures"
DPI = 120  # of pictures on the page; the files beside it are vectors
DEFAULT = FileKind()


def render(title: str, note: str, sections: Sequence[Section], n_jobs: int = 1, kind: FileKind = DEFAULT) -> str:
    """Returns the self-contained page; its links lead to the figures that `write_section` writes."""
    figures = [figure for section in sections for _, _, figure in section.figures]
    pictures = iter(map_items(_picture, figures, n_jobs, "Pictures of the page", progress=False))
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = [
        {
            "title": each.title,
            "measures": each.measures,
            "table": None if each.table is None or each.table.empty else _table(each.table),
            "figures": [(_path(stem, kind), caption, next(pictures)) for stem, caption, _ in each.figures],
        }
        for each in sections
    ]
    return template.render(title=title, note=note, sections=shown)


def write_section(folder: Path, section: Section, n_jobs: int = 1, kind: FileKind = DEFAULT) -> None:
    """Writes the table of a section as CSV, and its figures.

    Raises:
        MachineError: the disk is full, or cannot be written to.
    """
    if section.table is not None:
        with whole_file(folder / f"{file_name(section.title)}.csv") as partial:
            _without_formulas(section.table).to_csv(partial)
    drawn = [(figure, folder / _path(stem, kind), kind.dpi) for stem, _, figure in section.figures]
    map_items(_write, drawn, n_jobs, f"Figures of {section.title}", progress=False)


def write_page(
    folder: Path, title: str, note: str, sections: Sequence[Section], n_jobs: int = 1, kind: FileKind = DEFAULT
) -> Path:
    """Writes `index.html`, whose links lead to the files that `write_section` writes; returns its path.

    Raises:
        MachineError: the disk is full, or cannot be written to.
    """
    with whole_file(folder / "index.html") as partial:
        partial.write_text(render(title, note, sections, n_jobs, kind), encoding="utf-8")
    return folder / "index.html"


def _write(drawn: tuple[Figure, Path, int]) -> None:
    figure, path, dpi = drawn
    make_folder(path.parent)
    write_figure(figure, path, dpi=dpi)


def _path(stem: str, kind: FileKind) -> str:
    return "/".join([FIGURES, *map(file_name, f"{stem}.{kind.format}".split("/"))])


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda value: csv_cell(value) if isinstance(value, str) else value)


def _table(table: pd.DataFrame) -> str:
    named = table.index.name is not None
    return table.to_html(index=named, float_format="{:.3f}".format, border=0, na_rep="not defined")


def _picture(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
