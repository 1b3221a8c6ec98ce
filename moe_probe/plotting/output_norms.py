"""Norms of the experts' outputs beside the router's scores: twin-axis bars per token (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._style import BLUE, MAX_TICKS, ORANGE, PAGE, Figure, style, thin_ticks
from moe_probe.plotting._tokens import choose, panel_title, rows

DIMS = ("layer", "token", "expert")


def plot(ds: xr.Dataset, layer: int | None = None, tokens: Sequence[int] | None = None) -> Figure:
    """A panel per token: left bars the norms, right bars the scores; the title names the chosen experts.

    Args:
        ds: result of `dynamic.output_norms`.
        layer: the first one of the result by default.
        tokens: places of the tokens to show; the first four by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.output_norms("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2, tokens=[0, 3])
    """
    layer = pick_layer(ds, layer)
    one = rows(ds).sel(layer=layer)
    shown = choose(one, tokens)
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    with style():
        figure = Figure(figsize=(PAGE, 0.55 + 1.55 * lines), layout="constrained")
        all_axes = figure.subplots(lines, columns, squeeze=False).flat
        bars: list[Any] = []
        for axes, token in zip(all_axes, shown, strict=False):
            score, chosen = one.score.values[token], np.flatnonzero(one.chosen.values[token])
            axes.set_title(panel_title(one, token, chosen[np.argsort(-score[chosen])]).replace("\n", ", "))
            bars = _twin_bars(axes, one.norm.values[token], score, [str(label) for label in one.expert.values])
        for axes in list(all_axes)[len(shown) :]:
            axes.set_axis_off()
        figure.legend(handles=bars, loc="outside upper right", ncols=2, frameon=False)
        figure.suptitle(f"{ds.attrs['model']}, layer {layer}", x=0.02, ha="left")
        return figure


def _twin_bars(axes: Axes, norm: np.ndarray, score: np.ndarray, labels: list[str]) -> list[Any]:
    at = np.arange(len(labels))
    right = axes.twinx()
    left_bars = axes.bar(at - 0.2, norm, 0.4, color=BLUE, label="L2 norm of output")
    right_bars = right.bar(at + 0.2, score, 0.4, color=ORANGE, label="router score")
    axes.set_xlabel("expert")
    axes.set_ylabel("norm")
    right.set_ylabel("score")
    thin_ticks(axes.xaxis, labels, 16 if len(labels) <= 16 else MAX_TICKS)
    return [left_bars, right_bars]


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"output_norms_layer{layer}", plot(ds, int(layer))
