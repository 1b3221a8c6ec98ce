"""Norms of the experts' outputs and the router's scores for each token (arXiv 2406.18219)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import chosen_layers
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, ORANGE, PAGE, Figure, thin_ticks
from moe_probe.plotting._tokens import choose, panel_title, rows

FEW = 16  # experts that are bars; more are points
NARROW, NARROW_TITLE = 4, 13  # panels side by side, beyond which axes bear no names; characters of their titles
DIMS = ("layer", "token", "expert")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    tokens: Sequence[int] | None = None,
    as_published: bool = False,
    **look: Unpack[Look],
) -> Drawn:
    """Draws norms and scores in a panel per token, whose title names the chosen experts.

    Up to 16 experts: left bars are norms, right bars scores. More: a point per expert, its norm against its score,
    filled if the expert is chosen, with Spearman's rank correlation.

    Args:
        ds: result of `dynamic.output_norms`.
        layer: the first one of the result by default.
        tokens: positions of the tokens to show; the first four by default.
        as_published: draw bars for any number of experts, and all tokens in one row, as the paper does.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: the result has no such layer.
        OutOfRange: the result has no such tokens.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.output_norms("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2, tokens=[0, 3])
    """
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        one = rows(page.ds).sel(layer=layer)
        shown = choose(one, tokens)
        bars = as_published or one.sizes["expert"] <= FEW
        columns = len(shown) if as_published else min(2 if bars else 4, len(shown))
        lines = -(-len(shown) // columns)
        all_axes = page.panels(lines, columns, (PAGE, 0.35 + (1.5 if bars else 1.9) * lines)).ravel()
        handles: list[Any] = []
        for axes, token in zip(all_axes, shown, strict=False):
            handles = _token(axes, one, token, bars, narrow=columns > NARROW)
        for axes in all_axes[len(shown) :]:
            axes.set_axis_off()
        page.key(handles, [handle.get_label() for handle in handles])
        page.note("" if bars else "ρ: rank correlation of norm and score")
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _token(axes: Axes, one: xr.Dataset, token: int, bars: bool, narrow: bool) -> list[Any]:
    """Draws the panel of one token; returns the artists for the legend."""
    norm, score, chosen = (one[name].values[token] for name in ("norm", "score", "chosen"))
    picked = np.flatnonzero(chosen)
    title = panel_title(one, token, picked[np.argsort(-score[picked])])
    if bars:
        if narrow:
            lines = (part for line in title.split("\n") for part in textwrap.wrap(line, NARROW_TITLE))
            axes.set_title("\n".join(lines), fontsize=6)
        else:
            axes.set_title(title.replace("\n", ", "))
        return _twin_bars(axes, norm, score, [str(label) for label in one.expert.values], narrow)
    known = np.isfinite(norm) & np.isfinite(score)
    varied = known.sum() > 2 and np.ptp(norm[known]) > 0 and np.ptp(score[known]) > 0
    rank = f"\nρ = {spearmanr(norm[known], score[known])[0]:.2f}" if varied else ""
    axes.set_title(title.split("\n")[0] + rank)
    return _points(axes, norm, score, chosen.astype(bool))


def _points(axes: Axes, norm: np.ndarray, score: np.ndarray, chosen: np.ndarray) -> list[Any]:
    others = axes.scatter(
        score[~chosen], norm[~chosen], 7, facecolors="none", edgecolors=BLUE, linewidths=0.5, label="other experts"
    )
    picked = axes.scatter(score[chosen], norm[chosen], 12, color=ORANGE, label="chosen experts")
    axes.set(xlabel="router score", ylabel="norm of output")
    axes.locator_params(nbins=4)
    return [picked, others]


def _twin_bars(axes: Axes, norm: np.ndarray, score: np.ndarray, labels: list[str], narrow: bool) -> list[Any]:
    at = np.arange(len(labels))
    right = axes.twinx()
    left_bars = axes.bar(at - 0.2, norm, 0.4, color=BLUE, label="L2 norm of output")
    right_bars = right.bar(at + 0.2, score, 0.4, color=ORANGE, label="router score")
    axes.set_xlabel("expert")
    for side, name in ((axes, "norm"), (right, "score")):
        side.set_ylabel("" if narrow else name)
        if narrow:
            side.tick_params(labelsize=5, pad=1, length=2)
            side.locator_params(axis="y", nbins=4)
    thin_ticks(axes.xaxis, labels, 4 if narrow else FEW)
    return [left_bars, right_bars]


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """A few layers: (file stem, figure)."""
    for layer in chosen_layers(ds.layer.values, 4):
        yield f"output_norms_layer{layer}", plot(ds, layer)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every other layer: (file stem, figure)."""
    for layer in sorted({int(layer) for layer in ds.layer.values} - set(chosen_layers(ds.layer.values, 4))):
        yield f"output_norms_layer{layer}", plot(ds, layer)
