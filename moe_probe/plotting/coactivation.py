"""Which experts work together: maps of pairs, and of the flow between layers."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import bounded, heatmaps, mark_intervals, ratio_colors
from moe_probe.plotting._style import Figure, style

VARIABLES = {
    "lift": ("P(both) / P(both by chance)", ("expert", "other expert")),
    "conditional": ("P(other | expert)", ("other expert", "expert")),
    "flow": ("share of choices", ("expert of this layer", "expert of the layer before")),
}
DIMS = ("layer", "expert", "other")


def plot(ds: xr.Dataset, layer: int | None = None, variable: str = "lift") -> Figure:
    """Map of one layer; what has no value, such as an expert with itself, is gray.

    Lift is drawn in times its chance level, that of experts chosen as often without regard to each other, where the
    result has one.

    Dots: the pair's 95 % interval holds the chance level. Circles: no interval is known.

    Args:
        ds: result of `dynamic.coactivation`.
        layer: the first one of the result by default.
        variable: `lift` (1 if independent), `conditional`, or `flow` from the MoE layer before.

    Raises:
        NoSuchName: there is no such variable or layer.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.coactivation("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2, variable="flow")
    """
    if variable not in VARIABLES:
        raise NoSuchName.among("variable", variable, VARIABLES)
    layer = pick_layer(ds, layer)
    values = ds[variable].sel(layer=layer)
    if variable != "flow":
        values = values.where(ds.expert != ds.other)
    bar, names = VARIABLES[variable]
    chance = ds.chance_lift.sel(layer=layer) if variable == "lift" and "chance_lift" in ds else None
    shown = values if chance is None else values / chance
    with style():
        colors = bounded((0.0, max(float(values.max()), 1e-9) if bool(values.notnull().any()) else 1.0))
        if variable == "lift":
            colors = ratio_colors(shown, 1.0)
        figure = heatmaps({f"layer {layer}": shown}, colors, ds.attrs["model"], bar, names)
        if chance is not None:
            mark_intervals(figure.axes[0], ds.sel(layer=layer), "lift", chance, (ds.expert == ds.other).values)
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Pairs in every layer, where a token has more than one expert, and the flow: (file stem, figure)."""
    for at, layer in enumerate(ds.layer.values):
        if bool((ds.pairs.sel(layer=layer).where(ds.expert != ds.other) > 0).any()):
            yield f"coactivation_layer{layer}", plot(ds, int(layer))
        if at:
            yield f"coactivation_flow_layer{layer}", plot(ds, int(layer), "flow")
