"""Watches one MoE layer: hooks on its parts, and the changes that interventions make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from moe_probe.errors import CannotWatch
from moe_probe.forward.affinity import Affinity, find_affinity, follows, ranks, without_excluded
from moe_probe.forward.deciding import Deciding
from moe_probe.forward.redeciding import Decided, Redecider, unwatchable
from moe_probe.forward.requests import OutputChanges, Requests
from moe_probe.forward.site_call import Only, SiteCall, acting_places, check_sum, choice_of
from moe_probe.forward.sites import Site, called_with, expert_call, raw_logits
from moe_probe.forward.steps import carriers
from moe_probe.forward.unweighted import Unweighted
from moe_probe.routing import Intervention, Need
from moe_probe.texts.corpus import Tokens


@dataclass(frozen=True)
class Event:
    """One call of one MoE layer, all rows of it (padding too).

    Attributes:
        site: the layer.
        router_logits: raw, (n, E); with an intervention's bias, where there is one.
        scores: the affinity, (n, E), float32.
        selection: what top-k ranks, (n, E), float32.
        score_kind: the affinity's function, and whether it is assumed.
        expert_input: (n, w).
        top_k_index, top_k_weights: chosen experts and what multiplies their outputs, (n, k).
        routed_output: the weighted sum, (n, w).
        block_output: of the whole block, (tokens, d).
        shared_output: of the shared block, (tokens, d), where there is one.
        selected_outputs: unweighted outputs of the chosen experts, (n, k, w), where they are asked for.
        residual: the residual stream before the block's norm, (tokens, d), where it is asked for and found.
        without: choices and weights (S, n, k) if experts were deleted, for each of S sets, where they are asked for.
        gate: the weight (E, w) of the router's linear map, where it has one; of the first call of each layer alone.
    """

    site: Site
    router_logits: torch.Tensor
    scores: torch.Tensor
    selection: torch.Tensor
    score_kind: str
    expert_input: torch.Tensor
    top_k_index: torch.Tensor
    top_k_weights: torch.Tensor
    routed_output: torch.Tensor
    block_output: torch.Tensor
    shared_output: torch.Tensor | None = None
    selected_outputs: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    without: tuple[torch.Tensor, torch.Tensor] | None = None
    gate: torch.Tensor | None = None


@dataclass
class WatchedSite:
    """One site while its hooks are in place: what is known of it, and the parts of the call that runs.

    Attributes:
        site: the layer.
        config: of the model.
        interventions: says which act in this layer now.
        tokens: the tokens of the running pass.
        only: tokens to which an intervention is confined.
        needs: what is asked for beside what every event has.
        deleted: sets of experts without which `Need.WITHOUT` asks what would be chosen; each one alone by default.
        affinity: the affinity, found at the first recorded call.
        checked: whether a call has been checked.
        anew: whether the router can choose again; None until that is needed.
    """

    site: Site
    config: object
    on_event: Callable[[Event], None] | None
    interventions: Callable[[], Sequence[Intervention]]
    tokens: Callable[[], Tokens]
    only: Only
    needs: frozenset[Need] = frozenset()
    deleted: Sequence[Sequence[int]] = ()
    affinity: Affinity | None = None
    checked: bool = False
    anew: bool | None = None
    deciding: Deciding | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    passed: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redecider = Redecider(self.site)
        self.unweighted = Unweighted(self.site)

    def on_beside(self, args: tuple, output: Any) -> None:
        """A module beside the block has run; it may be the norm before it."""
        if args and all(isinstance(each, torch.Tensor) for each in (args[0], output)) and args[0].shape == output.shape:
            self.passed.append((args[0], output))

    def before_block(self, args: tuple, kwargs: dict) -> None:
        """A call of the block begins."""
        if not self.redecider.running:
            self.parts = self.redecider.parts = {"block": (args, kwargs)}
            hidden = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
            self.parts["residual"] = next((before for before, after in self.passed if after is hidden), None)
            self.passed = []
            if self.on_event is not None:
                self.deciding = Deciding(self.site.layer.num_experts, self.site.layer.top_k)
                self.deciding.__enter__()

    def on_router(self, args: tuple, kwargs: dict, output: Any) -> None:
        """The router has decided."""
        if not self.redecider.running:
            self.parts["router"] = (args, kwargs, output)

    def before_experts(self, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The experts are called: the interventions' choices take the place of the router's."""
        rows, index, weights = expert_call(args, kwargs)
        if self.redecider.running:
            raise Decided(index.long(), weights)
        index = self.site.chosen_experts(index, weights)
        self.end_deciding()
        if "router" not in self.parts:
            raise unwatchable(self.site, "ran without calling its router")
        self.parts["unchanged"] = unchanged = self.call_of(rows, index, weights)
        self.parts["acting"] = acting = sorted(self.interventions(), key=lambda each: each.stage)
        self.parts["call"] = call = decided_by(acting, unchanged)
        if Need.WITHOUT in self.needs and self.on_event is not None:
            self.parts["without"] = self.without_each(call)
        self.parts["changes"] = changes = OutputChanges(self.site.layer, call, rows.shape[-1])
        for intervention in acting:
            intervention.change(call, changes)
        changed = call is not unchanged or changes.replaced is not None
        if changed:
            self.carry(call.logits)
        self.parts["applied"] = applied = call.chosen(call.index, changes.weights())
        if self.wants_selected and self.unweighted.begins(args, kwargs, applied):
            return self.unweighted.arguments(args, kwargs, applied)
        if not changed:
            return None
        index, weights = self.site.callable_with(applied.index, applied.weights)
        return called_with(args, kwargs, index=index, weights=weights)

    @property
    def wants_selected(self) -> bool:
        """Whether events include the chosen experts' unweighted outputs."""
        return Need.SELECTED in self.needs and self.on_event is not None

    def call_of(self, rows: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> SiteCall:
        """The call of the experts as the router decided it."""
        experts = self.site.layer.num_experts
        return SiteCall(
            site=self.site,
            tokens=self.tokens(),
            rows=rows,
            logits=raw_logits(self.parts["router"][2], experts, len(rows)),
            index=index.long(),
            weights=weights,
            ranked=None if self.deciding is None else self.deciding.ranked,
            again=self.redecider.decide_again,
            requests=Requests(self.site.layer, (len(rows), experts), rows.device),
            only=self.only,
            memory=self.memory,
        )

    def without_each(self, call: SiteCall) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Choices and weights (S, n, k) if experts were deleted, for each of S sets; None where that cannot be."""
        experts, decisions = self.site.layer.num_experts, []
        sets = self.deleted or [[expert] for expert in range(experts)]
        if call.index.shape[1] > experts - max(map(len, sets)) or not self.chooses_anew(call):
            return None
        for deleted in sets:
            mask = torch.zeros(experts, device=call.index.device)
            mask[list(deleted)] = -torch.inf
            decided: Any = replace(call, memory=dict(call.memory)).reselect(mask)
            for intervention in self.parts["acting"]:
                decided = intervention.route(decided)
            decisions.append((decided.index, decided.weights))
        index, weights = zip(*decisions, strict=True)
        return torch.stack(index), torch.stack(weights)

    def chooses_anew(self, call: SiteCall) -> bool:
        """Whether the router makes another choice where the first one is deleted; found at the first call.

        Raises:
            CannotWatch: it does not, and which experts are deleted was asked for.
        """
        if self.anew is None:
            first = torch.zeros(self.site.layer.num_experts, device=call.index.device)
            first[call.index[0, 0]] = -torch.inf
            try:
                replace(call, memory=dict(call.memory)).reselect(first)
            except CannotWatch:
                if self.deleted:
                    raise
                self.anew = False
            else:
                self.anew = True
        return self.anew

    def carry(self, logits: torch.Tensor) -> None:
        """Let what carries the router's logits to the next layer (MoE++) carry the changed ones."""
        args, kwargs = self.parts["block"]
        output = self.parts["router"][2]
        carried = output[0] if isinstance(output, tuple) else output
        for carrier in carriers(args, kwargs):
            if carrier.logits is carried:
                carrier.logits = logits.reshape(carried.shape)

    def on_experts(self, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        """The experts have run."""
        call, changes, applied = (self.parts[name] for name in ("call", "changes", "applied"))
        weighted = output
        if self.wants_selected:
            weighted, self.parts["selected"] = self.unweighted.ends(applied, output)
        routed = weighted.reshape(call.rows.shape)
        if not self.checked:
            check_sum(applied, routed)
            self.checked = True
        changed = routed if changes.extra is None else (routed + changes.extra).to(routed.dtype)
        for intervention in self.parts["acting"]:
            changed = intervention.output(call, changed)
        self.parts["routed"] = changed
        return None if changed is routed and weighted is output else changed.reshape(weighted.shape)

    def on_shared(self, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        """The shared experts in the block have run."""
        if self.redecider.running:
            return None
        changed = self.shared_changed(output)
        self.parts["shared"] = changed.reshape(-1, changed.shape[-1])
        return None if changed is output else changed

    def on_shared_beside(self, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        """The shared experts beside the block have run."""
        changed = self.shared_changed(output)
        return None if changed is output else changed

    def shared_changed(self, output: torch.Tensor) -> torch.Tensor:
        """The output of shared experts as interventions change it."""
        rows = changed = output.reshape(-1, output.shape[-1])
        for intervention in sorted(self.interventions(), key=lambda each: each.stage):
            places = acting_places(intervention, self.tokens(), self.only, len(rows), rows)
            changed = intervention.shared(self.site.layer, changed, places)
        return output if changed is rows else changed.reshape(output.shape)

    def on_block(self, args: tuple, output: torch.Tensor | Sequence[torch.Tensor] | None) -> None:
        """The call of the block ends; without output where an error ended it."""
        if self.redecider.running or not self.parts:
            return
        if output is None:
            self.abandon()
            return
        if "routed" not in self.parts:
            raise unwatchable(self.site, "ran without calling its experts")
        parts, self.parts = self.parts, {}
        if self.on_event is None:
            return
        block_output = output if isinstance(output, torch.Tensor) else output[0]
        self.on_event(self.event(parts, block_output))

    def event(self, parts: Mapping[str, Any], block_output: torch.Tensor) -> Event:
        """What was seen of a call."""
        call: SiteCall = parts["call"]
        gates = [] if self.deciding is None or self.affinity is not None else self.deciding.gates
        affinity, selection = self.scores(parts["unchanged"], call)
        scores = affinity.function(call.logits.float()).float()
        return Event(
            site=self.site,
            router_logits=call.logits,
            scores=scores,
            selection=scores if selection is None else selection,
            score_kind=affinity.kind if selection is not None else f"{affinity.kind}, selection (assumed)",
            expert_input=call.rows,
            top_k_index=call.index,
            top_k_weights=call.weights,
            routed_output=parts["routed"],
            block_output=block_output.reshape(-1, block_output.shape[-1]),
            shared_output=parts.get("shared"),
            selected_outputs=parts.get("selected"),
            residual=None if (residual := parts["residual"]) is None else residual.reshape(-1, residual.shape[-1]),
            without=parts.get("without"),
            gate=gates[0] if len(gates) == 1 else None,
        )

    def scores(self, unchanged: SiteCall, call: SiteCall) -> tuple[Affinity, torch.Tensor | None]:
        """The affinity, checked on all rows of the router's own choice; and what top-k ranks, None if not seen."""
        choice = choice_of(unchanged)
        if self.affinity is None:
            called = () if self.deciding is None else self.deciding.called
            self.affinity = find_affinity(self.site.router, self.config, called, choice)
        affinity = self.affinity
        if affinity.confirmed and affinity.name != "router" and not follows(affinity.function, choice, affinity.name):
            affinity = replace(affinity, confirmed=False)
        ranked = choice_of(call).ranked
        if ranked is None or not (call.index is not unchanged.index or ranks(ranked, call.index)):
            return affinity, None
        if torch.equal(ranked, call.logits.float()):
            return affinity, affinity.function(ranked).float()
        return affinity, without_excluded(ranked, num_groups(self.site.router, self.config))

    def end_deciding(self) -> None:
        """Leaves the mode that observes the router's decision."""
        if self.deciding is not None and "decided" not in self.parts:
            self.parts["decided"] = True
            self.deciding.__exit__(None, None, None)

    def abandon(self) -> None:
        """A call was left: by an error, or because the block does not run in it."""
        if self.parts:
            self.end_deciding()
            self.parts = {}


def decided_by(acting: Sequence[Intervention], call: Any) -> Any:
    """The call as interventions decide it: what they request of the router first, then what they put in its place."""
    for intervention in acting:
        intervention.decide(call, call.requests)
    if call.requests:
        call = call.granted(call.requests)
    for intervention in acting:
        call = intervention.route(call)
    return call


def num_groups(router: nn.Module, config: object) -> int:
    """Groups of experts of which a router excludes some; 1 where there are none."""
    values = (getattr(holder, name, None) for holder in (router, config) for name in ("num_group", "n_group"))
    return next((groups for groups in values if isinstance(groups, int)), 1)
