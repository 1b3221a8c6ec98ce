"""MoE++: zero-computation experts (arXiv 2410.07348).

Figure 4 shows one layer, figures A to E five layers each, one above the other. Neither the text nor the public
repository, which has no code of figures, describes the arrangement of bars and panels in figures 4, 5 and 6; their
layout is moe_probe's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import comparisons, dynamic, plotting
from moe_probe.figures.recipes import FromModel, FromTexts, Paper

Figures = Iterator[tuple[str, Figure]]
TOGETHER = 5  # layers of one of figures A to E


def tasks(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws bars of kinds by task in a layer, with the FFN experts per token below."""
    return ((f"task_load_layer{layer}", plotting.plot(ds, layer=layer)) for layer in layers)


def tasks_of_all_layers(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """Draws all figures of the result, and figures A, B, ... with five layers per page."""
    yield from plotting.figures(ds)
    layers = [int(layer) for layer in ds.layer.values]
    pages = [layers[start : start + TOGETHER] for start in range(0, len(layers), TOGETHER)]
    for letter, page in zip(ascii_uppercase, pages, strict=False):
        named = {f"layer {layer}": ds.sel(layer=[layer]) for layer in page}
        yield f"figure{letter}_task_load_layers{page[0]}-{page[-1]}", plotting.compare(named)


def residuals(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws both histograms of a layer; the paper does not say whether it pools layers."""
    return ((f"gating_residual_layer{layer}", plotting.plot(ds, layer=layer)) for layer in layers)


PAPER = Paper(
    name="moe-plus-plus",
    arxiv="2410.07348",
    recipes=(
        FromTexts(
            figure="table 1",
            shows="the FFN experts' share of the work, in theory and as measured",
            name="complexity",
            analysis=lambda subject, **options: dynamic.Complexity(**options),
        ),
        FromTexts(
            figure="figure 4",
            shows="load by task and kind of expert",
            name="task_load",
            draw=tasks_of_all_layers,
            layers=tasks,
            analysis=lambda subject, **options: dynamic.TaskLoad(**options),
        ),
        FromTexts(
            figure="figure 5",
            shows="FFN experts per token, by token, word, part of speech and position",
            name="ffn_experts_per_token",
            analysis=lambda subject, **options: dynamic.FFNExpertsPerToken(**options),
        ),
        FromModel(
            figure="figure 6",
            shows="router scores with the gating residual and, as an intervention, without",
            name="gating_residual",
            compute=comparisons.gating_residual,
            layers=residuals,
        ),
    ),
)
