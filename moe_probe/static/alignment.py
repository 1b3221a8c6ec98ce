"""Matching the neurons of two experts (arXiv 2406.18219, section 4.1, "neuron reordering")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lap
import numpy as np
import torch
from scipy.stats import kendalltau


@dataclass(frozen=True)
class Alignment:
    """The best match of one expert's neurons with another's.

    Attributes:
        permutation: neuron `permutation[a]` of the second expert matches neuron `a` of the first, (n,) int64.
        cosine: of the two flattened matrices after reordering the second; NaN where one of them is all zeros.
        kendall_tau: rank correlation of the permutation with the stored order; NaN where the cosine is, and for one
            neuron.
    """

    permutation: np.ndarray
    cosine: float
    kendall_tau: float


def align(first: torch.Tensor, second: torch.Tensor) -> Alignment:
    """The assignment of neurons that maximises the sum of their cosines.

    Args:
        first: (n, d) float32, one neuron a row.
        second: (n, d) float32, one neuron a row.

    Examples:
        >>> rows = torch.eye(3)
        >>> align(rows, rows[[2, 0, 1]]).permutation
        array([1, 2, 0])
    """
    first, second = (_scaled(matrix) for matrix in (first, second))
    norms = [torch.linalg.vector_norm(matrix, dim=1) for matrix in (first, second)]
    directions = [
        matrix / norm.where(norm > 0, 1)[:, None] for matrix, norm in zip((first, second), norms, strict=True)
    ]
    cosines = directions[0] @ directions[1].T
    _, permutation, _ = lap.lapjv((1 - cosines).numpy())
    permutation = permutation.astype(np.int64)
    rows = torch.arange(len(first))
    matched = cosines[rows, torch.from_numpy(permutation)].double() * norms[0].double()
    dot = (matched * norms[1][torch.from_numpy(permutation)].double()).sum()
    total = [torch.linalg.vector_norm(norm.double()) for norm in norms]
    defined = bool(total[0] * total[1] > 0)
    tau: Any = np.nan
    if defined and len(permutation) > 1:
        tau, _ = kendalltau(permutation, np.arange(len(permutation)))
    return Alignment(permutation, float(dot / (total[0] * total[1])), float(tau))


def _scaled(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix times a power of two, which changes no digit, so that its squares fit into float32."""
    largest = matrix.abs().max()
    if not torch.isfinite(largest) or largest == 0:
        return matrix
    return torch.ldexp(matrix, -torch.frexp(largest).exponent)
