"""Measures of the difference between the outputs of an edited and the unedited run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from moe_probe.forward.ran import of_documents
from moe_probe.forward.sharing import Expected, Tail
from moe_probe.texts.corpus import Batch

CACHED_VALUES = 1 << 17  # of logits that are looked at together


@dataclass(frozen=True)
class Measures:
    """Measures of some rows; a row is a document under one variant.

    Attributes:
        variant: number of each row's variant, (r,).
        document: number of each row's document, (r,).
        loss_change: change of the negative log-likelihood, summed over the predicted tokens, nats, (r,).
        kl: KL(unedited || edited), summed over positions, nats, (r,).
        changed: number of positions whose most likely next token differs, (r,).
        rerouted: share of the unedited run's choices that change, (r,), by MoE layer that ran.
    """

    variant: np.ndarray
    document: np.ndarray
    loss_change: np.ndarray
    kl: np.ndarray
    changed: np.ndarray
    rerouted: Mapping[int, np.ndarray]


def next_losses(log_probability: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of each token that follows another one, 0 beyond a document, (rows, places - 1), nats."""
    ids, mask = (each.to(log_probability.device) for each in (batch.input_ids(), batch.attention_mask()))
    losses = -log_probability[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
    return losses.masked_fill(mask[:, 1:] == 0, 0)


def measured(tail: Tail, variants: np.ndarray, before: Expected, logits: torch.Tensor) -> Measures:
    """Measures the difference of a finished run from its base.

    Args:
        tail: the run.
        variants: numbers of its rows' variants.
        before: log-probabilities of the base for its own documents.
        logits: of the run, (rows, places, vocabulary).
    """
    mask = tail.batch.attention_mask().bool().to(logits.device)
    parts = [slice(start, start + step) for start, step in runs_of(tail.rows, logits[0].numel())]
    ids = tail.batch.input_ids().to(logits.device)
    divergences = [divergence(before, int(tail.rows[part.start]), logits[part], ids[part]) for part in parts]
    change, kl, changed = (torch.cat(each) for each in zip(*divergences, strict=True))
    change = change.masked_fill(~mask[:, 1:], 0)
    return Measures(
        variant=variants,
        document=np.asarray([document.number for document in tail.batch.documents]),
        loss_change=change.sum(1).cpu().numpy(),
        kl=kl.double().masked_fill(~mask, 0).sum(1).cpu().numpy(),
        changed=(changed & mask).sum(1).cpu().numpy(),
        rerouted=rerouted(tail, mask),
    )


def runs_of(rows: torch.Tensor, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of stretches of equal rows, short enough to stay in the processor's cache."""
    most, start = max(1, CACHED_VALUES // size), 0
    values = rows.tolist()
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[start] or at - start == most:
            yield start, at - start
            start = at


def divergence(
    before: Expected, row: int, logits: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Measures the difference of one document's edited runs from its unedited one.

    Args:
        before: log-probabilities of the base.
        row: the document's row in it.
        logits: (runs, places, vocabulary).
        ids: of the document, once for each run, (runs, places).

    Returns:
        Change of the negative log-likelihood of each token but the first, (runs, places - 1); KL(before || after) and
        whether the most likely token changed, (runs, places).
    """
    places, targets = logits.shape[1], ids[:, 1:, None]
    known, after = before.log_probability[row, :places], logits.float().log_softmax(-1)
    base = known[:-1].expand(len(logits), -1, -1).gather(-1, targets)[..., 0].double()
    change = base - after[:, :-1].gather(-1, targets)[..., 0].double()
    kl = torch.linalg.vecdot(known - after, before.probability[row, :places].expand_as(after))
    return change, kl, logits.argmax(-1) != before.best[row, :places]


def rerouted(tail: Tail, mask: torch.Tensor) -> dict[int, np.ndarray]:
    """Share of the base's choices that the run changes, (rows,), by MoE layer."""
    shares = {}
    for layer, index in tail.index.items():
        before = of_documents(tail.base.index[layer], tail.rows, tail.base.batch.shape, tail.places)
        gone = ~(before[:, :, None] == index[:, None, :]).any(-1)
        by_place = gone.float().mean(1).reshape(len(tail.rows), tail.places, -1).mean(-1)
        shares[layer] = ((by_place * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return shares
