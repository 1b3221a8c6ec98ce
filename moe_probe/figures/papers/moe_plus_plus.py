"""MoE++: zero-computation experts (arXiv 2410.07348)."""

from __future__ import annotations

from moe_probe import comparisons, dynamic
from moe_probe.figures.recipes import FromModel, FromTexts, Paper

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
        ),
    ),
)
