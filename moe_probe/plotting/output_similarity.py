"""Similarity of the experts' outputs: heat maps token by token, and averaged (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import xarray as xr

from moe_probe.plotting.heatmap import SCALES, heatmaps, limits
from moe_probe.plotting.style import Figure, style
from moe_probe.plotting.tokens import choose, panel_title, rows

LABELS = {"cosine": "cosine similarity", "angular": "angular similarity"}


def plot(ds: xr.Dataset, layer: int | None = None, scale: str = "layer", tokens: Sequence[int] | None = None) -> Figure:
    """Heat map of one layer: averaged over tokens, or a panel per token, titled with its chosen experts.

    Args:
        ds: result of `dynamic.output_similarity`.
        layer: the first one of the result by default.
        scale: colours from the least to the largest value of this layer (`layer`) or of all layers (`all`).
        tokens: places of the tokens to show; the first four by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.output_similarity("ckpt/tiny-mixtral", ["A short text."], per_token=True)
        >>> figure = plotting.plot(ds, layer=2, tokens=[0, 3])
    """
    layer = int(ds.layer[0]) if layer is None else layer
    bar, title = LABELS[ds.attrs["metric"]], f"{ds.attrs['model']}, layer {layer}: outputs of experts"
    with style():
        if "token" not in ds.dims:
            panels = {f"mean of {ds.attrs['tokens']:,} tokens": ds.similarity.sel(layer=layer)}
            return heatmaps(panels, limits(ds.similarity, layer, scale), title, bar)
        flat = rows(ds)
        chosen = flat.topk_expert.sel(layer=layer).values
        panels = {
            panel_title(flat, token, chosen[token]): flat.similarity.sel(layer=layer).isel(token=token)
            for token in choose(flat, tokens)
        }
        return heatmaps(panels, limits(flat.similarity, layer, scale), title, bar)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both colour scales: (file stem, figure)."""
    kind = "tokens" if "token" in ds.dims else "mean"
    for layer in ds.layer.values:
        for scale in SCALES:
            stem = f"output_similarity_{kind}_{ds.attrs['metric']}_layer{layer}_scale-{scale}"
            yield stem, plot(ds, int(layer), scale)
