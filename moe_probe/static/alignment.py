"""Matching the neurons of two experts (arXiv 2406.18219, section 4.1, "neuron reordering")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lap
import numpy as np
import torch
from scipy.stats import kendalltau

from moe_probe.static.geometry import NONE, Geometry, Tree

ROWS = 1024  # of neurons, whose products are summed at a time


@dataclass(frozen=True)
class Alignment:
    """The best match of one expert's neurons with another's.

    Attributes:
        permutation: neuron `permutation[a]` of the second expert matches neuron `a` of the first, (n,) int64.
        cosine: of the two flattened matrices after reordering the second; NaN if one of them is all zeros.
        kendall_tau: rank correlation of the permutation with the stored order; NaN if the cosine is, and for a single
            neuron.
    """

    permutation: np.ndarray
    cosine: float
    kendall_tau: float


def align(first: torch.Tensor, second: torch.Tensor) -> Alignment:
    """Finds the assignment of neurons that maximizes the sum of their cosines.

    Args:
        first: (n, d) float32, one neuron a row.
        second: (n, d) float32, one neuron a row.

    Examples:
        >>> rows = torch.eye(3)
        >>> align(rows, rows[[2, 0, 1]]).permutation
        array([1, 2, 0])
    """
    unscaled = first, second
    first, second = (_scaled(matrix) for matrix in unscaled)
    norms = [torch.linalg.vector_norm(matrix, dim=1) for matrix in (first, second)]
    directions = [
        matrix / norm.where(norm > 0, 1)[:, None] for matrix, norm in zip((first, second), norms, strict=True)
    ]
    cosines = directions[0] @ directions[1].T
    _, permutation, _ = lap.lapjv((1 - cosines).numpy())
    permutation = permutation.astype(np.int64)
    cosine = _cosine(unscaled[0], unscaled[1][torch.from_numpy(permutation)])
    tau: Any = np.nan
    if not np.isnan(cosine) and len(permutation) > 1:
        tau, _ = kendalltau(permutation, np.arange(len(permutation)))
    return Alignment(permutation, cosine, float(tau))


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Cosine of two flattened matrices, also accurate in 1 - cosine if they are nearly equal; NaN for zeros."""
    products = torch.zeros(2, 2, dtype=torch.float64)
    far = Tree.none(2)
    near = Tree(np.array([NONE, 0]), np.arange(2))
    tree = near if (first - second).abs().max() < first.abs().max() / 2 else far
    for rows in range(0, len(first), ROWS):
        pair = torch.stack([matrix[rows : rows + ROWS].flatten().double() for matrix in (first, second)])
        products += (differences := tree.subtract(pair)) @ differences.T
    return float(Geometry(products, tree).cosine[0, 1])


def _scaled(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix times a power of two, which is exact, so that squares of its entries fit into float32."""
    largest = matrix.abs().max()
    if not torch.isfinite(largest) or largest == 0:
        return matrix
    return torch.ldexp(matrix, -torch.frexp(largest).exponent)
