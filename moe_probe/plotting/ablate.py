"""Importance of each expert: maps of the change of the loss without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import NotFitting
from moe_probe.plotting._changes import change_colors, change_maps, shown_changes, white_note
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._maps import label_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._scatter import cloud, diagonal
from moe_probe.plotting._style import COLUMN, Figure

DIMS = ("path", "layer", "expert")
OVER_LAYERS = ("base_loss",)
BAR = "change of the loss (nats)"


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss without each expert: a map of layers by experts.

    Cells are white if the interval contains 0, and gray without a value.

    Args:
        ds: result of `intervene.ablate`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> ds = intervene.ablate("ckpt/tiny-mixtral", [[5, 6, 7, 8, 9], [11, 12, 13]])
        >>> figure = plotting.plot(ds)
    """
    with Page(ds, look) as page:
        values = shown_changes(page.ds, "loss_change")
        change_maps(page, {str(path): values.sel(path=path) for path in ds.path.values}, BAR)
        page.note(white_note(ds, "loss_change"))
        return page.finish(page.ds.attrs["model"])


def by_label(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss in one layer, by document label and expert; white: the interval contains 0.

    Raises:
        NotFitting: the texts had no labels.
    """
    if "label_loss_change" not in ds:
        raise NotFitting("This ablation has no labels; pass labels= to intervene.ablate.")
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        values = shown_changes(page.ds, "label_loss_change").sel(path="total", layer=layer)
        change_maps(page, {f"layer {layer}": values}, BAR, rows="label")
        page.note(white_note(ds, "label_loss_change"))
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def against_control(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change without each expert against that without another of its layer that is chosen about as often."""
    change, control = (ds[name].sel(path="total").values.ravel() for name in ("loss_change", "control_loss_change"))
    known = np.isfinite(change) & np.isfinite(control)
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, COLUMN * 0.85))
        cloud(axes, control[known], change[known])
        diagonal(axes, change[known])
        axes.set(xlabel="without one chosen about as often (nats)", ylabel=BAR)
        page.note("dashed: no difference")
        return page.finish(page.ds.attrs["model"])


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """Returns the mean and largest change of every layer, for a short table."""
    values = ds.loss_change.sel(path="total")
    columns = xr.concat([values.mean("expert"), values.max("expert")], xr.Variable("value", ["mean", "largest"]))
    return "Change of the loss without an expert (nats)", columns.transpose("layer", "value")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, its control, and maps by label: (file stem, figure)."""
    yield "ablate", plot(ds)
    if "control_loss_change" in ds:
        yield "ablate_control", against_control(ds)
    if "label_loss_change" in ds:
        values = shown_changes(ds, "label_loss_change").sel(path="total")
        colors = change_colors(values)
        yield from label_grid("ablate_labels", values, colors, BAR, white_note(ds, "label_loss_change"))


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Maps by label of every layer: (file stem, figure)."""
    if "label_loss_change" in ds:
        for layer in ds.layer.values:
            yield f"ablate_labels_layer{layer}", by_label(ds, int(layer))
