"""Lines over layers, with their intervals and chance levels."""

from __future__ import annotations

import json
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from moe_probe.plotting._style import BLUE, COLORMAP, GREY, ORANGE, round_places

UNKNOWN = "none: too few or equal documents"
FEW = 3  # points that make a line; with fewer, intervals are bars and chance levels short strokes
STROKE = 0.3  # half the length of such a stroke
MOST_LINES = 6  # layers that have a line each


def line(axes: Axes, ds: xr.Dataset, name: str, x: str = "layer", **style: Any) -> None:
    """Draws a variable along `x`, with the interval `<name>_low` to `<name>_high` if the result has one."""
    at = ds[x].values
    drawn = axes.plot(at, ds[name].values, marker="o", markersize=3 if len(at) <= 32 else 1.5, **style)
    if f"{name}_low" in ds:
        low, high = (ds[f"{name}_{end}"].values for end in ("low", "high"))
        interval(axes, at, low, high, color=drawn[0].get_color())


def interval(
    axes: Axes, at: Any, low: Any, high: Any, color: Any, alpha: float = 0.2, label: str | None = None
) -> None:
    """Draws an interval from `low` to `high` along `at`: a band, or bars if there are too few points for a band."""
    at, low, high = (np.asarray(values, float) for values in (at, low, high))
    if len(at) < FEW:
        middle = (low + high) / 2
        half = np.clip([middle - low, high - middle], 0, None)
        axes.errorbar(at, middle, half, fmt="none", ecolor=color, elinewidth=1, capsize=3, label=label)
    else:
        axes.fill_between(at, low, high, color=color, alpha=alpha, linewidth=0, label=label)


def said_of_intervals(ds: xr.Dataset) -> str:
    """A description of a result's intervals: level, units and resamples; or the reason why there are none."""
    asked = json.loads(ds.attrs.get("parameters", "{}"))
    if asked.get("bootstrap") == 0:
        return "not computed"
    ends = [ds[name] for name in map(str, ds) if name.endswith("_low") and not name.endswith("_chance_low")]
    if ends and not any(bool(end.notnull().any()) for end in ends):
        return UNKNOWN
    draws = f", {asked['bootstrap']:,} resamples" if asked.get("bootstrap") else ""
    return f"95 % over {ds.attrs.get('resampled', 'documents')}{draws}"


def chance_interval(axes: Axes, ds: xr.Dataset, name: str, label: str | None = None) -> None:
    """Draws the chance level from `<name>_low` to `<name>_high`, if the result has one."""
    if f"{name}_low" in ds:
        low, high = (ds[f"{name}_{end}"].values for end in ("low", "high"))
        few = ds.sizes["layer"] < FEW
        interval(axes, ds.layer.values, low, high, color=GREY if few else "0.85", alpha=1, label=label)


def chance_line(axes: Axes, ds: xr.Dataset, name: str, x: str = "layer", **style: Any) -> None:
    """Draws a chance level along `x`, or a constant one, as a dashed line, if the result has one."""
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


def layer_axis(axes: Axes, layers: Any, most: int = 6) -> None:
    """Sets ticks at existing layers, at round numbers if there are many; a single layer is alone on its axis."""
    layers = [int(layer) for layer in np.asarray(layers)]
    axes.set_xlabel("layer")
    axes.set_xticks([layers[at] for at in round_places([str(layer) for layer in layers], most)])
    if len(layers) == 1:
        axes.set_xlim(layers[0] - 0.6, layers[0] + 0.6)


def lines_by_layer(axes: Axes, x: Any, values: xr.DataArray, low: Any = None, high: Any = None) -> None:
    """Draws values over `x`: a line per layer up to six layers; beyond, the median, the range and the highest layer.

    Args:
        axes: the axes to draw on.
        x: positions of the values.
        values: (layer, x).
        low: lower ends of their intervals, which are drawn up to six layers.
        high: upper ends.
    """
    layers, by_layer = values.layer.values, values.transpose("layer", ...).values
    if len(layers) <= MOST_LINES:
        for at, (layer, color) in enumerate(zip(layers, layer_colors(layers), strict=True)):
            axes.plot(x, by_layer[at], color=color, marker=".", markersize=4, linewidth=1, label=f"layer {layer}")
            if low is not None and high is not None:
                ends = (end.transpose("layer", ...).values[at] for end in (low, high))
                interval(axes, x, *ends, color=color, alpha=0.15)
        return
    most = np.nan_to_num(by_layer, nan=-np.inf).mean(1).argmax()
    axes.fill_between(
        x, np.nanmin(by_layer, 0), np.nanmax(by_layer, 0), color=BLUE, alpha=0.2, linewidth=0, label="all layers"
    )
    axes.plot(x, np.nanmedian(by_layer, 0), color=BLUE, linewidth=1.2, label="median layer")
    axes.plot(x, by_layer[most], color=ORANGE, linewidth=0.9, linestyle="--", label=f"layer {layers[most]} (highest)")


def layer_colors(layers: Any) -> Any:
    """A color for each layer, dark to light."""
    return matplotlib.colormaps[COLORMAP](np.linspace(0, 0.9, len(layers)))


def plain_numbers(axes: Axes) -> None:
    """Writes the ticks of a logarithmic y axis as plain numbers, without powers."""
    axes.yaxis.set_major_formatter(FuncFormatter(plain))


def plain(value: float, place: int | None = None) -> str:
    """A number written without powers."""
    return f"{value:g}"
