"""Writes figures to files, and names these files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import plotting
from moe_probe.files import whole_file
from moe_probe.options import DPI_RANGE, FIGURE_FORMATS
from moe_probe.parallel import map_items
from moe_probe.shown import file_name
from moe_probe.signatures import check_choice, check_jobs, check_number, checked

Format = Literal["pdf", "png", "svg"]
Work = tuple[xr.Dataset, Path, plotting.Which, Format, int]


@dataclass(frozen=True)
class FileKind:
    """Format and resolution of figures' files.

    Attributes:
        format: `pdf`, `png` or `svg`.
        dpi: resolution in dots per inch, of PNG files and of rasterized parts of the others.

    Raises:
        NoSuchName: there is no such format.
        OutOfRange: `dpi` is below 30 or above 2,400.
    """

    format: Format = "pdf"
    dpi: int = 300

    def __post_init__(self) -> None:
        check_choice("format", self.format, FIGURE_FORMATS)
        check_number("dpi", self.dpi, *DPI_RANGE)


def result_stem(dataset: xr.Dataset) -> str:
    """File stem of a result: analysis, level, and metric unless it is the default."""
    parts = [dataset.attrs["analysis"], dataset.attrs.get("level")]
    if dataset.attrs.get("metric", "cosine") != "cosine":
        parts.append(dataset.attrs["metric"])
    return file_name("_".join(str(part) for part in parts if part))


@checked
def write_figure(figure: Figure, path: Path, **options: Any) -> Path:
    """Saves a figure in the format of the path's suffix; the file appears under its name when it is complete.

    Raises:
        MachineError: the disk is full.
    """
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], **options)
    return path


@checked
def draw(
    dataset: xr.Dataset | Sequence[xr.Dataset],
    folder: Path,
    n_jobs: int = 1,
    *,
    which: plotting.Which = "main",
    format: Format = "pdf",
    dpi: int = 300,
) -> list[Path]:
    """Writes the figures of one or several results to `folder/figures`; returns their paths.

    Args:
        dataset: a result, or several, of which each worker draws one at a time.
        folder: the folder in which `figures` is created.
        n_jobs: number of workers.
        which: `main` figures; `all`, including those of single layers; or `none`.
        format: format of the files: `pdf`, `png` or `svg`.
        dpi: resolution in dots per inch, of PNG files and of rasterized parts of the others.

    Raises:
        NoSuchName: there is no plot for a result, or no such choice or format.
        NotFitting: a result lacks what its figures show.
        OutOfRange: `dpi` is below 30 or above 2,400.
        MachineError: the disk is full.
    """
    check_jobs(n_jobs)
    FileKind(format, dpi)
    if isinstance(dataset, xr.Dataset):
        drawn = [
            (figure, folder / "figures" / f"{file_name(stem)}.{format}", dpi)
            for stem, figure in plotting.figures(dataset, which)
        ]
        return list(map_items(_write, drawn, n_jobs, f"Figures of {dataset.attrs['analysis']}"))
    work: list[Work] = [(each, folder, which, format, dpi) for each in dataset]
    return [path for paths in map_items(_draw_one, work, n_jobs, "Figures") for path in paths]


def _draw_one(work: Work) -> list[Path]:
    dataset, folder, which, format, dpi = work
    return [
        write_figure(figure, folder / "figures" / f"{file_name(stem)}.{format}", dpi=dpi)
        for stem, figure in plotting.figures(dataset, which)
    ]


def _write(drawn: tuple[Figure, Path, int]) -> Path:
    figure, path, dpi = drawn
    return write_figure(figure, path, dpi=dpi)
