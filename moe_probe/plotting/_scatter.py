"""Clouds of points: each one where they are few, their density where they are many."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from moe_probe.plotting._style import BLUE, GREY

DENSE = 500  # points; more of them are drawn as pixels
HEXAGONS = 2000  # points; more of them are counted
CELLS = 36  # hexagons across


def cloud(axes: Axes, x: Any, y: Any, color: str = BLUE, cells: int = CELLS) -> ScalarMappable | None:
    """Points, or beyond 2,000 how many there are in each hexagon, whose colors come back."""
    x, y = np.ravel(x), np.ravel(y)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= HEXAGONS or not np.ptp(x) or not np.ptp(y):
        axes.scatter(x, y, 6 if len(x) <= DENSE else 2, color=color, alpha=0.7, linewidths=0, rasterized=len(x) > DENSE)
        return None
    return axes.hexbin(x, y, gridsize=cells, cmap="Greys", norm=LogNorm(1), mincnt=1, linewidths=0.1, rasterized=True)


def diagonal(axes: Axes, values: Any) -> None:
    """A dashed line where x equals y, over the span of y's values."""
    known = np.ravel(values)
    known = known[np.isfinite(known)]
    ends = [known.min(), known.max()] if len(known) else [0, 1]
    axes.plot(ends, ends, "--", color=GREY, linewidth=0.8)
