"""Choices that capacity limits would drop: curves over the capacity factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick
from moe_probe.plotting._lines import lines_by_layer
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import COLUMN, Figure

VARIABLES = {
    "dropped": "choices dropped",
    "fully_dropped": "tokens dropped entirely",
    "second_dropped": "second choices dropped",
}
DIMS = ("layer", "factor", "order")


def plot(ds: xr.Dataset, variable: str = "fully_dropped", order: str | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the dropped share against the capacity factor: a line per layer; beyond six, median, range and worst layer.

    Args:
        ds: result of `dynamic.expert_capacity`.
        variable: `dropped`, `fully_dropped` or `second_dropped`.
        order: order of arrival; the first of the result by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

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
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.5))
        lines_by_layer(axes, ds.factor.values, ds[variable].sel(order=order))
        axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xlabel="capacity factor", ylabel=VARIABLES[variable], ylim=(0, None))
        page.legend(axes)
        page.note(f"tokens arrive by {order}")
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every variable; tokens dropped entirely by order: (file stem, figure)."""
    yield "expert_capacity_dropped", plot(ds, "dropped")
    for order in ds.order.values:
        yield f"expert_capacity_fully_dropped_{order}", plot(ds, order=str(order))
    if "second_dropped" in ds:
        yield "expert_capacity_second_dropped", plot(ds, "second_dropped")
