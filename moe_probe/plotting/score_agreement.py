"""Do scores predict the cost of removing an expert? Rank correlations by layer, and each expert as a point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy.stats import rankdata

from moe_probe.plotting._changes import change_colors
from moe_probe.plotting._choices import pick
from moe_probe.plotting._grid import Grid
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._scatter import cloud
from moe_probe.plotting._style import BLUE, COLUMN, GREY, PAGE, Figure, thin_ticks

DIMS = ("score", "layer", "expert")
OVER_LAYERS = (
    *("mean_rank_correlation", "mean_rank_correlation_low", "mean_rank_correlation_high"),
    *("model_rank_correlation", "model_rank_correlation_low", "model_rank_correlation_high", "model_overlap"),
)
CELLS = 16  # hexagons across a small panel
NOTE = "a point: an expert; number: mean rank correlation over layers"


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the rank correlation of each score with the measured cost: a map of scores by layers, and the means.

    The best score is on top. White: no correlation; gray: undefined.

    Args:
        ds: result of `pruning.agreement`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import intervene, plotting, pruning
        >>> scores = pruning.scores("ckpt/tiny-mixtral", [[5, 6, 7, 8], [9, 10, 11]])
        >>> truth = intervene.ablate("ckpt/tiny-mixtral", [[12, 13, 14], [15, 16, 17]], "mask", by_unit=True)
        >>> figure = plotting.plot(pruning.agreement(scores, truth))
    """
    ds = best_first(ds)
    with Page(ds, look) as page:
        height = 0.9 + 0.17 * ds.sizes["score"]
        ratios = {"width_ratios": [2.2, 1]}
        maps, means = page.panels(1, 2, (PAGE, height), sharey=True, gridspec_kw=ratios)[0]
        values = page.ds.rank_correlation.transpose("score", "layer")
        colors = change_colors(np.array([-1.0, 1.0]))
        image = show(maps, values.values, aspect="auto", **colors)
        thin_ticks(maps.xaxis, [str(layer) for layer in ds.layer.values], 9)
        thin_ticks(maps.yaxis, [str(name) for name in page.ds.score.values], 40)
        maps.set_xlabel("layer")
        _means(means, ds)
        page.colorbar(image, [maps, means], "rank correlation")
        page.note(f"intervals: {said_of_intervals(ds)}" if "mean_rank_correlation_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def best_first(ds: xr.Dataset) -> xr.Dataset:
    """The result with its scores in descending order of their mean rank correlation."""
    return ds.isel(score=np.argsort(-np.nan_to_num(ds.mean_rank_correlation.values, nan=-np.inf), kind="stable"))


def _means(axes: Axes, ds: xr.Dataset) -> None:
    at, mean = np.arange(ds.sizes["score"]), ds.mean_rank_correlation.values
    if "mean_rank_correlation_low" in ds:
        ends = [mean - ds.mean_rank_correlation_low.values, ds.mean_rank_correlation_high.values - mean]
        axes.errorbar(mean, at, xerr=np.clip(np.nan_to_num(ends), 0, None), fmt="none", ecolor=GREY, elinewidth=0.8)
    axes.plot(mean, at, "o", color=BLUE, markersize=3)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set(xlabel="mean over layers", xlim=(-1.05, 1.05))


def scatter(ds: xr.Dataset, score: str | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws one score against the measured cost, a point per expert; both are ranks within the layer.

    Args:
        ds: result of `pruning.agreement`.
        score: name of the score; by default the one with the largest mean rank correlation.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: there is no such score.
    """
    score = str(pick(best_first(ds), "score", score))
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, COLUMN * 0.85))
        cloud(axes, *ranks(ds, score))
        axes.set(xlabel=f"{score}: rank within the layer", ylabel="rank of the loss without the expert")
        page.note(f"mean rank correlation {correlation(ds, score)}", "0: lowest, 1: highest")
        return page.finish(f"{page.ds.attrs['model']}, {score}")


def correlation(ds: xr.Dataset, score: str) -> str:
    """The mean rank correlation of a score, as text."""
    return f"{float(ds.mean_rank_correlation.sel(score=score)):.2f}"


def ranks(ds: xr.Dataset, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of a score and of the cost within each layer, (layer, expert), from 0 to 1; nan if one is unknown."""
    values = [array.transpose("layer", "expert").values for array in (ds.importance.sel(score=score), ds.loss_change)]
    known = ~np.isnan(values[0]) & np.isfinite(values[1])
    ranked = [np.full(known.shape, np.nan), np.full(known.shape, np.nan)]
    for layer, cells in enumerate(known):
        for ranks_of, array in zip(ranked, values, strict=True):
            ranks_of[layer, cells] = (rankdata(array[layer, cells]) - 1) / max(cells.sum() - 1, 1)
    return ranked[0], ranked[1]


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, and a panel of points for each score: (file stem, figure)."""
    yield "score_agreement", plot(ds)

    def draw(axes: Axes, score: str) -> None:
        cloud(axes, *ranks(ds, score), cells=CELLS)
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xticks=[0, 1], yticks=[0, 1])

    scores = [str(name) for name in best_first(ds).score.values]
    grid = Grid(4, 0.75, "rank of the score within its layer", "rank of the loss without the expert", note=NOTE)
    yield from grid.pages("score_scatter", [f"{name} {correlation(ds, name)}" for name in scores], scores, draw)
