"""Frequency of every expert in several models (MH-MoE, arXiv 2404.15045, figures 1 and 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from moe_probe.plotting._heatmap import show
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLORMAP, COLUMN, GREEN, ORANGE, PAGE, Figure, thin_ticks

SUMMARY = {
    "activation_ratio": "activation ratio",
    "entropy": "entropy of load / ln E",
    "divergence": "distinct experts",
}
MARKERS = "osD^vP*X"
DIMS = ("checkpoint", "depth", "expert")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws a map of layers by experts for every checkpoint, in one color scale; the first MoE layer is on top.

    Args:
        ds: result of `comparisons.expert_activation`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> ds = comparisons.expert_activation(["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe"], ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    with Page(ds, look) as page:
        labels = [str(label) for label in page.ds.checkpoint.values]
        columns = min(len(labels), 3)
        rows = -(-len(labels) // columns)
        height = rows * (0.75 + min(0.12 * max(ds.sizes["depth"], 4), 3.5)) + 0.1
        size = PAGE if columns > 1 else COLUMN, min(height, 9)
        all_axes = page.panels(rows, columns, size).ravel()
        image: Any = None
        for axes, label in zip(all_axes, labels, strict=False):
            of_model = page.ds.sel(checkpoint=label)
            image = _map(axes, of_model, float(ds.frequency.max()))
            axes.set_title(f"{label}: {100 * float(of_model.activation_ratio):.1f}\u00a0%\u00a0active")
        for axes in all_axes[len(labels) :]:
            axes.axis("off")
        page.colorbar(image, all_axes, "selections per token")
        return page.finish()


def _map(axes: Axes, of_model: xr.Dataset, top: float) -> AxesImage:
    used = of_model.isel(depth=(of_model.layer >= 0).values, expert=slice(int(of_model.num_experts)))
    image = show(axes, used.frequency, aspect="auto", vmin=0, vmax=top or 1)
    axes.set(xlabel="expert", ylabel="layer")
    thin_ticks(axes.xaxis, [str(e) for e in used.expert.values], 5)
    thin_ticks(axes.yaxis, [str(int(n)) for n in used.layer.values], 6)
    return image


def bars(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws activation ratio, evenness of load and divergence of every checkpoint as bars.

    Args:
        ds: result of `comparisons.expert_activation`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.
    """
    with Page(ds, look) as page:
        labels = [str(label) for label in page.ds.checkpoint.values]
        panels = page.panels(1, len(SUMMARY), (PAGE, 2.2))[0]
        for axes, (name, title), color in zip(panels, SUMMARY.items(), (BLUE, GREEN, ORANGE), strict=True):
            axes.bar(range(len(labels)), ds[name].values, color=color, width=0.6)
            axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
            axes.set_title(title)
        return page.finish()


def against(ds: xr.Dataset, variable: str, **look: Unpack[Look]) -> Drawn:
    """Draws activation ratio, evenness of load and divergence against a property of the checkpoints, one marker each.

    Args:
        ds: result of `comparisons.expert_activation`.
        variable: `num_experts` or `subtokens`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.
    """
    at = ds[variable].values
    with Page(ds, look) as page:
        panels = page.panels(1, len(SUMMARY), (PAGE, 2.3))[0]
        for axes, (name, title) in zip(panels, SUMMARY.items(), strict=True):
            _markers(axes, page.ds, variable, name)
            axes.set_xscale("log", base=2)
            axes.set_xlim(at.min() / 1.4, at.max() * 1.4)
            axes.set_xticks(np.unique(at), [str(n) for n in np.unique(at)])
            axes.minorticks_off()
            axes.set(xlabel={"num_experts": "experts", "subtokens": "sub-tokens"}[variable], title=title)
            axes.set_ylim(0, 1.1 * max(float(ds[name].max()), 1e-9))
        page.legend(panels[0])
        return page.finish()


def _markers(axes: Axes, ds: xr.Dataset, variable: str, name: str) -> None:
    colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 0.9, ds.sizes["checkpoint"]))
    points = zip(ds.checkpoint.values, ds[variable].values, ds[name].values, strict=True)
    for point, (label, x, value) in enumerate(points):
        look = {"marker": MARKERS[point % len(MARKERS)], "color": colors[point], "markersize": 5}
        axes.plot(x, value, linestyle="none", alpha=0.8, label=str(label), **look)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps; the summary by label, and against what differs between the checkpoints: (file stem, figure)."""
    yield "expert_activation", plot(ds)
    yield "expert_activation_summary", bars(ds)
    for variable in ("num_experts", "subtokens"):
        if len(np.unique(ds[variable])) > 1:
            yield f"expert_activation_{variable}", against(ds, variable)
