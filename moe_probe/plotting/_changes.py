"""Maps of changes in diverging colors around 0; cells whose interval contains 0 are white."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._heatmap import cell_axes, map_size, show
from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._page import Page
from moe_probe.plotting._style import DIVERGING


def shown_changes(ds: xr.Dataset, name: str) -> xr.DataArray:
    """A variable, set to 0 where its interval contains 0; unchanged if the result has no interval."""
    values = ds[name]
    if f"{name}_low" not in ds:
        return values
    covered = (ds[f"{name}_low"] <= 0) & (ds[f"{name}_high"] >= 0)
    return values.where(~covered, 0).where(values.notnull())


def white_note(ds: xr.Dataset, name: str) -> str:
    """The note on the meaning of white cells; empty if the result has no intervals."""
    return f"white: the interval contains 0 ({said_of_intervals(ds)})" if f"{name}_low" in ds else ""


def change_colors(*values: Any) -> dict[str, Any]:
    """Colors centered on 0, one scale for all of `values`; cells without a value are gray."""
    known = np.concatenate([np.ravel(np.asarray(each, float)) for each in values])
    known = known[np.isfinite(known)]
    most = float(np.abs(known).max()) if len(known) else 0.0
    most = most or 1.0
    return {"cmap": matplotlib.colormaps[DIVERGING].with_extremes(bad="0.75"), "vmin": -most, "vmax": most}


def change_maps(page: Page, panels: dict[str, xr.DataArray], bar: str, rows: str = "layer") -> list[Axes]:
    """Maps side by side, in the same colors."""
    first = next(iter(panels.values())).transpose(rows, "expert")
    all_axes = page.panels(1, len(panels), map_size(first, len(panels)))[0]
    colors, image = change_colors(*panels.values()), None
    for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
        values = values.transpose(rows, "expert")
        image = show(axes, values.values, aspect="auto", **colors)
        cell_axes(axes, values, rows, "expert")
        axes.set_title(name if len(panels) > 1 else "")
        axes.set_ylabel(axes.get_ylabel() if axes is all_axes[0] else "")
    assert image is not None
    page.colorbar(image, all_axes, bar)
    return list(all_axes)
