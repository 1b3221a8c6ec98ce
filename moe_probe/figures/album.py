"""The album of a reproduced paper: figures, manifest, contact sheet, and a list of missing figures."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from moe_probe.errors import InputError
from moe_probe.figures.contact_sheet import contact_sheet, thumbnail
from moe_probe.figures.latex import write_snippet
from moe_probe.figures.recipes import Recipe
from moe_probe.figures.saving import FileKind, write_figure
from moe_probe.files import whole_file
from moe_probe.parallel import map_items
from moe_probe.plotting import Which
from moe_probe.shown import file_name

MANIFEST, CONTACT_SHEET, FIGURES = "manifest.json", "contact_sheet.pdf", "figures"


def write_with_thumbnail(drawn: tuple[Figure, Path, bool, int]) -> np.ndarray:
    """Writes a figure, and also as PNG if requested; returns its thumbnail."""
    figure, path, png, dpi = drawn
    write_figure(figure, path, dpi=dpi)
    figure.set_layout_engine("none")  # it is laid out by now
    if png and path.suffix != ".png":
        write_figure(figure, path.with_suffix(".png"), dpi=dpi)
    return thumbnail(figure)


@dataclass
class Album:
    """A paper's figures of some models, in a folder.

    Attributes:
        paper: its name.
        folder: holds `figures/<model>/*.pdf` (or .png, .svg) and `figures.tex`, `results/<model>/*.nc`,
            `manifest.json` and `contact_sheet.pdf`.
        png: whether figures are also written as PNG.
        n_jobs: number of figures drawn at a time.
        which: `main` figures, with single layers of six layers; `all` layers; or `none`.
        kind: format and resolution of the files.
        figures: an entry per figure: `figure`, `shows`, `model`, `file`, `caption`, `width` in inches, `analysis`,
            `parameters`, `fingerprint`, `data`.
        missing: an entry per kind of figure that a model does not support: `figure`, `shows`, `model`, `reason`.
    """

    paper: str
    folder: Path
    png: bool = False
    n_jobs: int = 1
    which: Which = "main"
    kind: FileKind = field(default_factory=FileKind)
    figures: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    _thumbnails: list[tuple[str, np.ndarray]] = field(default_factory=list, repr=False)
    _before: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        try:
            listed = json.loads(self.manifest.read_text(encoding="utf-8"))["figures"]
            self._before = [entry for entry in listed if isinstance(entry, dict)]
        except (OSError, ValueError, LookupError, TypeError):
            self._before = []  # there is none, or none of ours

    @property
    def manifest(self) -> Path:
        """Path of the list of all figures, in JSON."""
        return self.folder / MANIFEST

    @property
    def contact_sheet(self) -> Path:
        """Path of the contact sheet of all figures, a PDF."""
        return self.folder / CONTACT_SHEET

    def add(
        self, recipe: Recipe, label: str, data: Path, dataset: xr.Dataset, results: Mapping[str, xr.Dataset]
    ) -> None:
        """Draws a result's figures and adds them to the album; lists those that cannot be drawn with the reason."""
        try:
            drawn = list(recipe.figures(dataset, results, self.which))
        except InputError as error:
            self.cannot(recipe, label, str(error))
            return
        folder = self.folder / FIGURES / file_name(label)
        paths = [folder / f"{file_name(recipe.stem(stem))}.{self.kind.format}" for stem, _ in drawn]
        work = [(figure, path, self.png, self.kind.dpi) for (_, figure), path in zip(drawn, paths, strict=True)]
        thumbnails = map_items(write_with_thumbnail, work, self.n_jobs, f"Figures of {recipe.name}")
        for (stem, figure), path, picture in zip(drawn, paths, thumbnails, strict=True):
            self._thumbnails.append((f"{folder.name}/{path.stem}", picture))
            self.figures.append(
                {
                    "figure": recipe.number(stem),
                    "shows": recipe.shows,
                    "model": label,
                    "file": str(path.relative_to(self.folder)),
                    "caption": recipe.caption(stem, label),
                    "width": round(float(figure.get_figwidth()), 2),
                    **self._provenance(dataset, data),
                }
            )
        self._write_manifest()

    def _provenance(self, dataset: xr.Dataset, data: Path) -> dict[str, Any]:
        """The result that a figure shows, and its file."""
        return {
            "analysis": dataset.attrs["analysis"],
            "parameters": json.loads(dataset.attrs["parameters"]),
            "fingerprint": dataset.attrs["fingerprint"],
            "data": str(data.relative_to(self.folder)),
        }

    def cannot(self, recipe: Recipe, label: str, reason: str) -> None:
        """Adds a figure that cannot be made, with the reason, to the missing ones."""
        self.missing.append({"figure": recipe.figure, "shows": recipe.shows, "model": label, "reason": reason})
        self._write_manifest()

    def finish(self) -> None:
        """Writes the contact sheet; removes figures that an earlier call made of another model with the same label."""
        for path in self._stale():
            path.unlink(missing_ok=True)
            path.with_suffix(".png").unlink(missing_ok=True)
        for folder in dict.fromkeys(Path(entry["file"]).parent for entry in self.figures):
            of_folder = [entry for entry in self.figures if Path(entry["file"]).parent == folder]
            write_snippet(of_folder, self.folder / folder)
        contact_sheet(self._thumbnails, self.contact_sheet, title=self.paper)

    def _stale(self) -> Iterator[Path]:
        current: dict[str, set[str]] = {}
        for entry in self.figures:
            current.setdefault(entry["model"], set()).add(entry["fingerprint"])
        files = {entry["file"] for entry in self.figures}
        for entry in self._before:
            fingerprints = current.get(entry.get("model", ""))
            if fingerprints and entry.get("fingerprint") not in fingerprints and entry.get("file") not in files:
                path = self.folder / str(entry.get("file"))
                if path.resolve().is_relative_to((self.folder / FIGURES).resolve()):
                    yield path

    def _write_manifest(self) -> None:
        content = {"paper": self.paper, "figures": self.figures, "missing": self.missing}
        with whole_file(self.manifest) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _repr_html_(self) -> str:
        title = (
            f"<p><b>{html.escape(self.paper)}</b>: {len(self.figures)} figures in {html.escape(str(self.folder))}</p>"
        )
        tables = [pd.DataFrame(self.figures, columns=["figure", "shows", "model", "file"]).groupby("shows", sort=False)]
        shown = tables[0].agg({"figure": "first", "model": "nunique", "file": "count"}).reset_index()
        shown = shown.rename(columns={"model": "models", "file": "files"})[["figure", "shows", "models", "files"]]
        missing = pd.DataFrame(self.missing, columns=["figure", "shows", "model", "reason"])
        return title + shown.to_html(index=False) + (missing.to_html(index=False) if len(missing) else "")
