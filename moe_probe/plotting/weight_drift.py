"""How far experts and routers have moved between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import xarray as xr

from moe_probe.plotting._heatmap import show
from moe_probe.plotting._lines import whole_numbers
from moe_probe.plotting._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PROJECTION_COLORS,
    Figure,
    style,
    thin_ticks,
)

ROUTER = "router"
DIMS = ("layer", "projection", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """Maps of layers by experts of the relative change, a panel per projection and one for the router.

    Args:
        ds: result of `static.weight_drift`.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.weight_drift("ckpt/tiny-mixtral", "ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds)
    """
    panels = {str(p): ds.relative_change.sel(projection=p) for p in ds.projection.values}
    panels[ROUTER] = ds.router_relative_change.rename(router_expert="expert")
    top = max(float(values.max()) for values in panels.values())
    with style():
        height = min(max(1.4 + 0.12 * ds.sizes["layer"], 2.1), 6)
        figure = Figure(figsize=(PAGE, height), layout="constrained")
        all_axes = figure.subplots(1, len(panels))
        image: Any = None
        for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
            image = show(axes, values, aspect="auto", vmin=0, vmax=top if top > 0 else 1)
            axes.set(title=name, xlabel="expert")
            thin_ticks(axes.xaxis, [str(label) for label in values.expert.values], 5)
            thin_ticks(axes.yaxis, [str(label) for label in ds.layer.values])
        all_axes[0].set_ylabel("layer")
        figure.colorbar(image, ax=list(all_axes), label="|after − before| / |before|")
        figure.suptitle(f"{ds.attrs['model']} to {ds.attrs['after']}")
        return figure


def lines(ds: xr.Dataset) -> Figure:
    """Over layers: how far experts moved on average, and how much of their geometry stayed."""
    colors = [
        PROJECTION_COLORS.get(str(p), c) for p, c in zip(ds.projection.values, (BLUE, ORANGE, GREEN), strict=False)
    ]
    with style():
        figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, color in zip(ds.projection.values, colors, strict=True):
            own = ds.sel(projection=name)
            left.plot(ds.layer, own.relative_change.mean("expert"), "o-", markersize=3, color=color, label=str(name))
            right.plot(ds.layer, own.gram_similarity, "o-", markersize=3, color=color, label=str(name))
        router = ds.router_relative_change.mean("router_expert")
        left.plot(ds.layer, router, "o--", markersize=3, color=GREY, label=ROUTER)
        left.set(title="mean relative change", ylim=(0, None))
        right.set_title("cosine of Gram matrices")
        right.ticklabel_format(useOffset=False)
        left.legend(frameon=False)
        for axes in (left, right):
            whole_numbers(axes)
        figure.suptitle(f"{ds.attrs['model']} to {ds.attrs['after']}")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps and the lines: (file stem, figure)."""
    yield "weight_drift", plot(ds)
    yield "weight_drift_layers", lines(ds)
