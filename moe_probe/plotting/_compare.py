"""Draws several results in one figure, in one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage

from moe_probe.plotting._page import relabelled
from moe_probe.plotting._style import PAGE, Figure, style

HIGHEST = 9.6  # inches of a page


def side_by_side(results: Mapping[str, xr.Dataset], module: ModuleType, options: Mapping[str, Any]) -> Figure:
    """The plots of all results, one above the other."""
    labels, options_of_plot = options.get("labels") or {}, {**options, "figsize": None}
    with style():
        figure = Figure(figsize=options.get("figsize") or (PAGE, HIGHEST), layout="constrained")
        grid = figure.add_gridspec(len(results), 1)
        rows = [figure.add_subfigure(grid[at]) for at in range(len(results))]
        for row, (name, ds) in zip(rows, results.items(), strict=True):
            named = relabelled(ds.assign_attrs(model=name), labels)
            module.plot(named, **{**options_of_plot, "figure": row, "title": named.attrs["model"]})
        _fit(figure, grid, rows, options.get("figsize"))
    _one_scale([row.axes for row in rows])
    return figure


def _fit(figure: Figure, grid: GridSpec, rows: Sequence[Any], figsize: tuple[float, float] | None) -> None:
    """Sets the size of the figure: by default as wide as the widest row, and as high as all rows together."""
    widths, heights = np.array([row.natural_size for row in rows]).T
    grid.set_height_ratios(heights)
    figure.set_size_inches(figsize or (min(widths.max(), PAGE), min(heights.sum(), HIGHEST)))


def _one_scale(rows: Sequence[Sequence[Axes]]) -> None:
    """Gives panels at the same position of every row the same limits."""
    if len({len(row) for row in rows}) > 1:
        rows = [[axes for axes in row if axes.get_label() != "<colorbar>"][: min(map(len, rows))] for row in rows]
    for same in zip(*rows, strict=False):
        images = [image for axes in same for image in axes.get_images()[:1]]
        if images:
            _same_colors(images)
        elif all(axes.has_data() and axes.axison and axes.get_label() != "<colorbar>" for axes in same):
            limits = np.array([axes.get_ylim() for axes in same])
            for axes in same:
                axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _same_colors(images: Sequence[AxesImage]) -> None:
    limits = np.array([image.get_clim() for image in images], float)
    for image in images:
        assert isinstance(image.cmap, Colormap)
        image.set_clim(limits[:, 0].min(), limits[:, 1].max())
