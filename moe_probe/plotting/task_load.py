"""Load by task and kind of expert, and differences of tasks and layers (MoE++, arXiv 2410.07348, figures 4, A to E)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import Grid
from moe_probe.plotting._heatmap import (
    cell_axes,
    crosses,
    map_size,
    mark_discoveries,
    mark_intervals,
    ratio_bar,
    ratio_colors,
    show,
)
from moe_probe.plotting._lines import chance_interval, chance_line, layer_axis, line, said_of_intervals
from moe_probe.plotting._maps import label_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, DIVERGING, GREEN, ORANGE, PAGE, Figure, thin_ticks

KIND_MAPS = {"ffn": "Blues", "constant": "Greens", "copy": "Oranges", "zero": "Purples"}
SEGMENTS = 32  # experts of a kind that have a segment each
BAR = "load / even load"
DIMS = ("layer", "task", "expert")
OVER_LAYERS = ("adjacent_correlation", "adjacent_token_correlation")


def plot(ds: xr.Dataset, layer: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws bars for every task, one per kind with a segment per expert, and below them the FFN experts per token.

    If all experts are of one kind, it draws a map of tasks by experts: their load divided by an even load.

    Args:
        ds: result of `dynamic.task_load`.
        layer: the first one by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.task_load("ckpt/tiny-moe-plus-plus", "ckpt/texts.jsonl", labels="domain")
        >>> figure = plotting.plot(ds, layer=1)
    """
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        of_layer = page.ds.sel(layer=layer)
        if _alike(ds):
            _map(page, of_layer)
        else:
            _bars(page, of_layer)
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _alike(ds: xr.Dataset) -> bool:
    """Whether all experts are of one kind."""
    return ds.sizes["kind"] == 1


def _map(page: Page, of_layer: xr.Dataset) -> None:
    values = (of_layer.share * of_layer.sizes["expert"]).transpose("task", "expert")
    axes = page.panel(map_size(values))
    image = show(axes, values, aspect="auto", **ratio_colors(values, 1))
    crosses(axes, values.values == 0)
    cell_axes(axes, values, "task", "expert")
    ratio_bar(page, image, axes, BAR)
    if "share_chance" in of_layer:
        mark_intervals(page, axes, of_layer.transpose("task", "expert", ...), "share", of_layer.share_chance)
    if "share_q" in of_layer:
        mark_discoveries(page, axes, of_layer.share_q.transpose("task", "expert"), "layers, tasks, experts")


def _bars(page: Page, of_layer: xr.Dataset) -> None:
    tasks, kinds = of_layer.sizes["task"], [str(kind) for kind in of_layer.kind.values]
    axes, below = page.panels(2, 1, (PAGE, 3.3), sharex=True, height_ratios=(2, 1))[:, 0]
    for at, kind in enumerate(kinds):
        _stack(axes, of_layer, kind, np.arange(tasks), at, len(kinds))
    axes.set(ylabel="share of choices", xlim=(-0.6, tasks - 0.4))
    page.key([Patch(color=matplotlib.colormaps[KIND_MAPS[k]](0.65)) for k in kinds], kinds)
    _ffn_per_token(below, of_layer, np.arange(tasks))
    names = [str(task) for task in of_layer.task.values]
    below.set_xticks(np.arange(tasks), names, rotation=30 if tasks > 6 else 0, ha="right" if tasks > 6 else "center")
    page.note(f"intervals: {said_of_intervals(of_layer)}" if "ffn_per_token_low" in of_layer else "")


def _ffn_per_token(axes: Axes, of_layer: xr.Dataset, x: np.ndarray) -> None:
    """Draws FFN experts per token of every task, from 0, with intervals and numbers."""
    values, top = of_layer.ffn_per_token.values, of_layer.ffn_per_token.values
    axes.plot(x, values, color="black", marker="o", markersize=3, linestyle="none")
    if "ffn_per_token_low" in of_layer:
        low, top = of_layer.ffn_per_token_low.values, of_layer.ffn_per_token_high.values
        axes.errorbar(x, values, np.clip([values - low, top - values], 0, None), fmt="none", ecolor="black", capsize=3)
    if len(x) <= 16:
        for task, value, high in zip(x, values, np.fmax(top, values), strict=True):
            if np.isfinite(value):
                offset = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 6}
                axes.annotate(f"{value:.3f}", (task, high), **offset)
    highest = float(np.nanmax([*top, *values, 0.0]))
    axes.set(ylabel="FFN experts\nper token", ylim=(0, 1.35 * highest if highest > 0 else 1))


def _stack(axes: Axes, of_layer: xr.Dataset, kind: str, x: np.ndarray, at: int, kinds: int) -> None:
    """Draws the experts of one kind as a stacked bar; more than 32 as one segment."""
    width = 0.8 / kinds
    share = of_layer.share.transpose("task", "expert").values[:, (of_layer.expert_kind == kind).values]
    share = share if share.shape[1] <= SEGMENTS else share.sum(1, keepdims=True)
    bottom = np.zeros(len(x))
    for expert, values in enumerate(share.T):
        shade = 0.35 + 0.5 * expert / (share.shape[1] - 1) if share.shape[1] > 1 else 0.65
        color = matplotlib.colormaps[KIND_MAPS[kind]](shade)
        place = x + (at - (kinds - 1) / 2) * width
        axes.bar(place, values, width, bottom=bottom, color=color, edgecolor="white", linewidth=0.2)
        bottom += values


def correlation(ds: xr.Dataset, over: str = "tasks", **look: Unpack[Look]) -> Drawn:
    """Draws the correlation of layers' FFN experts per token, over tasks or over tokens.

    Raises:
        NoSuchName: `over` is neither `tasks` nor `tokens`.
    """
    if over not in ("tasks", "tokens"):
        raise NoSuchName.among("over", over, ["tasks", "tokens"])
    name = "correlation" if over == "tasks" else "token_correlation"
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.6))
        image = show(axes, ds[name], cmap=DIVERGING, vmin=-1, vmax=1)
        labels = [str(layer) for layer in ds.layer.values]
        thin_ticks(axes.xaxis, labels)
        thin_ticks(axes.yaxis, labels)
        axes.set(xlabel="layer", ylabel="layer")
        page.colorbar(image, axes, "Pearson's correlation")
        page.note(f"FFN experts per token over {over}", f"adjacent layers: {float(ds[f'adjacent_{name}']):.2f}")
        return page.finish(page.ds.attrs["model"])


def differences(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the distance of tasks in every layer, with its chance level, and the spread of FFN experts over tasks.

    If every token has the same number of FFN experts, there is no spread to draw.
    """
    names = ["task_distance", *([] if _alike(ds) or not bool((ds.ffn_spread > 0).any()) else ["ffn_spread"])]
    names += ["layer_zero_accuracy"] if "layer_zero_accuracy" in ds else []
    titles = {"task_distance": "distance between tasks", "ffn_spread": "std over tasks of FFN experts"}
    with Page(ds, look) as page:
        panels = page.panels(1, len(names), (COLUMN if len(names) == 1 else PAGE, 2.0))[0]
        for axes, name, color in zip(panels, names, (BLUE, GREEN, ORANGE), strict=False):
            chance_interval(axes, ds, f"{name}_chance")
            chance_line(axes, ds, f"{name}_chance")
            line(axes, ds, name, color=color)
            axes.set_title(titles.get(name, "zero experts and accuracy (ρ)"))
            axes.set_ylim(*((0, None) if name in titles else (-1.05, 1.05)))
            layer_axis(axes, ds.layer)
        page.note("dashed: chance" * ("task_distance_chance" in ds))
        page.note(f"intervals: {said_of_intervals(ds)}" if "task_distance_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """FFN experts per token of every layer and task, for a short table."""
    return "FFN experts per token", ds.ffn_per_token.transpose("layer", "task")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers, correlations and differences: (file stem, figure)."""
    yield from _layers(ds)
    for over, name in (("tasks", "correlation"), ("tokens", "token_correlation")):
        if ds.sizes["layer"] > 1 and bool(ds[name].notnull().any()) and not _alike(ds):
            yield f"task_load_correlation_{over}", correlation(ds, over)
    yield "task_load_differences", differences(ds)


def _layers(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Yields pages of all layers in one scale: maps of tasks by experts, or bars of kinds by task."""
    if _alike(ds):
        values = ds.share * ds.sizes["expert"]
        yield from label_grid("task_load", values, ratio_colors(values, 1), BAR, rows="task")
        return
    kinds, tasks = [str(kind) for kind in ds.kind.values], [str(task) for task in ds.task.values]
    parts = [ds.share.sel(expert=(ds.expert_kind == kind).values).sum("expert") for kind in kinds]
    shares = np.stack([part.transpose("layer", "task").values for part in parts], axis=-1)  # (layer, task, kind)
    width, colors = 0.8 / len(kinds), [matplotlib.colormaps[KIND_MAPS[kind]](0.65) for kind in kinds]
    x = np.arange(len(tasks))[:, None] + (np.arange(len(kinds)) - (len(kinds) - 1) / 2) * width

    def draw(axes: Axes, of_layer: np.ndarray) -> None:
        look = {"color": colors * len(tasks), "edgecolor": "white", "linewidth": 0.2}
        axes.bar(x.ravel(), of_layer.ravel(), width, **look)
        axes.set_ylim(0, 1.05 * float(shares.max()))
        axes.set_xticks(range(len(tasks)), [f"{task[:13]}…" if len(task) > 14 else task for task in tasks])
        axes.tick_params(axis="x", rotation=90)

    legend = [(kind, Patch(color=color)) for kind, color in zip(kinds, colors, strict=True)]
    below = 0.12 + 0.05 * min(max(map(len, tasks)), 14)
    grid = Grid(4, 0.7, y="share of choices", legend=legend, apart=0.12, below=below)
    yield from grid.pages("task_load", [f"layer {layer}" for layer in ds.layer.values], list(shares), draw)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"task_load_layer{layer}", plot(ds, int(layer))
