"""Changes of experts and routers between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import xarray as xr

from moe_probe.plotting._heatmap import show
from moe_probe.plotting._lines import layer_axis
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PROJECTION_COLORS,
    Figure,
    thin_ticks,
)

ROUTER = "router"
DIMS = ("layer", "projection", "expert")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws maps of the relative change, layers by experts, a panel per projection and one for the router.

    Args:
        ds: result of `static.weight_drift`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.weight_drift("ckpt/tiny-mixtral", "ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds)
    """
    panels = {str(p): ds.relative_change.sel(projection=p) for p in ds.projection.values}
    panels[ROUTER] = ds.router_relative_change.rename(router_expert="expert")
    top = max(float(values.max()) for values in panels.values())
    with Page(ds, look) as page:
        height = min(max(1.2 + 0.1 * ds.sizes["layer"], 1.9), 6)
        all_axes = page.panels(1, len(panels), (PAGE, height))[0]
        image: Any = None
        for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
            image = show(axes, values.transpose("layer", "expert"), aspect="auto", vmin=0, vmax=top if top > 0 else 1)
            axes.set(title=name, xlabel="expert")
            thin_ticks(axes.xaxis, [str(label) for label in values.expert.values], 5)
            thin_ticks(axes.yaxis, [str(label) for label in ds.layer.values])
        all_axes[0].set_ylabel("layer")
        page.colorbar(image, all_axes, "|after − before| / |before|")
        return page.finish(f"{page.ds.attrs['model']} to {page.ds.attrs['after']}")


def lines(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the mean relative change of experts, and the CKA of their Gram matrices, over layers."""
    with Page(ds, look) as page:
        left, right = page.panels(1, 2, (PAGE, 2.2))[0]
        for name, fallback in zip(ds.projection.values, (BLUE, ORANGE, GREEN), strict=False):
            drift, color = ds.sel(projection=name), PROJECTION_COLORS.get(str(name), fallback)
            left.plot(ds.layer, drift.relative_change.mean("expert"), "o-", markersize=3, color=color, label=str(name))
            right.plot(ds.layer, drift.gram_similarity, "o-", markersize=3, color=color, label=str(name))
        router = ds.router_relative_change.mean("router_expert")
        left.plot(ds.layer, router, "o--", markersize=3, color=GREY, label=ROUTER)
        left.set(ylabel="mean relative change", ylim=(0, None))
        right.set_ylabel("CKA of Gram matrices")
        right.ticklabel_format(useOffset=False)
        for axes in (left, right):
            layer_axis(axes, ds.layer)
        page.legend(left)
        return page.finish(f"{page.ds.attrs['model']} to {page.ds.attrs['after']}")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps and the lines: (file stem, figure)."""
    yield "weight_drift", plot(ds)
    yield "weight_drift_layers", lines(ds)
