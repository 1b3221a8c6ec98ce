"""How evenly experts are used: maps over layers, balance over layers, and maps by document label."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._heatmap import crosses, frames, layer_map, mark_intervals, ratio_bar, ratio_colors, say, show
from moe_probe.plotting._lines import line, whole_numbers
from moe_probe.plotting._style import BLUE, COLUMN, PAGE, Figure, style, thin_ticks

MEASURES = ("cv2_load", "entropy", "max_violation", "activation_ratio")  # of the short table
BALANCE = {
    "cv2_load": "CV² of load",
    "entropy": "entropy / ln E",
    "max_violation": "MaxVio",
    "switch_loss": "Switch loss",
}
DIMS = ("layer", "expert")
DISCOVERIES = 0.05


def plot(ds: xr.Dataset) -> Figure:
    """Selections of every expert in every layer, in times its even share; a cross where there are none.

    Args:
        ds: result of `dynamic.expert_load`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.expert_load("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    with style():
        return layer_map(ds.share * ds.sizes["expert"], ds.attrs["model"], "load / even load", even=1)


def balance(ds: xr.Dataset) -> Figure:
    """Measures of balance over the layers."""
    with style():
        figure = Figure(figsize=(PAGE, 1.9), layout="constrained")
        for axes, (name, label) in zip(figure.subplots(1, len(BALANCE)), BALANCE.items(), strict=True):
            line(axes, ds, name, color=BLUE)
            axes.set_title(label)
            whole_numbers(axes, 5)
        figure.suptitle(ds.attrs["model"])
        return figure


def by_label(ds: xr.Dataset, layer: int) -> Figure:
    """Load of one layer by document label, in times its even share; a cross where there is none.

    Dots: the 95 % interval holds the expert's share in all documents together. Circles: no interval is known. Frames:
    the label's share differs at a false discovery rate of 5 % over all layers, labels and experts.
    """
    values = ds.label_share.sel(layer=layer) * ds.sizes["expert"]
    with style():
        figure = Figure(
            figsize=(COLUMN if values.sizes["expert"] <= 32 else PAGE, min(1.4 + 0.2 * values.sizes["label"], 6)),
            layout="constrained",
        )
        axes = figure.subplots()
        image = show(axes, values, aspect="auto", **ratio_colors(values, 1))
        crosses(axes, values.values == 0)
        axes.set(xlabel="expert", title=f"{ds.attrs['model']}, layer {layer}")
        thin_ticks(axes.xaxis, [str(label) for label in ds.expert.values])
        thin_ticks(axes.yaxis, [str(label) for label in ds.label.values], 30)
        ratio_bar(figure, image, "load / even load")
        own = ds.sel(layer=layer)
        if "label_share_chance" in ds:
            mark_intervals(axes, own, "label_share", own.label_share_chance)
        if "label_share_q" in ds:
            frames(axes, (own.label_share_q < DISCOVERIES).transpose("label", "expert").values)
            say(axes, f"frames: q < {DISCOVERIES:g} over layers, labels, experts")
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """The balance of every layer, for a short table."""
    return "Balance of load", ds[list(MEASURES)].to_array("measure").transpose("layer", ...)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, the balance, and maps by label: (file stem, figure)."""
    yield "expert_load", plot(ds)
    yield "expert_load_balance", balance(ds)
    if "label_share" in ds:
        for layer in ds.layer.values:
            yield f"expert_load_labels_layer{layer}", by_label(ds, int(layer))
