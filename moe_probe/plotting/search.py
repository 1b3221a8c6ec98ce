"""The smallest set of experts that a label needs: losses against the size of the set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting._lines import line, said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, GREY, ORANGE, Figure

DIMS = ("rank", "size", "side")
COLORS = {"label": BLUE, "others": ORANGE}


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss of the label and of other documents over the size of the set; crosses: random sets.

    Args:
        ds: result of `intervene.search`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> texts = {"a": [[5, 6, 7, 8, 9]], "b": [[11, 12, 13]]}
        >>> ds = intervene.search("ckpt/tiny-mixtral", texts, "a", 0.1, most=4)
        >>> figure = plotting.plot(ds)
    """
    smallest = int(ds.attrs["found"])
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.3))
        for side, color in COLORS.items():
            line(axes, ds.sel(side=side), "loss_change", "size", color=color, label=side)
            at = np.full(ds.sizes.get("control", 0), smallest or int(ds["size"].max()))
            axes.plot(at, ds.control_loss_change.sel(side=side), "x", color=color, markersize=4)
        if smallest:
            axes.axvline(smallest, linestyle="--", linewidth=0.8, color=GREY)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xlabel="experts removed", ylabel="change of the loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        page.legend(axes)
        page.note(
            "crosses: random sets",
            "dashed: the set found" * bool(smallest),
            f"intervals: {said_of_intervals(ds)}",
        )
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines: (file stem, figure)."""
    yield "search", plot(ds)
