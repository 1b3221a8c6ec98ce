"""Chosen experts, token by token: maps of applied weights (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.errors import OutOfRange
from moe_probe.plotting._choices import pick
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._style import PAGE, Figure, style, thin_ticks
from moe_probe.plotting._tokens import rows, written

TOKENS = 64  # in one figure
DIMS = ("layer", "token", "expert")


def plot(ds: xr.Dataset, layer: int | None = None, document: int | None = None, start: int = 0) -> Figure:
    """Tokens by experts, shaded by the applied weight, 0 where not chosen.

    Args:
        ds: result of `dynamic.gate_choices`.
        layer: the first one of the result by default.
        document: its number; the first one by default.
        start: the first token of the document to show; at most 64 follow.

    Raises:
        NoSuchName: there is no such layer or document.
        OutOfRange: the document ends before `start`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.gate_choices("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2)
    """
    layer = pick(ds, "layer", layer)
    document = pick(ds, "document", document)
    flat = rows(ds)
    of_document = flat.isel(token=(flat.document == document).values)
    length = of_document.sizes["token"]
    if not 0 <= start < length:
        raise OutOfRange(
            f"Document {document} has {length} tokens in this result; start={start} is none of 0 to {length - 1}."
        )
    shown = of_document.isel(token=slice(start, start + TOKENS))
    with style():
        width = min(PAGE, 1.2 + 0.13 * shown.sizes["token"])
        height = min(max(0.13 * ds.sizes["expert"], 1.0), 4.5)
        figure = Figure(figsize=(max(width, 2.6), height + 1.35), layout="constrained")
        axes = figure.subplots()
        values = shown.weight.sel(layer=layer).transpose("expert", "token").values
        limit = max(1.0, float(values.max()))
        image = show(axes, values, aspect="auto", cmap="Blues", vmin=0, vmax=limit)
        names = [written(str(text)) for text in shown.string.values]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        thin_ticks(axes.yaxis, [str(label) for label in ds.expert.values], 16)
        axes.set_ylabel("expert")
        part = f", tokens {start} to {start + len(names) - 1} of {length}" if length > len(names) else ""
        axes.set_title(f"{ds.attrs['model']}, layer {layer}, text {document}{part}")
        figure.colorbar(image, label="applied weight")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The first document in every layer: (file stem, figure)."""
    for layer in ds.layer.values:
        yield f"gate_choices_layer{layer}", plot(ds, int(layer))
