"""The chosen experts' unweighted outputs from the model's own pass: its experts run once, with weights of 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moe_probe.forward.site_call import SiteCall
from moe_probe.forward.sites import TWO_CHOICES, Site, called_with

LEARNED_ROWS = 64
# outputs (n, k, w), weights and experts (n, k) to the sum (n, w)
WeightedSum = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def in_order_of_choices(outputs: torch.Tensor, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The weighted sum as grouped kernels add it."""
    return (outputs * weights[..., None]).sum(1).to(outputs)


def in_order_of_experts(outputs: torch.Tensor, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The weighted sum as a loop over the experts adds it."""
    weighted = (outputs * weights[..., None]).to(outputs)
    rows, total = torch.arange(len(index), device=index.device), torch.zeros_like(weighted[:, 0])
    for place in index.argsort(dim=1, stable=True).unbind(1):
        total += weighted[rows, place]
    return total


@dataclass
class Unweighted:
    """Sees a site's unweighted outputs without running its experts twice.

    On a few rows of the first call, it finds the sum that equals the module's own in every bit. The experts then run
    with weights of 1, and that sum weights their outputs. Without such a sum, they run twice.

    Attributes:
        site: the layer.
        sum: the one that is equal; None where there is none.
        shape: of the rows that the module was called with, in a call with weights of 1; None in another call.
    """

    site: Site
    sum: WeightedSum | None = None
    tried: bool = False
    shape: torch.Size | None = None

    def begins(self, args: tuple, kwargs: dict[str, Any], call: SiteCall) -> bool:
        """Whether the call that begins can run with weights of 1."""
        if not self.tried:
            self.tried, self.sum = True, self._equal_sum(call)
        rows = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        self.shape = rows.shape if self.sum is not None and rows.ndim == 2 else None
        return self.shape is not None

    def arguments(self, args: tuple, kwargs: dict[str, Any], call: SiteCall) -> tuple[tuple, dict[str, Any]]:
        """The module's arguments with a row for each choice (n, k), and weights of 1."""
        choices = call.index.reshape(-1, 1)
        repeated = call.rows.repeat_interleave(call.index.shape[1], 0)
        index, weights = self.site.callable_with(choices, torch.ones_like(choices))
        return called_with(args, kwargs, rows=repeated, index=index, weights=weights)

    def ends(self, call: SiteCall, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts' weighted output, in the module's shape, and the unweighted outputs (n, k, w)."""
        if self.shape is None or self.sum is None:
            return output, self.site.selected_outputs(call.rows, call.index)
        outputs = output.reshape(*call.index.shape, -1)
        return self.sum(outputs, call.weights, call.index).reshape(self.shape), outputs

    def _equal_sum(self, call: SiteCall) -> WeightedSum | None:
        if type(self.site.experts).__name__ in TWO_CHOICES:
            return None
        rows, index, weights = call.rows[:LEARNED_ROWS], call.index[:LEARNED_ROWS], call.weights[:LEARNED_ROWS]
        outputs = self.site.selected_outputs(rows, index)
        routed = self.site.experts.forward(rows, *self.site.callable_with(index, weights)).reshape(rows.shape)
        sums = (in_order_of_choices, in_order_of_experts)
        return next((each for each in sums if torch.equal(each(outputs, weights, index), routed)), None)
