"""From raw router logits to the score of every expert, as the router itself computes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Score = Callable[[torch.Tensor], torch.Tensor]

# in order: what most routers use first
FUNCTIONS: dict[str, Score] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: nn.functional.softplus(logits).sqrt(),
    "logit": lambda logits: logits,
}
TOLERANCE = 2e-2


def score_function(
    router: nn.Module, router_logits: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> tuple[str, Score]:
    """The function that turns a router's logits into scores, told by what it did.

    A router of our own says it (`selection_scores`). Otherwise applied weights are, up to normalisation per token and
    scale, the scores of the chosen experts: the first function of FUNCTIONS for which that holds. With one expert per
    token every function fits, and softmax is taken.

    Args:
        router: the router.
        router_logits: (n, E).
        top_k_index: (n, k), what the router chose and applied.
        top_k_weights: (n, k), what the router chose and applied.

    Returns:
        Its name and the function; softmax, marked as assumed, if none fits.
    """
    if hasattr(router, "selection_scores"):
        return "router", router.selection_scores
    for name, function in FUNCTIONS.items():
        chosen = function(router_logits.float()).gather(1, top_k_index)
        ratio = top_k_weights.float() / chosen
        spread = ratio.amax(dim=1) - ratio.amin(dim=1)
        if (spread <= TOLERANCE * ratio.abs().amax(dim=1)).all():
            return name, function
    return "softmax (assumed)", FUNCTIONS["softmax"]
