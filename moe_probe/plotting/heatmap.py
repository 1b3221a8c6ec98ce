"""Heat maps side by side under one colour bar: the form of all similarity figures."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from moe_probe.errors import InputError
from moe_probe.plotting.style import COLORMAP, PAGE, label_ticks

SCALES = ("layer", "all")


def limits(values: xr.DataArray, layer: int, scale: str) -> tuple[float, float]:
    """Colour limits: of one layer, or of all layers in common.

    Raises:
        InputError: `scale` is neither.
    """
    if scale not in SCALES:
        raise InputError(f"scale is one of {SCALES}, not {scale!r}.")
    shown = values.sel(layer=layer) if scale == "layer" else values
    return float(shown.min()), float(shown.max())


def heatmaps(panels: Mapping[str, xr.DataArray], bounds: tuple[float, float], title: str, bar: str) -> Figure:
    """One square map per panel (expert, other), all on the scale `bounds`."""
    figure = Figure(figsize=(PAGE, PAGE / (len(panels) + 0.45) + 0.85), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for at, (axes, (name, values)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        image = axes.imshow(values.values, cmap=COLORMAP, vmin=bounds[0], vmax=bounds[1])
        axes.set_title(name)
        axes.set_xlabel("expert")
        label_ticks(axes, [str(label) for label in values.expert.values], y=at == 0)
    all_axes[0].set_ylabel("expert")
    figure.colorbar(image, ax=list(all_axes), label=bar, shrink=0.85, pad=0.015)
    figure.suptitle(title)
    return figure
