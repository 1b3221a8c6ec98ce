"""Which experts does the router see as alike?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import NotFinite, NotFitting
from moe_probe.model import MoEModel, Openable, load
from moe_probe.progress import reporting
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import checked
from moe_probe.static.geometry import Geometry

TITLE = "Similarity of gate embeddings"


@checked
def gate_similarity(model: Openable, *, layers: Sequence[int] | int | None = None, progress: bool = True) -> xr.Dataset:
    """Cosine of every pair of gate embeddings (rows of the router's weight) in each layer.

    Formula:
        ```text
        cos(g_i, g_j), g_i the i-th row of the router's matrix (of its last layer, if the router is a small network)
        ```

    Needs:
        Only the routers' weights.

    Cost:
        A matrix of E × d per layer; milliseconds.

    Source:
        arXiv 2406.18219, section 4.2.

    Args:
        model: a checkpoint folder, a hub id, a live transformers model or a `MoEModel`.
        layers: MoE layers; all by default.
        progress: whether to show progress.

    Returns:
        Dataset with `cosine` (layer, expert, other), float64, of routed experts of every kind; NaN for a gate embedding
        of zeros, which has no direction.

    Raises:
        DenseModel: the model is dense.
        OutOfRange: a layer is not a MoE layer.
        NotFitting: the layers have different numbers of experts.
        WeightError: a router is missing, has the wrong shape, or is not finite.

    Examples:
        >>> gate_similarity("ckpt/tiny-mixtral").cosine.sizes["expert"]
        8
    """
    model = load(model)
    chosen = model.select_layers(layers)
    values = np.stack([_cosines(weight) for weight in router_matrices(model, chosen, progress)])
    labels = [str(e) for e in range(values.shape[-1])]
    reason = "a gate embedding of zeros has no direction"
    similarity = variable(("layer", "expert", "other"), values, "cosine of gate embeddings", undefined=reason)
    coords = {"layer": list(chosen), "expert": labels, "other": labels}
    return dataset({"cosine": similarity}, provenance("gate_similarity", model), coords)


def router_matrices(model: MoEModel, layers: Sequence[int], progress: bool) -> Iterator[torch.Tensor]:
    """The gate embeddings of each layer, (E, d) float64, read one after the other.

    Raises:
        NotFinite: they hold NaN or infinity.
        NotFitting: the layers have different numbers of experts.
    """
    counts = {model.layer(layer).num_experts for layer in layers}
    if len(counts) > 1:
        raise NotFitting(
            f"The chosen layers of {model.name} have {' and '.join(map(str, sorted(counts)))} experts; "
            "pass layers= of one number."
        )
    with reporting("Routers", len(layers), progress) as advance:
        for layer in layers:
            yield _router_matrix(model, layer)
            advance()


def _router_matrix(model: MoEModel, layer: int) -> torch.Tensor:
    weight = model.router_weight(layer).to(torch.float64)
    if not torch.isfinite(weight).all():
        row = int((~torch.isfinite(weight).all(1)).nonzero()[0])
        raise NotFinite(
            f"The gate embedding of expert {row} in layer {layer} of {model.name} holds NaN or infinity; the file is "
            "damaged or the model was saved after it diverged."
        )
    return weight


def _cosines(weight: torch.Tensor) -> np.ndarray:
    return Geometry.of(weight).cosine.numpy()
