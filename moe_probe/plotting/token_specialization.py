"""Whether experts go by token or by place: lines over layers with their chance levels, and maps of places."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._heatmap import mark_intervals, show
from moe_probe.plotting._lines import chance_line, line, said_of_intervals, whole_numbers
from moe_probe.plotting._style import BLUE, COLUMN, GREEN, GREY, PAGE, Figure, style, thin_ticks

DIMS = ("layer", "expert")


def plot(ds: xr.Dataset) -> Figure:
    """Vocabulary specialization, context independence and repetition over layers; dashed: what chance would give.

    Args:
        ds: result of `dynamic.token_specialization`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.token_specialization("ckpt/tiny-mixtral", "ckpt/texts.jsonl")
        >>> figure = plotting.plot(ds)
    """
    panels = {
        "vocabulary specialization": {"": (ds, "vocabulary_mean", "vocabulary_mean_chance")},
        "context independence": {"": (ds, "context_independence", "context_chance")},
        "next token, same expert": {
            str(choice): (ds.sel(choice=choice), "repetition", "repetition_chance") for choice in ds.choice.values
        },
    }
    with style():
        figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
        all_axes = figure.subplots(1, 3)
        for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
            for color, (label, (found, name, chance)) in zip((BLUE, GREEN), lines.items(), strict=False):
                line(axes, found, name, color=color, label=f"{label} choice")
                chance_line(axes, found, chance, color=color if label else GREY)
            axes.set(title=title, ylim=(0, 1))
            whole_numbers(axes)
        all_axes[-1].legend(frameon=False)
        notes = ["dashed: chance"] * ("repetition_chance" in ds) + [f"intervals: {said_of_intervals(ds)}"] * (
            "repetition_low" in ds
        )
        figure.suptitle(ds.attrs["model"] + (f" ({'; '.join(notes)})" if notes else ""))
        return figure


def places(ds: xr.Dataset, layer: int) -> Figure:
    """Load of one layer's experts by position in the document.

    Dots: the 95 % interval holds the expert's share at all positions together. Circles: no interval is known.
    """
    with style():
        figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
        axes = figure.subplots()
        image = show(axes, ds.position_share.sel(layer=layer), aspect="auto", vmin=0)
        starts = [int(place) for place in ds.place.values]
        names = [str(a) if a < 2 else f"{a}–{2 * a - 1}" for a in starts]
        axes.set(xlabel="expert", ylabel="position", title=f"{ds.attrs['model']}, layer {layer}")
        thin_ticks(axes.xaxis, [str(label) for label in ds.expert.values])
        thin_ticks(axes.yaxis, names, 32)
        figure.colorbar(image, label="share of choices")
        if "position_chance" in ds:
            own = ds.sel(layer=layer)
            mark_intervals(axes, own, "position_share", own.position_chance)
        return figure


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """How often the next token has the same expert, for a short table."""
    return "Next token, same expert", ds.repetition


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The lines, and the map of every layer: (file stem, figure)."""
    yield "token_specialization", plot(ds)
    for layer in ds.layer.values:
        yield f"token_specialization_places_layer{layer}", places(ds, int(layer))
