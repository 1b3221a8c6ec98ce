"""Distributions of the highest and second-highest score (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._lines import plain_numbers
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, ORANGE, PAGE, Figure, round_places

COLORS = (BLUE, ORANGE)
MOMENTS = ("histogram", "score_mean", "score_variance")
SPIKE = 20  # times the middle of the bins that hold anything: beyond, the share of tokens is logarithmic
DIMS = ("layer", "bin", "which")
OVER_LAYERS = ("pooled_histogram", "pooled_score_mean", "pooled_score_variance", "pooled_minimum", "pooled_maximum")


def plot(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws histograms of one layer, or of all layers together, with mean and variance.

    If a spike would flatten the rest, the axis of the share of tokens is logarithmic.

    Args:
        ds: result of `dynamic.router_scores`.
        layer: its number; all layers together by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.router_scores("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=1)
    """
    scores = pooled(ds) if layer is None else ds.sel(layer=pick_layer(ds, layer))
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.3))
        _histograms(axes, scores)
        axes.set(xlabel="router score", ylabel="share of tokens")
        page.legend(axes, columns=1)
        return page.finish(f"{page.ds.attrs['model']}, {'all layers' if layer is None else f'layer {layer}'}")


def pooled(ds: xr.Dataset) -> xr.Dataset:
    """Histograms and moments of all layers together, under the names of those of one layer."""
    return ds[[f"pooled_{name}" for name in MOMENTS]].rename({f"pooled_{name}": name for name in MOMENTS})


def _histograms(axes: Axes, scores: xr.Dataset) -> None:
    """Draws shares of tokens over the score, (which, bin), in a color per `which`; logarithmic if one is a spike."""
    edges, shares = bin_edges(scores), []
    for which, color in zip(scores.which.values, COLORS, strict=True):
        one = scores.sel(which=which)
        shares.append((one.histogram / one.histogram.sum()).values)
        label = f"{which}: mean {float(one.score_mean):.3f}, variance {float(one.score_variance):.1e}"
        axes.stairs(shares[-1], edges, fill=True, alpha=0.55, color=color, label=label)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.05 * np.nanmax([*np.ravel(shares), 1e-9])))
    log_if_spiked(axes, np.ravel(shares))


def log_if_spiked(axes: Axes, shares: np.ndarray) -> None:
    """Makes the y axis logarithmic if the highest share is far above the median one."""
    known = shares[np.isfinite(shares) & (shares > 0)]
    if len(known) and known.max() > SPIKE * np.median(known):
        axes.set_yscale("log")
        axes.set_ylim(known.min() / 1.5, min(known.max() * 1.5, 1.5))
        axes.yaxis.set_minor_formatter(NullFormatter())
        plain_numbers(axes)


def bin_edges(ds: xr.Dataset) -> np.ndarray:
    """Edges of the bins of a histogram."""
    step = float(ds.bin[1] - ds.bin[0]) if ds.sizes["bin"] > 1 else 1.0
    return np.append(ds.bin.values, ds.bin.values[-1] + step)


def ridges(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the distributions of all layers above each other, the first at the bottom, each scaled to its maximum."""
    edges, layers = bin_edges(ds), ds.layer.values
    middle = (edges[1:] + edges[:-1]) / 2
    with Page(ds, look) as page:
        axes = page.panel((COLUMN if len(layers) <= 32 else PAGE, min(0.9 + 0.16 * len(layers), 7)))
        for at in reversed(range(len(layers))):
            for which, color in zip(ds.which.values, COLORS, strict=True):
                share = ds.histogram.isel(layer=at).sel(which=which).values
                height = 1.7 * np.nan_to_num(share / max(share.max(), 1e-12))
                axes.fill_between(middle, at, at + height, color=color, alpha=0.5, linewidth=0, step="mid")
            axes.axhline(at, color="white", linewidth=0.4)
        places = round_places([str(layer) for layer in layers], 16)
        axes.set_yticks(places, [str(layers[place]) for place in places])
        axes.set(xlabel="router score", ylabel="layer", xlim=(edges[0], edges[-1]), ylim=(-0.2, len(layers) + 1))
        page.key([Patch(color=color, alpha=0.55) for color in COLORS], [str(which) for which in ds.which.values])
        page.note("height: share of tokens, of each layer's own highest")
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers together, and a ridge for every layer: (file stem, figure)."""
    yield "router_scores_all", plot(ds)
    yield "router_scores_ridges", ridges(ds)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"router_scores_layer{layer}", plot(ds, int(layer))
