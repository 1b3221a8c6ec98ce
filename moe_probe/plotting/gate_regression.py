"""Gate similarity against expert similarity of pairs of experts (arXiv 2406.18219, table 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
import seaborn
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import Grid
from moe_probe.plotting._lines import layer_axis, plain
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._scatter import cloud
from moe_probe.plotting._style import COLUMN, PAGE, PROJECTION_COLORS, Figure

DIMS = ("layer", "projection", "pair")
OVER_LAYERS = ("r_squared_average",)
DRAWS = 200  # of pairs, for the band around a line
ROWS = 16  # of a table, beyond which R² is drawn over the layers instead


def plot(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the pairs of one layer with the fitted line, its 95 % band, R² and slope, in a panel per projection.

    More than 2,000 pairs are drawn as their density. The band comes from 200 resamples of pairs; because pairs are not
    independent, it is a lower bound of the uncertainty.

    Args:
        ds: result of `static.gate_regression`.
        layer: the first one of the result by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.gate_regression("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        all_axes = page.panels(1, ds.sizes["projection"], (PAGE, 2.4), sharey=True)[0]
        density: Any = None
        for axes, name in zip(all_axes, ds.projection.values, strict=True):
            part = ds.sel(layer=layer, projection=name)
            density = _pairs(axes, part, band=True) or density
            slope = f", slope {float(part.slope):.2f}" if np.isfinite(part.slope) else ""
            axes.set(title=f"{name}\n{_r_squared(part)}{slope}", xlabel="similarity of the experts")
        all_axes[0].set_ylabel("similarity of the gate embeddings")
        if density is not None:
            bar = page.colorbar(density, all_axes, "pairs", format=FuncFormatter(plain))
            bar.ax.minorticks_off()
        page.note(f"n = {ds.sizes['pair']:,} pairs; band: 95 % over {DRAWS} resamples of pairs")
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _r_squared(part: xr.Dataset) -> str:
    return f"R² = {float(part.r_squared):.2f}" if np.isfinite(part.r_squared) else "R² undefined"


def _pairs(axes: Axes, part: xr.Dataset, band: bool = False, cells: int = 36) -> Any:
    """Draws the pairs of one layer and projection, and the line; returns the artist whose colors show density."""
    x, y = part.similarity.values, part.gate.values
    color = PROJECTION_COLORS.get(str(part.projection.item()), "black")
    density = cloud(axes, x, y, color=color, cells=cells)
    if np.isfinite(part.r_squared):
        ends = np.array([np.nanmin(x), np.nanmax(x)])
        if band:
            look = {"linewidth": 0} | {"color": color if density is None else "0.2"}
            seaborn.regplot(x=x, y=y, scatter=False, n_boot=DRAWS, seed=0, truncate=True, line_kws=look, ax=axes)
        axes.plot(ends, float(part.intercept) + float(part.slope) * ends, color="black", linewidth=1)
    return density


def over_layers(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws R² over the layers, a line for each projection."""
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.1))
        for name in ds.projection.values:
            color = PROJECTION_COLORS.get(str(name), "black")
            axes.plot(ds.layer, ds.r_squared.sel(projection=name), "o-", markersize=2, color=color, label=str(name))
        axes.set(ylabel="R² of gate on expert similarity", ylim=(0, None))
        layer_axis(axes, ds.layer)
        page.legend(axes)
        return page.finish(page.ds.attrs["model"])


def table(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws a table of R² for every layer and projection, rounded to two decimals, and their means, as the paper's.

    Args:
        ds: result of `static.gate_regression`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.
    """
    rounded = ds.r_squared.transpose("layer", "projection").round(2)
    rows = [[str(layer), *(f"{value:.2f}" for value in rounded.sel(layer=layer).values)] for layer in ds.layer.values]
    rows.append(["mean", *(f"{value:.2f}" for value in rounded.mean("layer").values)])
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 0.4 + 0.15 * len(rows)))
        axes.axis("off")
        names = ["layer", *(str(name) for name in ds.projection.values)]
        written = axes.table(rows, colLabels=names, cellLoc="center", bbox=Bbox.unit(), edges="horizontal")
        written.auto_set_font_size(False)
        written.set_fontsize(7)
        page.note("R² of gate similarity on expert similarity")
        return page.finish(page.ds.attrs["model"])


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """R² of every layer and projection, for a short table."""
    return "R² of gate similarity on expert similarity", ds.r_squared.transpose("layer", "projection")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """R² as the paper's table, and over layers where they are many; all layers: (file stem, figure)."""
    stem = f"gate_regression_{ds.attrs['level']}"
    yield f"{stem}_table", table(ds)
    if ds.sizes["layer"] > ROWS:
        yield f"{stem}_r_squared", over_layers(ds)
    items = [(layer, name) for layer in ds.layer.values for name in ds.projection.values]
    first = ds.projection.values[0]
    names = [
        f"{f'{layer} ' if name == first else ''}{name} {float(ds.r_squared.sel(layer=layer, projection=name)):.2f}"
        for layer, name in items
    ]
    note = "similarity of pairs; numbers: R²"
    grid = Grid(9, 0.9, "experts", "gate embeddings", unit=ds.sizes["projection"], note=note)
    spans = [_span(ds[name].values) for name in ("similarity", "gate")]

    def draw(axes: Axes, item: tuple[int, str]) -> None:
        _pairs(axes, ds.sel(layer=item[0], projection=item[1]), cells=20)
        axes.set(xlim=spans[0], ylim=spans[1])
        axes.locator_params(nbins=3)

    yield from grid.pages(f"{stem}_layers", names, items, draw)


def _span(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis that holds all values."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"gate_regression_{ds.attrs['level']}_layer{layer}", plot(ds, int(layer))
