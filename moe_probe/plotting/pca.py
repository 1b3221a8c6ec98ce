"""Experts or neurons in the plane, or space, of largest variance (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import textalloc
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._style import BLUE, COLORMAP, GREY, ORANGE, PAGE, Figure, style

FEW = 16  # experts with large markers
DIMS = ("layer", "projection", "point", "component")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Scatter of one layer, a panel per projection; in 3-D where the result has three components.

    Matrix level: a circle per expert with its number (where there is room for it), a triangle for the dense baseline;
    outliers are hollow and named in the title. Neuron level: a point per neuron, colored by expert, triangles for the
    baseline.

    Args:
        ds: result of `static.pca`.
        layer: the first one of the result by default.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.pca("ckpt/tiny-mixtral", n_components=3)
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    three = ds.sizes["component"] == 3
    kind = {"projection": "3d"} if three else {}
    with style():
        figure = Figure(figsize=(PAGE, 2.5 if three else 2.6), layout="constrained")
        all_axes = figure.subplots(1, ds.sizes["projection"], subplot_kw=kind, squeeze=False)[0]
        for axes, name in zip(all_axes, ds.projection.values, strict=True):
            part = ds.sel(layer=layer, projection=name)
            (_experts if ds.attrs["level"] == "matrix" else _neurons)(axes, part)
            share = part.explained_variance_ratio.values
            labels = [f"PC{i + 1} ({value:.0%})" for i, value in enumerate(share)]
            axes.set(xlabel=labels[0], ylabel=labels[1])
            if three:
                axes.set_zlabel(labels[2], labelpad=2)
                axes.locator_params(nbins=3)
                axes.set_box_aspect(None, zoom=0.78)
                axes.set_facecolor("none")  # the axis label of the panel to the left reaches below
            axes.set_title(str(name) + _outlier_note(part), y=0.97 if three else None)
            axes.tick_params(labelsize=6)
        if ds.attrs["level"] == "neuron" or "F" in ds.expert.values:
            handles, names = all_axes[0].get_legend_handles_labels()
            columns = 1 + len(names) // 17
            figure.legend(
                handles, names, loc="outside right center", frameon=False, ncols=columns, markerscale=_marker_scale(ds)
            )
        figure.suptitle(f"{ds.attrs['model']}, layer {layer}")
        if ds.attrs["level"] == "matrix":
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # labels are placed on axes of their final size
            for axes, name in zip(all_axes, ds.projection.values, strict=True):
                _label(axes, ds.sel(layer=layer, projection=name))
        return figure


def _marker_scale(ds: xr.Dataset) -> float:
    """Neurons are drawn as specks, which a legend must enlarge."""
    return 4 if ds.attrs["level"] == "neuron" else 1


def _experts(axes: Axes, part: xr.Dataset) -> None:
    points, labels = part.coordinates.values, part.expert.values
    dense = labels == "F"
    outlier = part.outlier.values if "outlier" in part else np.zeros(len(labels), bool)
    size = 22 if len(labels) <= FEW else 8
    axes.scatter(*points[~dense & ~outlier].T, s=size, color=BLUE, label="expert")
    if dense.any():
        axes.scatter(*points[dense].T, s=1.3 * size, color=ORANGE, marker="^", label="dense FFN")
    if outlier.any():
        axes.scatter(*points[outlier].T, s=size, facecolors="none", edgecolors=BLUE, label="outlier")
    axes.margins(0.12)


def _label(axes: Axes, part: xr.Dataset) -> None:
    """The experts' numbers beside their points, without overlaps: those for which there is no room are left out."""
    points = dict(zip("xyz", part.coordinates.values.T, strict=False))
    scatter = {f"{axis}_scatter": values for axis, values in points.items()}
    textalloc.allocate(
        axes,
        text_list=list(part.expert.values),
        **points,
        **scatter,
        textsize=6,
        draw_all=False,
        linecolor=GREY,
        linewidth=0.4,
        max_distance=0.1,
    )


def _neurons(axes: Axes, part: xr.Dataset) -> None:
    points, labels = part.coordinates.values, part.expert.values
    names = list(dict.fromkeys(labels))
    colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 1, len(names)))
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
