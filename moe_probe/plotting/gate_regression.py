"""Gate similarity against expert similarity, pair by pair (arXiv 2406.18219, table 1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from moe_probe.plotting.style import PAGE, PROJECTION_COLORS, Figure, style


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Scatter of the pairs of one layer with the fitted line and R², a panel per projection.

    Args:
        ds: result of `static.gate_regression`.
        layer: the first one of the result by default.

    Example:
        >>> figure = plot(static.gate_regression("ckpt/tiny-mixtral"), layer=1)
    """
    layer = int(ds.layer[0]) if layer is None else layer
    at = ds.sel(layer=layer)
    with style():
        figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
        all_axes = figure.subplots(1, ds.sizes["projection"], sharey=True, squeeze=False)[0]
        for axes, name in zip(all_axes, ds.projection.values, strict=True):
            part = at.sel(projection=name)
            color = PROJECTION_COLORS[str(name)]
            x = part.similarity.values
            axes.scatter(x, part.gate, s=10, color=color, alpha=0.7, linewidths=0, rasterized=len(x) > 2000)
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, float(part.intercept) + float(part.slope) * ends, color="black", linewidth=1)
            axes.set(title=f"{name}: R² = {float(part.r_squared):.2f}", xlabel="similarity of the experts")
        all_axes[0].set_ylabel("similarity of the gate embeddings")
        figure.suptitle(f"{ds.attrs['model']}, layer {layer}")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"gate_regression_{ds.attrs['level']}_layer{layer}", plot(ds, int(layer))
