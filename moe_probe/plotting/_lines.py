"""Lines over layers, with their intervals and chance levels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from moe_probe.plotting._style import GREY

FEW = 3  # points that make a line; with fewer, intervals are bars and chance levels short strokes
STROKE = 0.3  # half the length of such a stroke


def line(axes: Axes, ds: xr.Dataset, name: str, x: str = "layer", **style: Any) -> None:
    """A variable along `x`, with the interval `<name>_low` to `<name>_high` where the result has one."""
    at = ds[x].values
    drawn = axes.plot(at, ds[name].values, marker="o", markersize=3, **style)
    if f"{name}_low" in ds:
        low, high = (ds[f"{name}_{end}"].values for end in ("low", "high"))
        interval(axes, at, low, high, color=drawn[0].get_color())


def interval(
    axes: Axes, at: Any, low: Any, high: Any, color: Any, alpha: float = 0.2, label: str | None = None
) -> None:
    """From `low` to `high` along `at`: a band, or bars where the points are too few for a band to be seen."""
    at, low, high = (np.asarray(values, float) for values in (at, low, high))
    if len(at) < FEW:
        middle = (low + high) / 2
        half = np.clip([middle - low, high - middle], 0, None)
        axes.errorbar(at, middle, half, fmt="none", ecolor=color, elinewidth=1, capsize=3, label=label)
    else:
        axes.fill_between(at, low, high, color=color, alpha=alpha, linewidth=0, label=label)


def said_of_intervals(ds: xr.Dataset) -> str:
    """What the intervals of a result are: level, units and draws."""
    asked = json.loads(ds.attrs.get("parameters", "{}"))
    draws = f", {asked['bootstrap']:,} draws" if asked.get("bootstrap") else ""
    return f"95 % over {ds.attrs.get('resampled', 'documents')}{draws}"


def chance_interval(axes: Axes, ds: xr.Dataset, name: str, label: str | None = None) -> None:
    """What chance gives, from `<name>_low` to `<name>_high`; nothing where the result has none."""
    if f"{name}_low" in ds:
        low, high = (ds[f"{name}_{end}"].values for end in ("low", "high"))
        few = ds.sizes["layer"] < FEW
        interval(axes, ds.layer.values, low, high, color=GREY if few else "0.85", alpha=1, label=label)


def chance_line(axes: Axes, ds: xr.Dataset, name: str, x: str = "layer", **style: Any) -> None:
    """A chance level along `x`, or the same everywhere, dashed; nothing where the result has none."""
    if name not in ds:
        return
    look: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "color": GREY} | style
    values = ds[name].values
    if not ds[name].ndim:
        axes.axhline(float(values), **look)
    elif len(values) < FEW:
        at = ds[x].values
        axes.hlines(values, at - STROKE, at + STROKE, **look)
    else:
        axes.plot(ds[x].values, values, **look)


def whole_numbers(axes: Axes, most: int = 6) -> None:
    """Ticks of layers; a single layer is alone on its axis."""
    axes.set_xlabel("layer")
    first, last = axes.dataLim.intervalx
    if 0 <= last - first <= 2 * STROKE + 1e-9:
        middle = (first + last) / 2
        axes.set_xlim(middle - 0.6, middle + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def plain_numbers(axes: Axes) -> None:
    """Ticks of a logarithmic y axis as plain numbers, which need no formula."""
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, place: int | None = None) -> str:
    return f"{value:g}"
