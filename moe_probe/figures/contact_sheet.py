"""Contact sheets: thumbnails of all figures on pages, each with its file's name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.image import imread

from moe_probe.files import whole_file
from moe_probe.plotting import Figure, style

COLUMNS, ROWS = 4, 7
DPI = 72


def thumbnail(figure: matplotlib.figure.Figure) -> np.ndarray:
    """Returns a small picture of a figure, (height, width, 4)."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    return (imread(buffer) * 255).astype(np.uint8)


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]], path: Path, title: str) -> None:
    """Writes named pictures to the pages of a PDF, which appears under its name when it is complete."""
    size = COLUMNS * ROWS
    sheets = [pictures[at : at + size] for at in range(0, len(pictures), size)] or [[]]
    with whole_file(path) as partial, style(), PdfPages(partial) as pages:
        for number, sheet in enumerate(sheets, 1):
            figure = Figure(figsize=(8.3, 11.7), layout="constrained")
            figure.suptitle(f"{title}, page {number} of {len(sheets)}")
            for axes, (name, picture) in zip(figure.subplots(ROWS, COLUMNS).flat, sheet, strict=False):
                axes.imshow(picture, interpolation="nearest")
                parts = (textwrap.fill(part, 58, break_on_hyphens=False) for part in name.split("/"))
                axes.set_title("\n".join(parts), fontsize=4.5)
            for axes in figure.axes:
                axes.set_axis_off()
            pages.savefig(figure, dpi=150)
