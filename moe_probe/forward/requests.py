"""What the interventions of one layer ask of its router and do to its experts' outputs, all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from moe_probe.errors import NotFitting
from moe_probe.families import Layer

STEERED = 0.01  # how far above the largest, or below the least, logit a steered expert comes (arXiv 2509.09660)


@dataclass(frozen=True)
class Requests:
    """A `routing.Request`: nothing is asked where a field is None.

    Attributes:
        layer: what the layer is made of.
        bias: on the logits, (n, E); None for none.
        masked: who cannot be chosen, (n, E) bool.
        promoted, demoted: whose logits are put above, or below, all others, (n, E) bool.
        top_k: experts per row, (n,) int64.
        scores: what is ranked in place of the router's own, (n, E); nan where the router ranks.
    """

    layer: Layer
    size: tuple[int, int]
    device: torch.device
    fields: dict[str, torch.Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fields)

    def get(self, name: str) -> torch.Tensor | None:
        """A field; None where it was not asked for."""
        return self.fields.get(name)

    def copy(self) -> Requests:
        """Another one with the same requests."""
        return replace(self, fields=dict(self.fields))

    def _masks(self, name: str) -> torch.Tensor:
        return self.fields.setdefault(name, torch.zeros(self.size, dtype=torch.bool, device=self.device)).clone()

    def add_bias(self, bias: torch.Tensor, rows: torch.Tensor) -> None:
        there = self.fields.get("bias", torch.zeros(self.size, dtype=torch.float32, device=self.device))
        self.fields["bias"] = there + torch.where(rows[:, None], bias.to(there), 0)

    def mask(self, experts: torch.Tensor, rows: torch.Tensor) -> None:
        self.fields["masked"] = self._masks("masked") | (experts.to(self.device) & rows[:, None])

    def steer(self, promote: torch.Tensor, demote: torch.Tensor, rows: torch.Tensor) -> None:
        for name, experts in (("promoted", promote), ("demoted", demote)):
            self.fields[name] = self._masks(name) | (experts.to(self.device) & rows[:, None])
        if bool((self.fields["promoted"] & self.fields["demoted"]).any()):
            raise NotFitting(f"Layer {self.layer.index}: an expert is promoted and demoted for one token; do only one.")

    def set_top_k(self, top_k: int, rows: torch.Tensor) -> None:
        there = self.fields.get("top_k", torch.full(self.size[:1], -1, dtype=torch.long, device=self.device))
        self._require_free(rows & (there >= 0) & (there != top_k), "the number of experts")
        self.fields["top_k"] = torch.where(rows, top_k, there)

    def rank(self, scores: torch.Tensor, rows: torch.Tensor) -> None:
        there = self.fields.get("scores", torch.full(self.size, torch.nan, dtype=torch.float32, device=self.device))
        self._require_free(rows & ~there[:, 0].isnan(), "the choice")
        self.fields["scores"] = torch.where(rows[:, None], scores.to(there), there)

    def _require_free(self, taken: torch.Tensor, what: str) -> None:
        if bool(taken.any()):
            raise NotFitting(
                f"Layer {self.layer.index}: two interventions set {what} for one token; pass where= of different "
                "tokens."
            )

    def shift(self, logits: torch.Tensor) -> torch.Tensor:
        """What comes on top of the router's raw logits (n, E); -inf masks an expert."""
        bias = self.fields.get("bias", torch.zeros(self.size, dtype=torch.float32, device=self.device))
        masked = self.fields.get("masked")
        if "promoted" in self.fields:
            biased = logits.float() + bias
            absent = biased.isinf() if masked is None else biased.isinf() | masked
            top = biased.masked_fill(absent, -torch.inf).amax(1, keepdim=True) + STEERED
            bottom = biased.masked_fill(absent, torch.inf).amin(1, keepdim=True) - STEERED
            bias = torch.where(self.fields["promoted"], top - logits, bias)
            bias = torch.where(self.fields["demoted"], bottom - logits, bias)
        return bias if masked is None else bias.masked_fill(masked, -torch.inf)


class Choosing(Protocol):
    """What `OutputChanges` is made for: chosen experts, (n, k)."""

    @property
    def index(self) -> torch.Tensor: ...

    @property
    def weights(self) -> torch.Tensor: ...


class OutputChanges:
    """A `routing.Changes` of one call.

    Attributes:
        replaced: choices whose outputs are replaced, (n, k) bool; None where nothing is changed.
        extra: what the changes add to the weighted sum, (n, w).
    """

    def __init__(self, layer: Layer, call: Choosing, width: int):
        self.layer, self.call, self.width = layer, call, width
        self.replaced: torch.Tensor | None = None
        self.extra: torch.Tensor | None = None

    def of_experts(self, experts: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        index = self.call.index
        return torch.isin(index, torch.tensor(list(experts), device=index.device)) & rows[:, None]

    def replace(self, choices: torch.Tensor, values: torch.Tensor) -> None:
        if self.replaced is not None and bool((self.replaced & choices).any()):
            raise NotFitting(
                f"Layer {self.layer.index}: two interventions replace one expert's output for one token; pass where= "
                "of different tokens."
            )
        self.replaced = choices if self.replaced is None else self.replaced | choices
        self.add(choices, values)

    def add(self, choices: torch.Tensor, values: torch.Tensor) -> None:
        weights = self.call.weights
        if self.extra is None:
            self.extra = weights.new_zeros(len(weights), self.width, dtype=values.dtype)
        rows = choices.nonzero()[:, 0]
        weighted = values * weights[choices].to(values)[:, None]
        self.extra = self.extra.index_add(0, rows, weighted)

    def weights(self) -> torch.Tensor:
        """What the experts are called with: no choice whose output is replaced counts, (n, k)."""
        return self.call.weights if self.replaced is None else self.call.weights.masked_fill(self.replaced, 0)
