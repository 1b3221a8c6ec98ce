"""Similarity of the experts' outputs: heat maps of single tokens, and averages (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._grid import chosen_layers
from moe_probe.plotting._heatmap import SCALES, Scale, bounded, heatmaps, limits, square_maps
from moe_probe.plotting._maps import Order, ordered, pair_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import PAGE, Figure
from moe_probe.plotting._tokens import choose, panel_title, rows

LABELS = {"cosine": "cosine similarity", "angular": "angular similarity"}
DIMS = ("layer", "expert", "other")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    tokens: Sequence[int] | None = None,
    diagonal: bool = False,
    order: Order = "number",
    beside: xr.Dataset | None = None,
    **look: Unpack[Look],
) -> Drawn:
    """Draws heat maps of one layer: averaged over tokens, or a panel per token, titled with its chosen experts.

    Args:
        ds: result of `dynamic.output_similarity`.
        layer: the first one of the result by default.
        scale: colors from the smallest to the largest value of this layer (`layer`) or of all layers (`all`).
        tokens: positions of the tokens to show; the first four by default.
        diagonal: draw the diagonal and include it in the color scale, as the paper does.
        order: order of the experts in each panel: by `number`, or `cluster`, which puts similar ones side by side.
        beside: result of `static.similarity`, whose projections follow in a color scale of their own, as in the paper.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: the result has no such layer, scale or order.
        OutOfRange: the result has no such tokens.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.output_similarity("ckpt/tiny-mixtral", ["A short text."], per_token=True)
        >>> figure = plotting.plot(ds, layer=2, tokens=[0, 3])
    """
    layer = pick_layer(ds, layer)
    with Page(ds, look) as page:
        flat = rows(page.ds) if "token" in ds.dims else page.ds
        panels = _panels(flat, layer, tokens)
        colors = bounded(limits(flat.similarity, layer, scale, diagonal))
        shown = {name: ordered(values, order) for name, values in panels.items()}
        if beside is None:
            heatmaps(page, shown, colors, LABELS[ds.attrs["metric"]], blank_diagonal=not diagonal)
        else:
            _with_weights(page, shown, colors, beside, layer, scale, diagonal)
        if "token" not in ds.dims:
            page.note(f"mean of {ds.attrs['tokens']:,} tokens")
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}: outputs of experts")


def _panels(flat: xr.Dataset, layer: int, tokens: Sequence[int] | None) -> dict[str, xr.DataArray]:
    of_layer = flat.sel(layer=layer)
    if "token" not in flat.dims:
        return {"": of_layer.similarity}
    chosen = of_layer.topk_expert.transpose("token", ...).values
    return {
        panel_title(flat, token, chosen[token]): of_layer.similarity.isel(token=token) for token in choose(flat, tokens)
    }


def _with_weights(
    page: Page,
    outputs: Mapping[str, xr.DataArray],
    colors: Mapping[str, Any],
    beside: xr.Dataset,
    layer: int,
    scale: Scale,
    diagonal: bool,
) -> None:
    """Draws the maps of outputs and, in the same row, those of the weights of a layer."""
    weights = beside[beside.attrs["metric"]]
    panels = {str(name): weights.sel(layer=layer, projection=name) for name in weights.projection.values}
    count = len(outputs) + len(panels)
    all_axes = list(page.panels(1, count, (PAGE, PAGE / (count + 1.4) + 0.65))[0])
    named = {name or "outputs": values for name, values in outputs.items()}
    left, right = all_axes[: len(named)], all_axes[len(named) :]
    square_maps(page, left, named, colors, LABELS[page.ds.attrs["metric"]], blank_diagonal=not diagonal)
    of_weights = bounded(limits(weights, layer, scale, diagonal))
    square_maps(page, right, panels, of_weights, "cosine similarity", blank_diagonal=not diagonal)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The mean in all layers in one scale; tokens in a few layers: (file stem, figure)."""
    metric = ds.attrs["metric"]
    if "token" in ds.dims:
        for layer in chosen_layers(ds.layer.values, 3):
            yield f"output_similarity_tokens_{metric}_layer{layer}", plot(ds, layer, "all")
        return
    maps = {f"layer {layer}": ds.similarity.sel(layer=layer) for layer in ds.layer.values}
    colors = bounded(limits(ds.similarity, int(ds.layer[0]), "all"))
    note = f"mean of {ds.attrs['tokens']:,} tokens"
    yield from pair_grid(f"output_similarity_mean_{metric}", maps, colors, LABELS[metric], note=note)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    kind = "tokens" if "token" in ds.dims else "mean"
    for layer in ds.layer.values:
        for scale in SCALES:
            stem = f"output_similarity_{kind}_{ds.attrs['metric']}_layer{layer}_scale-{scale}"
            yield stem, plot(ds, int(layer), scale)
