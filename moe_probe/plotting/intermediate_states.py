"""Neuron maps: act(gate projection) of every expert, a panel per token (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from moe_probe.errors import OutOfRange
from moe_probe.plotting._choices import pick, pick_layer
from moe_probe.plotting._grid import chosen_layers
from moe_probe.plotting._heatmap import SCALES, Scale, beyond, limits, show
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import PAGE, Figure, thin_ticks
from moe_probe.plotting._tokens import choose, panel_title, rows, written

FEW, SHOWN = 16, 8  # experts that are all shown; those that are, where they are more
DIMS = ("layer", "token", "expert", "neuron")


def plot(
    ds: xr.Dataset,
    layer: int | None = None,
    scale: Scale = "layer",
    tokens: Sequence[int] | None = None,
    experts: Sequence[str] | None = None,
    sort: bool | None = None,
    as_published: bool = False,
    **look: Unpack[Look],
) -> Drawn:
    """Draws maps of experts by neurons, one row of the figure per token.

    Args:
        ds: result of `dynamic.intermediate_states`.
        layer: the first one of the result by default.
        scale: colors from the smallest to the largest value of this layer (`layer`) or of all layers (`all`).
        tokens: positions of the tokens to show; the first four by default.
        experts: labels of the experts to show; beyond 16 experts, by default the eight with the largest activations.
        sort: sort each expert's neurons by value, the largest first; the default beyond 16 experts.
        as_published: colors from the smallest value to the largest one of the layer, or to 1 for `all`, and lines
            between experts, as in the paper; by default, 0.5 % of many values are beyond each end.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: there is no such layer, scale or expert.
        OutOfRange: there are no such tokens, or `experts` is empty.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.intermediate_states("ckpt/tiny-mixtral", ["A short text."], layers=[0])
        >>> figure = plotting.plot(ds)
    """
    layer = pick_layer(ds, layer)
    if experts is not None and not len(experts):
        raise OutOfRange("experts is empty; pass labels of experts, or omit experts=.")
    sort = ds.sizes["expert"] > FEW if sort is None else sort
    with Page(ds, look) as page:
        one = rows(page.ds)
        shown = choose(one, tokens)
        bounds = limits(one.activation, layer, scale)
        if as_published:
            bounds = _published_limits(one.activation, layer, scale)
        maps = [_map(one.activation.sel(layer=layer).isel(token=token), experts, sort) for token in shown]
        height = min(max(0.14 * maps[0].sizes["expert"], 0.7), 2.0)
        all_axes = page.panels(len(shown), 1, (PAGE, 0.45 + len(shown) * (height + 0.22)), sharex=True)[:, 0]
        image: Any = None
        for axes, token, values in zip(all_axes, shown, maps, strict=True):
            image = _panel(axes, values, bounds, _title(one, layer, token))
            if as_published:
                axes.hlines(np.arange(1, len(values)) - 0.5, *axes.get_xlim(), color="black", linewidth=0.2)
        all_axes[-1].set_xlabel("neurons, largest first" if sort else "neuron")
        page.colorbar(image, all_axes, "act(gate projection)", aspect=20 * len(shown), extend=beyond(image))
        page.note(f"{maps[0].sizes['expert']} of {ds.sizes['expert']} experts" * (len(maps[0]) < ds.sizes["expert"]))
        return page.finish(f"{page.ds.attrs['model']}, layer {layer}")


def _published_limits(values: xr.DataArray, layer: int, scale: Scale) -> tuple[float, float]:
    if scale == "all":
        return float(values.min()), 1.0
    of_layer = values.sel(layer=layer)
    return float(of_layer.min()), float(of_layer.max())


def _title(one: xr.Dataset, layer: int, token: int) -> str:
    """Position and string of a token, with its chosen experts if the result has them."""
    if "topk_expert" not in one:
        return f"{token}: {written(str(one.string.values[token]))}"
    chosen = one.topk_expert.sel(layer=layer).transpose("token", ...).values[token]
    return panel_title(one, token, chosen).replace("\n", ": ")


def _panel(axes: Axes, values: xr.DataArray, bounds: tuple[float, float], title: str) -> AxesImage:
    image = show(axes, values, aspect="auto", vmin=bounds[0], vmax=bounds[1])
    thin_ticks(axes.yaxis, [str(label) for label in values.expert.values], 9)
    axes.set_ylabel("expert")
    axes.set_title(title, loc="left")
    return image


def _map(values: xr.DataArray, experts: Sequence[str] | None, sort: bool) -> xr.DataArray:
    """One token's activations, (expert, neuron), of the experts to show."""
    values = values.transpose("expert", "neuron")
    if experts is not None:
        values = values.sel(expert=[pick(values.to_dataset(name="activation"), "expert", str(e)) for e in experts])
    elif values.sizes["expert"] > FEW:
        largest = np.argsort(-np.nan_to_num(np.abs(values.values)).sum(1), kind="stable")[:SHOWN]
        values = values.isel(expert=np.sort(largest))
    return values.copy(data=np.sort(values.values, axis=1)[:, ::-1]) if sort else values


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """A few layers, in one scale: (file stem, figure)."""
    for layer in chosen_layers(ds.layer.values, 3):
        yield f"intermediate_states_layer{layer}", plot(ds, layer, "all")


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    for layer in ds.layer.values:
        for scale in SCALES:
            yield f"intermediate_states_layer{layer}_scale-{scale}", plot(ds, int(layer), scale)
