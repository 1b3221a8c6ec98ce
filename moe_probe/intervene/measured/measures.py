"""How far an edited run's output is from that of the unedited one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from moe_probe.forward.resuming import Tail, of_documents
from moe_probe.texts.corpus import Batch


@dataclass(frozen=True)
class Measures:
    """Of some rows; a row is a document under one variant.

    Attributes:
        variant: number of each row's variant, (r,).
        document: number of each row's document, (r,).
        loss_change: change of the negative log-likelihood, summed over the predicted tokens, nats, (r,).
        kl: KL(unedited || edited), summed over positions, nats, (r,).
        changed: positions whose most likely next token is another one, (r,).
        rerouted: by MoE layer that ran, share of the unedited run's choices that are no longer made, (r,).
    """

    variant: np.ndarray
    document: np.ndarray
    loss_change: np.ndarray
    kl: np.ndarray
    changed: np.ndarray
    rerouted: Mapping[int, np.ndarray]


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Of the next token, (rows, places, vocabulary), float32."""
    return logits.float().log_softmax(-1)


def next_losses(log_probability: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of each token that follows another one, 0 beyond a document, (rows, places - 1), nats."""
    ids, mask = (each.to(log_probability.device) for each in (batch.input_ids(), batch.attention_mask()))
    found = -log_probability[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
    return found.masked_fill(mask[:, 1:] == 0, 0)


def measured(tail: Tail, variants: np.ndarray, before: torch.Tensor, after: torch.Tensor) -> Measures:
    """How far a finished run is from its base.

    Args:
        tail: the run.
        variants: numbers of its rows' variants.
        before, after: log-probabilities of the same rows, (rows, places, vocabulary).
    """
    mask = tail.batch.attention_mask().bool().to(after.device)
    change = next_losses(after, tail.batch) - next_losses(before, tail.batch)
    divergence = torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    changed = after.argmax(-1) != before.argmax(-1)
    return Measures(
        variant=variants,
        document=np.asarray([document.number for document in tail.batch.documents]),
        loss_change=change.sum(1).cpu().numpy(),
        kl=divergence.double().masked_fill(~mask, 0).sum(1).cpu().numpy(),
        changed=(changed & mask).sum(1).cpu().numpy(),
        rerouted=rerouted(tail, mask),
    )


def rerouted(tail: Tail, mask: torch.Tensor) -> dict[int, np.ndarray]:
    """By MoE layer, share of the base's choices that the run's rows no longer make, (rows,)."""
    found = {}
    for layer, index in tail.index.items():
        before = of_documents(tail.base.index[layer], tail.rows, tail.base.batch.shape, tail.places)
        gone = ~(before[:, :, None] == index[:, None, :]).any(-1)
        by_place = gone.float().mean(1).reshape(len(tail.rows), tail.places, -1).mean(-1)
        found[layer] = ((by_place * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return found
