"""Content of a routing trace: choices of every expert in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr

from moe_probe.plotting._heatmap import layer_map
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import Figure

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the number of written choices, layers by experts.

    Args:
        ds: result of `dynamic.routing_trace`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.routing_trace("ckpt/tiny-mixtral", ["A short text."], path="trace")
        >>> figure = plotting.plot(ds)
    """
    page = Page(ds, look)
    page.note(f"{ds.attrs['tokens']:,} tokens")
    return layer_map(page, ds.rows, "choices")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The one figure: (file stem, figure)."""
    yield "routing_trace", plot(ds)
