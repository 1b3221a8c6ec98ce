"""Experts that documents of one label choose more, or less, often than all documents do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moe_probe.report.section import Measure, Section, Subject

PLACE, NEEDS = 40, ("expert_load",)
LINES = 20  # of the table
READING = (
    "The 95 % interval over documents of the share among one label's tokens does not contain the share among all "
    "labeled tokens. By chance, up to 5 % of the pairs would count too."
)


def section(subject: Subject) -> Section | None:
    """Pairs of label and expert; None if documents have no labels, or too few documents for an interval."""
    ds = subject.results.get("expert_load")
    if ds is None or "label_share_low" not in ds:
        return None
    low, high, chance = ds.label_share_low, ds.label_share_high, ds.label_share_chance
    told = (low.notnull() & high.notnull()).transpose("layer", "label", "expert")
    apart = (((low > chance) | (high < chance)) & told).transpose("layer", "label", "expert")
    number, of = int(apart.sum()), int(told.sum())
    measures = [
        Measure("pairs of label and expert apart from chance", number, f"{number} of {of}", READING),
    ]
    return Section("Specialization by label", measures, _table(ds, apart))


def _table(ds: xr.Dataset, apart: xr.DataArray) -> pd.DataFrame:
    """The pairs with the largest differences from chance, in descending order of the ratio."""
    share = ds.label_share.transpose("layer", "label", "expert")
    ratio = np.log((share / ds.label_share_chance).where(apart & (share > 0)).transpose("layer", "label", "expert"))
    flat = np.argsort(-np.abs(ratio.values), axis=None)  # NaN last
    rows = [np.unravel_index(at, ratio.shape) for at in flat[: min(LINES, int(ratio.notnull().sum()))]]
    return pd.DataFrame(
        {
            "layer": ds.layer.values[i],
            "expert": ds.expert.values[k],
            "label": ds.label.values[j],
            "share": float(share[i, j, k]),
            "low": float(ds.label_share_low.transpose("layer", "label", "expert")[i, j, k]),
            "high": float(ds.label_share_high.transpose("layer", "label", "expert")[i, j, k]),
            "share of all": float(ds.label_share_chance[i, k]),
            "ratio": float(np.exp(ratio[i, j, k])),
        }
        for i, j, k in rows
    )
