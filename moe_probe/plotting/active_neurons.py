"""How often neurons are active: sorted curves per expert, and the mean of every expert."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator, PercentFormatter

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import layer_map
from moe_probe.plotting._style import COLORMAP, COLUMN, Figure, style

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Neurons of each expert, the most active one first, with the share of tokens that activate them.

    Args:
        ds: result of `dynamic.active_neurons`.
        layer: the first one of the result by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.active_neurons("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    share = np.sort(ds.active_share.sel(layer=layer).values, axis=-1)[:, ::-1]
    with style():
        figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
        axes = figure.subplots()
        norm = Normalize(0, max(len(share) - 1, 1))
        for expert, values in enumerate(share):
            color = matplotlib.colormaps[COLORMAP](norm(expert))
            axes.plot(np.linspace(0, 1, len(values)), values, color=color, linewidth=0.9)
        axes.set(xlabel="neurons, most active first", ylabel="share of tokens", ylim=(0, 1.02), xlim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(f"{ds.attrs['model']}, layer {layer}")
        figure.colorbar(ScalarMappable(norm, COLORMAP), ax=axes, label="expert", ticks=MaxNLocator(8, integer=True))
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The mean of every expert, and every layer's curves: (file stem, figure)."""
    with style():
        yield "active_neurons", layer_map(ds.expert_share, ds.attrs["model"], "share of neurons active")
    for layer in ds.layer.values:
        yield f"active_neurons_layer{layer}", plot(ds, int(layer))
