"""Whether experts go by token or by place: lines over layers with their chance levels, and maps of places."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moe_probe.plotting.style import BLUE, COLORMAP, COLUMN, GREEN, GREY, PAGE, style, thin_ticks


def plot(ds: xr.Dataset) -> Figure:
    """Vocabulary specialization, context independence and repetition over layers; dashed: what chance would give.

    Args:
        ds: result of `dynamic.token_specialization`.

    Example:
        >>> plot(dynamic.token_specialization("ckpt/tiny-mixtral", texts))
    """
    vocabulary = ds.vocabulary_specialization.mean("expert"), ds.vocabulary_chance.mean("expert")
    repetition = {c: (ds.repetition.sel(choice=c), ds.repetition_chance.sel(choice=c)) for c in ds.choice.values}
    panels = {
        "vocabulary specialization": {"": vocabulary},
        "context independence": {"": (ds.context_independence, ds.context_chance)},
        "next token, same expert": repetition,
    }
    with style():
        figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for color, (label, (found, chance)) in zip((BLUE, GREEN), lines.items(), strict=False):
                axes.plot(ds.layer, found, marker="o", markersize=3, color=color, label=f"{label} choice")
                axes.plot(ds.layer, chance, linestyle="--", linewidth=0.8, color=color if label else GREY)
            axes.set(xlabel="layer", title=title, ylim=(0, 1))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(frameon=False)
        figure.suptitle(f"{ds.attrs['model']} (dashed: chance)")
        return figure


def places(ds: xr.Dataset, layer: int) -> Figure:
    """Load of one layer's experts by position in the document."""
    with style():
        figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(ds.position_share.sel(layer=layer), aspect="auto", cmap=COLORMAP, vmin=0)
        starts = [int(place) for place in ds.place.values]
        names = [str(a) if a < 2 else f"{a}–{2 * a - 1}" for a in starts]
        axes.set(xlabel="expert", ylabel="position", title=f"{ds.attrs['model']}, layer {layer}")
        thin_ticks(axes.xaxis, [str(label) for label in ds.expert.values])
        thin_ticks(axes.yaxis, names, 32)
        figure.colorbar(image, label="share of choices")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines, and the map of every layer: (file stem, figure)."""
    yield "token_specialization", plot(ds)
    for layer in ds.layer.values:
        yield f"token_specialization_places_layer{layer}", places(ds, int(layer))
