"""Do experts with similar gate embeddings have similar weights?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from scipy.stats import linregress

from moe_probe.errors import NotFitting
from moe_probe.model import Openable, load
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import checked
from moe_probe.static.analyses.gate_similarity import gate_similarity
from moe_probe.static.analyses.similarity import similarity
from moe_probe.statistics.bootstrap import DRAWS, check_draws
from moe_probe.statistics.rates import discoveries, mantel

TITLE = "Gate similarity on expert similarity"
Level = Literal["neuron_mean", "matrix", "neuron_aligned"]
UNASKED = ("neuron_mean",)
BY_PROJECTION = ("layer", "projection")
FIT = {  # by variable: the attribute of the fit, and what it is
    "r": ("rvalue", "Pearson's correlation of gate and expert similarity"),
    "slope": ("slope", "slope of gate similarity on expert similarity"),
    "intercept": ("intercept", "intercept of gate similarity on expert similarity"),
    "stderr": ("stderr", "standard error of the slope, if pairs of experts were independent"),
}
ROUNDING = {"neuron_mean": 1e-12, "matrix": 1e-6, "neuron_aligned": 1e-6}  # of cosines: float64 or float32 products
GATE_ROUNDING = 1e-12
UNDEFINED = "fewer than 3 pairs of experts have a similarity, or all pairs have the same one"


@checked
def gate_regression(
    model: Openable,
    level: Level = "neuron_mean",
    *,
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    permutations: int = DRAWS,
    n_jobs: int = 1,
    progress: bool = True,
) -> xr.Dataset:
    """Least-squares line of gate similarity (y) on expert similarity (x) over the pairs of experts of a layer.

    Pairs are the strict lower triangle, row by row; pairs without a similarity (an expert or a gate embedding of zeros)
    do not count. The paper's table is `r_squared_average`: r² of each layer rounded to two decimals, then averaged over
    the MoE layers. The paper swaps the names X and Y, which does not change r.

    Formula:
        ```text
        over all pairs i < j of a layer:   cos(g_i, g_j) = intercept + slope · cos(w_i, w_j) + error
        R² = r², r Pearson's correlation
        p: the share of permutations of the gate embeddings with |r| as large (Mantel 1967)
        q: the same with the false discovery rate controlled over layers and projections (Benjamini and Hochberg 1995)
        ```

    Needs:
        Weights alone; each matrix is read once, in order.

    Cost:
        That of `similarity` at the same level.

    Source:
        arXiv 2406.18219, section 4.2, table 1.

    Args:
        model: a checkpoint folder, a hub id, a live transformers model or a `MoEModel`.
        level: of the expert similarity: `neuron_mean` as in the paper, `matrix` or `neuron_aligned`.
        projections: some of `up`, `gate`, `down`; all by default.
        layers: MoE layers; all by default.
        permutations: permutations of the gate embeddings for the p-values; 0 for none.
        n_jobs: number of layers computed at a time, through joblib.
        progress: whether to show progress.

    Returns:
        Dataset, float64, with `r`, `r_squared`, `slope`, `intercept`, `stderr`, `p_value`, `q_value` (layer,
        projection); `r_squared_average` (projection); and the pairs: `gate` (layer, pair) and `similarity` (layer,
        projection, pair). Pairs that share an expert are not independent, so the p-values come from permuting experts,
        while `stderr` assumes independent pairs. The fit is NaN if all experts, or all gate embeddings, have the same
        similarity.

    Raises:
        NoSuchName: there is no such level or projection.
        NotFitting: there are fewer than 3 experts, or an argument does not fit the model.

    Examples:
        >>> gate_regression("ckpt/tiny-mixtral").r.dims
        ('layer', 'projection')
    """
    check_draws(permutations, "permutations")
    model = load(model)
    experts = similarity(model, level, projections=projections, layers=layers, n_jobs=n_jobs, progress=progress)
    labels = experts.expert.values.tolist()
    if len(labels) < 3:
        raise NotFitting(f"{model.name} has {len(labels)} experts with weights; a regression needs at least 3.")
    gates = gate_similarity(model, layers=experts.layer.values.tolist(), progress=progress).sel(
        expert=labels, other=labels
    )
    rows, columns = np.tril_indices(len(labels), -1)
    x, y = experts.cosine.values[..., rows, columns], gates.cosine.values[..., rows, columns]
    coords = {
        "layer": experts.layer.values,
        "projection": experts.projection.values,
        "pair": [f"{labels[i]}-{labels[j]}" for i, j in zip(rows, columns, strict=True)],
    }
    left_out = {name: text for name, text in experts.attrs.items() if name == "left_out"}
    attrs = {**provenance("gate_regression", model, level=level), **left_out, "level": level}
    variables = _variables(x, y, ROUNDING[level])
    if permutations:
        variables |= _tests(experts.cosine.values, gates.cosine.values, variables["r"].values, permutations)
    return dataset(variables, attrs, coords)


def _tests(experts: np.ndarray, gates: np.ndarray, r: np.ndarray, permutations: int) -> dict[str, xr.DataArray]:
    """Mantel's test for each layer and projection, of similarities (layer, projection, E, E) and (layer, E, E)."""
    p = np.array(
        [
            [
                mantel(one, gate, permutations) if np.isfinite(fit) else np.nan
                for one, fit in zip(layer, fits, strict=True)
            ]
            for layer, gate, fits in zip(experts, gates, r, strict=True)
        ]
    )
    tests = {
        "p_value": (p, "p-value of Mantel's test"),
        "q_value": (discoveries(p), "p-value, corrected for layers and projections"),
    }
    return {name: variable(BY_PROJECTION, values, said, undefined=UNDEFINED) for name, (values, said) in tests.items()}


def _variables(x: np.ndarray, y: np.ndarray, rounding: float) -> dict[str, xr.DataArray]:
    fits = np.array([[_fit(values, gate, rounding) for values in layer] for layer, gate in zip(x, y, strict=True)])
    out = {
        name: variable(BY_PROJECTION, fits[..., at], long_name, undefined=UNDEFINED)
        for at, (name, (_, long_name)) in enumerate(FIT.items())
    }
    squares = out["r"].values ** 2
    average = squares.round(2).mean(0)
    reason = "an expert or a gate embedding of zeros has no direction"
    return out | {
        "r_squared": variable(BY_PROJECTION, squares, "R² of gate on expert similarity", undefined=UNDEFINED),
        "r_squared_average": variable(("projection",), average, "mean R² of the layers", undefined=UNDEFINED),
        "gate": variable(("layer", "pair"), y, "cosine of gate embeddings", undefined=reason),
        "similarity": variable((*BY_PROJECTION, "pair"), x, "cosine of experts", undefined=reason),
    }


def _fit(x: np.ndarray, y: np.ndarray, rounding: float) -> list[float]:
    """Values of the fit in the order of `FIT`; NaN if no line is defined."""
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) <= rounding or np.ptp(y[known]) <= GATE_ROUNDING:
        return [np.nan] * len(FIT)
    fit = linregress(x[known], y[known])
    return [float(getattr(fit, attribute)) for attribute, _ in FIT.values()]
