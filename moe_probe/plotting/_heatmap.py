"""Heat maps: similarity matrices side by side, and maps of layers by experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import FuncNorm
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from moe_probe.errors import NoSuchName
from moe_probe.plotting._lines import said_of_intervals
from moe_probe.plotting._page import Drawn, Page
from moe_probe.plotting._style import COLORMAP, COLUMN, DIVERGING, PAGE, label_ticks, thin_ticks

Scale = Literal["layer", "all"]
SCALES: tuple[Scale, ...] = get_args(Scale)
FARTHEST = 8.0  # times more, or less: beyond that the colors of a ratio stay the same
TINY = 2.0**-40
FEW = 16  # experts that stand along y, layers along x
THIN = 64  # experts; cells of more are about as small as pixels
MANY, BEYOND = 1000, 0.005  # of so many values, this share lies beyond each color limit
MOST_BESIDE = 4  # square maps side by side
NAMED = ("label", "place", "task")  # rows whose labels tell what they are
HATCHED = {"page": 128, "panel": 32}  # columns of a map as wide as a page, or as a panel, that a hatch is seen in
Room = Literal["page", "panel"]
DISCOVERIES = 0.05  # q below which a cell is framed
CORNERS = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])  # of a cell


def show(axes: Axes, values: Any, **look: Any) -> AxesImage:
    """Draws an array as a map without interpolation: each cell has the color of its own value."""
    options: dict[str, Any] = {"cmap": COLORMAP} | look
    return axes.imshow(np.asarray(values), interpolation="nearest", **options)


def limits(values: xr.DataArray, layer: int, scale: str, diagonal: bool = False) -> tuple[float, float]:
    """Color limits of one layer, or of all layers together; without the diagonal, unless `diagonal` is set.

    If there are many values, 0.5 % of them are beyond each limit.

    Raises:
        NoSuchName: `scale` is neither `layer` nor `all`.
    """
    if scale not in SCALES:
        raise NoSuchName.among("scale", scale, SCALES)
    shown = values.sel(layer=layer) if scale == "layer" else values
    if not diagonal and {"expert", "other"} <= set(shown.dims):
        shown = shown.where(shown.expert != shown.other)
    known = shown.values[np.isfinite(shown.values)]
    if not len(known):
        return 0.0, 1.0
    outside = BEYOND if known.size > MANY and not diagonal else 0.0
    low, high = (float(end) for end in np.quantile(known, [outside, 1 - outside]))
    alike = 0.1 * (abs(low) or 1.0) if low == high else 0.0  # one color, the same in all panels
    return low - alike, high + alike


def ratio_colors(values: Any, even: float) -> dict[str, Any]:
    """Colors of a ratio on a logarithmic scale: white at the value `even`; cells without a value are gray."""
    even = even if even > 0 else 1.0  # chance is 0 or undefined where a token chooses one expert
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & (known > 0)]
    spread = float(np.exp2(np.abs(np.log2(known / even)).max())) if len(known) else 1.0
    spread = min(max(spread, 2.0), FARTHEST)
    colors = matplotlib.colormaps[DIVERGING].with_extremes(bad="0.75")
    return {"cmap": colors, "norm": FuncNorm((_log, np.exp2), even / spread, even * spread, clip=True)}


def _log(values: Any) -> Any:
    return np.log2(np.maximum(values, TINY))


def ratio_bar(page: Page, image: AxesImage, axes: Any, label: str) -> Colorbar:
    """The color bar of a ratio, with ticks at 1/8 to 8."""
    bar = page.colorbar(image, axes, label, extend=beyond(image))
    ratio_ticks(bar)
    return bar


def ratio_ticks(bar: Colorbar) -> None:
    """Ticks at 1/8, 1/4, ... 8."""
    low, high = bar.mappable.get_clim()
    low, high = float(low or 0.0), float(high or 0.0)
    ticks = [t for t in (2.0**power for power in range(-8, 9)) if low * 0.999 <= t <= high * 1.001]
    bar.set_ticks(ticks, labels=[f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks])
    bar.ax.minorticks_off()


def beyond(image: AxesImage) -> str:
    """The sides of the color limits beyond which there are values."""
    low, high = (float(end or 0.0) for end in image.get_clim())
    values = np.ma.masked_invalid(np.asarray(image.get_array(), float)).compressed()
    margin = 1e-9 + 1e-3 * abs(high - low)
    below, above = bool((values < low - margin).any()), bool((values > high + margin).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def dots(axes: Axes, where: np.ndarray) -> None:
    """Draws small dots on the cells (y, x) of a map."""
    y, x = np.nonzero(where)
    axes.plot(x, y, ".", color="black", markersize=1.5)


def hatch(axes: Axes, where: np.ndarray, room: Room = "page") -> None:
    """Hatches the cells (y, x) of a map, or strikes through them if they are too narrow for a hatch."""
    y, x = np.nonzero(where)
    cells = np.stack([x, y], 1)[:, None]
    if where.shape[1] > HATCHED[room]:
        around = [withStroke(linewidth=1.1, foreground="white")]
        ends = list(cells + np.array([(-0.5, 0.0), (0.5, 0.0)]))
        struck = LineCollection(ends, colors="black", linewidths=0.5, path_effects=around, capstyle="butt")
        axes.add_collection(struck, autolim=False)
        return
    with matplotlib.rc_context({"hatch.linewidth": 0.35}):
        boxes = PolyCollection(list(cells + CORNERS), facecolor="none", edgecolor="0.35", linewidth=0, hatch="/////")
        axes.add_collection(boxes, autolim=False)


def hatched(columns: int, room: Room = "page") -> str:
    """The word for cells that `hatch` marks."""
    return "hatched" if columns <= HATCHED[room] else "struck through"


def within(ds: xr.Dataset, name: str, chance: xr.DataArray | float) -> xr.DataArray:
    """Whether the interval of `ds[name]` contains chance, or there is none although other values have one."""
    low, high = (ds[f"{name}_{end}"] for end in ("low", "high"))
    return ~((low > chance) | (high < chance)) & ds[name].notnull() & bool(low.notnull().any())


def mark_intervals(page: Page, axes: Axes, ds: xr.Dataset, name: str, chance: xr.DataArray) -> None:
    """Marks on a map (y, x) of `ds[name]` which cells differ from chance, and explains the marks in a note.

    A hatch means that the interval contains the chance level, a circle that there is no interval. Cells without a mark
    differ from chance.

    Args:
        page: the page of the map.
        axes: the axes of the map.
        ds: the result of one layer; without `<name>_low` and `<name>_high`, there are no marks.
        name: name of the variable.
        chance: its chance level.
    """
    if f"{name}_low" not in ds:
        return
    low = ds[f"{name}_low"]
    unknown = (low.isnull() & ds[name].notnull()).values
    hatches = within(ds, name, chance).transpose(*low.dims).values & ~unknown
    hatch(axes, hatches)
    y, x = np.nonzero(unknown)
    size = 2.5 if unknown.shape[-1] <= 64 else 0.8
    axes.plot(x, y, "o", color="black", markersize=size, markerfacecolor="none", markeredgewidth=0.4)
    page.note(
        f"{hatched(hatches.shape[-1])}: interval includes chance",
        "circles: no interval" * bool(unknown.any()),
        said_of_intervals(ds),
    )


def mark_discoveries(page: Page, axes: Axes, q: xr.DataArray, over: str) -> None:
    """Draws frames around the cells of a map with q (y, x) below DISCOVERIES, and explains them in a note."""
    y, x = np.nonzero((q < DISCOVERIES).values)
    boxes = list(np.stack([x, y], 1)[:, None] + CORNERS)
    axes.add_collection(PolyCollection(boxes, facecolor="none", edgecolor="black", linewidth=0.6), autolim=False)
    page.note(f"frames: q < {DISCOVERIES:g} over {over}")


def crosses(axes: Axes, where: np.ndarray) -> None:
    """Draws small crosses on the cells (y, x) of a map, as wide as the cells."""
    y, x = np.nonzero(where)
    size = 3 if max(where.shape) <= 64 else 1.2
    axes.plot(x, y, "x", color="black", markersize=size, markeredgewidth=0.5, rasterized=len(x) > 500)


def layer_map(page: Page, values: xr.DataArray, bar: str, even: float | None = None, downward: bool = False) -> Drawn:
    """Draws a map of layers by experts with colors from 0, or diverging from `even` with crosses where a value is 0.

    Up to 16 experts, layers are along x, unless `downward`; with more experts, experts are along x and the map is as
    wide as a page.
    """
    few = values.sizes["expert"] <= FEW and not downward
    values = values.transpose("expert", "layer") if few else values.transpose("layer", "expert")
    rows, columns = (str(dim) for dim in values.dims)
    top = float(values.max())
    colors = {"vmin": min(0.0, float(values.min())), "vmax": top if top > 0 else 1.0}
    colors = colors if even is None else ratio_colors(values, even)
    with page:
        axes = page.panel(map_size(values))
        image = show(axes, values.values, aspect="auto", **colors)
        cell_axes(axes, values, rows, columns)
        if even is None:
            page.colorbar(image, axes, bar)
        else:
            ratio_bar(page, image, axes, bar)
            crosses(axes, values.values == 0)
            page.note("crosses: never" * bool((values.values == 0).any()))
        return page.finish(page.ds.attrs["model"])


def map_size(values: xr.DataArray, panels: int = 1) -> tuple[float, float]:
    """Size of a map (rows, columns) in inches: as wide as a page beyond 32 columns, and as high as its rows need."""
    rows, columns = values.shape
    width = COLUMN if columns <= 32 and panels == 1 else PAGE
    return width, min(max(1.1 + (0.16 if rows <= 24 else 0.085) * rows, 1.8), 7)


def cell_axes(axes: Axes, values: xr.DataArray, rows: str, columns: str, most: int = 9) -> None:
    """Sets labels and ticks of a map's axes."""
    axes.set(xlabel=columns, ylabel="" if rows in NAMED else rows)
    thin_ticks(axes.xaxis, [str(label) for label in values[columns].values], most)
    thin_ticks(axes.yaxis, [str(label) for label in values[rows].values], 32 if rows in NAMED else most)


def heatmaps(
    page: Page,
    panels: Mapping[str, xr.DataArray],
    colors: Mapping[str, Any],
    bar: str,
    axes_names: tuple[str, str] = ("expert", "expert"),
    blank_diagonal: bool = False,
) -> list[Axes]:
    """Draws one square map per panel (expert, other), all in the same `colors`; `axes_names` labels x and y."""
    columns = min(len(panels), MOST_BESIDE)
    rows = -(-len(panels) // columns)
    several = (PAGE, rows * (PAGE / (columns + 0.45) + 0.5) + 0.15)
    all_axes = page.panels(rows, columns, several if len(panels) > 1 else (COLUMN, COLUMN - 0.35)).ravel()
    square_maps(page, list(all_axes), panels, colors, bar, axes_names, blank_diagonal, columns)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    return list(all_axes[: len(panels)])


def square_maps(
    page: Page,
    all_axes: list[Axes],
    panels: Mapping[str, xr.DataArray],
    colors: Mapping[str, Any],
    bar: str,
    axes_names: tuple[str, str] = ("expert", "expert"),
    blank_diagonal: bool = False,
    columns: int = MOST_BESIDE,
) -> None:
    """Draws maps (expert, other) on existing axes, `columns` side by side, with one color bar."""
    image, most = cast(Any, None), 9 if columns <= 3 or len(next(iter(panels.values()))) <= 9 else 6
    for at, (axes, (name, values)) in enumerate(zip(all_axes, panels.items(), strict=False)):
        image = map_panel(axes, values, colors, blank_diagonal)
        axes.set_title(name)
        axes.set_xlabel(axes_names[0])
        label_ticks(axes, [str(label) for label in values[values.dims[-1]].values], y=at % columns == 0, most=most)
        if at % columns == 0:
            axes.set_ylabel(axes_names[1])
    if "norm" in colors:
        ratio_bar(page, image, all_axes, bar)
    else:
        page.colorbar(image, all_axes, bar, shrink=0.85, pad=0.015, extend=beyond(image))


def map_panel(axes: Axes, values: xr.DataArray, colors: Mapping[str, Any], blank_diagonal: bool = False) -> AxesImage:
    """Draws a map (y, x); with `blank_diagonal`, the cells of an expert with itself are white."""
    image = show(axes, values.values, **{"aspect": "equal", **colors})
    if blank_diagonal:
        same = np.equal.outer(values[values.dims[0]].values, values[values.dims[1]].values)
        cover = np.dstack([*[np.ones(same.shape)] * 3, same.astype(float)])
        show(axes, cover, aspect=axes.get_aspect())
        _stroke(axes, same)
    return image


def _stroke(axes: Axes, same: np.ndarray) -> None:
    """Draws a white line over the cells of an expert with itself, for pictures with fewer pixels than cells."""
    rows, columns = np.nonzero(same)
    if len(rows) > THIN and (rows == columns).all():
        ends = [-0.5, len(rows) - 0.5]
        axes.plot(ends, ends, color="white", linewidth=1.0, solid_capstyle="butt", scalex=False, scaley=False)


def bounded(bounds: tuple[float, float]) -> dict[str, Any]:
    """Colors from the smallest to the largest value; cells without a value are light gray."""
    return {"vmin": bounds[0], "vmax": bounds[1], "cmap": matplotlib.colormaps[COLORMAP].with_extremes(bad="0.85")}
