"""Share of active neurons: sorted curves per expert, and the mean of every expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import Grid
from moe_probe.plotting._heatmap import layer_map
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLORMAP, COLUMN, Figure

POINTS = 200  # of a curve at most
FEW = 16  # experts that have a curve each
# where they are more: all of them, half of them and their median
KEY = (
    ("all experts", Patch(color=BLUE, alpha=0.18, linewidth=0)),
    ("half of them", Patch(color=BLUE, alpha=0.45, linewidth=0)),
    ("median", Line2D([], [], color="black", linewidth=1)),
)
DIMS = ("layer", "expert")


def plot(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the share of tokens that activate each neuron of each expert, the most active neuron first.

    With more than 16 experts, it draws the range of all of them, of the middle half, and their median.

    Args:
        ds: result of `dynamic.active_neurons`.
        layer: the first one of the result by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.active_neurons("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.3))
        colors = _curves(axes, page.ds, layer)
        axes.set(xlabel="share of neurons, most active first", ylabel="share of tokens")
        if colors is None:
            page.key([handle for _, handle in KEY], [name for name, _ in KEY])
        else:
            page.colorbar(colors, axes, "expert", ticks=MaxNLocator(8, integer=True))
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _curves(axes: Axes, ds: xr.Dataset, layer: Any) -> ScalarMappable | None:
    """Draws a curve for each expert, in a color by its number; beyond 16, the ranges of all and of the middle half."""
    share = np.sort(ds.active_share.sel(layer=layer).values, axis=-1)[:, ::-1]
    at = np.linspace(0, share.shape[1] - 1, min(share.shape[1], POINTS)).round().astype(int)
    x, norm = at / max(share.shape[1] - 1, 1), Normalize(0, max(len(share) - 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    if len(share) > FEW:
        least, lower, median, upper, most = np.nanquantile(share[:, at], [0, 0.25, 0.5, 0.75, 1], axis=0)
        axes.fill_between(x, least, most, color=BLUE, alpha=0.18, linewidth=0)
        axes.fill_between(x, lower, upper, color=BLUE, alpha=0.33, linewidth=0)
        axes.plot(x, median, color="black", linewidth=1)
        return None
    curves = np.stack(np.broadcast_arrays(x, share[:, at]), axis=-1)
    colors = matplotlib.colormaps[COLORMAP](norm(np.arange(len(share))))
    axes.add_collection(LineCollection(list(curves), colors=colors, linewidths=0.8))
    return ScalarMappable(norm, COLORMAP)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The mean of every expert, and the curves of all layers: (file stem, figure)."""
    yield "active_neurons", layer_map(Page(ds, {}), ds.expert_share, "share of neurons active")
    colors: dict[str, Any] = {"bar": "expert"} if ds.sizes["expert"] <= FEW else {"legend": KEY}
    x = "share of neurons, most active first"
    grid = Grid(x=x, y="share of tokens", columns=4, aspect=0.7, apart=0.1, **colors)
    layers = ds.layer.values
    names = [f"layer {layer}" for layer in layers]
    yield from grid.pages("active_neurons_curves", names, layers, lambda axes, layer: _curves(axes, ds, layer))


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The curves of every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"active_neurons_layer{layer}", plot(ds, int(layer))
