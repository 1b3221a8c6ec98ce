"""Load of experts: maps of layers by experts, measures of balance over layers, and maps by document label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Unpack, get_args

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import (
    cell_axes,
    crosses,
    hatch,
    hatched,
    layer_map,
    map_size,
    mark_discoveries,
    mark_intervals,
    ratio_bar,
    ratio_colors,
    show,
    within,
)
from moe_probe.plotting._lines import layer_axis, line, said_of_intervals
from moe_probe.plotting._maps import label_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, PAGE, Figure

MEASURES = ("cv2_load", "entropy", "max_violation", "activation_ratio")  # of the short table
BALANCE = {
    "cv2_load": "CV² of load",
    "entropy": "entropy / ln E",
    "max_violation": "MaxVio",
    "switch_loss": "Switch loss",
}
DIMS = ("layer", "expert")
FEW = 32  # experts that stand by number
Order = Literal["number", "load", "specialization"]
BAR = "load / even load"


def plot(ds: xr.Dataset, as_published: bool = False, **look: Unpack[Look]) -> Drawn:
    """Draws the load of every expert in every layer, divided by an even load; a cross marks a load of 0.

    Args:
        ds: result of `dynamic.expert_load`.
        as_published: draw selections per token, dark for 0, the first layer on top, as MH-MoE's figures do.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.expert_load("ckpt/tiny-mixtral", "ckpt/texts.jsonl", labels="domain")
        >>> figure = plotting.plot(ds)
    """
    if as_published:
        return layer_map(Page(ds, look), ds.frequency, "selections per token", downward=True)
    return layer_map(Page(ds, look), ds.share * ds.sizes["expert"], BAR, even=1)


def balance(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws measures of balance over the layers."""
    with Page(ds, look) as page:
        for axes, (name, label) in zip(page.panels(1, len(BALANCE), (PAGE, 1.7))[0], BALANCE.items(), strict=True):
            line(axes, ds, name, color=BLUE)
            axes.set_title(label)
            layer_axis(axes, ds.layer, 5)
        page.note(f"intervals: {said_of_intervals(ds)}" if "cv2_load_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def by_label(ds: xr.Dataset, layer: int | None = None, order: Order | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the load of one layer by document label, divided by an even load; a cross marks a load of 0.

    Hatched: the 95 % interval contains the expert's share in all documents together. Circles: there is no interval.
    Frames: the label's share differs at a false discovery rate of 5 % over all layers, labels and experts.

    Args:
        ds: result of `dynamic.expert_load`, of texts with labels.
        layer: the first one of the result by default.
        order: order of the experts: `number`, `load` (the largest first), or `specialization` (first those whose load
            differs most between a label and all documents), which is the default beyond 32 experts.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NotFitting: the texts had no labels.
        NoSuchName: there is no such layer or order.
    """
    if "label_share" not in ds:
        raise NotFitting("This result has no labels; pass labels= to dynamic.expert_load.")
    layer = pick_layer(ds, layer)
    order = order or ("number" if ds.sizes["expert"] <= FEW else "specialization")
    with Page(ds, look) as page:
        of_layer = _ordered(page.ds.sel(layer=layer), order)
        values = (of_layer.label_share * ds.sizes["expert"]).transpose("label", "expert")
        axes = page.panel(map_size(values))
        image = show(axes, values, aspect="auto", **ratio_colors(values, 1))
        crosses(axes, values.values == 0)
        cell_axes(axes, values, "label", "expert")
        ratio_bar(page, image, axes, BAR)
        _marks(page, axes, of_layer)
        page.note("" if order == "number" else f"experts by {order}")
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _marks(page: Page, axes: Axes, of_layer: xr.Dataset) -> None:
    if "label_share_chance" in of_layer:
        mark_intervals(page, axes, of_layer.transpose("label", ...), "label_share", of_layer.label_share_chance)
    if "label_share_q" in of_layer:
        mark_discoveries(page, axes, of_layer.label_share_q.transpose("label", "expert"), "layers, labels, experts")


def _ordered(of_layer: xr.Dataset, order: str) -> xr.Dataset:
    """The experts of one layer in an order."""
    if order not in get_args(Order):
        raise NoSuchName.among("order", order, get_args(Order))
    if order == "number":
        return of_layer
    if order == "load":
        return of_layer.isel(expert=np.argsort(-of_layer.share.values, kind="stable"))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(np.log2(of_layer.label_share / of_layer.share)).transpose("label", "expert").values
    apart = np.clip(np.nan_to_num(apart, nan=0, posinf=9), 0, 9).max(0)
    return of_layer.isel(expert=np.argsort(-apart, kind="stable"))


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """The balance of every layer, for a short table."""
    return "Balance of load", ds[list(MEASURES)].to_array("measure").transpose("layer", ...)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map, the balance, and maps by label: (file stem, figure)."""
    yield "expert_load", plot(ds)
    yield "expert_load_balance", balance(ds)
    if "label_share" in ds:
        values = ds.label_share * ds.sizes["expert"]
        marks, note = _within(ds)

        def mark(axes: Axes, layer: Any) -> None:
            if marks is not None:
                hatch(axes, marks.sel(layer=layer).values, "panel")

        yield from label_grid("expert_load_labels", values, ratio_colors(values, 1), BAR, note, mark=mark)


def _within(ds: xr.Dataset) -> tuple[xr.DataArray | None, str]:
    """Whether a label's interval contains the share in all documents, (layer, label, expert), and a note on it."""
    if "label_share_low" not in ds or "label_share_chance" not in ds:
        return None, ""
    hatches = within(ds, "label_share", ds.label_share_chance).transpose("layer", "label", "expert")
    how = hatched(ds.sizes["expert"], "panel")
    return hatches, f"{how}: interval includes all documents, or there is none; {said_of_intervals(ds)}"


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Maps by label of every layer: (file stem, figure)."""
    if "label_share" in ds:
        for layer in ds.layer.values:
            yield f"expert_load_labels_layer{layer}", by_label(ds, int(layer))
