"""Maps of changes: diverging colors around 0, white where the interval covers 0."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from moe_probe.plotting._heatmap import show
from moe_probe.plotting._style import COLUMN, DIVERGING, PAGE, Figure, thin_ticks


def shown_changes(ds: xr.Dataset, name: str) -> xr.DataArray:
    """A variable with 0 where its interval covers 0; as it is where the result has none."""
    values = ds[name]
    if f"{name}_low" not in ds:
        return values
    covered = (ds[f"{name}_low"] <= 0) & (ds[f"{name}_high"] >= 0)
    return values.where(~covered, 0).where(values.notnull())


def change_colors(*values: Any) -> dict[str, Any]:
    """Colors centered on 0, the same for all of `values`; gray: no value."""
    known = np.concatenate([np.ravel(np.asarray(each, float)) for each in values])
    known = known[np.isfinite(known)]
    most = float(np.abs(known).max()) if len(known) else 0.0
    most = most or 1.0
    return {"cmap": matplotlib.colormaps[DIVERGING].with_extremes(bad="0.75"), "vmin": -most, "vmax": most}


def change_panel(axes: Axes, values: xr.DataArray, colors: dict[str, Any], rows: str = "layer") -> AxesImage:
    """One map of `rows` by experts."""
    values = values.transpose(rows, "expert")
    image = show(axes, values.values, aspect="auto", **colors)
    axes.set_xlabel("expert")
    thin_ticks(axes.xaxis, [str(label) for label in values.expert.values])
    thin_ticks(axes.yaxis, [str(label) for label in values[rows].values], 30 if rows == "label" else 9)
    return image


def change_maps(panels: dict[str, xr.DataArray], title: str, bar: str, rows: str = "layer") -> Figure:
    """Maps side by side, in the same colors."""
    first = next(iter(panels.values()))
    narrow = len(panels) == 1 and first.sizes["expert"] <= 32
    size = COLUMN if narrow else PAGE, min(max(1.5 + 0.16 * first.sizes[rows], 2.2), 6)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colors = change_colors(*panels.values())
    image: Any = None
    for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
        image = change_panel(axes, values, colors, rows)
        axes.set_title(name)
    all_axes[0].set_ylabel("" if rows == "label" else rows)
    figure.colorbar(image, ax=list(all_axes), label=bar)
    figure.suptitle(title)
    return figure
