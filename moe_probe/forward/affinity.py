"""The affinity of every expert as a function of raw router logits: finds the function, and confirms it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

Function = Callable[[torch.Tensor], torch.Tensor]

# in order: what most routers use first
FUNCTIONS: dict[str, Function] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: nn.functional.softplus(logits).sqrt(),
    "logit": lambda logits: logits,
}
CONFIG_FIELDS = ("scoring_func", "expert_selection_fn", "score_func", "moe_router_activation_func")
CONFIG_NAMES = {"sqrtsoftplus": "sqrt_softplus"}
TOLERANCE = 2e-2  # of a row's largest weight: routers compute in low precision, too


@dataclass(frozen=True)
class Affinity:
    """The function of a router's logits that determines its choices and weights.

    Attributes:
        name: name of the function in FUNCTIONS; `router` if the router itself provides it.
        function: maps (n, E) to (n, E).
        confirmed: whether the observed choices or weights agree with it in every row.
    """

    name: str
    function: Function
    confirmed: bool = True

    @property
    def kind(self) -> str:
        """The name, marked if nothing confirms it."""
        return self.name if self.confirmed else f"{self.name} (assumed)"


@dataclass(frozen=True)
class Choice:
    """A router's decision for some rows, float32.

    Attributes:
        logits: raw, (n, E).
        ranked: what its top-k was taken of, (n, E); None where that was not seen.
        index, weights: chosen experts and their applied weights, (n, k).
    """

    logits: torch.Tensor
    ranked: torch.Tensor | None
    index: torch.Tensor
    weights: torch.Tensor


def find_affinity(router: nn.Module, config: object, called: Iterable[str], choice: Choice) -> Affinity:
    """Finds the affinity of a router.

    moe_probe's own routers provide it (`selection_scores`). For others, candidates are, in this order, the function
    that the configuration names, those that the router called, and all of FUNCTIONS; the first one that agrees with the
    weights or ranks is the affinity.

    Args:
        router: the router.
        config: configuration of the model.
        called: names in FUNCTIONS of the functions that the router called on its logits.
        choice: the router's decision.

    Returns:
        The affinity; it is not confirmed if weights and ranks do not determine it, as for one expert of weight 1 per
        token.
    """
    if hasattr(router, "selection_scores"):
        return Affinity("router", cast(Function, router.selection_scores))
    named = [getattr(config, field, None) for field in CONFIG_FIELDS]
    named = [CONFIG_NAMES.get(name, name) for name in named if isinstance(name, str)]
    told = [name for name in dict.fromkeys([*named, *called]) if name in FUNCTIONS]
    for name in dict.fromkeys([*told, *FUNCTIONS]):
        if follows(FUNCTIONS[name], choice, name):
            return Affinity(name, FUNCTIONS[name])
    name = next(iter(told), "softmax")
    return Affinity(name, FUNCTIONS[name], confirmed=False)


def follows(function: Function, choice: Choice, name: str = "") -> bool:
    """Whether the applied weights, or what was ranked, follow a function of the logits on every row."""
    scores = function(choice.logits)
    several = choice.index.shape[1] > 1
    if several and _proportional(choice.weights, scores.gather(1, choice.index)):
        return True
    if name != "logit" and choice.ranked is not None and _shifted(choice.ranked, scores):
        return True
    return not several and _constant_ratio(choice.weights, scores.gather(1, choice.index))


def _proportional(weights: torch.Tensor, chosen: torch.Tensor) -> bool:
    """Whether weights (n, k) are, row by row, a factor times the chosen scores."""
    factor = weights.sum(1, keepdim=True) / chosen.sum(1, keepdim=True)
    error = (weights - factor * chosen).abs().amax(1)
    return bool((error <= TOLERANCE * weights.abs().amax(1)).all())


def _shifted(ranked: torch.Tensor, scores: torch.Tensor) -> bool:
    """Whether what was ranked (n, E) is the scores plus a constant per expert, and the scores vary."""
    shift = torch.where(ranked.isfinite(), ranked - scores, torch.nan)
    spread = _spread(shift)
    varies = _spread(torch.where(ranked.isfinite(), scores, torch.nan))
    return bool((spread <= TOLERANCE * varies).all() and (varies > 0).any())


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Largest minus smallest of each column, nan left out."""
    missing = values.isnan()
    top = values.masked_fill(missing, -torch.inf).amax(0)
    bottom = values.masked_fill(missing, torch.inf).amin(0)
    return (top - bottom).where(top >= bottom, 0)


def _constant_ratio(weights: torch.Tensor, chosen: torch.Tensor) -> bool:
    """Whether single weights (n, 1), which differ, are one factor times the chosen scores."""
    ratio = weights / chosen
    varies = weights.max() - weights.min() > TOLERANCE * weights.abs().max()
    return bool(varies and ratio.max() - ratio.min() <= TOLERANCE * ratio.abs().max())


def without_excluded(ranked: torch.Tensor, groups: int) -> torch.Tensor:
    """What was ranked, (n, E), with -inf for the experts of excluded groups, which published code fills with 0."""
    ranked = ranked.masked_fill(ranked <= torch.finfo(ranked.dtype).min, -torch.inf)
    if groups <= 1 or ranked.shape[1] % groups:
        return ranked
    parts = ranked.view(len(ranked), groups, -1)
    empty = (parts == 0).all(-1, keepdim=True)
    return parts.masked_fill(empty, -torch.inf).view_as(ranked)


def ranks(ranked: torch.Tensor, index: torch.Tensor) -> bool:
    """Whether the chosen experts (n, k) are those with the largest values, on every row."""
    chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, index, True)
    inner = ranked.masked_fill(~chosen, torch.inf).amin(1)
    outer = ranked.masked_fill(chosen, -torch.inf).amax(1)
    return bool((inner >= outer).all())
