"""Similarity of the experts' outputs: heat maps token by token, and averaged (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import SCALES, Scale, bounded, heatmaps, limits
from moe_probe.plotting._style import Figure, style
from moe_probe.plotting._tokens import choose, panel_title, rows

LABELS = {"cosine": "cosine similarity", "angular": "angular similarity"}
DIMS = ("layer", "expert", "other")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    tokens: Sequence[int] | None = None,
    diagonal: bool = False,
) -> Figure:
    """Heat map of one layer: averaged over tokens, or a panel per token, titled with its chosen experts.

    Args:
        ds: result of `dynamic.output_similarity`.
        layer: the first one of the result by default.
        scale: colors from the least to the largest value of this layer (`layer`) or of all layers (`all`).
        tokens: places of the tokens to show; the first four by default.
        diagonal: show each expert beside itself and let it count in the color scale, as the paper does.

    Raises:
        NoSuchName: the result has no such layer or scale.
        OutOfRange: the result has no such tokens.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.output_similarity("ckpt/tiny-mixtral", ["A short text."], per_token=True)
        >>> figure = plotting.plot(ds, layer=2, tokens=[0, 3])
    """
    layer = pick_layer(ds, layer)
    bar, title = LABELS[ds.attrs["metric"]], f"{ds.attrs['model']}, layer {layer}: outputs of experts"
    with style():
        if "token" not in ds.dims:
            panels = {f"mean of {ds.attrs['tokens']:,} tokens": ds.similarity.sel(layer=layer)}
            colors = bounded(limits(ds.similarity, layer, scale, diagonal))
            return heatmaps(panels, colors, title, bar, blank_diagonal=not diagonal)
        flat = rows(ds)
        chosen = flat.topk_expert.sel(layer=layer).values
        panels = {
            panel_title(flat, token, chosen[token]): flat.similarity.sel(layer=layer).isel(token=token)
            for token in choose(flat, tokens)
        }
        colors = bounded(limits(flat.similarity, layer, scale, diagonal))
        return heatmaps(panels, colors, title, bar, blank_diagonal=not diagonal)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    kind = "tokens" if "token" in ds.dims else "mean"
    for layer in ds.layer.values:
        for scale in SCALES:
            stem = f"output_similarity_{kind}_{ds.attrs['metric']}_layer{layer}_scale-{scale}"
            yield stem, plot(ds, int(layer), scale)
