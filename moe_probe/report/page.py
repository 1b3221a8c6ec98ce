"""Writes sections as one page of HTML, with tables and figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Drawn:
    """A section as a page shows it.

    Attributes:
        section: the section.
        pictures: its figures, as addresses of their data.
    """

    section: Section
    pictures: Sequence[str]


def draw_section(section: Section, folder: Path | None = None, n_jobs: int = 1, kind: FileKind = DEFAULT) -> Drawn:
    """Draws the figures of a section; with a folder, also writes their files, and the section's table as CSV.

    Raises:
        MachineError: the disk is full, or cannot be written to.
    """
    if folder is not None and section.table is not None:
        with whole_file(folder / f"{file_name(section.title)}.csv") as partial:
            _without_formulas(section.table).to_csv(partial)
    asked = [(figure, folder and folder / _path(stem, kind), kind.dpi) for stem, _, figure in section.figures]
    return Drawn(section, map_items(_draw, asked, n_jobs, f"Figures of {section.title}", progress=False))


def render(title: str, note: str, sections: Sequence[Drawn], kind: FileKind = DEFAULT) -> str:
    """Returns the self-contained page; its links lead to the files that `draw_section` writes."""
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = [
        {
            "title": each.section.title,
            "measures": each.section.measures,
            "table": _table(each.section.table),
            "figures": [
                (_path(stem, kind), caption, picture)
                for (stem, caption, _), picture in zip(each.section.figures, each.pictures, strict=True)
            ],
        }
        for each in sections
    ]
    return template.render(title=title, note=note, sections=shown, format=kind.format.upper())


def write_page(folder: Path, title: str, note: str, sections: Sequence[Drawn], kind: FileKind = DEFAULT) -> Path:
    """Writes `index.html`, whose links lead to the files that `draw_section` writes; returns its path.

    Raises:
        MachineError: the disk is full, or cannot be written to.
    """
    with whole_file(folder / "index.html") as partial:
        partial.write_text(render(title, note, sections, kind), encoding="utf-8")
    return folder / "index.html"


def _draw(asked: tuple[Figure, Path | None, int]) -> str:
    """Writes the file of a figure, and returns the address of its picture's data."""
    figure, path, dpi = asked
    if path is not None:
        make_folder(path.parent)
        write_figure(figure, path, dpi=dpi)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _path(stem: str, kind: FileKind) -> str:
    return "/".join([FIGURES, *map(file_name, f"{stem}.{kind.format}".split("/"))])


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda value: csv_cell(value) if isinstance(value, str) else value)


def _table(table: pd.DataFrame | None) -> str | None:
    if table is None or table.empty:
        return None
    named = table.index.name is not None
    return table.to_html(index=named, float_format="{:.3f}".format, border=0, na_rep="not defined")
