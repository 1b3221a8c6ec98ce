"""MoE++: zero-computation experts (arXiv 2410.07348)."""

from __future__ import annotations

from moe_probe import dynamic
from moe_probe.figures.recipes import OfTexts, Paper

PAPER = Paper(
    name="moe-plus-plus",
    arxiv="2410.07348",
    kinds=(
        OfTexts(
            figure="table 1",
            shows="the FFN experts' share of the work, in theory and as measured",
            name="complexity",
            analysis=lambda given, **options: dynamic.Complexity(**options),
        ),
        OfTexts(
            figure="figure 4",
            shows="load by task and kind of expert (layer by layer: figures A to E)",
            name="task_load",
            analysis=lambda given, **options: dynamic.TaskLoad(**options),
        ),
        OfTexts(
            figure="figure 5",
            shows="FFN experts per token, by token, word, part of speech and position",
            name="ffn_experts_per_token",
            analysis=lambda given, **options: dynamic.FFNExpertsPerToken(**options),
        ),
        OfTexts(
            figure="figure 6",
            shows="router scores with the gating residual and, as an intervention, without",
            name="gating_residual",
            analysis=lambda given, **options: dynamic.GatingResidual(**options),
        ),
    ),
)
