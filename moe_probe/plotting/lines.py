"""Lines over layers, with their intervals and chance levels."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting.style import GREY


def line(axes: Axes, ds: xr.Dataset, name: str, x: str = "layer", **style: Any) -> None:
    """A variable along `x`, with the band of `<name>_low` to `<name>_high` where the result has one."""
    at = ds[x].values
    drawn = axes.plot(at, ds[name].values, marker="o", markersize=3, **style)
    if f"{name}_low" in ds:
        low, high = (ds[f"{name}_{end}"].values for end in ("low", "high"))
        axes.fill_between(at, low, high, color=drawn[0].get_color(), alpha=0.2, linewidth=0)


def chance_line(axes: Axes, ds: xr.Dataset, name: str, x: str = "layer", **style: Any) -> None:
    """A chance level along `x`, or the same everywhere, dashed; nothing where the result has none."""
    if name not in ds:
        return
    look = {"linestyle": "--", "linewidth": 0.8, "color": GREY} | style
    if ds[name].ndim:
        axes.plot(ds[x].values, ds[name].values, **look)
    else:
        axes.axhline(float(ds[name]), **look)


def whole_numbers(axes: Axes, most: int = 6) -> None:
    """Ticks of layers; a single layer is alone on its axis."""
    axes.set_xlabel("layer")
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 0.6, last + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
