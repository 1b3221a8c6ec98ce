"""FFN experts per token by token, word, part of speech and position (MoE++, arXiv 2410.07348, figure 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from moe_probe.errors import InputError
from moe_probe.plotting._lines import chance_line, said_of_intervals
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, PAGE, Figure
from moe_probe.plotting._tokens import written

CLASSES = {
    "type": "token",
    "word": "word",
    "pos": "part of speech",
    "piece": "kind of token",
    "place": "position in the document",
}
OVER_LAYERS = (
    "chance",
    *(f"{by}_{end}" for by in CLASSES for end in ("count", "density", "density_low", "density_high")),
)
EACH = 0.165  # inches of a bar with its name, 40 on the width of a page


def plot(ds: xr.Dataset, by: str = "type", shown: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws bars of the mean number of FFN experts, with counts; the highest and lowest if there are many.

    Args:
        ds: result of `dynamic.ffn_experts_per_token`.
        by: `type`, `word`, `pos`, `piece` or `place`.
        shown: largest number of bars; by default as many as have room for their names, 40 on the width of a page.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        InputError: the result has no such class, or nothing was frequent enough.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.ffn_experts_per_token("ckpt/tiny-moe-plus-plus", "ckpt/texts.jsonl")
        >>> figure = plotting.plot(ds, by="word")
    """
    if by not in CLASSES or f"{by}_density" not in ds or not ds.sizes[by]:
        known = [name for name in CLASSES if f"{name}_density" in ds and ds.sizes[name]]
        raise InputError(f"The result has no variables by {by!r}; pass by= one of {', '.join(known)}.")
    count = ds.sizes[by]
    with Page(ds, look) as page:
        axes = page.panel((PAGE, 2.7))
        if shown is None:
            shown = max(2 * round((page.width - 0.3) / EACH / 2), 2)
        places = np.arange(count) if count <= shown else np.r_[: shown // 2, count - shown // 2 : count]
        _bars(axes, ds.isel({by: places}), by)
        chance_line(axes, ds, "chance")
        if count > shown:
            axes.axvline(shown // 2 - 0.5, color="0.6", linewidth=0.8, linestyle=":")
            page.note(f"the {shown // 2} highest and lowest of {count:,}")
        page.note("dashed: all tokens" if "chance" in ds else "")
        page.note(f"intervals: {said_of_intervals(ds)}" if f"{by}_density_low" in ds else "")
        return page.finish(page.ds.attrs["model"])


def _bars(axes: Axes, bars: xr.Dataset, by: str) -> None:
    """Draws means with their intervals, with names and counts."""
    values, counts = bars[f"{by}_density"].values, bars[f"{by}_count"].values
    x = np.arange(len(values))
    axes.bar(x, values, color=BLUE, width=0.7)
    if f"{by}_density_low" in bars:
        low, high = (bars[f"{by}_density_{end}"].values for end in ("low", "high"))
        error = np.clip([values - low, high - values], 0, None)
        axes.errorbar(x, values, error, fmt="none", ecolor="0.25", elinewidth=0.7)
    rotation = 90 if len(x) > 8 else 0
    between = "  " if rotation else "\n"
    axes.set_xticks(x, [f"{n}{between}({c:,})" for n, c in zip(names(bars, by), counts, strict=True)])
    axes.tick_params(axis="x", rotation=rotation)
    axes.set(xlabel=f"{CLASSES[by]} (occurrences)", ylabel="FFN experts per token", xlim=(-0.6, len(x) - 0.4))


def names(ds: xr.Dataset, by: str) -> list[str]:
    """Names of the bars."""
    if by == "type":
        return [written(str(text)) for text in ds.type_string.values]
    if by == "place":
        return [str(a) if a < 2 else f"{a}–{2 * a - 1}" for a in ds.place.values]
    return [written(str(name)) for name in ds[by].values]


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The bars by each class that the result has: (file stem, figure)."""
    for name in CLASSES:
        if f"{name}_density" in ds and ds.sizes[name]:
            yield f"ffn_experts_per_token_{name}", plot(ds, name)
