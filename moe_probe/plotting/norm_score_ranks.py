"""Ranks of norm and score: grouped bars per layer and for all layers (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import Grid
from moe_probe.plotting._heatmap import beyond, show
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import COLORMAP, COLUMN, PAGE, Figure

FEW, LINES = 16, 8  # experts that are bars, more are a map; lines of bars where they are many
CYCLE = matplotlib.colormaps["tab10"](np.arange(10))  # matplotlib's own, in which the paper draws

DIMS = ("layer", "score_rank", "norm_rank")
OVER_LAYERS = ("total",)


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    bars: bool | None = None,
    as_published: bool = False,
    **look: Unpack[Look],
) -> Drawn:
    """Draws counts over the norm rank, a bar per score rank; with more than 16 experts, a map.

    Args:
        ds: result of `dynamic.norm_score_ranks`.
        layer: its number; all layers together by default.
        bars: draw bars (True) or a map (False); bars of more than 16 experts take eight lines, as in the paper.
        as_published: bars in the paper's ten colors, repeated, with its axis labels.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.norm_score_ranks("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=3)
    """
    pairs = ds.total if layer is None else ds.pairs.sel(layer=pick_layer(ds, layer))
    count = pairs.transpose("score_rank", "norm_rank").values
    with Page(ds, look) as page:
        if bars or (bars is None and len(count) <= FEW):
            _bars(page, count, as_published)
        else:
            axes = page.panel((COLUMN, COLUMN - 0.4))
            image = _map(axes, count, _most(count))
            page.colorbar(image, axes, "count", extend=beyond(image))
            axes.set(xlabel=f"rank of the norm ({len(count)}: largest)", ylabel="rank of the score")
        return page.finish(f"{page.ds.attrs['model']}, {'all layers' if layer is None else f'layer {layer}'}")


def _most(count: np.ndarray) -> float:
    """The upper end of a map's colors; if there are many cells, 0.5 % of them are beyond it."""
    known = count[np.isfinite(count)]
    return (float(np.quantile(known, 0.995)) if len(known) else 0.0) or 1.0


def _map(axes: Axes, count: np.ndarray, most: float, small: bool = False) -> AxesImage:
    extent = (0.5, len(count) + 0.5, 0.5, len(count) + 0.5)
    image = show(axes, count, origin="lower", vmin=0, vmax=most, extent=extent)
    ticks = sorted({1, -(-len(count) // 2), *([] if small else [len(count)])})
    axes.set(xticks=ticks, yticks=ticks)
    return image


def _bars(page: Page, count: np.ndarray, as_published: bool) -> None:
    """Draws a group of bars for every rank of the norm, in one line or in eight."""
    experts = len(count)
    lines = 1 if experts <= FEW else LINES
    panels = page.panels(lines, 1, (PAGE, 2.3 if lines == 1 else 8.5), sharey=True)[:, 0]
    colors: Any = matplotlib.colormaps[COLORMAP](np.linspace(0, 1, experts))
    if as_published:
        colors = [CYCLE[rank % len(CYCLE)] for rank in range(experts)]
    width = 0.9 / experts
    for axes, ranks in zip(panels, np.array_split(np.arange(experts), lines), strict=True):
        for score_rank in range(experts):
            at = ranks + 1 + (score_rank - (experts - 1) / 2) * width
            axes.bar(
                at, count[score_rank, ranks], width, color=colors[score_rank], label=f"score rank {score_rank + 1}"
            )
        axes.set(xticks=ranks + 1, xlim=(ranks[0] + 0.4, ranks[-1] + 1.6), ylabel="count")
        axes.yaxis.set_major_locator(MaxNLocator(6 if lines == 1 else 3, integer=True))
    panels[0].set_ylim(0, 1.05 * np.nan_to_num(count).max() or 1.0)
    if as_published:
        _name_as_published(page, panels, experts)
        return
    panels[-1].set_xlabel(f"rank of the norm ({experts}: largest)")
    scale = ScalarMappable(Normalize(1, experts), COLORMAP)
    page.colorbar(scale, panels, "rank of the score", ticks=MaxNLocator(8, integer=True), aspect=15 * lines)


def _name_as_published(page: Page, panels: np.ndarray, experts: int) -> None:
    panels[-1].set_xlabel("expert output norm ranking")
    for axes in panels:
        axes.set_ylabel("count of gate score ranking" if len(panels) == 1 else "count")
    if experts <= len(CYCLE):
        page.legend(panels[0], columns=min(experts, 4))


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers together, and a small map of each in one scale: (file stem, figure)."""
    yield "norm_score_ranks_all", plot(ds)
    count = ds.pairs.transpose("layer", "score_rank", "norm_rank").values
    names, experts = [f"layer {layer}" for layer in ds.layer.values], count.shape[1]
    most = _most(count)
    grid = Grid(6, 1.0, f"rank of the norm ({experts}: largest)", "rank of the score", "count")
    yield from grid.pages("norm_score_ranks_layers", names, list(count), lambda axes, one: _map(axes, one, most, True))


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"norm_score_ranks_layer{layer}", plot(ds, int(layer))
