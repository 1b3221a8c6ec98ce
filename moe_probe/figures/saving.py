"""Figures to files, and the names of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import plotting
from moe_probe.files import whole_file
from moe_probe.parallel import map_items
from moe_probe.shown import file_name
from moe_probe.signatures import check_jobs, checked


def result_stem(dataset: xr.Dataset) -> str:
    """File name of a result: analysis, level, and metric where it is not the usual one."""
    parts = [dataset.attrs["analysis"], dataset.attrs.get("level")]
    if dataset.attrs.get("metric", "cosine") != "cosine":
        parts.append(dataset.attrs["metric"])
    return file_name("_".join(str(part) for part in parts if part))


@checked
def write_figure(figure: Figure, path: Path, **options: Any) -> Path:
    """Save a figure in the format of the path's suffix; it appears under its name when it is complete.

    Raises:
        MachineError: the disk is full.
    """
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], **options)
    return path


@checked
def draw(dataset: xr.Dataset, folder: Path, n_jobs: int = 1) -> list[Path]:
    """Write every figure of a result as PDF to `folder/figures`, `n_jobs` at a time.

    Raises:
        NoSuchName: there is no plot for the result.
        NotFitting: the result lacks what its figures show.
    """
    check_jobs(n_jobs)
    drawn = [(figure, folder / "figures" / f"{file_name(stem)}.pdf") for stem, figure in plotting.figures(dataset)]
    return list(map_items(_write, drawn, n_jobs, f"Figures of {dataset.attrs['analysis']}"))


def _write(drawn: tuple[Figure, Path]) -> Path:
    return write_figure(*drawn)
