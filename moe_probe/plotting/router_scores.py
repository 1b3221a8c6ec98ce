"""Distributions of the highest and second-highest score (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._style import BLUE, COLUMN, ORANGE, Figure, style

DIMS = ("layer", "bin", "which")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Histograms of one layer, or of all layers together, with mean and variance.

    Args:
        ds: result of `dynamic.router_scores`.
        layer: all layers together by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.router_scores("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=1)
    """

    def value(name: str) -> xr.DataArray:
        return ds[f"pooled_{name}"] if layer is None else ds[name].sel(layer=pick_layer(ds, layer))

    step = float(ds.bin[1] - ds.bin[0]) if ds.sizes["bin"] > 1 else 1.0
    edges = np.append(ds.bin.values, ds.bin.values[-1] + step)
    with style():
        figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
        axes = figure.subplots()
        for which, color in zip(ds.which.values, (BLUE, ORANGE), strict=True):
            share = value("histogram").sel(which=which) / value("histogram").sel(which=which).sum()
            mean, variance = (float(value(name).sel(which=which)) for name in ("score_mean", "score_variance"))
            label = f"{which}: mean {mean:.3f}, variance {variance:.1e}"
            axes.stairs(share, edges, fill=True, alpha=0.55, color=color, label=label)
        axes.set(xlabel="router score", ylabel="share of tokens", xlim=(edges[0], edges[-1]))
        axes.margins(y=0.3)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper right")
        axes.set_title(f"{ds.attrs['model']}, {'all layers' if layer is None else f'layer {layer}'}")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers together, and every layer: (file stem, figure)."""
    yield "router_scores_all", plot(ds)
    for layer in ds.layer.values:
        yield f"router_scores_layer{layer}", plot(ds, int(layer))
