"""How similar are the weights of a layer's experts?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import NotFitting
from moe_probe.model import MoEModel, Openable, load
from moe_probe.parallel import map_items
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import checked
from moe_probe.static.alignment import align
from moe_probe.static.geometry import Geometry
from moe_probe.static.gram import Matrices, flat_geometry, kernel_geometry, mean_neurons
from moe_probe.static.selection import left_out, require_same_shape, select_matrices, select_projections

TITLE = "Similarity of experts"
Level = Literal["matrix", "neuron_mean", "neuron_aligned"]
Metric = Literal["cosine", "cka", "l2"]
UNASKED = ("matrix", "neuron_mean")
LONG_NAMES = {
    "cosine": "cosine of experts",
    "cka": "linear CKA of experts",
    "l2": "Euclidean distance of experts",
    "kendall_tau": "Kendall's tau of the neurons' order",
}


@checked
def similarity(
    model: Openable,
    level: Level = "matrix",
    *,
    metric: Metric = "cosine",
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    experts: Sequence[str | int] | None = None,
    baseline: Openable | None = None,
    shared: bool = False,
    as_published: bool = False,
    n_jobs: int = 1,
    progress: bool = True,
) -> xr.Dataset:
    """Similarity of every pair of experts in each layer and projection.

    A neuron is a row of up and gate and a column of down. Kendall's tau compares the order of aligned neurons with the
    stored one (-1 to 1; 1: the same order). The paper's published notebook fails at reordering; moe_probe computes the
    paper's definition.

    Formula:
        ```text
        cosine(a, b) = a · b / (|a| |b|)        l2(a, b) = |a - b|

        matrix          a, b: the experts' whole matrices, neuron by neuron in order
        neuron_mean     a, b: the mean neurons, mean over the rows of up and gate, over the columns of down
        neuron_aligned  the neurons of b are permuted first so that the sum of the neurons' cosines is largest;
                        Kendall's tau of the permutation is 1 for the identity

        cka(a, b) = <K_a, K_b> / (|K_a| |K_b|),  K = X Xᵀ, X (d, neurons) with centered columns
        < , > is the unbiased estimator of HSIC, which omits the diagonals: 0 on average for unrelated experts;
        as_published: the plain sum over all entries, which tends to 1 with more neurons per dimension
        ```

    Needs:
        Only the weights; each matrix is read once, in order. A dense model of the same shapes (`baseline=`) is added as
        `F`, the shared block (`shared=True`) as `S` if the metric does not depend on its size.

    Cost:
        One pass over the weights, and one small product per chunk (R × R for R experts). `neuron_aligned` solves an
        assignment problem for every pair of experts: tens of seconds per pair of 14,336 neurons; restrict it with
        `layers=` and `projections=`, and use `n_jobs=`.

    Source:
        Lo et al., *A Closer Look into Mixture-of-Experts in Large Language Models*, arXiv 2406.18219, section 4.1. CKA:
        Kornblith et al. 2019, arXiv 1905.00414, section 3, with the d hidden dimensions as examples and the neurons as
        features, so that it does not depend on the order of neurons; debiased: Song et al. 2012 (Journal of Machine
        Learning Research 13), equation 5, and Nguyen et al. 2021, arXiv 2010.15327, section 2.

    Args:
        model: a checkpoint folder, a hub id, a live transformers model or a `MoEModel`.
        level: the vectors that are compared: `matrix`, `neuron_mean` or `neuron_aligned`.
        metric: `cosine`; `l2`, the Euclidean distance of the same vectors; or `cka`, linear centered kernel alignment
            (level `matrix` only).
        projections: some of `up`, `gate`, `down`; all by default.
        layers: MoE layers; all by default.
        experts: labels of the experts to compare; all routed experts with matrices by default.
        baseline: a dense model, added as the last label `"F"`.
        as_published: CKA as Kornblith et al. publish it, with its bias.
        shared: add the shared block as `"S"`; because it has more neurons than an expert, only at level `neuron_mean`
            or with metric `cka`.
        n_jobs: number of layers (of pairs for `neuron_aligned`) computed at a time, through joblib.
        progress: whether to show progress.

    Returns:
        Dataset with `cosine` (or `cka`, `l2`), float64, dims (layer, projection, expert, other), symmetric; for
        `neuron_aligned` also `kendall_tau`. An expert of zeros has no direction: its cosines are NaN.

    Raises:
        NoSuchName: there is no such level, metric, projection or expert.
        NotFitting: an argument does not fit the model.
        OutOfRange: a layer is not a MoE layer.
        WrongType: an argument is of another type.
        WeightError: a weight is missing, has the wrong shape, or is not finite.

    Examples:
        >>> ds = similarity("ckpt/tiny-mixtral")
        >>> ds.cosine.dims
        ('layer', 'projection', 'expert', 'other')
    """
    _check(level, metric, as_published)
    model, baseline = load(model), None if baseline is None else load(baseline)
    chosen = select_layers_and_matrices(model, layers, projections, baseline, shared, experts)
    if metric != "cka" and level != "neuron_mean":
        require_same_shape(chosen, f"Level {level!r}")
    if level == "neuron_aligned":
        values = _aligned(chosen, n_jobs, progress)
    else:
        compare = partial(_compare, level=level, metric=metric, as_published=as_published)
        by_layer = map_items(compare, chosen, n_jobs, f"Similarity ({level}, {metric})", progress)
        values = {metric: np.stack(by_layer)}
    layer_index = list(dict.fromkeys(item.layer for item in chosen))
    names = list(dict.fromkeys(item.projection for item in chosen))
    labels = list(chosen[0].labels)
    shape = (len(layer_index), len(names), len(labels), len(labels))
    attrs = provenance(
        "similarity", model, level=level, metric=metric, shared=shared or None, baseline=baseline and baseline.name
    )
    if metric == "cka":
        attrs["estimator"] = "plain HSIC (as published)" if as_published else "unbiased HSIC"
    coords = {"layer": layer_index, "projection": names, "expert": labels, "other": labels}
    variables = {name: _variable(name, array.reshape(shape)) for name, array in values.items()}
    about = {**attrs, **left_out(model, layer_index), "level": level, "metric": metric}
    return dataset(variables, about, coords)


def _check(level: str, metric: str, as_published: bool) -> None:
    if metric != "cosine" and level != "matrix" and (metric, level) != ("l2", "neuron_mean"):
        fits = "level='matrix' or 'neuron_mean'" if metric == "l2" else "level='matrix'"
        raise NotFitting(f"The metric {metric!r} is not defined at level {level!r}; pass {fits}, or metric='cosine'.")
    if as_published and metric != "cka":
        raise NotFitting(f"as_published=True applies only to metric='cka', not to {metric!r}; omit it.")


def _variable(name: str, values: np.ndarray) -> xr.DataArray:
    units = "units of the weights" if name == "l2" else "1"
    reason = "an expert of zeros has no direction" if name != "l2" else None
    return variable(("layer", "projection", "expert", "other"), values, LONG_NAMES[name], units, reason)


def select_layers_and_matrices(
    model: MoEModel,
    layers: Sequence[int] | int | None,
    projections: Sequence[str] | str | None,
    baseline: MoEModel | None = None,
    shared: bool = False,
    experts: Sequence[str | int] | None = None,
) -> list[Matrices]:
    """Returns the matrices of the chosen layers and projections, layer by layer."""
    indices = model.select_layers(layers)
    return select_matrices(model, indices, select_projections(model, indices, projections), baseline, shared, experts)


def _compare(matrices: Matrices, level: str, metric: str, as_published: bool) -> np.ndarray:
    if level == "neuron_mean":
        geometry = Geometry.of(mean_neurons(matrices))
    else:
        geometry = kernel_geometry(matrices, as_published) if metric == "cka" else flat_geometry(matrices)
    return (geometry.distance if metric == "l2" else geometry.cosine).numpy()


def _aligned(chosen: Sequence[Matrices], n_jobs: int, progress: bool) -> dict[str, np.ndarray]:
    pairs = [(item, i, j) for item in chosen for i, j in combinations(range(len(item.labels)), 2)]
    results = iter(map_items(_align_pair, pairs, n_jobs, "Aligning neurons", progress))
    out = {name: [] for name in ("cosine", "kendall_tau")}
    for item in chosen:
        matrices = torch.eye(len(item.labels), dtype=torch.float64).repeat(2, 1, 1)
        for i, j in combinations(range(len(item.labels)), 2):
            values, zeros = next(results)
            matrices[:, i, j] = matrices[:, j, i] = torch.tensor(values, dtype=torch.float64)
            for at, zero in zip((i, j), zeros, strict=True):
                if zero:
                    matrices[:, at, at] = torch.nan
        for name, values in zip(out, matrices, strict=True):
            out[name].append(values.numpy())
    return {name: np.stack(values) for name, values in out.items()}


def _align_pair(pair: tuple[Matrices, int, int]) -> tuple[tuple[float, float], tuple[bool, bool]]:
    """Returns cosine and Kendall's tau of two experts, and which of them are all zeros."""
    matrices, i, j = pair
    neurons = matrices.neuron_major()
    first, second = (neurons[at].read().to(torch.float32) for at in (i, j))
    matrices.check(torch.stack([first.abs().max(), second.abs().max()]), (matrices.labels[i], matrices.labels[j]))
    result = align(first, second)
    return (result.cosine, result.kendall_tau), (not first.any(), not second.any())
