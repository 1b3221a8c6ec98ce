"""Responsibilities of experts beside their scores, and the losses of 1991, over layers."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._heatmap import layer_map
from moe_probe.plotting._lines import line, plain_numbers, whole_numbers
from moe_probe.plotting._style import BLUE, GREEN, ORANGE, PAGE, Figure, style

LOSSES = {"cooperative": BLUE, "competitive": ORANGE, "likelihood": GREEN}
ENTROPIES = {"prior_entropy": (BLUE, "score"), "responsibility_entropy": (ORANGE, "responsibility")}
DIMS = ("layer", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """The mean responsibility of every expert in every layer.

    Args:
        ds: result of `dynamic.adaptive_mixtures`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.adaptive_mixtures("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    with style():
        return layer_map(ds.responsibility, ds.attrs["model"], "mean responsibility")


def losses(ds: xr.Dataset) -> Figure:
    """The three losses, and how spread out scores and responsibilities are."""
    with style():
        figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, color in LOSSES.items():
            line(left, ds, name, color=color, label=name)
        left.set(title="loss per token", yscale="symlog")
        plain_numbers(left)
        for name, (color, label) in ENTROPIES.items():
            line(right, ds, name, color=color, label=label)
        right.set(title="entropy / ln E", ylim=(0, 1.05))
        for axes in (left, right):
            axes.legend(frameon=False)
            whole_numbers(axes)
        figure.suptitle(ds.attrs["model"])
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, and the losses: (file stem, figure)."""
    yield "adaptive_mixtures", plot(ds)
    yield "adaptive_mixtures_losses", losses(ds)
