"""Similarity of experts: heat maps of a layer's projections, and the mean over layers (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import SCALES, Scale, bounded, heatmaps, limits
from moe_probe.plotting._lines import layer_axis
from moe_probe.plotting._maps import Order, ordered, pair_grid
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import COLUMN, PROJECTION_COLORS, Figure

METRIC_LABELS = {"cosine": "cosine similarity", "cka": "linear CKA", "l2": "L2 distance", "kendall_tau": "Kendall's τ"}
LEVEL_LABELS = {"matrix": "matrices", "neuron_mean": "mean neurons", "neuron_aligned": "aligned neurons"}
DIMS = ("layer", "projection", "expert", "other")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    variable: str | None = None,
    diagonal: bool = False,
    order: Order = "number",
    **look: Unpack[Look],
) -> Drawn:
    """Draws heat maps of one layer, the projections up, gate and down side by side.

    Args:
        ds: result of `static.similarity`.
        layer: the first one of the result by default.
        scale: colors from the smallest to the largest value of this layer (`layer`) or of all layers (`all`).
        variable: the metric by default, or `kendall_tau` for aligned neurons.
        diagonal: draw the diagonal and include it in the color scale, as the paper does.
        order: order of the experts in each panel: by `number`, or `cluster`, which puts similar ones side by side.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: the result has no such layer, scale, variable or order.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.similarity("ckpt/tiny-mixtral", "neuron_mean", baseline="ckpt/tiny-mistral")
        >>> figure = plotting.plot(ds, layer=2)
    """
    known = [name for name in METRIC_LABELS if name in ds]
    if variable is not None and variable not in known:
        raise NoSuchName.among("variable", variable, known)
    variable = variable or str(ds.attrs["metric"])
    layer = pick_layer(ds, layer)
    values = ds[variable]
    panels = {str(name): ordered(values.sel(layer=layer, projection=name), order) for name in ds.projection.values}
    with Page(ds, look) as page:
        colors = bounded(limits(values, layer, scale, diagonal))
        heatmaps(page, panels, colors, METRIC_LABELS[variable], blank_diagonal=not diagonal)
        return page.finish(f"{_title(page.ds)}, layer {layer}")


def overview(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the mean similarity of two different routed experts over the layers, a line per projection."""
    metric, mean = ds.attrs["metric"], mean_of_pairs(ds)
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.1))
        for name in ds.projection.values:
            line = mean.sel(projection=name)
            axes.plot(ds.layer, line, "o-", markersize=2.5, color=PROJECTION_COLORS[str(name)], label=str(name))
        axes.set(ylabel=f"mean {METRIC_LABELS[metric]}")
        layer_axis(axes, ds.layer)
        page.legend(axes)
        return page.finish(_title(page.ds))


def mean_of_pairs(ds: xr.Dataset) -> xr.DataArray:
    """The mean over two different routed experts, (layer, projection)."""
    routed = [label for label in ds.expert.values if label not in ("S", "F")]
    values = ds[ds.attrs["metric"]].sel(expert=routed, other=routed)
    return values.where(values.expert != values.other).mean(("expert", "other"))


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray]:
    """The mean of every layer and projection, for a short table."""
    return f"Mean {ds.attrs['metric']} of two experts ({ds.attrs['level']})", mean_of_pairs(ds)


def _title(ds: xr.Dataset) -> str:
    return f"{ds.attrs['model']}: {LEVEL_LABELS[ds.attrs['level']]}"


def _variables(ds: xr.Dataset) -> list[str]:
    return [ds.attrs["metric"], *(["kendall_tau"] if "kendall_tau" in ds else [])]


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All layers in one scale, and the overview: (file stem, figure)."""
    for variable in _variables(ds):
        values = ds[variable]
        maps = {
            f"{layer} {name}": values.sel(layer=layer, projection=name)
            for layer in ds.layer.values
            for name in ds.projection.values
        }
        colors = bounded(limits(values, int(ds.layer[0]), "all"))
        stem = f"similarity_{ds.attrs['level']}_{variable}"
        yield from pair_grid(stem, maps, colors, METRIC_LABELS[variable], columns=9, unit=ds.sizes["projection"])
    yield f"similarity_{ds.attrs['level']}_{ds.attrs['metric']}_overview", overview(ds)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    for variable in _variables(ds):
        for layer in ds.layer.values:
            for scale in SCALES:
                stem = f"similarity_{ds.attrs['level']}_{variable}_layer{layer}_scale-{scale}"
                yield stem, plot(ds, int(layer), scale, variable)
