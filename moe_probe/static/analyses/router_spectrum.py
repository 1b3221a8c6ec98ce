"""How many directions a router uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xarray as xr

from moe_probe.model import Source, load
from moe_probe.results import provenance, with_attrs
from moe_probe.static.analyses.gate_similarity import router_matrix


def router_spectrum(model: Source, *, layers: Sequence[int] | int | None = None) -> xr.Dataset:
    """Singular values and effective rank of each router's weight.

    The effective rank is exp(H), H the entropy of the singular values divided by their sum (Roy and Vetterli, "The
    effective rank", EUSIPCO 2007): E where all directions weigh the same, 1 where all gate embeddings are parallel.

    Args:
        model: whatever `moe_probe.load` accepts.
        layers: MoE layers; all by default.

    Returns:
        Dataset with `singular_value` (layer, index), descending, and `effective_rank` (layer), float64.

    Raises:
        WeightError: a router is missing, has the wrong shape, or is not finite.

    Examples:
        >>> router_spectrum("ckpt/tiny-mixtral").singular_value.sizes["index"]
        8
    """
    model = load(model)
    chosen = model.select_layers(layers)
    values = torch.stack([torch.linalg.svdvals(router_matrix(model, layer)) for layer in chosen])
    share = values / values.sum(1, keepdim=True)
    entropy = torch.special.entr(share).sum(1)
    return with_attrs(
        {"singular_value": (("layer", "index"), values.numpy()), "effective_rank": (("layer",), entropy.exp().numpy())},
        {"layer": list(chosen), "index": range(values.shape[1])},
        provenance("router_spectrum", model),
    )
