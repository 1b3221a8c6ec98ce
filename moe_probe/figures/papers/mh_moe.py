"""Multi-Head Mixture-of-Experts (arXiv 2404.15045, version 1).

Figures 1a and 5 are maps with the first layer on top, experts along x, from dark (never chosen) to bright. Models are
side by side; figure 5 has two rows, one per corpus, of which a call makes one. Figure 1b is a picture with the map of
its patches to the right. Figure 8 is a row of such maps, one per training step, with the picture last: pass the
checkpoints as models. Figure 7 is two distributions in one panel. Neither the text nor the public repository gives the
color map's name, the bins of figure 7 and the threshold of figure 1.

Figure 6 plots training perplexity and HellaSwag accuracy against the number of experts, which requires training, so it
is not made. Instead, `expert_activation_num_experts` shows the experts' activation against their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import comparisons, dynamic, plotting
from moe_probe.errors import NotFitting
from moe_probe.figures.recipes import FromModels, FromTexts, Paper

Figures = Iterator[tuple[str, Figure]]


def activation_map(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """Draws one model's map of layers by experts."""
    yield "expert_load", plotting.plot(ds, as_published=True)


def side_by_side(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """Draws maps and summaries by model."""
    return ((stem, figure) for stem, figure in plotting.figures(ds) if stem != "expert_activation_num_experts")


def by_experts(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """Draws the activation of experts against their number.

    Raises:
        NotFitting: all models have the same number of experts.
    """
    if len(set(ds.num_experts.values)) < 2:
        raise NotFitting(
            f"This figure needs models with different numbers of experts; all have {ds.num_experts[0]:.0f}."
        )
    return ((stem, figure) for stem, figure in plotting.figures(ds) if stem == "expert_activation_num_experts")


def patches(**options: Any) -> dynamic.PatchDivergence:
    """Returns the analysis of the divergence of patches, with the user's options.

    Raises:
        NotFitting: no grid is given.
    """
    if "grid" not in options:
        raise NotFitting(
            "This figure needs texts that are grids of patches, and the option patch_divergence.grid=[rows,columns]."
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
            figure="figure 1a",
            shows="expert activation, models side by side",
            name="expert_activation",
            compute=comparisons.expert_activation,
            draw=side_by_side,
        ),
        FromModels(
            shows="expert activation against the number of experts",
            name="expert_activation",
            compute=comparisons.expert_activation,
            draw=by_experts,
        ),
        FromTexts(
            figure="figure 7",
            shows="distinct experts of polysemous words and false cognates, and of other words",
            name="subtoken_divergence",
            analysis=lambda subject, **options: dynamic.SubtokenDivergence(**options),
        ),
        FromTexts(
            figure="figure 1b",
            shows="distinct experts of a picture's patches",
            name="patch_divergence",
            analysis=lambda subject, **options: patches(**options),
        ),
        FromModels(
            figure="figure 8",
            shows="distinct experts of a picture's patches, by checkpoint",
            name="patch_divergence_over_steps",
            compute=comparisons.patch_divergence_over_steps,
            analysis=patches,
            options="patch_divergence",
        ),
    ),
)
