"""Maps of all layers as small multiples: pairs of experts, and labels by experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from moe_probe.errors import NoSuchName
from moe_probe.plotting._grid import Grid
from moe_probe.plotting._heatmap import map_panel, show
from moe_probe.plotting._style import Figure, thin_ticks

Order = Literal["number", "cluster"]
ORDERS: tuple[Order, ...] = get_args(Order)


def ordered(values: xr.DataArray, order: Order) -> xr.DataArray:
    """A map (expert, other) with its experts in order of number, or with the most similar ones next to each other.

    Large values mean similar experts: average linkage on the difference of each pair's value from the largest one.

    Raises:
        NoSuchName: there is no such order.
    """
    if order not in ORDERS:
        raise NoSuchName.among("order", order, ORDERS)
    rows, columns = (str(dim) for dim in values.dims)
    if order == "number" or values.sizes[rows] < 3 or values.sizes[rows] != values.sizes[columns]:
        return values
    places = cluster_order(values.values)
    return values.isel({rows: places, columns: places})


def cluster_order(similarity: np.ndarray) -> np.ndarray:
    """Order of a square array's rows that puts the most similar ones side by side."""
    known = np.where(np.isfinite(similarity), similarity, np.nan)
    known = np.nan_to_num((known + known.T) / 2, nan=float(np.nanmin(known)) if np.isfinite(known).any() else 0.0)
    apart = known.max() - known
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "average", optimal_ordering=len(apart) <= 64)
    return leaves_list(tree)


def pair_grid(
    stem: str,
    maps: Mapping[str, xr.DataArray],
    colors: Mapping[str, Any],
    bar: str,
    *,
    axes_names: tuple[str, str] = ("expert", "expert"),
    blank_diagonal: bool = True,
    note: str = "",
    order: Order = "number",
    columns: int = 6,
    unit: int = 1,
) -> Iterator[tuple[str, Figure]]:
    """Yields pages of small square maps (expert, other), one under each name, all in the same colors."""

    def draw(axes: Axes, values: xr.DataArray) -> AxesImage:
        image = map_panel(axes, values, colors, blank_diagonal)
        labels = [str(label) for label in values[values.dims[0]].values]
        for axis in (axes.xaxis, axes.yaxis):
            thin_ticks(axis, labels, 3) if order == "number" else axis.set_ticks([])
        return image

    shown = [ordered(values, order) for values in maps.values()]
    note = "; ".join(filter(None, [note, "similar experts are side by side" if order == "cluster" else ""]))
    grid = Grid(columns, 1.0, axes_names[0], axes_names[1], bar, note=note, unit=unit)
    yield from grid.pages(stem, list(maps), shown, draw)


def label_grid(
    stem: str,
    values: xr.DataArray,
    colors: Mapping[str, Any],
    bar: str,
    note: str = "",
    rows: str = "label",
    mark: Callable[[Axes, int], None] | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Yields pages of small maps (label, expert), one per layer, all in the same colors; `mark` draws marks on them."""
    values = values.transpose("layer", rows, "expert")
    names = [_short(str(label)) for label in values[rows].values]
    experts = [str(expert) for expert in values.expert.values]
    columns = 4 if len(experts) <= 32 else 3

    def draw(axes: Axes, layer: int) -> AxesImage:
        image = show(axes, values.sel(layer=layer).values, aspect="auto", **colors)
        thin_ticks(axes.xaxis, experts, 5)
        thin_ticks(axes.yaxis, names, 12)
        if mark is not None:
            mark(axes, layer)
        return image

    layers = [int(layer) for layer in values.layer.values]
    aspect = min(max(0.1 * len(names), 0.45), 2.0) / (1.3 if columns == 4 else 1.75)
    left = 0.25 + 0.055 * max(map(len, names))
    grid = Grid(columns, aspect, "expert", "", bar, note=note, left=left)
    yield from grid.pages(stem, [f"layer {layer}" for layer in layers], layers, draw)


def _short(name: str, longest: int = 14) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
