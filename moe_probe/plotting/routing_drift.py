"""How far routing moved between two checkpoints, and which tokens moved."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import xarray as xr

from moe_probe.plotting._lines import chance_line, line, whole_numbers
from moe_probe.plotting._style import BLUE, COLORMAP, ORANGE, PAGE, Figure, style

DIMS = ("layer", "checkpoint")


def plot(ds: xr.Dataset) -> Figure:
    """Changed tokens and kept choices over layers; and changed tokens against their margin, a line per layer.

    Args:
        ds: result of `comparisons.routing_drift`.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> base, tuned = {"base": "ckpt/tiny-mixtral"}, {"tuned": "ckpt/tiny-mixtral"}
        >>> ds = comparisons.routing_drift(base, tuned, ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    before, after = (str(label) for label in ds.checkpoint.values)
    layers = ds.layer.values
    colors = matplotlib.colormaps[COLORMAP].resampled(len(layers))
    with style():
        figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        line(left, ds, "changed", color=ORANGE, label="tokens with another top-k set")
        line(left, ds, "overlap", color=BLUE, label="share of choices kept")
        chance_line(left, ds, "chance", label="kept by chance")
        left.set(ylim=(-0.02, 1.03), title="over layers")
        left.legend(frameon=False)
        whole_numbers(left)
        for at, layer in enumerate(layers):
            own = ds.sel(layer=layer)
            label = f"layer {layer}" if len(layers) <= 6 or at in (0, len(layers) - 1) else None
            right.plot(own.margin, own.margin_changed, color=colors(at), marker="o", markersize=2, label=label)
        right.set(
            xlabel=f"margin of the top-k set in {before}", title="tokens with another top-k set", ylim=(-0.02, 1.03)
        )
        right.legend(frameon=False)
        figure.suptitle(f"{before} to {after}")
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """Changed tokens and kept choices of every layer, for a short table."""
    return "Routing drift", ds[["changed", "overlap"]].to_array("of").transpose("layer", "of")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Both panels: (file stem, figure)."""
    yield "routing_drift", plot(ds)
