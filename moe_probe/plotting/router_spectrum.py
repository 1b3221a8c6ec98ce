"""Singular values and effective ranks of the routers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import matplotlib
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._lines import layer_axis
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLORMAP, GREY, PAGE, Figure

DIMS = ("layer", "index")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws singular values, a line per layer (left), and the effective rank over the layers (right).

    Args:
        ds: result of `static.router_spectrum`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.router_spectrum("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds)
    """
    with Page(ds, look) as page:
        left, right = page.panels(1, 2, (PAGE, 2.2))[0]
        layers = ds.layer.values
        norm = Normalize(int(layers.min()), max(int(layers.max()), int(layers.min()) + 1))
        for layer in layers:
            color = matplotlib.colormaps[COLORMAP](norm(layer))
            left.plot(ds.index + 1, ds.singular_value.sel(layer=layer), color=color, linewidth=1)
        left.set(xlabel="index", ylabel="singular value", ylim=(0, None))
        if ds.sizes["layer"] > 1:
            page.colorbar(ScalarMappable(norm, COLORMAP), left, "layer", ticks=MaxNLocator(integer=True))
        right.plot(ds.layer, ds.effective_rank, marker="o", markersize=3, color=BLUE)
        right.axhline(ds.sizes["index"], color=GREY, linewidth=0.8, linestyle="--")
        right.set(ylabel="effective rank", ylim=(0, ds.sizes["index"] * 1.08))
        layer_axis(right, ds.layer)
        page.note("dashed: number of experts")
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The one figure: (file stem, figure)."""
    yield "router_spectrum", plot(ds)
