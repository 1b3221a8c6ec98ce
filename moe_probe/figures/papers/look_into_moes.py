"""A Closer Look into Mixture-of-Experts in Large Language Models (arXiv 2406.18219)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import dynamic, plotting, static
from moe_probe.figures.recipes import FromTexts, FromWeights, Paper, Recipe, Subject
from moe_probe.figures.saving import result_stem
from moe_probe.plotting._heatmap import SCALES

Figures = Iterator[tuple[str, Figure]]
SHORT, SENTENCE = 8, 64  # tokens, where figures show single ones
MOST_BARS = 64  # experts whose ranks are bars


def both_scales(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """A layer's panels in a row, with the diagonal, in colors of their own and in those of all layers."""
    for layer in layers:
        for scale in SCALES:
            stem = f"{result_stem(ds)}_layer{layer}_scale-{scale}"
            yield stem, plotting.plot(ds, layer=layer, scale=scale, diagonal=True)


def gate_maps(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """All layers under one scale, in files that name the first and the last one."""
    span = f"layers{int(ds.layer.min())}-{int(ds.layer.max())}"
    return ((f"{stem}_{span}", figure) for stem, figure in plotting.figures(ds))


def gates_beside_experts(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Gate embeddings beside the mean neurons of the experts, on one scale."""
    beside = results.get("similarity_neuron_mean")
    for layer in layers:
        for scale in SCALES:
            figure = plotting.plot(ds, layer=layer, scale=scale, beside=beside, diagonal=True)
            yield f"gate_similarity_layer{layer}_scale-{scale}", figure


def components(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Points of a layer; neurons in the colors of their experts, from red to blue."""
    colors = {"colors": "Spectral"} if ds.attrs["level"] == "neuron" else {}
    for layer in layers:
        yield f"{result_stem(ds)}_layer{layer}", plotting.plot(ds, layer=layer, **colors)


def rank_counts(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Bars of all layers together and of each, in eight lines where experts are many."""
    bars = ds.sizes["norm_rank"] <= MOST_BARS
    yield "norm_score_ranks_all_bars", plotting.plot(ds, bars=bars)
    for layer in layers:
        yield f"norm_score_ranks_layer{layer}", plotting.plot(ds, layer=layer, bars=bars)


def neuron_maps(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Every expert's neurons by number, a panel per token."""
    experts = [str(expert) for expert in ds.expert.values]
    for layer in layers:
        for scale in SCALES:
            figure = plotting.plot(ds, layer=layer, scale=scale, experts=experts, sort=False)
            yield f"intermediate_states_layer{layer}_scale-{scale}", figure


def similarity(level: str, with_shared: bool) -> Recipe:
    """Similarity of weights; the shared block takes part where its size does not matter."""
    return FromWeights(
        shows={"matrix": "cosine of the experts' matrices", "neuron_mean": "cosine of the experts' mean neurons"}[
            level
        ],
        name=f"similarity_{level}",
        layers=both_scales,
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
        layers=components,
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
            draw=gate_maps,
            layers=gates_beside_experts,
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
            layers=both_scales,
            analysis=partial(output_similarity, per_token=True),
            tokens=SHORT,
        ),
        FromTexts(
            shows="angular similarity of the experts' outputs, averaged over the texts",
            name="output_similarity_angular",
            layers=both_scales,
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
            layers=rank_counts,
            analysis=lambda subject, **options: dynamic.NormScoreRanks(**options),
        ),
        FromTexts(
            shows="intermediate states of the neurons",
            name="intermediate_states",
            layers=neuron_maps,
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
