"""A Closer Look into Mixture-of-Experts in Large Language Models (arXiv 2406.18219, version 3).

Layouts follow the paper's notebooks, github.com/kamanphoebe/Look-into-MoEs, and its captions. Each layer is a separate
figure with its number at the left; the paper puts two layers side by side, four per model, and selects them by hand.
Maps are viridis, once over the range of the layer and once over that of all layers, including the diagonal.

- Figure 1: three maps, up, gate and down projection (there W_up, W_act, W_down). `F`: the dense FFN.
- Figure 2: three tokens of a short input in a row, with the chosen experts above each. The paper does not say which
  three; here they are the first.
- Figure 3: the mean angular similarity of the outputs, and with a color bar of its own, figure 1's maps of the layer.
- Figure 4: norms (blue, left axis) and scores (orange, right axis) as bars, all tokens in one row.
- Figures 6 and 7: PCA of matrices and of neurons (the latter in Spectral), for up, gate and down. DBSCAN's outliers of
  figure 6 are an option of `static.pca`.
- Figure 8: gate embeddings, and next to them the mean neurons of up, gate and down, in the same colors.
- Figure 10: counts of score ranks for each norm rank, in one line, or in eight for many experts; for all layers
  together, and for each layer.
- Figure 12: experts by neurons, the same three tokens one below the other; the common scale ends at 1.
- Figure 14: experts by tokens in Blues. The notebook's scale ends at 1 for one model; here at the largest weight.
- Table 3: R² of gate on expert similarity; table 5 lists R of the gate projection, which the result holds as `r`.

Mean neurons with the dense FFN or the shared block are only in the notebook and have no figure number. Figure 5
compares trained models, and figures 9, 11 and 13 repeat 3 and 10 on other texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import dynamic, plotting, static
from moe_probe.figures.recipes import FromTexts, FromWeights, Paper, Recipe, Subject
from moe_probe.figures.saving import result_stem
from moe_probe.plotting._heatmap import SCALES

Figures = Iterator[tuple[str, Figure]]
SHORT, SENTENCE = 8, 64  # tokens, where figures show single ones
TOKENS = 3  # of the short input, in figures 2 and 12
MOST_BARS = 64  # experts whose ranks are bars


def named(figure: Figure, layer: int) -> Figure:
    """Writes the layer's number at the left of a figure."""
    figure.axes[0].set_ylabel(f"Layer {layer}")
    return figure


def first_tokens(ds: xr.Dataset, most: int = TOKENS) -> range:
    """Positions of the tokens to show; sub-tokens, if there are any, count as tokens."""
    return range(min(most, ds.sizes["token"] * ds.sizes.get("subtoken", 1)))


def single_layers(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """Yields no figure, for recipes that draw only single layers."""
    return iter(())


def both_scales(ds: xr.Dataset, layers: Sequence[int], stem: str, **look: Any) -> Figures:
    """Draws a layer's panels in a row, with the diagonal, in the layer's color scale and in that of all layers."""
    for layer in layers:
        for scale in SCALES:
            figure = plotting.plot(ds, layer=layer, scale=scale, diagonal=True, **look)
            yield f"{stem}_layer{layer}_scale-{scale}", named(figure, layer)


def maps(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws the maps of one result."""
    return both_scales(ds, layers, result_stem(ds))


def outputs_of_tokens(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws three tokens in a row."""
    return both_scales(ds, layers, "output_similarity_tokens", tokens=first_tokens(ds))


def outputs_beside_weights(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws the mean similarity of outputs, and that of the matrices in a color scale of its own."""
    return both_scales(ds, layers, result_stem(ds), beside=results.get("similarity_matrix"))


def gate_maps(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Figures:
    """Draws all layers in one scale, in files that name the first and the last layer."""
    span = f"layers{int(ds.layer.min())}-{int(ds.layer.max())}"
    return ((f"{stem}_{span}", figure) for stem, figure in plotting.figures(ds))


def gates_beside_experts(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws gate embeddings next to the mean neurons of the experts, in one scale."""
    return both_scales(ds, layers, "gate_similarity", beside=results.get("similarity_neuron_mean"))


def components(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws the PCA of a layer, with neurons in the colors of their experts, from red to blue."""
    colors = {"colors": "Spectral"} if ds.attrs["level"] == "neuron" else {}
    for layer in layers:
        yield f"{result_stem(ds)}_layer{layer}", plotting.plot(ds, layer=layer, title=f"Layer {layer}", **colors)


def norms(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws bars of norms and scores, all tokens in a row."""
    look = {"tokens": first_tokens(ds, SHORT), "as_published": True}
    for layer in layers:
        yield f"output_norms_bars_layer{layer}", named(plotting.plot(ds, layer=layer, **look), layer)


def rank_counts(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws bars of all layers together and of each, in eight lines if there are many experts."""
    look = {"bars": ds.sizes["norm_rank"] <= MOST_BARS, "as_published": True}
    yield "norm_score_ranks_all_bars", plotting.plot(ds, **look)
    for layer in layers:
        yield f"norm_score_ranks_layer{layer}", plotting.plot(ds, layer=layer, **look)


def neuron_maps(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws every expert's neurons in order of number, a panel per token."""
    experts, tokens = [str(expert) for expert in ds.expert.values], first_tokens(ds)
    look = {"experts": experts, "tokens": tokens, "sort": False, "as_published": True}
    for layer in layers:
        for scale in SCALES:
            figure = plotting.plot(ds, layer=layer, scale=scale, title=f"Layer {layer}", **look)
            yield f"intermediate_states_layer{layer}_scale-{scale}", figure


def choices(ds: xr.Dataset, results: Mapping[str, xr.Dataset], layers: Sequence[int]) -> Figures:
    """Draws a layer's map of tokens by experts."""
    return ((f"gate_choices_layer{layer}", named(plotting.plot(ds, layer=layer), layer)) for layer in layers)


def similarity(level: str, with_shared: bool) -> Recipe:
    """Returns the recipe for similarity of weights, with the shared block if its size does not matter."""
    return FromWeights(
        figure={"matrix": "figure 1"}.get(level, ""),
        shows={"matrix": "cosine of the experts' matrices", "neuron_mean": "cosine of the experts' mean neurons"}[
            level
        ],
        name=f"similarity_{level}",
        layers=maps,
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
    """Returns the recipe for the PCA of experts or of neurons."""
    return FromWeights(
        figure={"matrix": "figure 6", "neuron": "figure 7"}[level],
        shows={"matrix": "principal components of the experts", "neuron": "principal components of the neurons"}[level],
        name=f"pca_{level}",
        layers=components,
        compute=lambda subject: static.pca(
            subject.model, level, baseline=subject.baseline, layers=subject.layers, n_jobs=subject.n_jobs
        ),
    )


def output_similarity(subject: Subject, **options: object) -> dynamic.Analysis:
    """Similarity of the outputs of all experts, and of the dense FFN or the shared block if there is one."""
    return dynamic.OutputSimilarity(baseline=subject.baseline is not None, shared=subject.shared, **options)


PAPER = Paper(
    name="look-into-moes",
    arxiv="2406.18219",
    recipes=(
        similarity("matrix", with_shared=False),
        similarity("neuron_mean", with_shared=True),
        FromWeights(
            figure="figure 8",
            shows="cosine of the gate embeddings and of the mean neurons",
            name="gate_similarity",
            compute=lambda subject: static.gate_similarity(subject.model, layers=subject.layers),
            draw=gate_maps,
            layers=gates_beside_experts,
        ),
        FromWeights(
            figure="table 3",
            shows="R² of gate similarity on expert similarity",
            name="gate_regression_neuron_mean",
            compute=lambda subject: static.gate_regression(subject.model, layers=subject.layers, n_jobs=subject.n_jobs),
        ),
        pca("matrix"),
        pca("neuron"),
        FromTexts(
            figure="figure 2",
            shows="cosine of the experts' outputs for single tokens",
            name="output_similarity_tokens",
            layers=outputs_of_tokens,
            analysis=partial(output_similarity, per_token=True),
            tokens=SHORT,
        ),
        FromTexts(
            figure="figure 3",
            shows="angular similarity of the experts' outputs, averaged over the texts",
            name="output_similarity_angular",
            layers=outputs_beside_weights,
            analysis=partial(output_similarity, metric="angular"),
        ),
        FromTexts(
            figure="figure 4",
            shows="norms of the experts' outputs and the router's scores",
            name="output_norms",
            layers=norms,
            analysis=lambda subject, **options: dynamic.OutputNorms(**options),
            tokens=SHORT,
        ),
        FromTexts(
            figure="figure 10",
            shows="ranks of norms and scores",
            name="norm_score_ranks",
            layers=rank_counts,
            analysis=lambda subject, **options: dynamic.NormScoreRanks(**options),
        ),
        FromTexts(
            figure="figure 12",
            shows="intermediate states of the neurons",
            name="intermediate_states",
            layers=neuron_maps,
            analysis=lambda subject, **options: dynamic.IntermediateStates(
                baseline=subject.baseline is not None, **options
            ),
            tokens=SHORT,
        ),
        FromTexts(
            figure="figure 14",
            shows="chosen experts of each token",
            name="gate_choices",
            draw=single_layers,
            layers=choices,
            analysis=lambda subject, **options: dynamic.GateChoices(**options),
            tokens=SENTENCE,
        ),
    ),
)
