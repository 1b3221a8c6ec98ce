"""Several results in one figure, under one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage

from moe_probe.plotting._page import relabelled
from moe_probe.plotting._style import PAGE, Figure, style

TITLE, HIGHEST = 0.2, 9.6  # inches of a model's name, and of a page


def side_by_side(
    results: Mapping[str, xr.Dataset], modules: Mapping[str, ModuleType], options: Mapping[str, Any]
) -> Figure:
    """The plots of all results, one above the other."""
    labels, own = options.get("labels") or {}, {**options, "figsize": None}
    with style():
        sizes = np.array([modules[name].plot(ds, **own).get_size_inches() for name, ds in results.items()])
        heights = sizes[:, 1] + TITLE
        size = options.get("figsize") or (min(sizes[:, 0].max(), PAGE), min(heights.sum(), HIGHEST))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subfigures(len(results), 1, squeeze=False, height_ratios=heights)
        rows = cast(Sequence[SubFigure], grid[:, 0])
        for row, (name, ds) in zip(rows, results.items(), strict=True):
            named = relabelled(ds.assign_attrs(model=name), labels)
            modules[name].plot(named, **{**own, "figure": row, "title": named.attrs["model"]})
    _one_scale([row.axes for row in rows])
    return figure


def _one_scale(rows: Sequence[Sequence[Axes]]) -> None:
    """The same limits for panels at the same place of every row."""
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
