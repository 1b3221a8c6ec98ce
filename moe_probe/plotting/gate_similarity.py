"""Similarity of gate embeddings, alone or next to that of the experts (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import SCALES, Scale, bounded, heatmaps, limits
from moe_probe.plotting._maps import Order, ordered, pair_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import Figure

BAR = "cosine similarity"
DIMS = ("layer", "expert", "other")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    beside: xr.Dataset | None = None,
    diagonal: bool = False,
    order: Order = "number",
    **look: Unpack[Look],
) -> Drawn:
    """Draws a heat map of the similarity of one layer's gate embeddings.

    Args:
        ds: result of `static.gate_similarity`.
        layer: the first one of the result by default.
        scale: colors from the smallest to the largest value of this layer (`layer`) or of all layers (`all`).
        beside: result of `static.similarity` at level `neuron_mean`; its projections follow in the same color scale.
        diagonal: draw the diagonal and include it in the color scale, as the paper does.
        order: order of the experts in each panel: by `number`, or `cluster`, which puts similar ones side by side.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: the result has no such layer, scale or order.

    Examples:
        >>> from moe_probe import plotting, static
        >>> experts = static.similarity("ckpt/tiny-mixtral", "neuron_mean")
        >>> figure = plotting.plot(static.gate_similarity("ckpt/tiny-mixtral"), layer=0, beside=experts)
    """
    layer = pick_layer(ds, layer)
    panels = {"gate embeddings": ds.cosine.sel(layer=layer)}
    bounds = limits(ds.cosine, layer, scale, diagonal)
    if beside is not None:
        with_matrices = [label for label in ds.expert.values if label in beside.expert]
        experts = beside.cosine.sel(expert=with_matrices, other=with_matrices)
        panels |= {f"{name} projection": experts.sel(layer=layer, projection=name) for name in beside.projection.values}
        others = limits(experts, layer, scale, diagonal)
        bounds = min(bounds[0], others[0]), max(bounds[1], others[1])
    shown = {name if beside is not None else "": ordered(values, order) for name, values in panels.items()}
    with Page(ds, look) as page:
        heatmaps(page, shown, bounded(bounds), BAR, blank_diagonal=not diagonal)
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers in one scale: (file stem, figure)."""
    maps = {f"layer {layer}": ds.cosine.sel(layer=layer) for layer in ds.layer.values}
    colors = bounded(limits(ds.cosine, int(ds.layer[0]), "all"))
    yield from pair_grid("gate_similarity", maps, colors, BAR)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    for layer in ds.layer.values:
        for scale in SCALES:
            yield f"gate_similarity_layer{layer}_scale-{scale}", plot(ds, int(layer), scale)
