"""Chosen experts of each token: maps of applied weights (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import OutOfRange
from moe_probe.plotting._choices import pick
from moe_probe.plotting._grid import chosen_layers
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import PAGE, Figure, thin_ticks
from moe_probe.plotting._tokens import rows, written

TOKENS = 64  # in one figure
DIMS = ("layer", "token", "expert")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    document: int | None = None,
    start: int = 0,
    **look: Unpack[Look],
) -> Drawn:
    """Draws a map of tokens by experts, shaded by the applied weight, 0 for experts that are not chosen.

    Args:
        ds: result of `dynamic.gate_choices`.
        layer: the first one of the result by default.
        document: its number; the first one by default.
        start: the first token of the document to show; at most 64 follow.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: there is no such layer or document.
        OutOfRange: the document ends before `start`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.gate_choices("ckpt/tiny-mixtral", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2)
    """
    layer = pick(ds, "layer", layer)
    document = int(pick(ds, "document", document))
    shown, length = _tokens(ds, document, start)
    with Page(ds, look) as page:
        width = max(min(PAGE, 1.2 + 0.13 * shown.sizes["token"]), 2.6)
        axes = page.panel((width, min(max(0.13 * ds.sizes["expert"], 1.0), 4.5) + 1.1))
        values = shown.weight.sel(layer=layer).transpose("expert", "token").values
        image = show(axes, values, aspect="auto", cmap="Blues", vmin=0, vmax=_most(ds))
        names = [written(str(text)) for text in shown.string.values]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        thin_ticks(axes.yaxis, [str(label) for label in ds.expert.values], 16)
        axes.set_ylabel("expert")
        page.colorbar(image, axes, "applied weight")
        part = f"tokens {start} to {start + len(names) - 1} of {length}" if length > len(names) else ""
        page.note(f"text {document}", part)
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _most(ds: xr.Dataset) -> float:
    """The largest weight, the same in all layers."""
    most = float(ds.weight.max())
    return most if np.isfinite(most) and most > 0 else 1.0


def _tokens(ds: xr.Dataset, document: int, start: int) -> tuple[xr.Dataset, int]:
    """The part of a document to show, and its number of tokens."""
    flat = rows(ds)
    of_document = flat.isel(token=(flat.document == document).values)
    length = of_document.sizes["token"]
    if not 0 <= start < length:
        raise OutOfRange(
            f"start={start} is outside document {document}, which has {length} tokens here; pass 0 to {length - 1}."
        )
    return of_document.isel(token=slice(start, start + TOKENS)), length


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The first document in a few layers: (file stem, figure)."""
    for layer in chosen_layers(ds.layer.values, 4):
        yield f"gate_choices_layer{layer}", plot(ds, layer)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The first document in every other layer: (file stem, figure)."""
    for layer in sorted({int(layer) for layer in ds.layer.values} - set(chosen_layers(ds.layer.values, 4))):
        yield f"gate_choices_layer{layer}", plot(ds, layer)
