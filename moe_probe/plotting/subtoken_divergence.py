"""Divergence of words with several meanings and of others (MH-MoE, arXiv 2404.15045, figure 7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.plotting._lines import chance_interval, chance_line, layer_axis, line, said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, GREEN, ORANGE, Figure
from moe_probe.signatures import check_number

COLORS = {"PF": ORANGE, "non-PF": BLUE}
DIMS = ("layer", "group")
OVER_LAYERS = (
    *("divergence_mean", "group_mean", "tokens", "u_statistic", "p_value", "superiority"),
    *(f"difference{end}" for end in ("", "_low", "_high", "_chance", "_chance_low", "_chance_high")),
)


def plot(ds: xr.Dataset, bins: int = 20, **look: Unpack[Look]) -> Drawn:
    """Draws histograms of the mean divergence of both groups' tokens, with their means and the difference.

    Args:
        ds: result of `dynamic.subtoken_divergence`.
        bins: number of bins of the histograms.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.subtoken_divergence("ckpt/tiny-mh-moe", "ckpt/texts.jsonl")
        >>> figure = plotting.plot(ds)
    """
    values = ds.divergence_mean.values
    check_number("bins", bins, 1, 10_000)
    edges = np.histogram_bin_edges(values[np.isfinite(values)], bins)
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.5))
        for group, color in COLORS.items():
            of_group = values[(ds.token_group == group).values]
            if not len(of_group):
                continue
            label, weights = f"{group} (n = {len(of_group):,})", np.full(len(of_group), 1 / len(of_group))
            axes.hist(of_group, edges.tolist(), weights=weights, color=color, alpha=0.5, label=label)
            axes.axvline(float(ds.group_mean.sel(group=group)), color=color, linewidth=1, linestyle="--")
        axes.set(xlabel=f"distinct experts, {ds.attrs['unit']}", ylabel="share of the group's tokens")
        page.legend(axes)
        page.note("dashed: means", *described(ds).split("\n"))
        return page.finish(page.ds.attrs["model"])


def described(ds: xr.Dataset) -> str:
    """The difference, its interval, and the rank test, as text."""
    if bool(ds.difference.isnull()):
        return "no tokens of one group"
    ends = ""
    if "difference_low" in ds:
        low, high = float(ds.difference_low), float(ds.difference_high)
        ends = " (no interval)" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return f"difference {float(ds.difference):.3f}{ends}\nrank test of word types p = {float(ds.p_value):.2g}"


def by_layer(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the difference of the groups' means in every layer, with interval and chance level."""
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.2))
        chance_interval(axes, ds, "layer_difference_chance", label="chance")
        chance_line(axes, ds, "layer_difference_chance")
        line(axes, ds, "layer_difference", color=GREEN, label="PF minus non-PF")
        axes.set(ylabel=f"distinct experts, {ds.attrs['unit']}")
        layer_axis(axes, ds.layer)
        page.legend(axes)
        page.note(said_of_intervals(ds) if "layer_difference_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """The mean divergence of every layer and group, for a short table."""
    return f"Distinct experts, {ds.attrs['unit']}", ds.layer_mean


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The histograms, and the differences by layer: (file stem, figure)."""
    yield "subtoken_divergence", plot(ds)
    yield "subtoken_divergence_layers", by_layer(ds)
