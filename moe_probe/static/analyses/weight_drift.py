"""How far the experts have moved between two checkpoints of one model, by their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import InputError
from moe_probe.model import MoEModel, Source, load
from moe_probe.parallel import map_items
from moe_probe.results import provenance, with_attrs
from moe_probe.static.gram import Matrices, cosine, paired_gram
from moe_probe.static.selection import left_out, select_matrices, select_projections


def weight_drift(
    before: Source,
    after: Source,
    *,
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    n_jobs: int = 1,
) -> xr.Dataset:
    """Every expert's matrices before and after, and the experts' geometry, Gram matrix against Gram matrix.

    For two steps of a training, a base model and its tuned one, a model and its quantized copy. Every weight is read
    once.

    Args:
        before: whatever `moe_probe.load` accepts, with the same layers, experts and shapes.
        after: whatever `moe_probe.load` accepts, with the same layers, experts and shapes.
        projections: some of `up`, `gate`, `down`; all by default.
        layers: MoE layers; all by default.
        n_jobs: matrices of layers compared at a time, through joblib.

    Returns:
        Dataset, float64: `cosine` and `relative_change` |A' - A| / |A| (layer, projection, expert) of the flattened
        matrices; `nearest` (layer, projection, expert), int64, the expert after that is most like the one before;
        `gram_similarity` (layer, projection), the cosine of the two (E, E) Gram matrices as vectors: 1 where the
        experts stand to each other as before, whatever rotation they have in common; `router_cosine` and
        `router_relative_change` (layer, router_expert), of the gate embeddings.

    Raises:
        InputError: the two are not made alike, or an argument does not fit them.
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
        half = len(item.labels) // 2
        for label, one, other in zip(item.labels, item.tensors[:half], item.tensors[half:], strict=False):
            if one.shape != other.shape:
                raise InputError(
                    f"Expert {label} of layer {item.layer} is {tuple(one.shape)} in {first.name} and "
                    f"{tuple(other.shape)} in {second.name}; only checkpoints of one shape can be compared."
                )
    found = map_items(_compare, chosen, n_jobs, "Weight drift")
    shape, labels = (len(indices), len(names)), list(chosen[0].labels[: len(chosen[0].labels) // 2])
    dims = {"gram_similarity": ("layer", "projection")}
    variables = {
        name: (
            dims.get(name, ("layer", "projection", "expert")),
            np.stack([one[name] for one in found]).reshape(*shape, *found[0][name].shape),
        )
        for name in found[0]
    }
    routers = np.stack([_routers(first, second, layer) for layer in indices], axis=1)
    for name, values in zip(("router_cosine", "router_relative_change"), routers, strict=True):
        variables[name] = (("layer", "router_expert"), values)
    everyone = [str(expert) for expert in range(first.layer(indices[0]).num_experts)]
    attrs = provenance("weight_drift", first, after=second.name, after_fingerprint=second.fingerprint)
    return with_attrs(
        variables,
        {"layer": list(indices), "projection": names, "expert": labels, "router_expert": everyone},
        {**attrs, **left_out(first, indices), "after": second.name},
    )


def _require_alike(first: MoEModel, second: MoEModel, indices: Sequence[int]) -> None:
    for layer in indices:
        kinds = [m.layer(layer).expert_kinds if layer in m.moe_layers else () for m in (first, second)]
        if kinds[0] != kinds[1]:
            counts = [f"{m.name} has {len(k)} experts" for m, k in zip((first, second), kinds, strict=True)]
            raise InputError(f"Layer {layer}: {counts[0]}, {counts[1]}; only checkpoints made alike can be compared.")


def _compare(matrices: Matrices) -> dict[str, np.ndarray]:
    gram, squares = paired_gram(matrices)
    half = len(squares)
    cosines = cosine(gram)[:half, half:]
    own, others = gram[:half, :half], gram[half:, half:]
    norms = own.diagonal().clamp_min(1e-30).sqrt()
    return {
        "cosine": cosines.diagonal().numpy(),
        "relative_change": (squares.sqrt() / norms).numpy(),
        "nearest": cosines.argmax(1).numpy(),
        "gram_similarity": ((own * others).sum() / (own.norm() * others.norm())).numpy(),
    }


def _routers(first: MoEModel, second: MoEModel, layer: int) -> np.ndarray:
    """Cosine and relative change of the gate embeddings, (2, E)."""
    one, other = (model.router_weight(layer).double() for model in (first, second))
    alike = torch.nn.functional.cosine_similarity(one, other, dim=1)
    change = (other - one).norm(dim=1) / one.norm(dim=1).clamp_min(1e-30)
    return torch.stack([alike, change]).numpy()
