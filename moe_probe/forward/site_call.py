"""One call of the experts of a watched layer, for interventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moe_probe.errors import CannotWatch
from moe_probe.families import Layer
from moe_probe.families.experts_layout import FlatExperts, FusedExperts, experts_layout
from moe_probe.forward.affinity import Choice
from moe_probe.forward.requests import Requests
from moe_probe.forward.sites import Site
from moe_probe.routing import Intervention
from moe_probe.texts.corpus import Tokens

CHECKED_ROWS = 2
# largest difference between the experts' weighted sum and the block's routed output, relative to the largest output
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2

Only = Callable[[Intervention], torch.Tensor | None]


@dataclass(frozen=True)
class SiteCall:
    """The arguments of one call of a site's experts: a `routing.Call`.

    Attributes:
        site: the layer's modules.
        tokens: the tokens, including those of padding; empty if the call does not say which.
        rows, logits, index, weights: as for `routing.Call`.
        ranked: the values that top-k ranked, (n, E), if they were observed.
        again: lets the router decide again with requests.
        requests: the requests to the router so far.
        only: tokens to which an intervention is confined, (tokens,) bool; None for all.
        memory: as for `routing.Call`.
    """

    site: Site
    tokens: Tokens
    rows: torch.Tensor
    logits: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    ranked: torch.Tensor | None
    again: Callable[[SiteCall, Requests], SiteCall] = field(repr=False)
    requests: Requests
    only: Only = field(repr=False)
    memory: dict[Any, Any] = field(repr=False)

    @property
    def layer(self) -> Layer:
        """What the layer is made of."""
        return self.site.layer

    def chosen(self, index: torch.Tensor, weights: torch.Tensor) -> SiteCall:
        """The call with other choices and weights."""
        return replace(self, index=index, weights=weights.to(self.weights))

    def reselect(self, bias: torch.Tensor) -> SiteCall:
        """The router's own choice with a bias on its logits, on top of what was asked before.

        Raises:
            CannotWatch: the router's linear map was not met exactly once, or a masked expert is chosen all the same.
        """
        requests, everywhere = self.requests.copy(), torch.ones_like(self.index[:, 0], dtype=torch.bool)
        bias = bias.to(self.index.device)
        requests.mask(bias == -torch.inf, everywhere)
        requests.add_bias(bias.masked_fill(bias == -torch.inf, 0), everywhere)
        return self.granted(requests)

    def granted(self, requests: Requests) -> SiteCall:
        """The router's decision as requested.

        Raises:
            CannotWatch: the router's linear map was not met exactly once, or a masked expert is chosen all the same.
        """
        decided = self.again(self, requests)
        masked = requests.get("masked")
        if masked is not None and bool(masked.gather(1, decided.index).any()):
            raise CannotWatch(
                f"Layer {self.layer.index}, {type(self.site.router).__name__}: an expert that is masked was chosen all "
                f"the same; of {self.layer.num_experts} experts too few are left, or this router cannot be masked."
            )
        return decided

    def outputs(self) -> torch.Tensor:
        """Unweighted outputs of all experts, (E, n, w)."""
        return self.site.all_outputs(self.rows)

    def output_norms(self) -> torch.Tensor:
        """L2 norms of the unweighted outputs of all experts, (n, E), float32."""
        norms = [self.site.output(self.rows, expert).float().norm(dim=1) for expert in range(self.layer.num_experts)]
        return torch.stack(norms, 1)

    def run_experts(
        self, rows: torch.Tensor, index: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Unweighted outputs (m, w) of one expert (m,) for each row (m, w), with other parameters where given."""
        return self.site.apply(rows, index[:, None], parameters)

    @property
    def layout(self) -> FusedExperts | FlatExperts | None:
        """Where projections lie in the parameters of the experts module."""
        return experts_layout(self.site.block)

    def expert_parameters(self) -> Mapping[str, torch.Tensor]:
        """Parameters of the experts module, by name."""
        return dict(self.site.experts.named_parameters())

    def rows_of(self, intervention: Intervention) -> torch.Tensor:
        """Rows in which an intervention acts, (n,) bool."""
        places = self.places_of(intervention)
        return places.repeat_interleave(len(self.rows) // max(len(places), 1))

    def places_of(self, intervention: Intervention) -> torch.Tensor:
        """Tokens in which an intervention acts, (tokens,) bool."""
        return acting_places(intervention, self.tokens, self.only, len(self.rows) // self.layer.subtokens, self.rows)


def acting_places(
    intervention: Intervention, tokens: Tokens, only: Only, count: int, like: torch.Tensor
) -> torch.Tensor:
    """Tokens in which an intervention acts, (tokens,) bool, of those that run."""
    where, confined = getattr(intervention, "where", None), only(intervention)
    places = torch.ones(count, dtype=torch.bool) if where is None else torch.from_numpy(where.matches(tokens))
    places = places.to(like.device)
    return places if confined is None else places & confined.to(like.device)


def choice_of(call: SiteCall) -> Choice:
    """A call's choice in float32."""
    ranked = None if call.ranked is None else call.ranked.float().reshape(call.logits.shape)
    return Choice(call.logits.float(), ranked, call.index, call.weights.float())


def check_sum(call: SiteCall, routed: torch.Tensor) -> None:
    """sum_k weight_k * output_k == routed output, on the first and the last row.

    Raises:
        CannotWatch: it is not.
    """
    rows = torch.linspace(0, len(call.rows) - 1, CHECKED_ROWS, device=call.rows.device).long()
    with torch.no_grad():
        outputs = call.site.selected_outputs(call.rows[rows], call.index[rows]).float()  # (n, k, w)
        added = (call.weights[rows].float().unsqueeze(-1) * outputs).sum(1)
        expected = routed[rows].float()
    if not bool(expected.isfinite().all()):
        return  # said by whoever looks at the values
    error = float((added - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    allowed = TOLERANCE.get(call.rows.dtype, LOW_PRECISION_TOLERANCE)
    if not error <= allowed:
        raise CannotWatch(
            f"Layer {call.layer.index}, {type(call.site.block).__name__}: the experts' outputs, weighted and "
            f"added, differ from the block's routed output by {error:.1e} of it ({allowed:.0e} allowed); the block "
            "does something that is not known here."
        )
