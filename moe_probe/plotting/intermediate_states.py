"""Neuron maps: act(gate projection) of every expert, a panel per token (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._heatmap import SCALES, Scale, limits, show
from moe_probe.plotting._style import PAGE, Figure, style, thin_ticks
from moe_probe.plotting._tokens import choose, rows, written

DIMS = ("layer", "token", "expert", "neuron")


def plot(
    ds: xr.Dataset, layer: int | None = None, scale: Scale = "layer", tokens: Sequence[int] | None = None
) -> Figure:
    """Experts by neurons, a row of the figure per token.

    Args:
        ds: result of `dynamic.intermediate_states`.
        layer: the first one of the result by default.
        scale: colors from the least to the largest value of this layer (`layer`) or of all layers (`all`).
        tokens: places of the tokens to show; the first four by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.intermediate_states("ckpt/tiny-mixtral", ["A short text."], layers=[0])
        >>> figure = plotting.plot(ds)
    """
    layer = pick_layer(ds, layer)
    one = rows(ds)
    shown, experts = choose(one, tokens), ds.sizes["expert"]
    bounds = limits(one.activation, layer, scale)
    with style():
        height = min(max(0.13 * experts, 0.9), 2.2)
        figure = Figure(figsize=(PAGE, 0.7 + len(shown) * (height + 0.2)), layout="constrained")
        all_axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        image: Any = None
        for axes, token in zip(all_axes, shown, strict=True):
            values = one.activation.sel(layer=layer).isel(token=token).transpose("expert", "neuron").values
            image = show(axes, values, aspect="auto", vmin=bounds[0], vmax=bounds[1])
            axes.hlines([e + 0.5 for e in range(experts - 1)], -0.5, values.shape[1] - 0.5, "white", linewidth=0.4)
            thin_ticks(axes.yaxis, [str(label) for label in ds.expert.values], 9)
            axes.set_ylabel("expert")
            axes.set_title(f"{token}: {written(str(one.string.values[token]))}", loc="left")
        all_axes[-1].set_xlabel("neuron")
        figure.colorbar(image, ax=list(all_axes), label="act(gate projection)", aspect=20 * len(shown))
        figure.suptitle(f"{ds.attrs['model']}, layer {layer}")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every layer in both color scales: (file stem, figure)."""
    for layer in ds.layer.values:
        for scale in SCALES:
            yield f"intermediate_states_layer{layer}_scale-{scale}", plot(ds, int(layer), scale)
