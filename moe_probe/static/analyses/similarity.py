"""How alike the experts of a layer are, by their weights (arXiv 2406.18219, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import InputError
from moe_probe.model import MoEModel, Source, load
from moe_probe.parallel import map_items
from moe_probe.results import provenance, with_attrs
from moe_probe.static.alignment import align
from moe_probe.static.gram import Matrices, cosine, flat_gram, kernel_gram, l2_distance, mean_neurons
from moe_probe.static.selection import left_out, require_same_shape, select_matrices, select_projections

LEVELS = ("matrix", "neuron_mean", "neuron_aligned")
METRICS = ("cosine", "cka", "l2")


def similarity(
    model: Source,
    level: str = "matrix",
    *,
    metric: str = "cosine",
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    experts: Sequence[str | int] | None = None,
    baseline: Source | None = None,
    shared: bool = False,
    n_jobs: int = 1,
) -> xr.Dataset:
    """Similarity of every pair of experts, layer by layer and projection by projection.

    Levels (arXiv 2406.18219, section 4.1): `matrix` compares the flattened matrices, neuron by neuron as they are
    stored; `neuron_mean` the mean neurons; `neuron_aligned` the flattened matrices after the second one's neurons have
    been reordered to match the first's as well as possible (assignment that maximises the summed cosine; each
    projection on its own), and tells by Kendall's tau how far that order is from the stored one (-1 to 1; 1: same
    order). The paper's published cells for reordering fail as they stand; the definition is computed here. A neuron is
    a row of up and gate and a column of down.

    Metrics: `cosine`; `l2`, the Euclidean distance of the same vectors; `cka`, linear centred kernel alignment
    (Kornblith et al. 2019, arXiv 1905.00414, section 3) with the d hidden dimensions as examples and the neurons as
    features, so that it does not depend on the order of neurons (level `matrix` only).

    Args:
        model: whatever `moe_probe.load` accepts.
        level: see above.
        metric: see above.
        projections: some of `up`, `gate`, `down`; all by default.
        layers: MoE layers; all by default.
        experts: labels to restrict the work to; all routed experts with weights by default.
        baseline: a dense model, added as the last label `"F"`.
        shared: add the shared block as `"S"` (level `neuron_mean` or metric `cka`: it has more neurons than one).
        n_jobs: layers (pairs for `neuron_aligned`) computed at a time, through joblib.

    Returns:
        Dataset with `cosine` (or `cka`, `l2`), float64, dims (layer, projection, expert, other), symmetric; for
        `neuron_aligned` also `kendall_tau`.

    Raises:
        InputError: an argument does not fit the model.
        WeightError: a weight is missing, has the wrong shape, or is not finite.

    Examples:
        >>> ds = similarity("ckpt/tiny-mixtral")
        >>> ds.cosine.dims
        ('layer', 'projection', 'expert', 'other')
    """
    if level not in LEVELS or metric not in METRICS:
        raise InputError(f"Levels are {LEVELS} and metrics {METRICS}; asked for {level!r} and {metric!r}.")
    if (metric == "cka" and level != "matrix") or (metric == "l2" and level == "neuron_aligned"):
        raise InputError(f"The metric {metric!r} is not defined at level {level!r}.")
    model, baseline = load(model), None if baseline is None else load(baseline)
    chosen = select_layers_and_matrices(model, layers, projections, baseline, shared, experts)
    if metric != "cka" and level != "neuron_mean":
        require_same_shape(chosen, f"Level {level!r}")
    if level == "neuron_aligned":
        values = _aligned(chosen, n_jobs)
    else:
        compare = partial(_compare, level=level, metric=metric)
        values = {metric: np.stack(map_items(compare, chosen, n_jobs, f"Similarity ({level}, {metric})"))}
    labels = list(chosen[0].labels)
    layer_index = sorted({item.layer for item in chosen}, key=[item.layer for item in chosen].index)
    names = [item.projection for item in chosen if item.layer == layer_index[0]]
    shape = (len(layer_index), len(names), len(labels), len(labels))
    attrs = provenance(
        "similarity", model, level=level, metric=metric, shared=shared or None, baseline=baseline and baseline.name
    )
    return with_attrs(
        {name: (("layer", "projection", "expert", "other"), array.reshape(shape)) for name, array in values.items()},
        {"layer": layer_index, "projection": names, "expert": labels, "other": labels},
        {**attrs, **left_out(model, layer_index), "level": level, "metric": metric},
    )


def select_layers_and_matrices(
    model: MoEModel,
    layers: Sequence[int] | int | None,
    projections: Sequence[str] | str | None,
    baseline: MoEModel | None = None,
    shared: bool = False,
    experts: Sequence[str | int] | None = None,
) -> list[Matrices]:
    """The matrices of the chosen layers and projections, layer by layer."""
    indices = model.select_layers(layers)
    return select_matrices(model, indices, select_projections(model, indices, projections), baseline, shared, experts)


def _compare(matrices: Matrices, level: str, metric: str) -> np.ndarray:
    if level == "neuron_mean":
        means = mean_neurons(matrices)
        gram = means @ means.T
    else:
        gram = kernel_gram(matrices) if metric == "cka" else flat_gram(matrices)
    return (l2_distance(gram) if metric == "l2" else cosine(gram)).numpy()


def _aligned(chosen: Sequence[Matrices], n_jobs: int) -> dict[str, np.ndarray]:
    pairs = [(item, i, j) for item in chosen for i, j in combinations(range(len(item.labels)), 2)]
    results = iter(map_items(_align_pair, pairs, n_jobs, "Aligning neurons"))
    out = {name: [] for name in ("cosine", "kendall_tau")}
    for item in chosen:
        both = torch.eye(len(item.labels), dtype=torch.float64).repeat(2, 1, 1)
        for i, j in combinations(range(len(item.labels)), 2):
            both[:, i, j] = both[:, j, i] = torch.tensor(next(results), dtype=torch.float64)
        for name, values in zip(out, both, strict=True):
            out[name].append(values.numpy())
    return {name: np.stack(values) for name, values in out.items()}


def _align_pair(pair: tuple[Matrices, int, int]) -> tuple[float, float]:
    matrices, i, j = pair
    neurons = matrices.neuron_major()
    first, second = (neurons[at].read().to(torch.float32) for at in (i, j))
    matrices.check(torch.stack([first.sum(), second.sum()]), (matrices.labels[i], matrices.labels[j]))
    result = align(first, second)
    return result.cosine, result.kendall_tau
