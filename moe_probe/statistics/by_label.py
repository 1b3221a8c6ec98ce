"""Choices of experts by document label: shares, how far apart labels are, intervals and chance levels."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import LEVEL, block_sums
from moe_probe.statistics.states import Kept

ENDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def add_by_label(kept: Kept[np.ndarray], batch: LayerBatch) -> None:
    """Keep the choices of each expert in the documents of each label, dealt into blocks: (blocks, E) by label."""
    labels, document = batch.labels, np.repeat(batch.tokens.document, batch.layer.subtokens)
    selected = batch.selected
    for label in sorted(set(labels)):
        rows = np.flatnonzero(labels == label)
        kept.add(batch, block_sums(selected[rows], document[rows]), key=str(label))


def stack_labels(kept: Kept[np.ndarray]) -> tuple[list[str], np.ndarray]:
    """The labels except "", and their choices (layers, labels, blocks, E)."""
    names = [label for label in kept.keys if label]
    return names, kept.stacked("label", names).values if names else np.zeros(0)


def expert_shares(counts: np.ndarray) -> np.ndarray:
    """Share of each expert in the choices, (..., E)."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(-1, keepdims=True)


def total_variation(share: np.ndarray) -> np.ndarray:
    """Mean total variation distance of pairs of labels: half the sum of |p_a - p_b|, (..., labels, E) to (...)."""
    pairs = list(combinations(range(share.shape[-2]), 2))
    if not pairs:
        return np.full(share.shape[:-2], np.nan)
    one, other = (share[..., list(at), :] for at in zip(*pairs, strict=True))
    return 0.5 * np.abs(one - other).sum(-1).mean(-1)


def resampled(counts: np.ndarray, draws: int) -> np.ndarray:
    """Choices with documents resampled within their labels: (labels, blocks, E) to (draws, labels, E)."""
    generator = np.random.default_rng(0)
    found = np.full((draws, len(counts), counts.shape[-1]), np.nan)
    for at, blocks in enumerate(counts):
        used = blocks[blocks.any(1)]
        if len(used) > 1:
            found[:, at] = generator.multinomial(len(used), np.full(len(used), 1 / len(used)), size=draws) @ used
    return found


def permuted(counts: np.ndarray, draws: int) -> np.ndarray:
    """Choices with the labels dealt out at random among the documents: (labels, blocks, E) to (draws, labels, E)."""
    generator = np.random.default_rng(0)
    label, block = np.nonzero(counts.any(-1))
    units = counts[label, block]
    found = np.zeros((draws, len(counts), counts.shape[-1]))
    for draw in found:
        np.add.at(draw, generator.permutation(label), units)
    return found


def interval_ends(values: np.ndarray) -> np.ndarray:
    """Both ends of the 95 % interval of draws (draws, ...): (2, ...); nan where a draw is."""
    return np.quantile(values, ENDS, axis=0)
