"""Attribution against ablation: whether the estimate ranks experts correctly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._scatter import DENSE, diagonal
from moe_probe.plotting._style import COLUMN, Figure

DIMS = ("layer", "expert")
OVER_LAYERS = ("rank_correlation",)


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws a point per expert, its estimated and measured change of the loss, in the color of its layer.

    A note below gives Spearman's rank correlation.

    Args:
        ds: result of `intervene.agreement`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> texts = [[5, 6, 7, 8, 9], [11, 12, 13]]
        >>> both = intervene.ablate("ckpt/tiny-mixtral", texts), intervene.attribution("ckpt/tiny-mixtral", texts)
        >>> figure = plotting.plot(intervene.agreement(*both))
    """
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, COLUMN * 0.85))
        x, y = (ds[name].transpose("layer", "expert").values for name in ("estimate", "measured"))
        layers = np.broadcast_to(ds.layer.values[:, None], x.shape)
        points = axes.scatter(x.ravel(), y.ravel(), 4, layers.ravel(), linewidths=0, rasterized=x.size > DENSE)
        diagonal(axes, y)
        axes.set(xlabel="estimated change (nats)", ylabel="measured change (nats)")
        if ds.sizes["layer"] > 1:
            page.colorbar(points, axes, "layer", ticks=MaxNLocator(6, integer=True))
        page.note(f"rank correlation {float(ds.rank_correlation):.2f}", "dashed: equal")
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The points: (file stem, figure)."""
    yield "agreement", plot(ds)
