"""Do some experts, or some neurons, stand apart from the others?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from scipy.linalg import eigh, get_blas_funcs
from scipy.sparse.linalg import ArpackError, eigsh
from sklearn.cluster import DBSCAN

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import NotFitting, OutOfRange, WrongType
from moe_probe.model import MoEModel, Openable, load
from moe_probe.parallel import map_items
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import checked
from moe_probe.static.analyses.similarity import select_layers_and_matrices
from moe_probe.static.gram import SMALLEST_NORMAL, Matrices, flat_geometry, standardized_gram
from moe_probe.static.selection import left_out, require_same_shape

TITLE = "Principal components"
Level = Literal["matrix", "neuron"]
UNASKED = ("matrix",)
DENSE_EIGENSOLVER = 1024  # up to this many features all eigenvalues are computed; beyond, only the first ones
ROWS = 8192
SMALL_TOTAL = 1e-6
OFFSET = 100.0  # a mean this many deviations from 0 costs float32 products too many digits
CONSTANT = 1e-7  # deviations below this share of a feature's size are roundings
Pca = dict[str, np.ndarray]
BY_COMPONENT = ("layer", "projection", "component")
UNDEFINED = "the points are all the same"


@checked
def pca(
    model: Openable,
    level: Level = "matrix",
    *,
    n_components: int = 2,
    standardize: bool = True,
    projections: Sequence[str] | str | None = None,
    layers: Sequence[int] | int | None = None,
    baseline: Openable | None = None,
    outliers: tuple[float, int] | None = None,
    n_jobs: int = 1,
    progress: bool = True,
) -> xr.Dataset:
    """Principal components of the experts, or of their neurons, of each layer and projection.

    Signs are arbitrary; here the coordinate of largest magnitude is positive.

    Formula:
        ```text
        matrix  a point per expert: its whole matrix, flattened neuron by neuron
        neuron  a point per neuron (a row of up and gate, a column of down): all neurons of all experts together
        every feature is standardized (mean 0, unbiased standard deviation 1) unless standardize=False;
        coordinates = the points' projections on the first 2 or 3 eigenvectors of the covariance
        ```

    Needs:
        Only the weights. At level `matrix`, all experts need one shape; a dense `baseline=` is added as `F`.

    Cost:
        Level `matrix`: one pass over the weights and an R × R eigenproblem for R experts. Level `neuron`: two passes
        (three if features are far from 0) and a d × d eigenproblem, with only the first components for large d.

    Source:
        arXiv 2406.18219, section 4.1.

    Args:
        model: a checkpoint folder, a hub id, a live transformers model or a `MoEModel`.
        level: `matrix` for a point per expert, `neuron` for a point per neuron.
        n_components: number of components, 2 or 3.
        standardize: subtract each feature's mean over the points and divide by its standard deviation (ddof 1);
            features that do not vary are omitted (the paper's notebook gives NaN there). Otherwise subtract only the
            mean.
        projections: some of `up`, `gate`, `down`; all by default.
        layers: MoE layers; all by default.
        baseline: a dense model, added as label `"F"`.
        outliers: (eps, min_samples) of a DBSCAN on the coordinates (level `matrix`); the paper uses (50, 5) for
            DeepSeekMoE-16B. eps is an absolute distance, so models of other sizes need another one.
        n_jobs: number of pairs of layer and projection computed at a time, through joblib.
        progress: whether to show progress.

    Returns:
        Dataset, float64, with `coordinates` (layer, projection, point, component), `explained_variance` (divisor
        points - 1) and `explained_variance_ratio` (layer, projection, component); `expert` is a coordinate along
        `point`. With `outliers`, it also has `outlier` (layer, projection, point). The ratio is NaN if all points of a
        layer are the same.

    Raises:
        NoSuchName: there is no such level or projection.
        NotFitting: all points of all layers are the same, or an argument does not fit the model.
        OutOfRange: a number is outside its range.
        WrongType: an argument is of another type.
        WeightError: a weight is missing, has the wrong shape, or is not finite.

    Examples:
        >>> pca("ckpt/tiny-mixtral", baseline="ckpt/tiny-mistral").sizes["point"]
        9
    """
    _check(level, n_components, standardize, outliers, n_jobs)
    model, baseline = load(model), None if baseline is None else load(baseline)
    chosen = select_layers_and_matrices(model, layers, projections, baseline)
    if level == "matrix":
        _require_points(chosen, n_components)
    compute = partial(
        _matrix_pca if level == "matrix" else _neuron_pca, n_components=n_components, standardize=standardize
    )
    results = map_items(compute, chosen, n_jobs, f"PCA ({level})", progress)
    _require_variance(results, model, "experts" if level == "matrix" else "neurons")
    if outliers is not None:
        for result in results:
            result["outlier"] = _outliers(result["coordinates"], *outliers)
    layer_index = list(dict.fromkeys(item.layer for item in chosen))
    names = list(dict.fromkeys(item.projection for item in chosen))
    attrs = provenance(
        "pca", model, level=level, standardize=standardize, outliers=outliers, baseline=baseline and baseline.name
    )
    coords = {
        "layer": layer_index,
        "projection": names,
        "component": range(1, n_components + 1),
        "expert": ("point", _experts_of_points(chosen[0], level)),
    }
    about = {**attrs, **left_out(model, layer_index), "level": level}
    return dataset(_variables(results, (len(layer_index), len(names))), about, coords)


def _check(level: str, n_components: object, standardize: object, outliers: object, n_jobs: object) -> None:
    if n_components not in (2, 3):
        raise OutOfRange(f"n_components={n_components!r} is not 2 or 3; pass one of them.")
    if outliers is None:
        return
    if level != "matrix":
        raise NotFitting(f"outliers= works at level='matrix' only, not at {level!r}; omit it or pass level='matrix'.")
    if not isinstance(outliers, tuple | list) or len(outliers) != 2:
        raise WrongType(f"outliers={outliers!r} is not (eps, min_samples); pass two numbers, such as (50, 5).")
    eps, least = outliers
    if not isinstance(eps, int | float) or not isinstance(least, int) or not eps > 0 or least < 1:
        raise OutOfRange(
            f"outliers={tuple(outliers)!r} is out of range; pass eps above 0 and a whole min_samples of at least 1."
        )


def _require_points(chosen: Sequence[Matrices], n_components: int) -> None:
    require_same_shape(chosen, "PCA of matrices")
    count = len(chosen[0].labels)
    if n_components >= count:
        raise NotFitting(
            f"{count} experts span at most {count - 1} components; n_components={n_components} needs "
            f"{n_components + 1} experts."
        )


def _require_variance(results: Sequence[Pca], model: MoEModel, points: str) -> None:
    if not any(result["explained_variance"].any() for result in results):
        raise NotFitting(
            f"All {points} of the chosen layers of {model.name} are the same, so nothing varies; pass other layers= or "
            "projections=."
        )


def _experts_of_points(matrices: Matrices, level: str) -> np.ndarray:
    """The label of each point's expert."""
    counts = [t.shape[0] for t in matrices.neuron_major()] if level == "neuron" else [1] * len(matrices.labels)
    return np.repeat(matrices.labels, counts)


def _variables(results: Sequence[Pca], shape: tuple[int, int]) -> dict[str, xr.DataArray]:
    stacked = {key: np.stack([result[key] for result in results]) for key in results[0]}
    stacked = {key: values.reshape(*shape, *values.shape[1:]) for key, values in stacked.items()}
    point = ("layer", "projection", "point")
    variables = {
        "coordinates": variable((*point, "component"), stacked["coordinates"], "coordinate along the component"),
        "explained_variance": variable(BY_COMPONENT, stacked["explained_variance"], "variance of the component"),
        "explained_variance_ratio": variable(
            BY_COMPONENT, stacked["explained_variance_ratio"], "share of the variance", undefined=UNDEFINED
        ),
    }
    if "outlier" in stacked:
        variables["outlier"] = variable(point, stacked["outlier"], "whether DBSCAN finds it an outlier")
    return variables


def _matrix_pca(matrices: Matrices, n_components: int, standardize: bool) -> Pca:
    gram = (standardized_gram(matrices) if standardize else flat_geometry(matrices).centered).numpy()
    values, vectors = eigh(gram)
    values, vectors = values[::-1][:n_components].clip(0), vectors[:, ::-1][:, :n_components]
    return _result(vectors * np.sqrt(values), values / (len(gram) - 1), _ratio(values, float(np.trace(gram))))


def _ratio(values: np.ndarray, total: float) -> np.ndarray:
    """Shares of a total; NaN if it is 0."""
    return values / total if total > 0 else np.full(len(values), np.nan)


def _neuron_pca(matrices: Matrices, n_components: int, standardize: bool) -> Pca:
    mean, covariance, dtype = _moments(matrices)
    scale = np.ones(len(mean))
    if standardize:
        deviation = np.sqrt(covariance.diagonal().clip(0))
        scale = np.divide(1, deviation, out=np.zeros(len(mean)), where=deviation > CONSTANT * np.abs(mean))
        covariance *= scale * scale[:, None]
    total = float(np.trace(covariance))
    values, vectors = _largest(covariance, n_components, total)
    axes = torch.from_numpy(np.ascontiguousarray(scale[:, None] * vectors)).to(dtype)
    shift = torch.from_numpy(mean).to(dtype) @ axes
    points = [rows.to(dtype) @ axes - shift for tensor in matrices.neuron_major() for rows in _blocks(tensor)]
    return _result(torch.cat(points).numpy(), values, _ratio(values, total))


def _blocks(tensor: LazyTensor) -> Iterator[torch.Tensor]:
    for start in range(0, tensor.shape[0], ROWS):
        yield tensor[start : start + ROWS].read().to(torch.float32).contiguous()


def _moments(matrices: Matrices) -> tuple[np.ndarray, np.ndarray, torch.dtype]:
    """Mean (d,) and covariance (d, d) of all neurons, and the dtype in which they can be multiplied."""
    neurons = matrices.neuron_major()
    width, count = neurons[0].shape[1], sum(tensor.shape[0] for tensor in neurons)
    products, sums = np.zeros((width, width)), torch.zeros(len(neurons), width, dtype=torch.float64)
    for total, tensor in zip(sums, neurons, strict=True):
        for rows in _blocks(tensor):
            total += rows.sum(0, dtype=torch.float64)
            products += _square(rows.numpy())
    matrices.check(sums)
    mean = sums.sum(0).numpy() / count
    covariance = (_symmetric(products) - count * np.outer(mean, mean)) / (count - 1)
    if _fits_float32(mean, products.diagonal() / count):
        return mean, covariance, torch.float32
    products = np.zeros((width, width))
    for tensor in neurons:
        for rows in _blocks(tensor):
            products += _square(rows.double().numpy() - mean)
    return mean, _symmetric(products) / (count - 1), torch.float64


def _square(rows: np.ndarray) -> np.ndarray:
    """The upper triangle of the product of the rows' transpose with the rows, in their dtype."""
    multiply: Any = get_blas_funcs("syrk", (rows,))
    return multiply(1.0, rows.T)


def _symmetric(upper: np.ndarray) -> np.ndarray:
    return np.triu(upper) + np.triu(upper, 1).T


def _fits_float32(mean: np.ndarray, square: np.ndarray) -> bool:
    """Whether float32 products represent the variation of features: none is tiny, huge, or far from 0."""
    far = mean**2 > (1 - 1 / OFFSET**2) * square
    tiny = square < SMALLEST_NORMAL
    return bool(np.isfinite(square).all() and not ((far | tiny) & (mean != 0)).any())


def _largest(covariance: np.ndarray, n_components: int, total: float) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, descending, and their vectors."""
    width = len(covariance)
    if not total > 0:
        return np.zeros(n_components), np.eye(width)[:, :n_components]
    if total < SMALL_TOTAL:  # the sparse solver stops at an absolute error
        values, vectors = _largest(covariance / total, n_components, 1.0)
        return values * total, vectors
    solve = partial(eigh, subset_by_index=(width - n_components, width - 1))
    if width > DENSE_EIGENSOLVER:
        options: dict[str, Any] = {"v0": np.ones(width), "tol": 1e-9}
        solve = partial(eigsh, k=n_components, **options)
    try:
        values, vectors = solve(covariance)
    except ArpackError:  # its first vector may lie among the zeros
        values, vectors = eigh(covariance, subset_by_index=(width - n_components, width - 1))
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


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
