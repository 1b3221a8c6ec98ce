"""Similarity of experts: heat maps of a layer's projections, and the mean over layers (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import SCALES, Scale, bounded, heatmaps, limits
from moe_probe.plotting._lines import whole_numbers
from moe_probe.plotting._style import COLUMN, PROJECTION_COLORS, Figure, style

METRIC_LABELS = {"cosine": "cosine similarity", "cka": "linear CKA", "l2": "L2 distance", "kendall_tau": "Kendall's τ"}
LEVEL_LABELS = {"matrix": "matrices", "neuron_mean": "mean neurons", "neuron_aligned": "aligned neurons"}
DIMS = ("layer", "projection", "expert", "other")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    variable: str | None = None,
    diagonal: bool = False,
) -> Figure:
    """Heat maps of one layer, up, gate and down side by side.

    Args:
        ds: result of `static.similarity`.
        layer: the first one of the result by default.
        scale: colors from the least to the largest value of this layer (`layer`) or of all layers (`all`).
        variable: the metric by default; `kendall_tau` for aligned neurons.
        diagonal: show each expert beside itself and let it count in the color scale, as the paper does.

    Raises:
        NoSuchName: the result has no such layer, scale or variable.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.similarity("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds, layer=2)
    """
    known = [name for name in METRIC_LABELS if name in ds]
    if variable is not None and variable not in known:
        raise NoSuchName.among("variable", variable, known)
    variable = variable or str(ds.attrs["metric"])
    layer = pick_layer(ds, layer)
    values = ds[variable]
    panels = {str(name): values.sel(layer=layer, projection=name) for name in ds.projection.values}
    title = f"{ds.attrs['model']}, layer {layer}: {LEVEL_LABELS[ds.attrs['level']]}"
    with style():
        colors = bounded(limits(values, layer, scale, diagonal))
        return heatmaps(panels, colors, title, METRIC_LABELS[variable], blank_diagonal=not diagonal)


def overview(ds: xr.Dataset) -> Figure:
    """Mean similarity of two different routed experts over the layers, a line per projection."""
    metric, mean = ds.attrs["metric"], mean_of_pairs(ds)
    with style():
        figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
        axes = figure.subplots()
        for name in ds.projection.values:
            line = mean.sel(projection=name)
            axes.plot(ds.layer, line, marker="o", markersize=3, color=PROJECTION_COLORS[str(name)], label=str(name))
        axes.set(ylabel=f"mean {METRIC_LABELS[metric]}", title=_title(ds))
        whole_numbers(axes)
        axes.legend(title="projection", frameon=False)
        return figure


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


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales, and the overview: (file stem, figure)."""
    variables = [ds.attrs["metric"], *(["kendall_tau"] if "kendall_tau" in ds else [])]
    for variable in variables:
        stem = f"similarity_{ds.attrs['level']}_{variable}"
        for layer in ds.layer.values:
            for scale in SCALES:
                yield f"{stem}_layer{layer}_scale-{scale}", plot(ds, int(layer), scale, variable)
    yield f"similarity_{ds.attrs['level']}_{ds.attrs['metric']}_overview", overview(ds)
