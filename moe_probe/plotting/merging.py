"""Cost of merging compared with pruning to the same size: the held-out loss of each method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, GREY, ORANGE, PAGE, Figure, thin_ticks

DIMS = ("groups", "way")
RANDOM = "pruned at random"
PRUNED = "pruned by"
COLORS = {RANDOM: GREY, PRUNED: ORANGE, "": BLUE}


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss of each method at the same number of experts, a panel for each grouping.

    Blue: merged, one bar per way of averaging a group; orange: pruned by a score; gray: pruned at random.

    Args:
        ds: result of `pruning.merging`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import plotting, pruning
        >>> four = pruning.groups("ckpt/tiny-mixtral", [[5, 6, 7, 8]], 4)
        >>> figure = plotting.plot(pruning.merging("ckpt/tiny-mixtral", four, [[9, 10, 11], [12, 13, 14]]))
    """
    with Page(ds, look) as page:
        rows, ways = page.ds.sizes["groups"], [str(way) for way in ds.way.values]
        colors = [next(color for start, color in COLORS.items() if way.startswith(start)) for way in ways]
        size = PAGE, rows * (0.35 + 0.14 * len(ways)) + 0.5
        all_axes = page.panels(rows, 1, size, sharex=True)[:, 0]
        for axes, name in zip(all_axes, page.ds.groups.values, strict=True):
            one = page.ds.sel(groups=name)
            value = one.loss_change.values
            ends = np.array([value - one.loss_change_low.values, one.loss_change_high.values - value])
            bars = {"xerr": np.clip(np.nan_to_num(ends), 0, None), "error_kw": {"elinewidth": 0.7}}
            axes.barh(np.arange(len(ways)), value, 0.75, color=colors, **bars)
            axes.axvline(0, color="black", linewidth=0.6)
            axes.set_ylim(len(ways) - 0.4, -0.6)
            thin_ticks(axes.yaxis, ways, 60)
            axes.set_title(f"{name}: {int(one.experts_left)} experts left" if rows > 1 else "")
        all_axes[-1].set_xlabel("change of the loss (nats)")
        page.note(*_colors_said(colors), f"intervals: {said_of_intervals(ds)}")
        return page.finish(page.ds.attrs["model"])


def _colors_said(colors: list[str]) -> list[str]:
    """The meaning of the colors in use."""
    said = {BLUE: "blue: merged", ORANGE: "orange: pruned", GREY: "gray: pruned at random"}
    return [text for color, text in said.items() if color in colors]


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The bars: (file stem, figure)."""
    yield "merging", plot(ds)
