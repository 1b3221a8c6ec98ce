"""Multi-Head Mixture-of-Experts (arXiv 2404.15045)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import comparisons, dynamic, plotting
from moe_probe.errors import NotFitting
from moe_probe.figures.recipes import FromModels, FromTexts, Paper, Subject


def activation_map(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, Figure]]:
    """One model's map of layers by experts."""
    yield "expert_load", plotting.plot(ds)


def side_by_side(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, Figure]]:
    """Maps and summaries by model; those against the number of experts are figure 6."""
    return ((stem, figure) for stem, figure in plotting.figures(ds) if stem != "expert_activation_num_experts")


def by_experts(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, Figure]]:
    """What comes of the number of experts.

    Raises:
        NotFitting: all models have as many.
    """
    if len(set(ds.num_experts.values)) < 2:
        raise NotFitting(f"figure 6 needs models with different numbers of experts; all have {int(ds.num_experts[0])}.")
    return ((stem, figure) for stem, figure in plotting.figures(ds) if stem == "expert_activation_num_experts")


def patches(subject: Subject, **options: Any) -> dynamic.Analysis:
    """Divergence of patches, if the grid is known.

    Raises:
        NotFitting: no grid is given.
    """
    if "grid" not in options:
        raise NotFitting(
            "figure 8 needs texts that are grids of patches, and the option patch_divergence.grid=[rows,columns]."
        )
    return dynamic.PatchDivergence(**options)


PAPER = Paper(
    name="mh-moe",
    arxiv="2404.15045",
    recipes=(
        FromTexts(
            figure="figure 5",
            shows="how often each expert is chosen, layers by experts",
            name="expert_load",
            analysis=lambda subject, **options: dynamic.ExpertLoad(**options),
            draw=activation_map,
        ),
        FromModels(
            figure="figure 1",
            shows="expert activation, models side by side",
            name="expert_activation",
            compute=comparisons.expert_activation,
            draw=side_by_side,
        ),
        FromModels(
            figure="figure 6",
            shows="expert activation against the number of experts",
            name="expert_activation",
            compute=comparisons.expert_activation,
            draw=by_experts,
        ),
        FromTexts(
            figure="figure 7",
            shows="distinct experts of polysemous words and false cognates, and of the rest",
            name="subtoken_divergence",
            analysis=lambda subject, **options: dynamic.SubtokenDivergence(**options),
        ),
        FromTexts(
            figure="figure 8",
            shows="distinct experts of a picture's patches",
            name="patch_divergence",
            analysis=patches,
        ),
    ),
)
