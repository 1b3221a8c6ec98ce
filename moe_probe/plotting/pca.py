"""Experts or neurons in the plane, or space, of largest variance (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting.style import BLUE, ORANGE, PAGE, Figure, style


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Scatter of one layer, a panel per projection; in 3-D where the result has three components.

    Matrix level: a circle per expert with its number, a triangle for the dense baseline; outliers are hollow and named
    in the title. Neuron level: a point per neuron, coloured by expert, triangles for the baseline.

    Args:
        ds: result of `static.pca`.
        layer: the first one of the result by default.

    Example:
        >>> figure = plot(static.pca("ckpt/tiny-mixtral", n_components=3), layer=1)
    """
    layer = int(ds.layer[0]) if layer is None else layer
    three = ds.sizes["component"] == 3
    kind = {"projection": "3d"} if three else {}
    with style():
        figure = Figure(figsize=(PAGE, 3.0 if three else 2.6), layout="constrained")
        all_axes = figure.subplots(1, ds.sizes["projection"], subplot_kw=kind, squeeze=False)[0]
        for axes, name in zip(all_axes, ds.projection.values, strict=True):
            part = ds.sel(layer=layer, projection=name)
            (_experts if ds.attrs["level"] == "matrix" else _neurons)(axes, part)
            share = part.explained_variance_ratio.values
            labels = [f"PC{i + 1} ({value:.0%})" for i, value in enumerate(share)]
            axes.set(xlabel=labels[0], ylabel=labels[1])
            if three:
                axes.set_zlabel(labels[2], labelpad=-3)
                axes.set_box_aspect(None, zoom=0.75)
            axes.set_title(str(name) + _outlier_note(part))
            axes.tick_params(labelsize=6)
        if ds.attrs["level"] == "neuron" or "F" in ds.expert.values:
            handles, names = all_axes[0].get_legend_handles_labels()
            columns = 1 + len(names) // 17
            figure.legend(
                handles, names, loc="outside right center", frameon=False, ncols=columns, markerscale=_marker_scale(ds)
            )
        figure.suptitle(f"{ds.attrs['model']}, layer {layer}")
        return figure


def _marker_scale(ds: xr.Dataset) -> float:
    """Neurons are drawn as specks, which a legend must enlarge."""
    return 4 if ds.attrs["level"] == "neuron" else 1


def _experts(axes: Axes, part: xr.Dataset) -> None:
    points, labels = part.coordinates.values, part.expert.values
    dense = labels == "F"
    outlier = part.outlier.values if "outlier" in part else np.zeros(len(labels), bool)
    axes.scatter(*points[~dense & ~outlier].T, s=22, color=BLUE, label="expert")
    if dense.any():
        axes.scatter(*points[dense].T, s=28, color=ORANGE, marker="^", label="dense FFN")
    if outlier.any():
        axes.scatter(*points[outlier].T, s=22, facecolors="none", edgecolors=BLUE, label="outlier")
    for point, label in zip(points, labels, strict=True):
        if len(point) == 3:
            axes.text(*point, f" {label}", fontsize=6)
        else:
            axes.annotate(label, point, xytext=(3, 2), textcoords="offset points", fontsize=6)
    axes.margins(0.12)


def _neurons(axes: Axes, part: xr.Dataset) -> None:
    points, labels = part.coordinates.values, part.expert.values
    names = list(dict.fromkeys(labels))
    colors = matplotlib.colormaps["Spectral"](np.linspace(0, 1, len(names)))
    for name, color in zip(names, colors, strict=True):
        dense = name == "F"
        axes.scatter(
            *points[labels == name].T,
            s=2,
            color="black" if dense else color,
            marker="^" if dense else "o",
            linewidths=0,
            rasterized=True,
            label=name,
        )


def _outlier_note(part: xr.Dataset) -> str:
    if "outlier" not in part or not part.outlier.any():
        return ""
    return " (outliers: " + ", ".join(part.expert.values[part.outlier.values]) + ")"


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"pca_{ds.attrs['level']}_{ds.sizes['component']}d_layer{layer}", plot(ds, int(layer))
