"""MoE++: zero-computation experts (arXiv 2410.07348)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import comparisons, dynamic, plotting
from moe_probe.figures.recipes import FromModel, FromTexts, Paper

Figures = Iterator[tuple[str, Figure]]


def tasks(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Bars of kinds by task in a layer, with the FFN experts per token below."""
    return ((f"task_load_layer{layer}", plotting.plot(ds, layer=layer)) for layer in layers)


def residuals(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Both histograms of a layer; the paper does not say whether it pools layers."""
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
            shows="load by task and kind of expert (layer by layer: figures A to E)",
            name="task_load",
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
