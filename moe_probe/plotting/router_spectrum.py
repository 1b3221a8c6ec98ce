"""Singular values of the routers, and how many directions they use."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._lines import whole_numbers
from moe_probe.plotting._style import BLUE, COLORMAP, GREY, PAGE, Figure, style

DIMS = ("layer", "index")


def plot(ds: xr.Dataset) -> Figure:
    """Left: singular values, a line per layer. Right: effective rank over the layers.

    Args:
        ds: result of `static.router_spectrum`.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.router_spectrum("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds)
    """
    with style():
        figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        norm = Normalize(int(ds.layer.min()), max(int(ds.layer.max()), int(ds.layer.min()) + 1))
        for layer in ds.layer.values:
            color = matplotlib.colormaps[COLORMAP](norm(layer))
            left.plot(ds.index + 1, ds.singular_value.sel(layer=layer), color=color, linewidth=1)
        left.set(xlabel="index", ylabel="singular value", ylim=(0, None))
        if ds.sizes["layer"] > 1:
            figure.colorbar(ScalarMappable(norm, COLORMAP), ax=left, label="layer", ticks=MaxNLocator(integer=True))
        right.plot(ds.layer, ds.effective_rank, marker="o", markersize=3, color=BLUE)
        right.axhline(ds.sizes["index"], color=GREY, linewidth=0.8, linestyle="--")
        right.annotate(
            "number of experts",
            (0.02, ds.sizes["index"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=6,
            color=GREY,
        )
        right.set(ylabel="effective rank", ylim=(0, ds.sizes["index"] * 1.15))
        whole_numbers(right)
        figure.suptitle(ds.attrs["model"])
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The one figure: (file stem, figure)."""
    yield "router_spectrum", plot(ds)
