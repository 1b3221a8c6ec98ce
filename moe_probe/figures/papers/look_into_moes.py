"""A Closer Look into Mixture-of-Experts in Large Language Models (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import dynamic, plotting, static
from moe_probe.figures.recipes import FromTexts, FromWeights, Paper, Recipe, Subject
from moe_probe.plotting._heatmap import SCALES

SHORT, SENTENCE = 8, 64  # tokens, where figures show single ones


def gates_beside_experts(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, Figure]]:
    """Gate embeddings beside the mean neurons of the experts, on one scale."""
    for layer in map(int, ds.layer.values):
        for scale in SCALES:
            figure = plotting.plot(ds, layer=layer, scale=scale, beside=results.get("similarity_neuron_mean"))
            yield f"gate_similarity_layer{layer}_scale-{scale}", figure


def similarity(level: str, with_shared: bool) -> Recipe:
    """Similarity of weights; the shared block takes part where its size does not matter."""
    return FromWeights(
        shows={"matrix": "cosine of the experts' matrices", "neuron_mean": "cosine of the experts' mean neurons"}[
            level
        ],
        name=f"similarity_{level}",
        compute=lambda subject: static.similarity(
            subject.model,
            level,
            baseline=subject.baseline,
            shared=with_shared and subject.shared,
            layers=subject.layers,
            n_jobs=subject.n_jobs,
        ),
    )


def pca(level: str) -> Recipe:
    """Experts or neurons in the plane."""
    return FromWeights(
        shows={"matrix": "principal components of the experts", "neuron": "principal components of the neurons"}[level],
        name=f"pca_{level}",
        compute=lambda subject: static.pca(
            subject.model, level, baseline=subject.baseline, layers=subject.layers, n_jobs=subject.n_jobs
        ),
    )


def output_similarity(subject: Subject, **options: object) -> dynamic.Analysis:
    """Outputs of all experts, with the dense FFN or the shared block where there is one."""
    return dynamic.OutputSimilarity(baseline=subject.baseline is not None, shared=subject.shared, **options)


PAPER = Paper(
    name="look-into-moes",
    arxiv="2406.18219",
    recipes=(
        similarity("matrix", with_shared=False),
        similarity("neuron_mean", with_shared=True),
        FromWeights(
            shows="cosine of the gate embeddings, beside that of the mean neurons",
            name="gate_similarity",
            compute=lambda subject: static.gate_similarity(subject.model, layers=subject.layers),
            draw=gates_beside_experts,
        ),
        FromWeights(
            shows="R² of gate similarity on expert similarity",
            name="gate_regression_neuron_mean",
            compute=lambda subject: static.gate_regression(subject.model, layers=subject.layers, n_jobs=subject.n_jobs),
        ),
        pca("matrix"),
        pca("neuron"),
        FromTexts(
            shows="cosine of the experts' outputs, token by token",
            name="output_similarity_tokens",
            analysis=partial(output_similarity, per_token=True),
            tokens=SHORT,
        ),
        FromTexts(
            shows="angular similarity of the experts' outputs, averaged over the texts",
            name="output_similarity_angular",
            analysis=partial(output_similarity, metric="angular"),
        ),
        FromTexts(
            shows="norms of the experts' outputs beside the router's scores",
            name="output_norms",
            analysis=lambda subject, **options: dynamic.OutputNorms(**options),
            tokens=SHORT,
        ),
        FromTexts(
            shows="ranks of norms and scores",
            name="norm_score_ranks",
            analysis=lambda subject, **options: dynamic.NormScoreRanks(**options),
        ),
        FromTexts(
            shows="intermediate states of the neurons",
            name="intermediate_states",
            analysis=lambda subject, **options: dynamic.IntermediateStates(
                baseline=subject.baseline is not None, **options
            ),
            tokens=SHORT,
        ),
        FromTexts(
            shows="chosen experts, token by token",
            name="gate_choices",
            analysis=lambda subject, **options: dynamic.GateChoices(**options),
            tokens=SENTENCE,
        ),
    ),
)
