"""What edits do: the change of the loss, total against direct, and by label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from moe_probe.plotting._style import BLUE, ORANGE, PAGE, Figure, style

DIMS = ("edit", "path", "document", "layer")
COLORS = {"total": BLUE, "direct": ORANGE}
LONGEST = 24  # characters of an edit's name beside its bar


def plot(ds: xr.Dataset) -> Figure:
    """The change of the loss of each edit, total and direct, with its 95 % interval over documents.

    What the direct bar lacks of the total one is rerouting in later layers.

    Args:
        ds: result of `intervene.effect`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> edits = {"without 3": intervene.Zero(1, [3]), "random": intervene.Random(1)}
        >>> ds = intervene.effect("ckpt/tiny-mixtral", [[5, 6, 7, 8], [11, 12, 13]], edits, direct=True)
        >>> figure = plotting.plot(ds)
    """
    names = [named(str(name)) for name in ds.edit.values]
    with style():
        figure = Figure(figsize=(PAGE, 1.0 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / ds.sizes["path"]
        for place, path in enumerate(map(str, ds.path.values)):
            one = ds.sel(path=path)
            at = np.arange(len(names)) - 0.4 + height * (place + 0.5)
            value = one.mean_loss_change.values
            around = [value - one.mean_loss_change_low.values, one.mean_loss_change_high.values - value]
            bars = {"xerr": np.clip(np.nan_to_num(around), 0, None), "error_kw": {"elinewidth": 0.8}}
            axes.barh(at, value, height, color=COLORS[path], label=path, **bars)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_yticks(range(len(names)), labels=names)
        axes.invert_yaxis()
        axes.set(xlabel="change of the loss (nats)", title=ds.attrs["model"])
        figure.legend(loc="outside right upper", frameon=False)
        return figure


def rerouted(ds: xr.Dataset) -> Figure:
    """Share of the unedited run's choices that are no longer made, layer by layer, mean over documents."""
    values = ds.rerouted.sel(path="total").mean("document")
    with style():
        figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
        axes = figure.subplots()
        for name in ds.edit.values[:8]:
            axes.plot(ds.layer, values.sel(edit=name), "o-", markersize=3, label=named(str(name)))
        axes.set(xlabel="layer", ylabel="choices changed", title=ds.attrs["model"])
        axes.set_xticks(ds.layer.values[:: -(-ds.sizes["layer"] // 9)])
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def by_label(ds: xr.Dataset) -> Figure:
    """The change of the loss of each edit by document label: a point per document, a stroke at their mean."""
    labels, values = sorted(set(ds.label.values.tolist())), ds.loss_change.sel(path="total")
    with style():
        figure = Figure(figsize=(PAGE, 1.0 + 0.3 * len(labels) * min(ds.sizes["edit"], 8)), layout="constrained")
        all_axes = figure.subplots(min(ds.sizes["edit"], 8), 1, squeeze=False, sharex=True)[:, 0]
        for axes, name in zip(all_axes, ds.edit.values, strict=False):
            for place, label in enumerate(labels):
                own = values.sel(edit=name).values[ds.label.values == label]
                own = own[np.isfinite(own)]
                axes.plot(own, np.full(len(own), place), ".", color=BLUE, alpha=0.5, rasterized=True)
                axes.vlines(own.mean() if len(own) else np.nan, place - 0.3, place + 0.3, color=ORANGE)
            axes.axvline(0, color="black", linewidth=0.6)
            axes.set_yticks(range(len(labels)), labels=labels)
            axes.set_title(named(str(name)))
        all_axes[-1].set_xlabel("change of the loss (nats)")
        return figure


def named(text: str) -> str:
    """An edit's name, cut where it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Total against direct, rerouting, and by label: (file stem, figure)."""
    yield "effect", plot(ds)
    yield "effect_rerouted", rerouted(ds)
    if "label" in ds.coords:
        yield "effect_labels", by_label(ds)
