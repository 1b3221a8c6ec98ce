"""Effects of edits: the change of the loss, total and direct, and by label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.plotting._lines import layer_axis, said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, OKABE_ITO, ORANGE, PAGE, Figure, thin_ticks

DIMS = ("edit", "path", "document", "layer")
OVER_LAYERS = (
    *("base_loss", "loss", "loss_change", "kl", "top1", "control"),
    *(f"{name}{end}" for name in ("mean_loss_change", "control_loss_change") for end in ("", "_low", "_high")),
)
COLORS = {"total": BLUE, "direct": ORANGE}
MOST = 8  # edits with a panel each
CONTROL = "experts chosen as often"
LONGEST = 24  # characters of an edit's name beside its bar


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss of each edit, total and direct, with its 95 % interval over documents.

    The difference between the total and the direct bar is due to rerouting in later layers. Diamonds are the same edits
    of other experts that are chosen about as often.

    Args:
        ds: result of `intervene.effect`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import intervene, plotting
        >>> edits = {"without 3": intervene.Zero(1, [3]), "random": intervene.Random(1)}
        >>> ds = intervene.effect("ckpt/tiny-mixtral", [[5, 6, 7, 8], [11, 12, 13]], edits, direct=True)
        >>> figure = plotting.plot(ds)
    """
    names = [named(str(name)) for name in ds.edit.values]
    with Page(ds, look) as page:
        axes = page.panel((PAGE, min(0.8 + 0.3 * len(names), 9)))
        height = 0.8 / ds.sizes["path"]
        for place, path in enumerate(map(str, ds.path.values)):
            one = ds.sel(path=path)
            at = np.arange(len(names)) - 0.4 + height * (place + 0.5)
            value = one.mean_loss_change.values
            around = [value - one.mean_loss_change_low.values, one.mean_loss_change_high.values - value]
            bars = {"xerr": np.clip(np.nan_to_num(around), 0, None), "error_kw": {"elinewidth": 0.8}}
            axes.barh(at, value, height, color=COLORS[path], label=path, **bars)
            if "control_loss_change" in one:
                axes.plot(one.control_loss_change, at, "D", color="black", markersize=3, label=CONTROL, zorder=3)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_yticks(range(len(names)), labels=names)
        axes.invert_yaxis()
        axes.set_xlabel("change of the loss (nats)")
        page.legend(axes)
        page.note(f"intervals: {said_of_intervals(ds)}")
        return page.finish(page.ds.attrs["model"])


def rerouted(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the share of the unedited run's choices that change in each layer, as a mean over documents."""
    with Page(ds, look) as page:
        values = page.ds.rerouted.sel(path="total").mean("document")
        axes = page.panel((PAGE, 2.3))
        for name, color in zip(page.ds.edit.values, OKABE_ITO, strict=False):
            of_edit = values.sel(edit=name)
            axes.plot(ds.layer, of_edit, "o-", markersize=2.5, color=color, label=named(str(name)))
        axes.set(ylabel="share of choices changed", ylim=(0, max(1.05 * float(np.nan_to_num(values).max()), 0.01)))
        layer_axis(axes, ds.layer, 9)
        page.legend(axes)
        page.note(f"the first {len(OKABE_ITO)} of {ds.sizes['edit']} edits" * (ds.sizes["edit"] > len(OKABE_ITO)))
        return page.finish(page.ds.attrs["model"])


def by_label(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the change of the loss of each edit by document label: a point per document, a stroke at their mean."""
    with Page(ds, look) as page:
        shown, edits = page.ds, min(ds.sizes["edit"], MOST)
        labels = sorted(set(shown.label.values.tolist()))
        size = PAGE, min(0.5 + (0.35 + 0.16 * len(labels)) * edits, 9)
        all_axes = page.panels(edits, 1, size, sharex=True)[:, 0]
        for axes, name in zip(all_axes, shown.edit.values, strict=False):
            _documents(axes, shown.loss_change.sel(path="total", edit=name).values, shown.label.values, labels)
            axes.set_title(named(str(name)))
        all_axes[-1].set_xlabel("change of the loss (nats)")
        page.note("a point: a document; strokes: means")
        return page.finish(page.ds.attrs["model"])


def _documents(axes: Axes, values: np.ndarray, of: np.ndarray, labels: list[str]) -> None:
    for place, label in enumerate(labels):
        of_label = values[of == label]
        of_label = of_label[np.isfinite(of_label)]
        axes.plot(of_label, np.full(len(of_label), place), ".", color=BLUE, alpha=0.5, rasterized=len(of_label) > 500)
        axes.vlines(of_label.mean() if len(of_label) else np.nan, place - 0.3, place + 0.3, color=ORANGE)
    axes.axvline(0, color="black", linewidth=0.6)
    thin_ticks(axes.yaxis, labels, 32)


def named(text: str) -> str:
    """An edit's name, cut if it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Total against direct, rerouting, and by label: (file stem, figure)."""
    yield "effect", plot(ds)
    yield "effect_rerouted", rerouted(ds)
    if "label" in ds.coords:
        yield "effect_labels", by_label(ds)
