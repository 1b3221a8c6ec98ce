"""Responsibilities of experts, and the losses of Jacobs et al. (1991), over layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr

from moe_probe.plotting._heatmap import layer_map
from moe_probe.plotting._lines import layer_axis, line, plain_numbers
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, GREEN, ORANGE, PAGE, PURPLE, SKY, Figure

LOSSES = {"cooperative": BLUE, "competitive": ORANGE, "likelihood": GREEN}
ENTROPIES = {
    "prior_entropy": (PURPLE, "entropy of scores"),
    "responsibility_entropy": (SKY, "entropy of responsibilities"),
}
DIMS = ("layer", "expert")
DECADE = 10  # times: losses that differ less have ticks enough without a logarithm


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the mean responsibility of every expert in every layer.

    Args:
        ds: result of `dynamic.adaptive_mixtures`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.adaptive_mixtures("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    return layer_map(Page(ds, look), ds.responsibility, "mean responsibility")


def losses(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the three losses, and the entropies of scores and responsibilities."""
    with Page(ds, look) as page:
        left, right = page.panels(1, 2, (PAGE, 2.2))[0]
        for name, color in LOSSES.items():
            line(left, ds, name, color=color, label=f"{name} loss")
        left.set_ylabel("loss per token")
        values = ds[list(LOSSES)].to_array()
        if float(values.max()) > DECADE * float(values.min()):
            left.set_yscale("symlog")
            plain_numbers(left)
        for name, (color, label) in ENTROPIES.items():
            line(right, ds, name, color=color, label=label)
        right.set(ylabel="entropy / ln E", ylim=(0, 1.05))
        for axes in (left, right):
            layer_axis(axes, ds.layer)
        page.legend(left, right)
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, and the losses: (file stem, figure)."""
    yield "adaptive_mixtures", plot(ds)
    yield "adaptive_mixtures_losses", losses(ds)
