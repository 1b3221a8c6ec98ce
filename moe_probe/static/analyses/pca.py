"""Experts, or their neurons, in the plane of largest variance (arXiv 2406.18219, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import xarray as xr
from scipy.linalg import blas, eigh
from scipy.sparse.linalg import eigsh
from sklearn.cluster import DBSCAN

from moe_probe.errors import InputError
from moe_probe.model import Source, load
from moe_probe.parallel import map_items
from moe_probe.results import provenance, with_attrs
from moe_probe.static.analyses.similarity import select_layers_and_matrices
from moe_probe.static.gram import Matrices, flat_gram, standardized_gram
from moe_probe.static.selection import left_out, require_same_shape

LEVELS = ("matrix", "neuron")
DENSE_EIGENSOLVER = 1024  # up to this many features all eigenvalues are computed; beyond, only the first ones
ROWS = 8192
Pca = dict[str, np.ndarray]


def pca(
    model: Source,
    level: str = "matrix",
    *,
    n_components: int = 2,
    standardize: bool = True,
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    baseline: Source | None = None,
    outliers: tuple[float, int] | None = None,
    n_jobs: int = 1,
) -> xr.Dataset:
    """Principal components of the experts of each layer and projection.

    Level `matrix`: a point is an expert's whole matrix; computed from the R x R Gram matrix, in one pass. Level
    `neuron`: a point is a neuron (a row of up and gate, a column of down), computed from the d x d covariance, in two
    passes. Signs are arbitrary; here the coordinate of largest magnitude is positive.

    Args:
        model: whatever `moe_probe.load` accepts.
        level: see above.
        n_components: 2 or 3.
        standardize: subtract each feature's mean over the points and divide by its deviation (ddof 1); features that do
            not vary are left out (the paper's cells give NaN there). Otherwise subtract the mean only.
        projections: as in `similarity`.
        layers: as in `similarity`.
        n_jobs: as in `similarity`.
        baseline: a dense model, added as label `"F"`.
        outliers: (eps, min_samples) of a DBSCAN on the coordinates (level `matrix`); the paper uses (50, 5) for
            DeepSeekMoE-16B. eps is absolute and does not carry over to other sizes.

    Returns:
        Dataset with `coordinates` (layer, projection, point, component), `explained_variance` (divisor points - 1) and
        `explained_variance_ratio` (layer, projection, component), coordinate `expert` along `point`; with `outliers`
        also `outlier` (layer, projection, point).

    Raises:
        InputError: an argument does not fit the model.
        WeightError: a weight is missing, has the wrong shape, or is not finite.

    Examples:
        >>> pca("ckpt/tiny-mixtral", baseline="ckpt/tiny-mistral").sizes["point"]
        9
    """
    if level not in LEVELS or n_components not in (2, 3):
        raise InputError(f"Levels are {LEVELS}, n_components 2 or 3; asked for {level!r} and {n_components}.")
    if outliers is not None and level != "matrix":
        raise InputError("outliers are found among experts: level='matrix'.")
    model, baseline = load(model), None if baseline is None else load(baseline)
    chosen = select_layers_and_matrices(model, layers, projections, baseline)
    if level == "matrix":
        require_same_shape(chosen, "PCA of matrices")
    if level == "matrix" and n_components >= len(chosen[0].labels):
        raise InputError(f"{len(chosen[0].labels)} experts span fewer than {n_components + 1} points.")
    compute = partial(
        _matrix_pca if level == "matrix" else _neuron_pca, n_components=n_components, standardize=standardize
    )
    results = map_items(compute, chosen, n_jobs, f"PCA ({level})")
    layer_index = list(dict.fromkeys(item.layer for item in chosen))
    names = list(dict.fromkeys(item.projection for item in chosen))
    dims = {
        "coordinates": ("layer", "projection", "point", "component"),
        "explained_variance": ("layer", "projection", "component"),
        "explained_variance_ratio": ("layer", "projection", "component"),
        "outlier": ("layer", "projection", "point"),
    }
    if outliers is not None:
        for result in results:
            result["outlier"] = _outliers(result["coordinates"], *outliers)
    shape = (len(layer_index), len(names))
    stacked = {key: np.stack([r[key] for r in results]) for key in results[0]}
    counts = [1] * len(chosen[0].labels)
    if level == "neuron":
        counts = [tensor.shape[0] for tensor in chosen[0].neuron_major()]
    attrs = provenance(
        "pca", model, level=level, standardize=standardize, outliers=outliers, baseline=baseline and baseline.name
    )
    return with_attrs(
        {key: (dims[key], values.reshape(*shape, *values.shape[1:])) for key, values in stacked.items()},
        {
            "layer": layer_index,
            "projection": names,
            "component": range(1, n_components + 1),
            "expert": ("point", np.repeat(chosen[0].labels, counts)),
        },
        {**attrs, **left_out(model, layer_index), "level": level},
    )


def _matrix_pca(matrices: Matrices, n_components: int, standardize: bool) -> Pca:
    if standardize:
        gram = standardized_gram(matrices).numpy()
    else:
        raw = flat_gram(matrices).numpy()
        gram = raw - raw.mean(0) - raw.mean(1)[:, None] + raw.mean()
    values, vectors = eigh(gram)
    values, vectors = values[::-1][:n_components].clip(0), vectors[:, ::-1][:, :n_components]
    return _result(vectors * np.sqrt(values), values / (len(gram) - 1), values / np.trace(gram))


def _neuron_pca(matrices: Matrices, n_components: int, standardize: bool) -> Pca:
    neurons = matrices.neuron_major()
    width, count = neurons[0].shape[1], sum(tensor.shape[0] for tensor in neurons)
    products, sums = np.zeros((width, width)), torch.zeros(len(neurons), width, dtype=torch.float64)
    for total, tensor in zip(sums, neurons, strict=True):
        for start in range(0, tensor.shape[0], ROWS):
            rows = tensor[start : start + ROWS].read().to(torch.float32).contiguous()
            total += rows.sum(0, dtype=torch.float64)
            products += blas.ssyrk(1.0, rows.numpy().T)
    matrices.check(sums)
    mean = sums.sum(0).numpy() / count
    covariance = (np.triu(products) + np.triu(products, 1).T - count * np.outer(mean, mean)) / (count - 1)
    scale = np.ones(width)
    if standardize:
        deviation = np.sqrt(covariance.diagonal().clip(0))
        scale = np.divide(1, deviation, out=np.zeros(width), where=deviation > 1e-12)
        covariance *= scale * scale[:, None]
    total = np.trace(covariance)
    if width <= DENSE_EIGENSOLVER:
        values, vectors = eigh(covariance, subset_by_index=(width - n_components, width - 1))
    else:
        values, vectors = eigsh(covariance, n_components, v0=np.ones(width), tol=1e-9)
    order = np.argsort(values)[::-1]
    values, axes = values[order], torch.from_numpy(np.ascontiguousarray(scale[:, None] * vectors[:, order])).float()
    shift = torch.from_numpy(mean).float() @ axes
    points = [
        tensor[start : start + ROWS].read().to(torch.float32) @ axes - shift
        for tensor in neurons
        for start in range(0, tensor.shape[0], ROWS)
    ]
    return _result(torch.cat(points).numpy(), values, values / total)


def _result(coordinates: np.ndarray, variance: np.ndarray, ratio: np.ndarray) -> Pca:
    largest = np.abs(coordinates).argmax(0)
    signs = np.sign(coordinates[largest, range(coordinates.shape[1])])
    return {
        "coordinates": coordinates * np.where(signs == 0, 1, signs),
        "explained_variance": variance,
        "explained_variance_ratio": ratio,
    }


def _outliers(coordinates: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    return DBSCAN(eps=eps, min_samples=min_samples).fit_predict(coordinates) == -1
