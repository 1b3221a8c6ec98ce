"""What a routing trace holds: choices of every expert in every layer."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._heatmap import layer_map
from moe_probe.plotting._style import Figure, style

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """Choices written, layers by experts.

    Args:
        ds: result of `dynamic.routing_trace`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.routing_trace("ckpt/tiny-mixtral", ["A short text."], path="trace")
        >>> figure = plotting.plot(ds)
    """
    with style():
        return layer_map(ds.rows, f"{ds.attrs['model']}, {ds.attrs['tokens']:,} tokens", "choices")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The one figure: (file stem, figure)."""
    yield "routing_trace", plot(ds)
