"""Clouds of points: individual points if there are few, their density if there are many."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from moe_probe.plotting._heatmap import show
from moe_probe.plotting._style import BLUE, GREY

DENSE = 500  # points; more of them are drawn as pixels
COUNTED = 2000  # points; more of them are counted in cells
CELLS = 36  # of a density, across


def cloud(axes: Axes, x: Any, y: Any, color: str = BLUE, cells: int = CELLS) -> ScalarMappable | None:
    """Draws points; beyond 2,000, draws a map of their number in each cell and returns it."""
    x, y = np.ravel(x), np.ravel(y)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= COUNTED or not np.ptp(x) or not np.ptp(y):
        axes.scatter(x, y, 6 if len(x) <= DENSE else 2, color=color, alpha=0.7, linewidths=0, rasterized=len(x) > DENSE)
        return None
    counts, x_edges, y_edges = np.histogram2d(x, y, cells)
    extent = (x_edges[0], x_edges[-1], y_edges[0], y_edges[-1])
    seen = np.where(counts.T > 0, counts.T, np.nan)
    colors = matplotlib.colormaps["Greys"].with_extremes(bad="white")
    return show(axes, seen, cmap=colors, norm=LogNorm(1), aspect="auto", origin="lower", extent=extent)


def diagonal(axes: Axes, values: Any) -> None:
    """Draws a dashed line at x = y, over the range of y's values."""
    known = np.ravel(values)
    known = known[np.isfinite(known)]
    ends = [known.min(), known.max()] if len(known) else [0, 1]
    axes.plot(ends, ends, "--", color=GREY, linewidth=0.8)
