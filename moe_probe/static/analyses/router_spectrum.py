"""How many directions of its input does a router distinguish?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xarray as xr

from moe_probe.model import Openable, load
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import checked
from moe_probe.static.analyses.gate_similarity import router_matrices

TITLE = "Spectrum of the routers"


@checked
def router_spectrum(model: Openable, *, layers: Sequence[int] | int | None = None, progress: bool = True) -> xr.Dataset:
    """Singular values and effective rank of each router's weight.

    The effective rank is E if all directions have the same singular value, and 1 if all gate embeddings are parallel.

    Formula:
        ```text
        s_1 ≥ s_2 ≥ ...   singular values of the router's matrix (E, d)
        effective rank = exp(- Σ p_i ln p_i),   p_i = s_i / Σ s
        ```

    Needs:
        Only the routers' weights.

    Cost:
        A singular value decomposition of E × d per layer.

    Source:
        Roy and Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007.

    Args:
        model: a checkpoint folder, a hub id, a live transformers model or a `MoEModel`.
        layers: MoE layers; all by default.
        progress: whether to show progress.

    Returns:
        Dataset with `singular_value` (layer, index), descending, and `effective_rank` (layer), float64; the rank is NaN
        for a router of zeros.

    Raises:
        NotFitting: the layers have different numbers of experts.
        WeightError: a router is missing, has the wrong shape, or is not finite.

    Examples:
        >>> router_spectrum("ckpt/tiny-mixtral").singular_value.sizes["index"]
        8
    """
    model = load(model)
    chosen = model.select_layers(layers)
    values = torch.stack([torch.linalg.svdvals(weight) for weight in router_matrices(model, chosen, progress)])
    entropy = torch.special.entr(values / values.sum(1, keepdim=True)).sum(1)
    reason = "a router of zeros has no directions"
    variables = {
        "singular_value": variable(("layer", "index"), values.numpy(), "singular value of the router's weight"),
        "effective_rank": variable(("layer",), entropy.exp().numpy(), "effective rank of the router", undefined=reason),
    }
    coords = {"layer": list(chosen), "index": range(values.shape[1])}
    return dataset(variables, provenance("router_spectrum", model), coords)
