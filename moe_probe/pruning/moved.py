"""Change of a layer's routed output when experts are deleted, and the least change that is possible."""

from __future__ import annotations

import torch

from moe_probe.routing import LayerBatch

ROUNDING = 1e-6  # of a row's largest weight: what a second decision of the same may differ by
JITTER = 1e-10  # of the largest squared output; added to products that may be singular


def moved_squares(batch: LayerBatch) -> torch.Tensor:
    """Squared distances of the routed outputs, summed over the rows, for each set of deleted experts, (S,), float64.

    Computing with differences from the first expert's output keeps the digits of nearly equal experts.
    """
    products = difference_products(batch.outputs)
    before, largest = batch.weights.double(), batch.top_k_weights.abs().amax(1, keepdim=True)
    squares = []
    for index, weights in zip(batch.without_index, batch.without_weights, strict=True):
        change = (-before).scatter_add(1, index, weights.double())
        change *= (change.abs() > ROUNDING * largest).any(1, keepdim=True)
        change[:, 0] = change.sum(1)
        squares.append((change[:, None] @ products @ change[..., None]).sum())
    return torch.stack(squares).clamp(min=0)


def least_moved_squares(batch: LayerBatch) -> torch.Tensor:
    """Lower bounds (E,), float64, of the squared distances of the routed outputs without each expert.

    Whatever else is deleted and chosen instead, a row of an expert of weight w changes by at least w times the distance
    of the expert's output from the span of the other experts' outputs. The squares are summed over the rows.
    """
    outputs, weights = batch.outputs.transpose(0, 1).double(), batch.weights.double()
    products = outputs @ outputs.mT
    jitter = JITTER * products.diagonal(dim1=1, dim2=2).amax(1)
    identity = torch.eye(products.shape[1], dtype=torch.float64, device=products.device)
    lower, failed = torch.linalg.cholesky_ex(products + jitter[:, None, None] * identity)
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    apart = 1 / inverse.square().sum(1) - 10 * jitter[:, None]  # squared distances from the span of the others
    known = (failed == 0)[:, None] & (weights != 0)
    return torch.where(known, weights.square() * apart.clamp(min=0), 0).sum(0)


def difference_products(outputs: torch.Tensor) -> torch.Tensor:
    """Products (n, E, E) float64 of the first expert's output and of the others' differences from it."""
    differences = outputs.transpose(0, 1).double()
    differences[:, 1:] -= differences[:, :1].clone()
    return differences @ differences.mT
