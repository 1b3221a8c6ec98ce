"""The smallest set of experts that a label needs: the loss of both sides against the size of the set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from moe_probe.plotting._lines import line
from moe_probe.plotting._style import BLUE, COLUMN, GREY, ORANGE, Figure, style

DIMS = ("rank", "size", "side")
COLORS = {"label": BLUE, "others": ORANGE}


def plot(ds: xr.Dataset) -> Figure:
    """The change of the loss of the label and of the other documents over the size of the set; crosses: random sets.

    Args:
        ds: result of `intervene.search`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> texts = {"a": [[5, 6, 7, 8, 9]], "b": [[11, 12, 13]]}
        >>> ds = intervene.search("ckpt/tiny-mixtral", texts, "a", 0.1, most=4)
        >>> figure = plotting.plot(ds)
    """
    found = int(ds.attrs["found"])
    with style():
        figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
        axes = figure.subplots()
        for side, color in COLORS.items():
            line(axes, ds.sel(side=side), "loss_change", "size", color=color, label=side)
            at = np.full(ds.sizes.get("control", 0), found or int(ds["size"].max()))
            axes.plot(at, ds.control_loss_change.sel(side=side), "x", color=color, markersize=4)
        if found:
            axes.axvline(found, linestyle="--", linewidth=0.8, color=GREY)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xlabel="experts removed (crosses: random)", ylabel="change of the loss (nats)")
        axes.set_title(ds.attrs["model"])
        axes.legend(frameon=False)
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines: (file stem, figure)."""
    yield "search", plot(ds)
