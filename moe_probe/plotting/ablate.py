"""What each expert is good for: maps of the change of the loss without it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from moe_probe.errors import NotFitting
from moe_probe.plotting._changes import change_maps, shown_changes
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._style import BLUE, COLUMN, GREY, Figure, style

DIMS = ("path", "layer", "expert")
BAR = "change of the loss (nats)"


def plot(ds: xr.Dataset) -> Figure:
    """Layers by experts: the change of the loss without each expert; white where the interval covers 0, gray: none.

    Args:
        ds: result of `intervene.ablate`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> ds = intervene.ablate("ckpt/tiny-mixtral", [[5, 6, 7, 8, 9], [11, 12, 13]])
        >>> figure = plotting.plot(ds)
    """
    values = shown_changes(ds, "loss_change")
    with style():
        panels = {str(path): values.sel(path=path) for path in ds.path.values}
        return change_maps(panels, ds.attrs["model"], BAR)


def by_label(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Labels by experts in one layer: which experts carry which texts; white where the interval covers 0.

    Raises:
        NotFitting: the texts had no labels.
    """
    if "label_loss_change" not in ds:
        raise NotFitting("This ablation has no labels; pass labels= to intervene.ablate.")
    layer = pick_layer(ds, layer)
    values = shown_changes(ds, "label_loss_change").sel(path="total", layer=layer)
    with style():
        return change_maps({f"layer {layer}": values}, ds.attrs["model"], BAR, rows="label")


def against_control(ds: xr.Dataset) -> Figure:
    """The change without each expert against that without another one of its layer which is chosen about as often."""
    own, other = (ds[name].sel(path="total").values.ravel() for name in ("loss_change", "control_loss_change"))
    known = np.isfinite(own) & np.isfinite(other)
    with style():
        figure = Figure(figsize=(COLUMN, COLUMN * 0.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(other[known], own[known], ".", color=BLUE, rasterized=True)
        ends = np.array([own[known].min(), own[known].max()]) if known.any() else np.array([0.0, 1.0])
        axes.plot(ends, ends, "--", color=GREY, linewidth=0.8)
        axes.set(xlabel="the expert chosen about as often (nats)", ylabel=BAR, title=ds.attrs["model"])
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """Mean and largest change of every layer, for a short table."""
    values = ds.loss_change.sel(path="total")
    columns = xr.concat([values.mean("expert"), values.max("expert")], xr.Variable("value", ["mean", "largest"]))
    return "Change of the loss without an expert (nats)", columns.transpose("layer", "value")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, its control, and maps by label: (file stem, figure)."""
    yield "ablate", plot(ds)
    if "control_loss_change" in ds:
        yield "ablate_control", against_control(ds)
    if "label_loss_change" in ds:
        for layer in ds.layer.values:
            yield f"ablate_labels_layer{layer}", by_label(ds, int(layer))
