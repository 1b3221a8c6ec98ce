"""Sums over rows for similarities of pairs of experts."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.routing import LayerBatch


def logit_products(batch: LayerBatch) -> torch.Tensor:
    """Products of the experts' raw logits, summed over the rows, (E, E), float64."""
    logits = batch.router_logits.double()
    return logits.T @ logits


def output_sums(batch: LayerBatch) -> torch.Tensor:
    """Unweighted outputs of all experts, summed over all rows, (E, w), float64."""
    return batch.outputs.sum(1, dtype=torch.float64)


def routed_cosines(batch: LayerBatch) -> torch.Tensor:
    """Cosines of outputs on the rows that chose either expert: their sum and number, (E, E, 2), float64.

    Rows in which an output is zero do not count.
    """
    directions = torch.nn.functional.normalize(batch.outputs.double(), dim=-1, eps=1e-300)
    cosines = torch.einsum("inw,jnw->nij", directions, directions)
    selected = batch.selected.bool()
    either = selected[:, :, None] | selected[:, None, :]
    there = directions.abs().amax(-1).T > 0
    counted = either & there[:, :, None] & there[:, None, :]
    return torch.stack([(cosines * counted).sum(0), counted.double().sum(0)], -1)


def similarity_of_products(products: np.ndarray) -> np.ndarray:
    """Cosines (E, E) of the vectors whose products (E, E) these are; nan with a vector of zeros."""
    norms = np.sqrt(np.diagonal(products))
    return np.clip(ratio(products, norms[:, None] * norms), -1, 1)


def ratio(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The quotient; nan if the denominator is zero."""
    return values / np.where(by > 0, by, np.nan)


def mean_of_others(similarity: np.ndarray) -> np.ndarray:
    """Mean similarity of each expert (E,) with the others, without nan; nan if all are."""
    others = np.where(np.eye(len(similarity), dtype=bool), np.nan, similarity)
    known = np.isfinite(others)
    return ratio(np.where(known, others, 0).sum(1), known.sum(1))
