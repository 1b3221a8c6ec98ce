"""Whether experts with similar gate embeddings have similar weights (arXiv 2406.18219, section 4.2, table 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.stats import linregress

from moe_probe.errors import InputError
from moe_probe.model import Source, load
from moe_probe.results import provenance, with_attrs
from moe_probe.static.analyses.gate_similarity import gate_similarity
from moe_probe.static.analyses.similarity import similarity


def gate_regression(
    model: Source,
    level: str = "neuron_mean",
    *,
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    n_jobs: int = 1,
) -> xr.Dataset:
    """Least-squares line of gate similarity (y) on expert similarity (x) over the pairs of experts of a layer.

    Pairs are the strict lower triangle, row by row. The paper's table is `r_squared_average`: r^2 of each layer
    rounded to two decimals, then averaged over the MoE layers. The paper swaps the names X and Y, which leaves r as it
    is.

    Args:
        model: whatever `moe_probe.load` accepts.
        level: of the expert similarity: `neuron_mean` as in the paper, `matrix` or `neuron_aligned`.
        projections: as in `similarity`.
        layers: as in `similarity`.
        n_jobs: as in `similarity`.

    Returns:
        Dataset with `r`, `r_squared`, `slope`, `intercept`, `p_value`, `stderr` (layer, projection);
        `r_squared_average` (projection); and the pairs: `gate` (layer, pair), `similarity` (layer, projection, pair).

    Raises:
        InputError: there are fewer than 3 experts, or an argument does not fit the model.

    Examples:
        >>> gate_regression("ckpt/tiny-mixtral").r.dims
        ('layer', 'projection')
    """
    model = load(model)
    experts = similarity(model, level, projections=projections, layers=layers, n_jobs=n_jobs)
    kept = experts.expert.values.tolist()
    if len(kept) < 3:
        raise InputError(f"{model.name} has {len(kept)} experts with weights; a regression needs at least 3.")
    gates = gate_similarity(model, layers=experts.layer.values.tolist()).sel(expert=kept, other=kept)
    rows, columns = np.tril_indices(len(kept), -1)
    x, y = experts.cosine.values[..., rows, columns], gates.cosine.values[..., rows, columns]
    fits = [[linregress(values, gate) for values in layer] for layer, gate in zip(x, y, strict=True)]
    by_projection = ("layer", "projection")
    names = {"r": "rvalue", "slope": "slope", "intercept": "intercept", "p_value": "pvalue", "stderr": "stderr"}
    out = {k: (by_projection, np.array([[getattr(f, v) for f in row] for row in fits])) for k, v in names.items()}
    out["r_squared"] = (by_projection, out["r"][1] ** 2)
    out["r_squared_average"] = (("projection",), out["r_squared"][1].round(2).mean(0))
    out |= {"gate": (("layer", "pair"), y), "similarity": ((*by_projection, "pair"), x)}
    coords = {
        "layer": experts.layer.values,
        "projection": experts.projection.values,
        "pair": [f"{kept[i]}-{kept[j]}" for i, j in zip(rows, columns, strict=True)],
    }
    kept_out = {name: text for name, text in experts.attrs.items() if name == "left_out"}
    return with_attrs(out, coords, {**provenance("gate_regression", model, level=level), **kept_out, "level": level})
