"""Change of a layer's routed output when experts are deleted."""

from __future__ import annotations

import torch

from moe_probe.routing import LayerBatch

ROUNDING = 1e-6  # of a row's largest weight: what a second decision of the same may differ by


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


def difference_products(outputs: torch.Tensor) -> torch.Tensor:
    """Products (n, E, E) float64 of the first expert's output and of the others' differences from it."""
    differences = outputs.transpose(0, 1).double()
    differences[:, 1:] -= differences[:, :1].clone()
    return differences @ differences.mT
