"""Experts or neurons in the plane, or space, of largest variance (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Unpack, get_args

import matplotlib
import matplotlib.figure
import numpy as np
import textalloc
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.proj3d import proj_transform

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import Grid, chosen_layers
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLORMAP, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, Figure

FEW = 16  # experts with large markers, and with a color each
LABELED = 14  # of more experts: those farthest from the middle
PICKED = {0: BLUE, 1: GREEN, 2: PURPLE, 3: SKY}  # colors of experts that stand out among many
Colors = Literal["viridis", "Spectral"]
DIMS = ("layer", "projection", "point", "component")


def plot(ds: xr.Dataset, layer: int | None = None, colors: Colors | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws a scatter plot of one layer, a panel per projection; in 3-D if the result has three components.

    Level `matrix`: a circle per expert with its number (of many experts, only the farthest have one), a triangle for
    the dense baseline; outliers are hollow and named in the title. Level `neuron`: a point per neuron in the color of
    its expert; of more than 16 experts, the four whose neurons are farthest from the center have colors, the others are
    gray. Triangles are the baseline.

    Args:
        ds: result of `static.pca`.
        layer: the first one of the result by default.
        colors: color map for the neurons of all experts, however many: `viridis`, or the paper's `Spectral`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: there is no such layer or color map.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.pca("ckpt/tiny-mixtral", n_components=3)
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    if colors is not None and colors not in get_args(Colors):
        raise NoSuchName.among("color map", colors, get_args(Colors))
    three = ds.sizes["component"] == 3
    kind = {"subplot_kw": {"projection": "3d"}} if three else {}
    with Page(ds, look) as page:
        of_layer = page.ds.sel(layer=layer)
        all_axes = page.panels(1, ds.sizes["projection"], (PAGE, 2.3), **kind)[0]
        for axes, name in zip(all_axes, ds.projection.values, strict=True):
            part = of_layer.sel(projection=name)
            _points(axes, part, colors=colors)
            _name_axes(axes, part, three, shares=not page.narrow)
            page.note(_shares(part) * page.narrow)
        _explain(page, list(all_axes), of_layer, colors)
        drawn = page.finish(f"{page.ds.attrs['model']}, layer {layer}")
        if three and _own_figure(page):
            _place_names(page.figure)
        if ds.attrs["level"] == "matrix":
            _label_panels(page, list(all_axes), of_layer)
        return drawn


def _shares(part: xr.Dataset) -> str:
    """The share of the variance that the components of a projection explain, as text."""
    shares = ", ".join(f"{100 * value:.0f}" for value in part.explained_variance_ratio.values)
    return f"{part.projection.item()}: {shares} % of the variance"


def _name_axes(axes: Any, part: xr.Dataset, three: bool, shares: bool) -> None:
    explained = part.explained_variance_ratio.values
    labels = [f"PC{i + 1}" + f" ({value:.0%})" * shares for i, value in enumerate(explained)]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_title(f"{part.projection.item()}{_outlier_note(part)}", y=0.97 if three else None)
    if not three:
        axes.tick_params(labelsize=6)
        axes.locator_params(nbins=5)
        axes.set_aspect("equal", adjustable="datalim")
        return
    axes.set_zlabel(labels[2])
    axes.locator_params(nbins=3)
    axes.set(xticklabels=[], yticklabels=[], zticklabels=[])  # there is no room for both names and numbers
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.labelpad = -10 if shares else -14
        axis.label.set_fontsize(8 if shares else 6)
    axes.set_box_aspect(None, zoom=0.8 if shares else 0.65)
    axes.set_facecolor("none")  # the axis label of the panel to the left reaches below


def _points(axes: Axes, part: xr.Dataset, size: float = 1.0, colors: str | None = None) -> None:
    """Draws the points of one layer and projection."""
    if part.attrs["level"] == "matrix":
        _experts(axes, part, size)
    else:
        _neurons(axes, part, colors)


def _explain(page: Page, all_axes: list[Axes], of_layer: xr.Dataset, colors: str | None) -> None:
    """Adds a color bar of the expert's number if each expert has a color, else a legend."""
    if of_layer.attrs["level"] == "neuron" and (colors or len(_routed(of_layer)) <= FEW):
        norm = Normalize(0, max(len(_routed(of_layer)) - 1, 1))
        page.colorbar(ScalarMappable(norm, colors or COLORMAP), all_axes, "expert", ticks=MaxNLocator(8, integer=True))
    if of_layer.attrs["level"] == "neuron" or "F" in of_layer.expert.values:
        page.legend(all_axes[0])


def _own_figure(page: Page) -> bool:
    """Whether neither axes nor a figure was given."""
    return page.given is None and page.look.get("figure") is None


def _place_names(figure: matplotlib.figure.Figure) -> None:
    """Draws once without layout: matplotlib 3.10 lays out labels of 3-D axes wrongly before they were drawn."""
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    figure.set_layout_engine("constrained")


def _label_panels(page: Page, all_axes: list[Axes], of_layer: xr.Dataset) -> None:
    """Adds the numbers of experts, once axes have their final size."""
    figure = page.figure
    if not isinstance(figure, matplotlib.figure.Figure):
        return  # part of a figure, whose size is not yet known
    figure.draw_without_rendering()
    if _own_figure(page):
        figure.set_layout_engine("none")
    for axes, name in zip(all_axes, of_layer.projection.values, strict=True):
        _label(axes, of_layer.sel(projection=name))
    if of_layer.sizes["component"] == 3:
        figure.draw_without_rendering()  # only then are labels in space where they are seen
        _clear_names(all_axes)


def _clear_names(all_axes: list[Any]) -> None:
    """Removes numbers that cover labels of axes, including those of neighboring panels."""
    names = [axis.label.get_window_extent() for axes in all_axes for axis in (axes.xaxis, axes.yaxis, axes.zaxis)]
    for axes in all_axes:
        for number in list(axes.texts):
            x, y, z = number.get_position_3d()
            *seen, _ = proj_transform(x, y, z, axes.get_proj())
            move = axes.transData.transform(seen) - number.get_transform().transform(number.get_unitless_position())
            if any(number.get_window_extent().translated(*move).overlaps(name) for name in names):
                number.remove()


def _experts(axes: Axes, part: xr.Dataset, size: float = 1.0) -> None:
    points, labels = part.coordinates.transpose("point", "component").values, part.expert.values
    dense = labels == "F"
    outlier = part.outlier.values if "outlier" in part else np.zeros(len(labels), bool)
    size *= 22 if len(labels) <= FEW else 8
    axes.scatter(*points[~dense & ~outlier].T, s=size, color=BLUE, label="expert", linewidths=0)
    if dense.any():
        axes.scatter(*points[dense].T, s=1.3 * size, color=ORANGE, marker="^", label="dense FFN")
    if outlier.any():
        axes.scatter(*points[outlier].T, s=size, facecolors="none", edgecolors=BLUE, label="outlier")
    axes.margins(0.12)


def _label(axes: Axes, part: xr.Dataset) -> None:
    """Adds experts' numbers next to their points, and omits those that would overlap others."""
    points = part.coordinates.transpose("point", "component").values
    apart = np.linalg.norm(points - points.mean(0), axis=1)
    named = np.argsort(-np.nan_to_num(apart))[: LABELED if len(points) > FEW else len(points)]
    place = dict(zip("xyz", points[named].T, strict=False))
    scatter = {f"{axis}_scatter": values for axis, values in zip("xyz", points.T, strict=False)}
    textalloc.allocate(
        axes,
        text_list=list(part.expert.values[named]),
        **place,
        **scatter,
        textsize=6,
        draw_all=False,
        linecolor=GREY,
        linewidth=0.4,
        max_distance=0.1,
    )


def _routed(part: xr.Dataset) -> list[str]:
    """Labels of the experts, without the dense baseline."""
    return [str(name) for name in dict.fromkeys(part.expert.values) if name != "F"]


def _neurons(axes: Axes, part: xr.Dataset, colors: str | None) -> None:
    points, labels = part.coordinates.transpose("point", "component").values, part.expert.values
    names, look = _routed(part), {"s": 2, "linewidths": 0, "rasterized": True}
    if colors or len(names) <= FEW:
        place = {name: at / max(len(names) - 1, 1) for at, name in enumerate(names)}
        routed = labels != "F"
        shades = matplotlib.colormaps[colors or COLORMAP]([place[name] for name in labels[routed]])
        axes.scatter(*points[routed].T, c=shades, **look)
    else:
        axes.scatter(*points[labels != "F"].T, color="0.8", **look)
        for color, name in zip(PICKED.values(), _farthest(points, labels, names), strict=False):
            axes.scatter(*points[labels == name].T, color=color, label=f"expert {name}", **look)
    if (labels == "F").any():
        axes.scatter(*points[labels == "F"].T, color="black", marker="^", label="dense FFN", **look)


def _farthest(points: np.ndarray, labels: np.ndarray, names: list[str]) -> list[str]:
    """The experts whose mean neuron is farthest from the mean of all neurons."""
    middle = points.mean(0)
    apart = [-float(np.linalg.norm(points[labels == name].mean(0) - middle)) for name in names]
    return [names[at] for at in np.argsort(apart, kind="stable")[: len(PICKED)]]


def _outlier_note(part: xr.Dataset) -> str:
    if "outlier" not in part or not part.outlier.any():
        return ""
    return " (outliers: " + ", ".join(part.expert.values[part.outlier.values]) + ")"


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers, in the plane of the first two components; neurons of a few layers: (file stem, figure)."""
    matrix = ds.attrs["level"] == "matrix"
    layers = [int(layer) for layer in ds.layer.values] if matrix else chosen_layers(ds.layer.values)
    plane, stem = ds.isel(component=slice(2)), f"pca_{ds.attrs['level']}_layers"
    items = [(layer, str(name)) for layer in layers for name in ds.projection.values]

    def draw(axes: Axes, item: tuple[int, str]) -> None:
        part = plane.sel(layer=item[0], projection=item[1])
        _points(axes, part, 0.4)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")

    names = [f"{layer} {name}" for layer, name in items]
    grid = Grid(9 if matrix else 3, 1.0, "PC1", "PC2", unit=ds.sizes["projection"])
    yield from grid.pages(stem, names, items, draw)
    if len(layers) == 1 or ds.sizes["component"] > 2:
        yield f"pca_{ds.attrs['level']}_{ds.sizes['component']}d_layer{layers[0]}", plot(ds, layers[0])


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    shown = int(ds.layer[0]) if ds.sizes["layer"] == 1 or ds.sizes["component"] > 2 else None
    for layer in ds.layer.values:
        if int(layer) != shown:
            yield f"pca_{ds.attrs['level']}_{ds.sizes['component']}d_layer{layer}", plot(ds, int(layer))
