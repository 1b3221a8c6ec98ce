"""Estimated importance of each expert: a map of the change of the loss without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr

from moe_probe.plotting._changes import change_maps, shown_changes, white_note
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import Figure

DIMS = ("layer", "expert")
OVER_LAYERS = ("base_loss",)


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the estimated change of the loss: a map of layers by experts.

    Cells are white if the interval contains 0, and gray without a value.

    Args:
        ds: result of `intervene.attribution`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> ds = intervene.attribution("ckpt/tiny-mixtral", [[5, 6, 7, 8, 9], [11, 12, 13]])
        >>> figure = plotting.plot(ds)
    """
    with Page(ds, look) as page:
        change_maps(page, {"": shown_changes(page.ds, "loss_change")}, "change of the loss (nats), first order")
        page.note(white_note(ds, "loss_change"))
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The map: (file stem, figure)."""
    yield "attribution", plot(ds)
