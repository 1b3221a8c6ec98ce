"""Ranks of norm and score: grouped bars per layer and for all layers (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._style import COLORMAP, COLUMN, PAGE, Figure, style

LINES = 8  # of panels, where experts are many
FEW, MANY = 16, 64  # experts in one panel of bars, and in all of them

DIMS = ("layer", "score_rank", "norm_rank")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Counts over the norm rank, a bar per score rank; more than 16 experts in eight lines, more than 64 as a map.

    Args:
        ds: result of `dynamic.norm_score_ranks`.
        layer: all layers together by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.norm_score_ranks("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=3)
    """
    pairs = ds.total if layer is None else ds.pairs.sel(layer=pick_layer(ds, layer))
    count = pairs.transpose("score_rank", "norm_rank").values
    title = f"{ds.attrs['model']}, {'all layers' if layer is None else f'layer {layer}'}"
    with style():
        return _bars(count, title) if len(count) <= MANY else _map(count, title)


def _map(count: np.ndarray, title: str) -> Figure:
    figure = Figure(figsize=(COLUMN + 0.4, COLUMN), layout="constrained")
    axes = figure.subplots()
    extent = (0.5, len(count) + 0.5, 0.5, len(count) + 0.5)
    image = show(axes, count, origin="lower", vmin=0, extent=extent)
    axes.set(xlabel=f"rank of the norm ({len(count)}: largest)", ylabel="rank of the score", title=title)
    figure.colorbar(image, label="count")
    return figure


def _bars(count: np.ndarray, title: str) -> Figure:
    experts = len(count)
    lines = 1 if experts <= FEW else LINES
    colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 1, experts))
    figure = Figure(figsize=(PAGE, 2.6 if lines == 1 else 8.5), layout="constrained")
    all_axes = figure.subplots(lines, 1, sharey=True, squeeze=False)[:, 0]
    width = 0.9 / experts
    for axes, ranks in zip(all_axes, np.array_split(np.arange(experts), lines), strict=True):
        for score_rank in range(experts):
            at = ranks + 1 + (score_rank - (experts - 1) / 2) * width
            axes.bar(at, count[score_rank, ranks], width, color=colors[score_rank])
        axes.set_xticks(ranks + 1)
        axes.set_xlim(ranks[0] + 0.4, ranks[-1] + 1.6)
        axes.yaxis.set_major_locator(MaxNLocator(3 if lines > 1 else 6, integer=True))
    all_axes[0].set_ylim(0, 1.05 * np.nan_to_num(count).max() or 1.0)
    all_axes[-1].set_xlabel(f"rank of the norm ({experts}: largest)")
    figure.supylabel("count", fontsize=8)
    scale = ScalarMappable(Normalize(1, experts), COLORMAP)
    figure.colorbar(
        scale, ax=list(all_axes), label="rank of the score", ticks=MaxNLocator(8, integer=True), aspect=15 * lines
    )
    figure.suptitle(title)
    return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers together, and every layer: (file stem, figure)."""
    yield "norm_score_ranks_all", plot(ds)
    for layer in ds.layer.values:
        yield f"norm_score_ranks_layer{layer}", plot(ds, int(layer))
