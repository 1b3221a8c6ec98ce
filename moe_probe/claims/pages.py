"""Writes a page of tested claims, with a figure for each verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from moe_probe import plotting
from moe_probe.claims.testing import RATE
from moe_probe.errors import WrongType
from moe_probe.figures.saving import FileKind, Format
from moe_probe.files import make_folder
from moe_probe.report.page import draw_section, write_page
from moe_probe.report.section import Measure, Section
from moe_probe.results import save

COLUMNS = {"layer": "layer", "effect": "effect", "low": "low", "high": "high", "p_value": "p", "q_value": "q"}


def page(ds: xr.Dataset, folder: str | Path, *, format: Format = "pdf", dpi: int = 300) -> Path:
    """Writes the page of a result of `claims.test`, with the result (.nc), tables (CSV) and figures.

    Args:
        ds: the result.
        folder: the output folder.
        format: format of the figures' files: `pdf`, `png` or `svg`.
        dpi: resolution in dots per inch, of PNG files and of rasterized parts of the others.

    Returns:
        The path of `index.html`.

    Raises:
        WrongType: the result is not of `claims.test`.
        NoSuchName: there is no such format.
        OutOfRange: `dpi` is below 30 or above 2,400.
        MachineError: the disk is full or not writable.

    Examples:
        >>> from moe_probe import claims
        >>> ds = claims.test("ckpt/tiny-mixtral", ["One text.", "Another."], ["norm_preference"], progress=False)
        >>> claims.page(ds, "claims-page").name
        'index.html'
    """
    if not isinstance(ds, xr.Dataset) or ds.attrs.get("analysis") != "claims":
        raise WrongType("claims.page shows tested claims; pass the result of claims.test.")
    kind, target = FileKind(format, dpi), make_folder(folder)
    save(ds, target / "claims.nc")
    sections = [_overview(ds), *(_section(ds, str(claim)) for claim in ds.claim.values)]
    drawn = [draw_section(section, target, kind=kind) for section in sections]
    note = (
        f"Fingerprint {ds.attrs['fingerprint']}. Intervals are 95 % over {ds.attrs['resampled']} where p is. q: "
        f"{ds.attrs['correction']}, at {RATE:g}. {ds.attrs['rule'].capitalize()}."
    )
    return write_page(target, ds.attrs["model"], note, drawn, kind)


def _overview(ds: xr.Dataset) -> Section:
    table = pd.DataFrame(
        {"verdict": ds.claim_verdict.values, "hypothesis": ds.hypothesis.values},
        index=pd.Index(ds.claim.values, name="claim"),
    )
    return Section("Verdicts", [], table)


def _section(ds: xr.Dataset, claim: str) -> Section:
    """Hypothesis, verdict, findings and figure of one claim."""
    chosen = ds.sel(claim=claim)
    verdict = chosen.claim_verdict.item()
    measures = [
        Measure("hypothesis", chosen.hypothesis.item(), chosen.hypothesis.item(), chosen.published.item()),
        Measure("verdict", verdict, verdict, chosen.claim_why.item()),
        Measure(
            "effect size", chosen.effect_size.item(), chosen.effect_size.item(), f"p: over {chosen.units_of_p.item()}"
        ),
    ]
    rows = ds.isel(finding=np.flatnonzero(ds.claim_of.values == claim))
    if not rows.sizes["finding"]:
        return Section(claim, measures)
    table = pd.DataFrame({shown: rows[name].values for name, shown in COLUMNS.items()})
    table["layer"] = ["all" if layer < 0 else str(layer) for layer in rows.layer.values]
    table["verdict"], table["why"] = rows.verdict.values, rows.why.values
    drawn = []
    if np.isfinite(rows.effect.values).any():
        caption = "Effect size and 95 % interval; hollow: no interval. Dotted: no effect, or the largest small one."
        drawn = [(f"claims_{claim}", caption, plotting.plot(ds, claim=claim))]
    return Section(claim, measures, table.set_index("layer"), drawn)
