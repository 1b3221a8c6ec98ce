"""Models side by side: how often every expert is used (MH-MoE, arXiv 2404.15045, figures 1, 5 and 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import xarray as xr

from moe_probe.plotting._heatmap import show
from moe_probe.plotting._style import BLUE, COLORMAP, COLUMN, GREEN, ORANGE, PAGE, Figure, style, thin_ticks

SUMMARY = {
    "activation_ratio": "activation ratio",
    "entropy": "entropy of load / ln E",
    "divergence": "distinct experts",
}
MARKERS = "osD^vP*X"
DIMS = ("checkpoint", "depth", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """A map of layers by experts for every checkpoint, on one color scale; the first MoE layer on top.

    Args:
        ds: result of `comparisons.expert_activation`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> ds = comparisons.expert_activation(["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe"], ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    labels = [str(label) for label in ds.checkpoint.values]
    columns = min(len(labels), 3)
    rows = -(-len(labels) // columns)
    with style():
        height = rows * (0.75 + 0.12 * max(ds.sizes["depth"], 4)) + 0.3
        figure = Figure(figsize=(PAGE if columns > 1 else COLUMN, min(height, 8)), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        top = float(ds.frequency.max())
        image: Any = None
        for axes, label in zip(all_axes, labels, strict=False):
            own = ds.sel(checkpoint=label)
            used = own.isel(depth=(own.layer >= 0).values, expert=slice(int(own.num_experts)))
            image = show(axes, used.frequency, aspect="auto", vmin=0, vmax=top)
            axes.set(xlabel="expert", ylabel="layer")
            axes.set_title(f"{label}: {100 * float(own.activation_ratio):.1f} % active")
            thin_ticks(axes.xaxis, [str(e) for e in used.expert.values], 5)
            thin_ticks(axes.yaxis, [str(int(n)) for n in used.layer.values], 6)
        for axes in all_axes[len(labels) :]:
            axes.axis("off")
        figure.colorbar(image, ax=list(all_axes), label="selections per token")
        return figure


def bars(ds: xr.Dataset) -> Figure:
    """Activation ratio, evenness of load and divergence of every checkpoint: bars.

    Args:
        ds: result of `comparisons.expert_activation`.
    """
    labels = [str(label) for label in ds.checkpoint.values]
    with style():
        figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
        panels = figure.subplots(1, len(SUMMARY))
        for axes, (name, title), color in zip(panels, SUMMARY.items(), (BLUE, GREEN, ORANGE), strict=True):
            axes.bar(range(len(labels)), ds[name].values, color=color, width=0.6)
            axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
            axes.set_title(title)
        return figure


def against(ds: xr.Dataset, variable: str) -> Figure:
    """The same against what differs between the checkpoints: a marker for each, on a logarithmic axis.

    Args:
        ds: result of `comparisons.expert_activation`.
        variable: `num_experts` or `subtokens`.
    """
    at = ds[variable].values
    colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 0.9, len(at)))
    with style():
        figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
        panels = figure.subplots(1, len(SUMMARY))
        for axes, (name, title) in zip(panels, SUMMARY.items(), strict=True):
            for point, (label, x, value) in enumerate(zip(ds.checkpoint.values, at, ds[name].values, strict=True)):
                look = {"marker": MARKERS[point % len(MARKERS)], "color": colors[point], "markersize": 5}
                axes.plot(x, value, linestyle="none", alpha=0.8, label=str(label), **look)
            axes.set_xscale("log", base=2)
            axes.set_xlim(at.min() / 1.4, at.max() * 1.4)
            axes.set_xticks(np.unique(at), [str(n) for n in np.unique(at)])
            axes.minorticks_off()
            axes.set(xlabel={"num_experts": "experts", "subtokens": "sub-tokens"}[variable], title=title)
            axes.set_ylim(0, 1.1 * max(float(ds[name].max()), 1e-9))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps; the summary by label, and against what differs between the checkpoints: (file stem, figure)."""
    yield "expert_activation", plot(ds)
    yield "expert_activation_summary", bars(ds)
    for variable in ("num_experts", "subtokens"):
        if len(np.unique(ds[variable])) > 1:
            yield f"expert_activation_{variable}", against(ds, variable)
