"""Attribution against ablation: how well the estimate ranks experts."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import xarray as xr

from moe_probe.plotting._style import COLORMAP, COLUMN, GREY, Figure, style

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """A point per expert: the change of the loss, estimated and measured, in the color of its layer.

    The title has Spearman's rank correlation.

    Args:
        ds: result of `intervene.agreement`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> texts = [[5, 6, 7, 8, 9], [11, 12, 13]]
        >>> both = intervene.ablate("ckpt/tiny-mixtral", texts), intervene.attribution("ckpt/tiny-mixtral", texts)
        >>> figure = plotting.plot(intervene.agreement(*both))
    """
    with style():
        figure = Figure(figsize=(COLUMN, COLUMN * 0.9), layout="constrained")
        axes = figure.subplots()
        colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 0.9, ds.sizes["layer"]))
        for color, layer in zip(colors, ds.layer.values, strict=True):
            one = ds.sel(layer=layer)
            axes.plot(one.estimate, one.measured, ".", color=color, label=str(layer), rasterized=True)
        known = ds.measured.values[np.isfinite(ds.measured.values)]
        ends = [known.min(), known.max()] if len(known) else [0, 1]
        axes.plot(ends, ends, "--", color=GREY, linewidth=0.8)
        axes.set(xlabel="estimated change (nats)", ylabel="measured change (nats)")
        axes.set_title(f"{ds.attrs['model']}, rank correlation {float(ds.rank_correlation):.2f}")
        if ds.sizes["layer"] <= 8:
            axes.legend(title="layer", frameon=False, ncols=2)
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The points: (file stem, figure)."""
    yield "agreement", plot(ds)
