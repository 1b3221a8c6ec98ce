"""Cost of pruning: the held-out loss over the share of masked experts, for each score and for random orders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.errors import NotFitting
from moe_probe.plotting._changes import change_colors
from moe_probe.plotting._choices import pick
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import GREY, OKABE_ITO, PAGE, Figure, thin_ticks

DIMS = ("order", "fraction")
RANDOM = "random "
MARKERS = "osD^v<>"
APART = 0.006  # of the width, between the intervals of neighboring scores


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss over the share of masked experts: a line per score, a band for random orders.

    The scores with the smallest cost have colors and intervals, in ascending order of cost; the others are gray.

    Args:
        ds: result of `pruning.curve`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import plotting, pruning
        >>> found = pruning.scores("ckpt/tiny-mixtral", [[5, 6, 7, 8], [9, 10, 11]])
        >>> texts = [[12, 13, 14], [15, 16, 17]]
        >>> figure = plotting.plot(pruning.curve("ckpt/tiny-mixtral", found.isel(score=slice(0, 9)), texts))
    """
    with Page(ds, look) as page:
        axes = page.panel((PAGE, 3.2))
        names, drawn = scores_of(page.ds), random_of(page.ds)
        shares = page.ds.fraction.values * 100
        if drawn:
            band(axes, shares, page.ds.loss_change.sel(order=drawn).values)
        for name in names[len(OKABE_ITO) :]:
            axes.plot(shares, page.ds.loss_change.sel(order=name), color="0.8", linewidth=0.7, zorder=1)
        for place, name in enumerate(names[: len(OKABE_ITO)]):
            score_line(axes, page.ds.sel(order=name), place)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xlabel="experts masked (%)", ylabel="change of the loss (nats)")
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        page.legend(axes)
        others = len(names) > len(OKABE_ITO)
        page.note("gray lines: scores that cost more" * others, f"intervals: {said_of_intervals(ds)}")
        return page.finish(page.ds.attrs["model"])


def scores_of(ds: xr.Dataset) -> list[str]:
    """Scores in ascending order of the mean change of the loss."""
    names = [str(name) for name in ds.order.values if not str(name).startswith(RANDOM)]
    means = ds.loss_change.sel(order=names).mean("fraction").values
    return [names[place] for place in np.argsort(means, kind="stable")]


def random_of(ds: xr.Dataset) -> list[str]:
    """The curves of random orders."""
    return [str(name) for name in ds.order.values if str(name).startswith(RANDOM)]


def band(axes: Axes, shares: np.ndarray, values: np.ndarray) -> None:
    """Draws random orders (orders, fractions): their range, and their mean."""
    label = f"random ({len(values)} orders, mean)"
    axes.fill_between(shares, values.min(0), values.max(0), color="0.9", linewidth=0, zorder=0)
    axes.plot(shares, values.mean(0), "--", color=GREY, linewidth=1, label=label, zorder=2)


def score_line(axes: Axes, ds: xr.Dataset, place: int) -> None:
    """Draws one score, with intervals shifted so that they do not overlap those of others."""
    shares, value = ds.fraction.values * 100, ds.loss_change.values
    color, span = OKABE_ITO[place], max(np.ptp(shares), shares.max(), 1)
    at = shares + (place - len(OKABE_ITO) / 2) * APART * span
    look = {"color": color, "marker": MARKERS[place], "markersize": 3, "linewidth": 1, "zorder": 3}
    axes.plot(at, value, label=str(ds.order.item()), **look)
    ends = np.array([value - ds.loss_change_low.values, ds.loss_change_high.values - value])
    axes.errorbar(at, value, np.clip(np.nan_to_num(ends), 0, None), fmt="none", ecolor=color, elinewidth=0.7, zorder=2)


def by_label(ds: xr.Dataset, fraction: float | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws a map of scores by document labels: the change of the loss at one share, the smallest cost on top.

    Args:
        ds: result of `pruning.curve` of texts with labels.
        fraction: share of masked experts; the largest by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NotFitting: the texts had no labels.
        NoSuchName: there is no such share.
    """
    if "label_loss_change" not in ds:
        raise NotFitting("This curve has no labels; pass labels= to pruning.curve.")
    fraction = float(ds.fraction.values.max()) if fraction is None else pick(ds, "fraction", fraction)
    with Page(ds, look) as page:
        rows = [*scores_of(page.ds), *random_of(page.ds)]
        values = page.ds.label_loss_change.sel(fraction=fraction, order=rows).transpose("order", "label")
        axes = page.panel((PAGE, 0.9 + 0.15 * len(rows)))
        image = show(axes, values.values, aspect="auto", **change_colors(values.values))
        thin_ticks(axes.yaxis, rows, 60)
        thin_ticks(axes.xaxis, [str(label) for label in values.label.values], 12)
        page.colorbar(image, axes, "change of the loss (nats)")
        return page.finish(f"{page.ds.attrs['model']}, {fraction:.1%} masked")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines, and the map of labels: (file stem, figure)."""
    yield "curve", plot(ds)
    if "label_loss_change" in ds:
        yield "curve_labels", by_label(ds)
