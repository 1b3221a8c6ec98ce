"""The router's two highest scores with and without gating residuals (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._lines import layer_axis
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, ORANGE, PAGE, Figure
from moe_probe.plotting.router_scores import MOMENTS, bin_edges, log_if_spiked, pooled

COLORS = {"highest": BLUE, "second": ORANGE}
DIMS = ("layer", "bin", "which", "residual")
OVER_LAYERS = ("pooled_histogram", "pooled_score_mean", "pooled_score_variance", "pooled_minimum", "pooled_maximum")


def plot(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws histograms with and without the residual, of all layers or of one.

    Args:
        ds: result of `comparisons.gating_residual`.
        layer: its number; all layers together by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> ds = comparisons.gating_residual("ckpt/tiny-moe-plus-plus", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2)
    """
    scores = ds.sel(layer=pick_layer(ds, layer)) if layer is not None else pooled(ds)
    edges, shares = bin_edges(ds), scores.histogram / scores.histogram.sum("bin")
    with Page(ds, look) as page:
        panels = page.panels(1, 2, (PAGE, 2.3), sharex=True, sharey=True)[0]
        for axes, residual in zip(panels, ds.residual.values, strict=True):
            for which, color in COLORS.items():
                share = shares.sel(residual=residual, which=which)
                axes.stairs(share, edges, fill=True, alpha=0.55, color=color, label=which)
            axes.set(xlabel="routing score", title=f"gating residual: {residual}", xlim=(edges[0], edges[-1]))
            page.note(f"{residual}: {_moments(scores.sel(residual=residual))}")
        panels[0].set(ylabel="share of tokens", ylim=(0, 1.05 * max(float(shares.max()), 1e-9)))
        log_if_spiked(panels[0], np.ravel(shares))
        page.legend(*panels)
        return page.finish(f"{page.ds.attrs['model']}, {'all layers' if layer is None else f'layer {layer}'}")


def _moments(scores: xr.Dataset) -> str:
    values = ((which, *(float(scores[name].sel(which=which)) for name in MOMENTS[1:])) for which in COLORS)
    return ", ".join(f"{which} mean {mean:.3f} (variance {variance:.2g})" for which, mean, variance in values)


def over_layers(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the mean of both scores over the layers, with the residual (line) and without it (dashed)."""
    with Page(ds, look) as page:
        axes = page.panel((PAGE, 2.2))
        for residual, line, filled in zip(ds.residual.values, ("-", "--"), ("full", "none"), strict=True):
            for which, color in COLORS.items():
                mean = ds.score_mean.sel(residual=residual, which=which)
                label = f"{which}, {residual}"
                size = 2.5 if filled == "full" else 4.5
                axes.plot(ds.layer, mean, line, marker="o", markersize=size, fillstyle=filled, color=color, label=label)
        axes.set(ylabel="mean routing score", ylim=(0, None))
        layer_axis(axes, ds.layer, 9)
        page.legend(axes)
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Of all layers, and the means over layers: (file stem, figure)."""
    yield "gating_residual", plot(ds)
    yield "gating_residual_layers", over_layers(ds)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Of each layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"gating_residual_layer{layer}", plot(ds, int(layer))
