"""Specialization by token and by position: lines over layers with chance levels, and maps of positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import (
    cell_axes,
    crosses,
    hatch,
    hatched,
    map_size,
    mark_intervals,
    ratio_bar,
    ratio_colors,
    show,
    within,
)
from moe_probe.plotting._lines import chance_line, layer_axis, line, said_of_intervals
from moe_probe.plotting._maps import label_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, GREEN, GREY, PAGE, Figure

BAR = "load / even load"

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws vocabulary specialization, context independence and repetition over layers; dashed: chance level.

    Args:
        ds: result of `dynamic.token_specialization`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.token_specialization("ckpt/tiny-mixtral", "ckpt/texts.jsonl")
        >>> figure = plotting.plot(ds)
    """
    choices = {f"{choice} choice": ds.sel(choice=choice) for choice in ds.choice.values}
    panels = {
        "vocabulary specialization": ({"": ds}, "vocabulary_mean", "vocabulary_mean_chance"),
        "context independence": ({"": ds}, "context_independence", "context_chance"),
        "next token, same expert": (choices, "repetition", "repetition_chance"),
    }
    with Page(ds, look) as page:
        all_axes = page.panels(1, 3, (PAGE, 2.0))[0]
        for axes, (title, (lines, name, chance)) in zip(all_axes, panels.items(), strict=True):
            for color, (label, shown) in zip((BLUE, GREEN), lines.items(), strict=False):
                line(axes, shown, name, color=color, **({"label": label} if label else {}))
                chance_line(axes, shown, chance, color=color if label else GREY)
            axes.set(title=title, ylim=(0, 1))
            layer_axis(axes, ds.layer)
        page.legend(*all_axes)
        page.note("dashed: chance" * ("repetition_chance" in ds))
        page.note(f"intervals: {said_of_intervals(ds)}" if "repetition_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def places(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the load of one layer's experts by position in the document, divided by an even load.

    Hatched: the 95 % interval of the difference from the share at all positions contains 0. Circles: there is no
    interval.
    """
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        of_layer = _named_places(page.ds.sel(layer=layer).transpose("place", "expert", ...))
        values = (of_layer.position_share * ds.sizes["expert"]).transpose("place", "expert")
        axes = page.panel(map_size(values))
        image = show(axes, values, aspect="auto", **ratio_colors(values, 1))
        crosses(axes, values.values == 0)
        cell_axes(axes, values, "place", "expert")
        axes.set_ylabel("position")
        ratio_bar(page, image, axes, BAR)
        if "position_excess" in ds:
            mark_intervals(page, axes, of_layer, "position_excess", xr.zeros_like(of_layer.position_excess))
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _named_places(ds: xr.Dataset) -> xr.Dataset:
    """Names of binned positions: 0, 1, 2–3, 4–7, ..."""
    starts = [int(place) for place in ds.place.values]
    return ds.assign_coords(place=[str(a) if a < 2 else f"{a}–{2 * a - 1}" for a in starts])


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """How often the next token chooses the same expert, for a short table."""
    return "Next token, same expert", ds.repetition


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines, and the maps of all layers: (file stem, figure)."""
    yield "token_specialization", plot(ds)
    named = _named_places(ds)
    values, note = named.position_share * ds.sizes["expert"], ""
    hatches = xr.zeros_like(values, bool)
    if "position_excess_low" in ds:
        hatches = within(named, "position_excess", 0.0)
        how = hatched(ds.sizes["expert"], "panel")
        note = f"{how}: interval includes chance, or there is none; {said_of_intervals(ds)}"
    hatches = hatches.transpose("layer", "place", "expert")

    def mark(axes: Axes, layer: int) -> None:
        hatch(axes, hatches.sel(layer=layer).values, "panel")

    stem = "token_specialization_places"
    yield from label_grid(stem, values, ratio_colors(values, 1), BAR, note, rows="place", mark=mark)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map of every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"token_specialization_places_layer{layer}", places(ds, int(layer))
