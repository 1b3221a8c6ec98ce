"""Similarity of gate embeddings, alone or beside that of the experts (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import SCALES, Scale, bounded, heatmaps, limits
from moe_probe.plotting._style import Figure, style

DIMS = ("layer", "expert", "other")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    beside: xr.Dataset | None = None,
    diagonal: bool = False,
) -> Figure:
    """Heat map of one layer's gate embeddings.

    Args:
        ds: result of `static.gate_similarity`.
        layer: the first one of the result by default.
        scale: colors from the least to the largest value of this layer (`layer`) or of all layers (`all`).
        beside: result of `static.similarity` at level `neuron_mean`: its projections follow on the same scale.
        diagonal: show each expert beside itself and let it count in the color scale, as the paper does.

    Raises:
        NoSuchName: the result has no such layer or scale.

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
    with style():
        title = f"{ds.attrs['model']}, layer {layer}"
        return heatmaps(panels, bounded(bounds), title, "cosine similarity", blank_diagonal=not diagonal)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    for layer in ds.layer.values:
        for scale in SCALES:
            yield f"gate_similarity_layer{layer}_scale-{scale}", plot(ds, int(layer), scale)
