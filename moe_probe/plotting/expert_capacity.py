"""What capacity limits would drop: curves over the capacity factor."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick
from moe_probe.plotting._style import COLORMAP, COLUMN, Figure, style

VARIABLES = {
    "dropped": "choices dropped",
    "fully_dropped": "tokens dropped altogether",
    "second_dropped": "second choices dropped",
}
DIMS = ("layer", "factor", "order")


def plot(ds: xr.Dataset, variable: str = "fully_dropped", order: str | None = None) -> Figure:
    """Share dropped against the capacity factor, a line per layer.

    Args:
        ds: result of `dynamic.expert_capacity`.
        variable: `dropped`, `fully_dropped` or `second_dropped`.
        order: of arrival; the result's first one by default.

    Raises:
        NoSuchName: the result has no such variable or order.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.expert_capacity("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, order="score")
    """
    if variable not in VARIABLES or variable not in ds:
        raise NoSuchName.among("variable", variable, [name for name in VARIABLES if name in ds])
    order = pick(ds, "order", order)
    own, layers = ds[variable].sel(order=order), ds.layer.values
    colors = matplotlib.colormaps[COLORMAP].resampled(len(layers))
    with style():
        figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        axes = figure.subplots()
        for at, layer in enumerate(layers):
            label = f"layer {layer}" if len(layers) <= 6 or at in (0, len(layers) - 1) else None
            axes.plot(ds.factor, own.sel(layer=layer), color=colors(at), linewidth=1, label=label)
        axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xlabel="capacity factor", ylabel=VARIABLES[variable], ylim=(0, None))
        axes.set_title(f"{ds.attrs['model']}, {order} order")
        axes.legend(frameon=False)
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every variable; tokens dropped altogether by order: (file stem, figure)."""
    yield "expert_capacity_dropped", plot(ds, "dropped")
    for order in ds.order.values:
        yield f"expert_capacity_fully_dropped_{order}", plot(ds, order=str(order))
    if "second_dropped" in ds:
        yield "expert_capacity_second_dropped", plot(ds, "second_dropped")
