"""Coactivation of experts: maps of pairs, the strongest pairs, and the flow between layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import bounded, heatmaps, ratio_colors, within
from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._maps import Order, ordered, pair_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, Figure
from moe_probe.signatures import check_number

VARIABLES = {
    "lift": ("P(both) / P(both by chance)", ("expert", "other expert")),
    "conditional": ("P(other | expert)", ("other expert", "expert")),
    "flow": ("share of choices / by chance", ("expert of this layer", "expert of the previous layer")),
}
PAIRS = 15  # in the list of the strongest
DIMS = ("layer", "expert", "other")


def plot(
    ds: xr.Dataset, layer: int | None = None, variable: str = "lift", order: Order = "number", **look: Unpack[Look]
) -> Drawn:
    """Draws a map of one layer; cells without a value, such as an expert with itself, are gray.

    Lift and flow are divided by their chance level if the result has one; for lift, that of experts chosen as often,
    but independently. A pair whose 95 % interval contains the chance level is white.

    Args:
        ds: result of `dynamic.coactivation`.
        layer: the first one of the result by default.
        variable: `lift` (1 if independent), `conditional`, or `flow` from the previous MoE layer.
        order: order of the experts: by `number`, or `cluster`, which puts coactivated ones side by side.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: there is no such variable, layer or order.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.coactivation("ckpt/tiny-mixtral", "ckpt/texts.jsonl")
        >>> figure = plotting.plot(ds, layer=2, order="cluster")
    """
    if variable not in VARIABLES:
        raise NoSuchName.among("variable", variable, VARIABLES)
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        values = _shown(page.ds, variable).sel(layer=layer)
        panels = {"": values if variable == "flow" else ordered(values, order)}
        heatmaps(page, panels, _colors(values, variable), *VARIABLES[variable])
        page.note(_note(ds, variable))
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _shown(ds: xr.Dataset, variable: str) -> xr.DataArray:
    """The values to draw: divided by the chance level, and 1 if the interval contains it."""
    values = ds[variable]
    if variable == "flow":
        flow = values / ds.flow_chance if "flow_chance" in ds else values
        if "flow_excess_low" in ds:
            flow = flow.where(~within(ds, "flow_excess", 0.0), 1.0)
        return flow.transpose("layer", "source", "expert") if "source" in ds.dims else flow
    values = values.where(ds.expert != ds.other)
    if variable == "conditional":
        return values.transpose("layer", "expert", "other")
    chance = ds.chance_lift if "chance_lift" in ds else xr.ones_like(values)
    white = within(ds, "lift", chance) & values.notnull() if "lift_low" in ds else xr.zeros_like(values, bool)
    return (values / chance).where(~white, 1.0).transpose("layer", "expert", "other")


def _colors(values: xr.DataArray, variable: str) -> dict[str, Any]:
    if variable != "conditional":
        return ratio_colors(values, 1.0)
    return bounded((0.0, max(float(values.max()), 1e-9) if bool(values.notnull().any()) else 1.0))


def _note(ds: xr.Dataset, variable: str) -> str:
    low = {"lift": "lift_low", "flow": "flow_excess_low"}.get(variable)
    if low not in ds:
        return ""
    if not bool(ds[low].notnull().any()):
        return "no intervals"
    return f"white: the interval includes chance, or there is none; {said_of_intervals(ds)}"


def strongest(ds: xr.Dataset, layer: int | None = None, count: int = PAIRS, **look: Unpack[Look]) -> Drawn:
    """Draws the most coactivated pairs as bars: their lift divided by chance, with 95 % intervals.

    Args:
        ds: result of `dynamic.coactivation`.
        layer: its number; all layers by default.
        count: largest number of pairs.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: the result has no such layer.
        OutOfRange: `count` is less than 1.
    """
    check_number("count", count, 1, 200)
    of_layers = ds if layer is None else ds.sel(layer=[pick_layer(ds, layer)])
    pairs = _strongest_pairs(of_layers, count)
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 0.75 + 0.15 * len(pairs)))
        for at, (_, value, low, high) in enumerate(pairs):
            axes.barh(at, value - 1, 0.7, left=1, color=BLUE)
            axes.plot([low, high], [at, at], color="0.25", linewidth=0.8)
        axes.axvline(1, color="0.4", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(pairs)), [name for name, *_ in pairs])
        axes.invert_yaxis()
        axes.set(xlabel=VARIABLES["lift"][0], ylabel="layer: experts")
        page.note("dotted: chance", said_of_intervals(ds) if "lift_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def _strongest_pairs(ds: xr.Dataset, count: int) -> list[tuple[str, float, float, float]]:
    """Name, value and interval of pairs above chance, the strongest first; only significant ones if there are any."""
    chance = ds.chance_lift if "chance_lift" in ds else 1.0
    over = (ds.lift / chance).transpose("layer", "expert", "other").values
    over = np.where(np.tril(np.ones(over.shape[1:], bool)), np.nan, over)
    ends = [
        (ds[f"lift_{end}"] / chance).transpose("layer", "expert", "other").values if "lift_low" in ds else over * np.nan
        for end in ("low", "high")
    ]
    ranked = np.where(np.isfinite(over) & (over > 1), over, -np.inf)
    sure = np.where(ends[0] > 1, ranked, -np.inf)
    ranked = sure if np.isfinite(sure).any() else ranked
    best = np.argsort(-ranked, axis=None, kind="stable")[:count]
    strongest = []
    for layer, one, other in zip(*np.unravel_index(best, over.shape), strict=True):
        if np.isfinite(ranked[layer, one, other]):
            name = f"{ds.layer.values[layer]}: {ds.expert.values[one]}, {ds.other.values[other]}"
            strongest.append((name, *(float(part[layer, one, other]) for part in (over, *ends))))
    return strongest


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Pairs of all layers, where a token has more than one expert; the strongest; the flow: (file stem, figure)."""
    several = (ds.pairs.where(ds.expert != ds.other) > 0).any(("expert", "other"))
    if bool(several.any()):
        yield from _grid(ds.sel(layer=several), "coactivation", "lift", "cluster")
        yield "coactivation_strongest", strongest(ds)
    if ds.sizes["layer"] > 1 and bool(ds.flow.isel(layer=slice(1, None)).notnull().any()):
        yield from _grid(ds.isel(layer=slice(1, None)), "coactivation_flow", "flow", "number")


def _grid(ds: xr.Dataset, stem: str, variable: str, order: Order) -> Iterator[tuple[str, Figure]]:
    values, (bar, names) = _shown(ds, variable), VARIABLES[variable]
    maps = {f"layer {layer}": values.sel(layer=layer) for layer in ds.layer.values}
    note, colors = _note(ds, variable), _colors(values, variable)
    yield from pair_grid(stem, maps, colors, bar, axes_names=names, blank_diagonal=False, note=note, order=order)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Pairs, and the flow, in every layer: (file stem, figure)."""
    for at, layer in enumerate(ds.layer.values):
        if bool((ds.pairs.sel(layer=layer).where(ds.expert != ds.other) > 0).any()):
            yield f"coactivation_layer{layer}", plot(ds, int(layer))
        if at:
            yield f"coactivation_flow_layer{layer}", plot(ds, int(layer), "flow")
