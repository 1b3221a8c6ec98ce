"""What each expert is good for, estimated: a map of the change of the loss without it."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._changes import change_maps, shown_changes
from moe_probe.plotting._style import Figure, style

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """Layers by experts: the estimated change of the loss; white where the interval covers 0, gray: none.

    Args:
        ds: result of `intervene.attribution`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> ds = intervene.attribution("ckpt/tiny-mixtral", [[5, 6, 7, 8, 9], [11, 12, 13]])
        >>> figure = plotting.plot(ds)
    """
    with style():
        values = shown_changes(ds, "loss_change")
        return change_maps({"first order": values}, ds.attrs["model"], "change of the loss (nats)")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map: (file stem, figure)."""
    yield "attribution", plot(ds)
