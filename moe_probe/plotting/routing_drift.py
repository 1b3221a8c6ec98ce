"""Change of routing between two checkpoints, and its dependence on tokens' margins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._lines import MOST_LINES, chance_line, layer_axis, layer_colors, line, said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, ORANGE, PAGE, Figure

DIMS = ("layer", "checkpoint")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws changed tokens and kept choices over layers, and changed tokens against their margin.

    Args:
        ds: result of `comparisons.routing_drift`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> base, tuned = {"base": "ckpt/tiny-mixtral"}, {"tuned": "ckpt/tiny-mixtral"}
        >>> ds = comparisons.routing_drift(base, tuned, ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    with Page(ds, look) as page:
        before, after = (str(label) for label in page.ds.checkpoint.values)
        left, right = page.panels(1, 2, (PAGE, 2.4))[0]
        line(left, ds, "changed", color=ORANGE, label="tokens with another top-k set")
        line(left, ds, "overlap", color=BLUE, label="share of choices kept")
        chance_line(left, ds, "chance", label="kept by chance")
        left.set(ylim=(-0.02, 1.03), ylabel="share")
        layer_axis(left, ds.layer)
        _margins(right, ds)
        right.set(xlabel=f"margin of the top-k set in {before}", ylim=(-0.02, 1.03))
        right.set_ylabel("tokens with another top-k set")
        page.legend(left, right, columns=3)
        page.note(f"intervals: {said_of_intervals(ds)}" if "changed_low" in ds else "")
        return page.finish(f"{before} to {after}")


def _margins(axes: Axes, ds: xr.Dataset) -> None:
    """Draws changed tokens against the margin of their choice: a line per layer; beyond six layers, the median."""
    margin, changed = (ds[name].transpose("layer", "bin").values for name in ("margin", "margin_changed"))
    if len(margin) > MOST_LINES:
        axes.plot(margin.T, changed.T, color="0.8", linewidth=0.5)
        axes.plot([], [], color="0.8", linewidth=0.8, label="a layer")
        known = np.isfinite(margin + changed).any(0)
        middle = [np.nanmedian(values[:, known], 0) for values in (margin, changed)]
        axes.plot(*middle, color=ORANGE, linewidth=1.2, label="median layer")
        return
    for at, (layer, color) in enumerate(zip(ds.layer.values, layer_colors(ds.layer.values), strict=True)):
        axes.plot(margin[at], changed[at], color=color, marker="o", markersize=2, label=f"layer {layer}")


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """Changed tokens and kept choices of every layer, for a short table."""
    return "Routing drift", ds[["changed", "overlap"]].to_array("of").transpose("layer", "of")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Both panels: (file stem, figure)."""
    yield "routing_drift", plot(ds)
