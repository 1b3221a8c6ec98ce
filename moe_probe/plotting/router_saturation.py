"""How early the router's final choices are made (OLMoE, arXiv 2409.02060)."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import xarray as xr

from moe_probe.plotting._lines import interval, said_of_intervals
from moe_probe.plotting._style import COLORMAP, PAGE, Figure, style

PANELS = {"saturation": ("all k choices", "chance"), "first_saturation": ("first choice", "first_chance")}
DIMS = ("checkpoint", "layer")


def plot(ds: xr.Dataset) -> Figure:
    """Share of the final choices that are made already, over checkpoints, a line per layer.

    Args:
        ds: result of `comparisons.router_saturation`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> steps = {"1k": "ckpt/tiny-mixtral", "2k": "ckpt/tiny-mixtral"}
        >>> ds = comparisons.router_saturation(steps, ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    at, layers = list(range(ds.sizes["checkpoint"])), ds.layer.values
    colors = matplotlib.colormaps[COLORMAP].resampled(len(layers))
    with style():
        figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, (title, chance)) in zip(panels, PANELS.items(), strict=True):
            for number, layer in enumerate(layers):
                own = ds.sel(layer=layer)
                label = f"layer {layer}" if len(layers) <= 6 or number in (0, len(layers) - 1) else None
                axes.plot(at, own[name], color=colors(number), marker="o", markersize=3, label=label)
                if f"{name}_low" in own:
                    low, high = own[f"{name}_low"], own[f"{name}_high"]
                    interval(axes, at, low, high, color=colors(number), alpha=0.15)
                if chance in own:
                    axes.plot(at, own[chance], "--", linewidth=0.8, color=colors(number))
            rotation = {"rotation": 30, "ha": "right"} if len(at) > 4 else {}
            axes.set_xticks(at, [str(label) for label in ds.checkpoint.values], **rotation)
            axes.set(title=title, ylim=(0, 1.03), xlabel="checkpoint")
        panels[-1].legend(frameon=False)
        panels[0].set_ylabel("share of the final choices")
        notes = ["dashed: chance"] * ("chance" in ds) + [f"intervals: {said_of_intervals(ds)}"] * (
            "saturation_low" in ds
        )
        figure.suptitle("; ".join(notes), fontsize="small")
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """The share of final choices of every layer and checkpoint, for a short table."""
    return "Share of final choices", ds.saturation.transpose("layer", "checkpoint")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines: (file stem, figure)."""
    yield "router_saturation", plot(ds)
