"""How alike the gate embeddings are (arXiv 2406.18219, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import InputError, WeightError
from moe_probe.model import MoEModel, Source, load
from moe_probe.results import provenance, with_attrs
from moe_probe.static.gram import cosine


def gate_similarity(model: Source, *, layers: Sequence[int] | int | None = None) -> xr.Dataset:
    """Cosine of every pair of gate embeddings (rows of the router's weight), layer by layer.

    Args:
        model: whatever `moe_probe.load` accepts.
        layers: MoE layers; all by default.

    Returns:
        Dataset with `cosine` (layer, expert, other), float64. Routed experts of every kind.

    Raises:
        InputError, FamilyError: a layer does not route.
        WeightError: a router is missing, has the wrong shape, or is not finite.

    Examples:
        >>> gate_similarity("ckpt/tiny-mixtral").cosine.sizes["expert"]
        8
    """
    model = load(model)
    chosen = model.select_layers(layers)
    values = np.stack([_cosines(router_matrix(model, layer)) for layer in chosen])
    labels = [str(e) for e in range(values.shape[-1])]
    return with_attrs(
        {"cosine": (("layer", "expert", "other"), values)},
        {"layer": list(chosen), "expert": labels, "other": labels},
        provenance("gate_similarity", model),
    )


def router_matrix(model: MoEModel, layer: int) -> torch.Tensor:
    """The gate embeddings of a layer in float64, (E, d).

    Raises:
        WeightError: they are not finite.
    """
    weight = model.router_weight(layer).to(torch.float64)
    if not torch.isfinite(weight).all():
        row = int((~torch.isfinite(weight).all(1)).nonzero()[0])
        raise WeightError(f"The gate embedding of expert {row} in layer {layer} of {model.name} is not finite.")
    if len({model.layer(index).num_experts for index in model.moe_layers}) > 1:
        raise InputError(f"The layers of {model.name} have different numbers of experts; analyse them one by one.")
    return weight


def _cosines(weight: torch.Tensor) -> np.ndarray:
    return cosine(weight @ weight.T).numpy()
