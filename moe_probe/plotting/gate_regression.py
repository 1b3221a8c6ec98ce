"""Gate similarity against expert similarity, pair by pair (arXiv 2406.18219, table 1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.transforms import Bbox

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._style import COLUMN, PAGE, PROJECTION_COLORS, Figure, style

DIMS = ("layer", "projection", "pair")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Scatter of the pairs of one layer with the fitted line and R², a panel per projection.

    Args:
        ds: result of `static.gate_regression`.
        layer: the first one of the result by default.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.gate_regression("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    at = ds.sel(layer=layer)
    with style():
        figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
        all_axes = figure.subplots(1, ds.sizes["projection"], sharey=True, squeeze=False)[0]
        for axes, name in zip(all_axes, ds.projection.values, strict=True):
            part = at.sel(projection=name)
            color = PROJECTION_COLORS[str(name)]
            x = part.similarity.values
            axes.scatter(x, part.gate, s=10, color=color, alpha=0.7, linewidths=0, rasterized=len(x) > 2000)
            defined = bool(np.isfinite(part.r_squared))
            if defined:
                ends = np.array([np.nanmin(x), np.nanmax(x)])
                axes.plot(ends, float(part.intercept) + float(part.slope) * ends, color="black", linewidth=1)
            note = f"R² = {float(part.r_squared):.2f}" if defined else "R² undefined"
            axes.set(title=f"{name}: {note}", xlabel="similarity of the experts")
        all_axes[0].set_ylabel("similarity of the gate embeddings")
        figure.suptitle(f"{ds.attrs['model']}, layer {layer}")
        return figure


def table(ds: xr.Dataset) -> Figure:
    """R² of every layer and projection, rounded to two digits, and their means (the paper's table).

    Args:
        ds: result of `static.gate_regression`.
    """
    rounded = ds.r_squared.transpose("layer", "projection").round(2)
    rows = [[str(layer), *(f"{value:.2f}" for value in rounded.sel(layer=layer).values)] for layer in ds.layer.values]
    rows.append(["mean", *(f"{value:.2f}" for value in rounded.mean("layer").values)])
    with style():
        figure = Figure(figsize=(COLUMN, 0.6 + 0.19 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        names = ["layer", *(str(name) for name in ds.projection.values)]
        written = axes.table(rows, colLabels=names, cellLoc="center", bbox=Bbox.unit(), edges="horizontal")
        written.auto_set_font_size(False)
        written.set_fontsize(7)
        axes.set_title(f"{ds.attrs['model']}: R² of gate similarity on expert similarity")
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """R² of every layer and projection, for a short table."""
    return "R² of gate similarity on expert similarity", ds.r_squared.transpose("layer", "projection")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The table, and every layer: (file stem, figure)."""
    yield f"gate_regression_{ds.attrs['level']}_table", table(ds)
    for layer in ds.layer.values:
        yield f"gate_regression_{ds.attrs['level']}_layer{layer}", plot(ds, int(layer))
