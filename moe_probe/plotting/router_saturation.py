"""Share of the router's final choices over training (OLMoE, arXiv 2409.02060)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._lines import MOST_LINES, layer_colors, lines_by_layer, said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import GREY, PAGE, Figure, round_places

PANELS = {"saturation": ("all k choices", "chance"), "first_saturation": ("first choice", "first_chance")}
DIMS = ("checkpoint", "layer")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the share of the final choices that each checkpoint already makes: a line per layer.

    Beyond six layers, it draws their median, their range and the highest layer.

    Args:
        ds: result of `comparisons.router_saturation`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> steps = {"1k": "ckpt/tiny-mixtral", "2k": "ckpt/tiny-mixtral"}
        >>> ds = comparisons.router_saturation(steps, ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    with Page(ds, look) as page:
        panels = page.panels(1, 2, (PAGE, 2.4), sharey=True)[0]
        for axes, (name, (title, chance)) in zip(panels, PANELS.items(), strict=True):
            _panel(axes, page.ds, name, chance)
            axes.set(title=title, ylim=(0, 1.03), xlabel="checkpoint")
        panels[0].set_ylabel("share of the final choices")
        page.legend(*panels)
        page.note("dashed: chance" * ("chance" in ds))
        page.note(f"intervals: {said_of_intervals(ds)}" if "saturation_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def _panel(axes: Axes, ds: xr.Dataset, name: str, chance: str) -> None:
    at, layers = list(range(ds.sizes["checkpoint"])), ds.sizes["layer"]
    lines_by_layer(axes, at, ds[name], ds.get(f"{name}_low"), ds.get(f"{name}_high"))
    if chance in ds:
        by_chance = ds[chance].transpose("layer", "checkpoint").values
        colors = layer_colors(ds.layer.values) if layers <= MOST_LINES else [GREY]
        for values, color in zip(
            by_chance if layers <= MOST_LINES else [np.nanmedian(by_chance, 0)], colors, strict=True
        ):
            axes.plot(at, values, "--", linewidth=0.8, color=color)
    labels = [str(label) for label in ds.checkpoint.values]
    places = round_places(labels, 12)
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(places) > 4 else {}
    axes.set_xticks(places, [labels[place] for place in places], **turned)


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """The share of final choices of every layer and checkpoint, for a short table."""
    return "Share of final choices", ds.saturation.transpose("layer", "checkpoint")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines: (file stem, figure)."""
    yield "router_saturation", plot(ds)
