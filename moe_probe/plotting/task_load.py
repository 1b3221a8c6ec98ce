"""Load by task and kind of expert, and how tasks and layers differ (MoE++, arXiv 2410.07348, figures 4, A to E)."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._lines import chance_interval, chance_line, line, said_of_intervals, whole_numbers
from moe_probe.plotting._style import BLUE, COLUMN, DIVERGING, GREEN, ORANGE, PAGE, Figure, style, thin_ticks

KIND_MAPS = {"ffn": "Blues", "constant": "Greens", "copy": "Oranges", "zero": "Purples"}
DIMS = ("layer", "task", "expert")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Bars for every task, one for each kind, a segment for each expert; below, the FFN experts per token.

    Args:
        ds: result of `dynamic.task_load`.
        layer: the first one by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.task_load("ckpt/tiny-moe-plus-plus", "ckpt/texts.jsonl", labels="domain")
        >>> figure = plotting.plot(ds, layer=1)
    """
    own = ds.sel(layer=pick_layer(ds, layer))
    tasks, kinds = ds.sizes["task"], [str(kind) for kind in ds.kind.values]
    x, width = np.arange(tasks), 0.8 / len(kinds)
    with style():
        figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for at, kind in enumerate(kinds):
            _stack(axes, own, kind, x + (at - (len(kinds) - 1) / 2) * width, width)
        axes.set(ylabel="share of choices", xlim=(-0.6, tasks - 0.4))
        handles = [Patch(color=matplotlib.colormaps[KIND_MAPS[k]](0.65), label=k) for k in kinds]
        axes.legend(handles=handles, frameon=False, ncols=len(kinds), loc="upper left", bbox_to_anchor=(0, 1.0))
        axes.set_ylim(top=axes.get_ylim()[1] * 1.25)
        axes.set_title(f"{ds.attrs['model']}, layer {int(own.layer)}")
        _ffn_per_token(below, own, x)
        names = [str(task) for task in ds.task.values]
        below.set_xticks(x, names, rotation=30 if tasks > 6 else 0, ha="right" if tasks > 6 else "center")
        return figure


def _ffn_per_token(axes: Axes, own: xr.Dataset, x: np.ndarray) -> None:
    """FFN experts per token of every task, from 0, with intervals and numbers."""
    values, top = own.ffn_per_token.values, own.ffn_per_token.values
    axes.plot(x, values, color="black", marker="o", markersize=3, linestyle="none")
    if "ffn_per_token_low" in own:
        low, top = own.ffn_per_token_low.values, own.ffn_per_token_high.values
        axes.errorbar(x, values, np.clip([values - low, top - values], 0, None), fmt="none", ecolor="black", capsize=3)
    for task, value, high in zip(x, values, np.fmax(top, values), strict=True):
        if np.isfinite(value):
            axes.annotate(f"{value:.3f}", (task, high), (0, 3), textcoords="offset points", ha="center", fontsize=6)
    highest = float(np.nanmax([*top, *values, 0.0]))
    axes.set(ylabel="FFN experts\nper token", ylim=(0, 1.35 * highest if highest > 0 else 1))


def _stack(axes: Axes, own: xr.Dataset, kind: str, x: np.ndarray, width: float) -> None:
    """The experts of one kind, one above the other."""
    share = own.share.values[:, (own.expert_kind == kind).values]  # (tasks, experts)
    bottom = np.zeros(len(x))
    for at, values in enumerate(share.T):
        color = matplotlib.colormaps[KIND_MAPS[kind]](0.35 + 0.5 * at / max(share.shape[1] - 1, 1))
        axes.bar(x, values, width, bottom=bottom, color=color, edgecolor="white", linewidth=0.2)
        bottom += values


def correlation(ds: xr.Dataset, over: str = "tasks") -> Figure:
    """Correlation of layers' FFN experts per token, over tasks or over tokens.

    Raises:
        NoSuchName: `over` is neither.
    """
    if over not in ("tasks", "tokens"):
        raise NoSuchName.among("over", over, ["tasks", "tokens"])
    name = "correlation" if over == "tasks" else "token_correlation"
    with style():
        figure = Figure(figsize=(COLUMN, 2.9), layout="constrained")
        axes = figure.subplots()
        image = show(axes, ds[name], cmap=DIVERGING, vmin=-1, vmax=1)
        labels = [str(layer) for layer in ds.layer.values]
        thin_ticks(axes.xaxis, labels)
        thin_ticks(axes.yaxis, labels)
        adjacent = float(ds[f"adjacent_{name}"])
        axes.set(xlabel="layer", ylabel="layer")
        axes.set_title(f"{ds.attrs['model']}, FFN experts over {over}\n(adjacent layers: {adjacent:.2f})")
        figure.colorbar(image, label="Pearson's correlation")
        return figure


def differences(ds: xr.Dataset) -> Figure:
    """How far apart tasks are in every layer: distance of loads with its chance level, spread of FFN experts."""
    with style():
        figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
        panels = figure.subplots(1, 2 + ("layer_zero_accuracy" in ds))
        line(panels[0], ds, "task_distance", color=BLUE, label="tasks")
        chance_interval(panels[0], ds, "task_distance_chance")
        chance_line(panels[0], ds, "task_distance_chance", label="chance")
        panels[0].legend(frameon=False)
        panels[0].set_title("distance between tasks")
        chance_interval(panels[1], ds, "ffn_spread_chance")
        chance_line(panels[1], ds, "ffn_spread_chance")
        line(panels[1], ds, "ffn_spread", color=GREEN)
        panels[1].set_title("std over tasks of FFN experts")
        if "layer_zero_accuracy" in ds:
            line(panels[2], ds, "layer_zero_accuracy", color=ORANGE)
            panels[2].set(title="zero experts and accuracy (ρ)", ylim=(-1.05, 1.05))
        for axes in panels:
            whole_numbers(axes)
        notes = f" (intervals: {said_of_intervals(ds)})" if "task_distance_low" in ds else ""
        figure.suptitle(f"{ds.attrs['model']}{notes}")
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """FFN experts per token of every layer and task, for a short table."""
    return "FFN experts per token", ds.ffn_per_token.transpose("layer", "task")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Bars of every layer, correlations and differences: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"task_load_layer{layer}", plot(ds, int(layer))
    for over, name in (("tasks", "correlation"), ("tokens", "token_correlation")):
        if ds.sizes["layer"] > 1 and bool(ds[name].notnull().any()):
            yield f"task_load_correlation_{over}", correlation(ds, over)
    yield "task_load_differences", differences(ds)
