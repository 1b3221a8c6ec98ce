"""How far did experts and gate embeddings move between two checkpoints of one model?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import NotComparable
from moe_probe.model import MoEModel, Openable, load
from moe_probe.parallel import map_items
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import checked
from moe_probe.static.geometry import Geometry, centered
from moe_probe.static.gram import Matrices, flat_geometry, unbiased
from moe_probe.static.selection import left_out, select_matrices, select_projections

TITLE = "Weight drift"
UNASKED = ()  # needs two models
BY_EXPERT = ("layer", "projection", "expert")
LEAST_EXPERTS = 4  # that unbiased HSIC is defined for
SHAPELESS = "fewer than four experts, or distances between experts that do not differ more than by chance"
ZEROS = "an expert of zeros has neither direction nor size"


@checked
def weight_drift(
    before: Openable,
    after: Openable,
    *,
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    n_jobs: int = 1,
    progress: bool = True,
) -> xr.Dataset:
    """Changes of every expert's matrices between two checkpoints, and of the experts' arrangement (Gram matrices).

    Use it for two training steps, a base and a tuned model, or a model and its quantized copy.

    Formula:
        ```text
        per expert and projection: cosine and relative change |w' - w| / |w| of its matrix before and after
        geometry: cka(G, G') = <G, G'> / (|G| |G'|),  G = W Wᵀ, W (experts, weights) minus the mean expert
        < , > is the unbiased estimator of HSIC, which omits the diagonals
        ```

    Needs:
        Two checkpoints of one architecture: base and instruct, two training steps, before and after quantization.

    Cost:
        Both checkpoints are read once.

    Source:
        moe_probe, from standard quantities. Debiased CKA: Kornblith et al. 2019 (arXiv 1905.00414), Song et al. 2012
        (Journal of Machine Learning Research 13, equation 5).

    Args:
        before: the first checkpoint: a folder, a hub id or a model.
        after: the second one, with the same layers, experts and shapes.
        projections: some of `up`, `gate`, `down`; all by default.
        layers: MoE layers; all by default.
        n_jobs: number of pairs of layer and projection compared at a time, through joblib.
        progress: whether to show progress.

    Returns:
        Dataset, float64 unless said otherwise, with `cosine` and `relative_change` |A' - A| / |A| (layer, projection,
        expert) of the flattened matrices; `nearest` (layer, projection, expert), int64, the expert of the second
        checkpoint that is most similar to each one of the first; `gram_similarity` (layer, projection), the debiased
        CKA of the two (E, E) Gram matrices: 1 if the arrangement of the experts is the same up to a rotation and a
        common shift, 0 on average for unrelated arrangements, NaN for fewer than four experts; and `router_cosine` and
        `router_relative_change` (layer, router_expert) of the gate embeddings. Values that are undefined because an
        expert or a gate embedding is zero are NaN, and -1 in `nearest`.

    Raises:
        NotComparable: the checkpoints differ in their layers, experts or shapes.
        InputError: an argument does not fit them.
        WeightError: a weight is missing, has the wrong shape, or is not finite.

    Examples:
        >>> ds = weight_drift("ckpt/tiny-mixtral", "ckpt/tiny-mixtral")
        >>> float(ds.relative_change.max())
        0.0
    """
    first, second = load(before), load(after)
    indices = first.select_layers(layers)
    _require_alike(first, second, indices)
    names = select_projections(first, indices, projections)
    chosen = [
        Matrices(one.layer, one.projection, one.labels + other.labels, one.tensors + other.tensors)
        for one, other in zip(*(select_matrices(m, indices, names) for m in (first, second)), strict=True)
    ]
    for item in chosen:
        _require_shapes(first, second, item)
    compared = map_items(_compare, chosen, n_jobs, "Weight drift", progress)
    shape, half = (len(indices), len(names)), len(chosen[0].labels) // 2
    values = {name: np.stack([one[name] for one in compared]) for name in compared[0]}
    values = {name: array.reshape(*shape, *array.shape[1:]) for name, array in values.items()}
    values["routers"] = np.stack([_routers(first, second, layer) for layer in indices], axis=1)
    coords = {
        "layer": list(indices),
        "projection": names,
        "expert": list(chosen[0].labels[:half]),
        "router_expert": [str(expert) for expert in range(first.layer(indices[0]).num_experts)],
    }
    attrs = provenance("weight_drift", first, after=second.name, after_fingerprint=second.fingerprint)
    return dataset(_variables(values), {**attrs, **left_out(first, indices), "after": second.name}, coords)


def _variables(values: dict[str, np.ndarray]) -> dict[str, xr.DataArray]:
    router, geometry = ("layer", "router_expert"), ("layer", "projection")
    cosine_after, change = "cosine of before and after", "|after - before| / |before|"
    row = "a gate embedding of zeros has neither direction nor size"
    return {
        "cosine": variable(BY_EXPERT, values["cosine"], cosine_after, undefined=ZEROS),
        "relative_change": variable(BY_EXPERT, values["relative_change"], change, undefined=ZEROS),
        "nearest": variable(
            BY_EXPERT, values["nearest"], "most similar expert of the second checkpoint", undefined=ZEROS
        ),
        "gram_similarity": variable(
            geometry, values["gram_similarity"], "debiased CKA of the experts' Gram matrices", undefined=SHAPELESS
        ),
        "router_cosine": variable(router, values["routers"][0], f"{cosine_after} of gate embeddings", undefined=row),
        "router_relative_change": variable(router, values["routers"][1], f"{change} of gate embeddings", undefined=row),
    }


def _require_shapes(first: MoEModel, second: MoEModel, matrices: Matrices) -> None:
    half = len(matrices.labels) // 2
    for label, one, other in zip(matrices.labels[:half], matrices.tensors[:half], matrices.tensors[half:], strict=True):
        if one.shape != other.shape:
            raise NotComparable(
                f"Expert {label} of layer {matrices.layer} is {tuple(one.shape)} in {first.name} and "
                f"{tuple(other.shape)} in {second.name}; weight_drift needs two checkpoints of one architecture."
            )


def _require_alike(first: MoEModel, second: MoEModel, indices: Sequence[int]) -> None:
    for layer in indices:
        kinds = [m.layer(layer).expert_kinds if layer in m.moe_layers else () for m in (first, second)]
        if kinds[0] != kinds[1]:
            counts = [f"{m.name} has {len(k)} experts" for m, k in zip((first, second), kinds, strict=True)]
            raise NotComparable(
                f"Layer {layer}: {counts[0]}, {counts[1]}; weight_drift needs two checkpoints of one architecture."
            )


def _compare(matrices: Matrices) -> dict[str, np.ndarray]:
    geometry = flat_geometry(matrices)
    half = len(matrices.tensors) // 2
    gap = geometry.gap[:half, half:]
    return {
        "cosine": 1 - gap.diagonal().numpy(),
        "relative_change": _changes(geometry),
        "nearest": _nearest(gap).numpy(),
        "gram_similarity": _arrangement(geometry.squared_distance, half).numpy(),
    }


def _arrangement(squares: torch.Tensor, half: int) -> torch.Tensor:
    """Debiased CKA of the arrangements before and after, from squared distances (2 E, 2 E); NaN if undefined."""
    if half < LEAST_EXPERTS:
        return torch.tensor(torch.nan)
    grams = torch.stack([centered(squares[:half, :half]), centered(squares[half:, half:])])
    plain = Geometry.of(grams.flatten(1))
    diagonals = plain.tree.subtract(grams.diagonal(dim1=1, dim2=2).clone())
    return Geometry(unbiased(plain.products, diagonals), plain.tree).cosine[0, 1]


def _changes(geometry: Geometry) -> np.ndarray:
    """|after - before| / |before| of n pairs of vectors, (n,); the first n are those before; NaN for zero vectors."""
    half = len(geometry.products) // 2
    norm = geometry.norm[:half]
    return (geometry.distance.diagonal(half) / norm).masked_fill(norm == 0, torch.nan).numpy()


def _nearest(gap: torch.Tensor) -> torch.Tensor:
    """The most similar expert after, the same expert in case of ties; -1 for an expert of zeros."""
    known = gap.nan_to_num(torch.inf)
    best, nearest = known.min(1)
    itself = torch.arange(len(gap))
    nearest = itself.where(known.diagonal() <= best, nearest)
    return nearest.where(best < torch.inf, -1)


def _routers(first: MoEModel, second: MoEModel, layer: int) -> np.ndarray:
    """Cosine and relative change of the gate embeddings, (2, E); NaN for those that are zero."""
    geometry = Geometry.of(torch.cat([model.router_weight(layer).double() for model in (first, second)]))
    half = len(geometry.products) // 2
    return np.stack([geometry.cosine.diagonal(half).numpy(), _changes(geometry)])
