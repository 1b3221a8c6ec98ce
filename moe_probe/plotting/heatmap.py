"""Heat maps side by side with one colour bar: the form of all similarity figures; and maps of layers by experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from moe_probe.errors import InputError
from moe_probe.plotting.style import COLORMAP, COLUMN, DIVERGING, PAGE, Figure, label_ticks, thin_ticks

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


def around(values: xr.DataArray, even: float) -> dict[str, Any]:
    """Colours of values from 0 on that diverge from `even`."""
    return {"cmap": DIVERGING, "norm": TwoSlopeNorm(even, 0, max(float(values.max()), 2 * even))}


def dots(axes: Axes, where: np.ndarray) -> None:
    """Small dots on the cells (y, x) of a map."""
    y, x = np.nonzero(where)
    axes.plot(x, y, ".", color="black", markersize=1.5)


def layer_map(values: xr.DataArray, title: str, bar: str, even: float | None = None) -> Figure:
    """Layers by experts; with `even`, colours diverge from that value."""
    rows = values.sizes["layer"]
    figure = Figure(figsize=(COLUMN, min(max(1.3 + 0.16 * rows, 2.0), 6)), layout="constrained")
    axes = figure.subplots()
    colors = {"cmap": COLORMAP} if even is None else around(values, even)
    image = axes.imshow(values.values, aspect="auto", interpolation="nearest", **colors)
    axes.set(xlabel="expert", ylabel="layer", title=title)
    thin_ticks(axes.xaxis, [str(label) for label in values.expert.values])
    thin_ticks(axes.yaxis, [str(label) for label in values.layer.values])
    figure.colorbar(image, label=bar)
    return figure


def heatmaps(
    panels: Mapping[str, xr.DataArray],
    bounds: tuple[float, float],
    title: str,
    bar: str,
    axes_names: tuple[str, str] = ("expert", "expert"),
) -> Figure:
    """One square map per panel (expert, other), all on the scale `bounds`; `axes_names` of x and y."""
    figure = Figure(
        figsize=(PAGE, PAGE / (len(panels) + 0.45) + 0.85) if len(panels) > 1 else (COLUMN + 0.4, COLUMN + 0.2),
        layout="constrained",
    )
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for at, (axes, (name, values)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        image = axes.imshow(values.values, cmap=COLORMAP, vmin=bounds[0], vmax=bounds[1])
        axes.set_title(name)
        axes.set_xlabel(axes_names[0])
        label_ticks(axes, [str(label) for label in values[values.dims[-1]].values], y=at == 0)
    all_axes[0].set_ylabel(axes_names[1])
    figure.colorbar(image, ax=list(all_axes), label=bar, shrink=0.85, pad=0.015)
    figure.suptitle(title)
    return figure
