"""Maps: the one way in which arrays become colors; similarity side by side, and layers by experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import FuncNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from moe_probe.errors import NoSuchName
from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._style import COLORMAP, COLUMN, DIVERGING, PAGE, Figure, label_ticks, thin_ticks

Scale = Literal["layer", "all"]
SCALES: tuple[Scale, ...] = get_args(Scale)
FARTHEST = 8.0  # times more, or less: beyond that the colors of a ratio stay the same
TINY = 2.0**-40
SAID = 6.5  # points, of what is said of marks


def show(axes: Axes, values: Any, **look: Any) -> AxesImage:
    """Draw an array as a map, each cell in the color of its own value: nothing is interpolated."""
    options: dict[str, Any] = {"cmap": COLORMAP} | look
    return axes.imshow(np.asarray(values), interpolation="nearest", **options)


def limits(values: xr.DataArray, layer: int, scale: str, diagonal: bool = False) -> tuple[float, float]:
    """Color limits: of one layer, or of all layers in common; of different experts, unless the `diagonal` counts.

    Raises:
        NoSuchName: `scale` is neither.
    """
    if scale not in SCALES:
        raise NoSuchName.among("scale", scale, SCALES)
    shown = values.sel(layer=layer) if scale == "layer" else values
    if not diagonal and {"expert", "other"} <= set(shown.dims):
        shown = shown.where(shown.expert != shown.other)
    low, high = float(shown.min()), float(shown.max())
    return (low, high) if np.isfinite([low, high]).all() else (0.0, 1.0)


def ratio_colors(values: Any, even: float) -> dict[str, Any]:
    """Colors of a ratio: white where it is `even`, as far from white for twice as much as for half; gray: no value."""
    even = even if even > 0 else 1.0  # chance is 0 or undefined where a token chooses one expert
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & (known > 0)]
    spread = float(np.exp2(np.abs(np.log2(known / even)).max())) if len(known) else 1.0
    spread = min(max(spread, 2.0), FARTHEST)
    colors = matplotlib.colormaps[DIVERGING].with_extremes(bad="0.75")
    return {"cmap": colors, "norm": FuncNorm((_log, np.exp2), even / spread, even * spread, clip=True)}


def _log(values: Any) -> Any:
    return np.log2(np.maximum(values, TINY))


def ratio_bar(figure: Figure, image: AxesImage, label: str) -> Colorbar:
    """The color bar of a ratio, with ticks at 1/8 to 8."""
    low, high = image.get_clim()
    low, high = float(low or 0.0), float(high or 0.0)
    ticks = [t for t in (2.0**power for power in range(-8, 9)) if low * 0.999 <= t <= high * 1.001]
    names = [f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks]
    data = np.ma.masked_invalid(np.asarray(image.get_array(), float)).compressed()
    beyond = bool((data < low * 0.999).any()), bool((data > high * 1.001).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    bar = figure.colorbar(image, label=label, extend=extend)
    bar.set_ticks(ticks, labels=names)
    bar.ax.minorticks_off()
    return bar


def dots(axes: Axes, where: np.ndarray) -> None:
    """Small dots on the cells (y, x) of a map."""
    y, x = np.nonzero(where)
    axes.plot(x, y, ".", color="black", markersize=1.5 if where.shape[-1] <= 64 else 0.4)


def mark_intervals(axes: Axes, ds: xr.Dataset, name: str, chance: xr.DataArray, hidden: Any = False) -> None:
    """Tell on a map (y, x) of `ds[name]` what is known: a dot where the interval holds the chance level, a circle where
    there is no interval; what bears neither differs from chance. Below the x axis it is said which is which.

    Args:
        axes: of the map.
        ds: of one layer, with `<name>_low` and `<name>_high`, or nothing is drawn.
        name: of the variable.
        chance: its chance level.
        hidden: cells without marks.
    """
    if f"{name}_low" not in ds:
        return
    low, high = (ds[f"{name}_{end}"] for end in ("low", "high"))
    within = ((low <= chance) & (chance <= high)).transpose(*low.dims).values & ~np.asarray(hidden)
    unknown = (low.isnull() & ds[name].notnull()).values & ~np.asarray(hidden)
    dots(axes, within)
    y, x = np.nonzero(unknown)
    size = 2.5 if unknown.shape[-1] <= 64 else 0.8
    axes.plot(x, y, "o", color="black", markersize=size, markerfacecolor="none", markeredgewidth=0.4)
    say(axes, "dots: maybe chance", *["circles: no interval"] * bool(unknown.any()), said_of_intervals(ds))


def say(axes: Axes, *lines: str) -> None:
    """Add lines below the x axis that say what marks mean."""
    axes.set_xlabel("\n".join([axes.get_xlabel(), *lines]), fontsize=SAID)


def frames(axes: Axes, where: np.ndarray) -> None:
    """Frames around the cells (y, x) of a map."""
    for y, x in np.argwhere(where):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=0.6))


def crosses(axes: Axes, where: np.ndarray) -> None:
    """Small crosses on the cells (y, x) of a map, as wide as the cells are."""
    y, x = np.nonzero(where)
    axes.plot(x, y, "x", color="black", markersize=3 if where.shape[-1] <= 64 else 1.2, markeredgewidth=0.5)


def layer_map(values: xr.DataArray, title: str, bar: str, even: float | None = None) -> Figure:
    """Layers by experts, from 0; with `even`, colors diverge from that value and crosses mark what is 0."""
    rows, columns = values.sizes["layer"], values.sizes["expert"]
    size = COLUMN if columns <= 32 else PAGE, min(max(1.3 + 0.16 * rows, 2.0), 6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    top = float(values.max())
    from_zero = {"vmin": min(0.0, float(values.min())), "vmax": top if top > 0 else 1.0}
    colors = from_zero if even is None else ratio_colors(values, even)
    image = show(axes, values.values, aspect="auto", **colors)
    axes.set(xlabel="expert", ylabel="layer", title=title)
    thin_ticks(axes.xaxis, [str(label) for label in values.expert.values])
    thin_ticks(axes.yaxis, [str(label) for label in values.layer.values])
    if even is None:
        figure.colorbar(image, label=bar)
    else:
        ratio_bar(figure, image, bar)
        crosses(axes, values.values == 0)
    return figure


def heatmaps(
    panels: Mapping[str, xr.DataArray],
    colors: Mapping[str, Any],
    title: str,
    bar: str,
    axes_names: tuple[str, str] = ("expert", "expert"),
    blank_diagonal: bool = False,
) -> Figure:
    """One square map per panel (expert, other), all in the same `colors`; `axes_names` of x and y."""
    figure = Figure(
        figsize=(PAGE, PAGE / (len(panels) + 0.45) + 0.85) if len(panels) > 1 else (COLUMN + 0.4, COLUMN + 0.2),
        layout="constrained",
    )
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    image: Any = None
    for at, (axes, (name, values)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        image = show(axes, values.values, **colors)
        if blank_diagonal:
            _blank(axes, np.equal.outer(values[values.dims[0]].values, values[values.dims[1]].values))
        axes.set_title(name)
        axes.set_xlabel(axes_names[0])
        label_ticks(axes, [str(label) for label in values[values.dims[-1]].values], y=at == 0)
    all_axes[0].set_ylabel(axes_names[1])
    if "norm" in colors:
        ratio_bar(figure, image, bar)
    else:
        figure.colorbar(image, ax=list(all_axes), label=bar, shrink=0.85, pad=0.015)
    figure.suptitle(title)
    return figure


def bounded(bounds: tuple[float, float]) -> dict[str, Any]:
    """Colors from the least to the largest value; a cell without a value is light gray."""
    return {"vmin": bounds[0], "vmax": bounds[1], "cmap": matplotlib.colormaps[COLORMAP].with_extremes(bad="0.85")}


def _blank(axes: Axes, where: np.ndarray) -> None:
    """Cover cells (y, x) of a map in white."""
    show(axes, np.dstack([*[np.ones(where.shape)] * 3, where.astype(float)]))
