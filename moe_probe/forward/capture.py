"""Forward hooks that see all that MoE layers do, and change nothing but what an intervention changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from moe_probe.errors import CannotWatch
from moe_probe.families import Layer
from moe_probe.families.experts_layout import FlatExperts, FusedExperts, experts_layout
from moe_probe.forward.affinity import Affinity, Choice, find_affinity, follows, ranks, without_excluded
from moe_probe.forward.deciding import Deciding, Redeciding, correction_biases
from moe_probe.forward.requests import OutputChanges, Requests
from moe_probe.forward.sites import Site, expert_call, raw_logits
from moe_probe.forward.steps import OWNER, carriers
from moe_probe.routing import Intervention, Need
from moe_probe.texts.corpus import Tokens

CHECKED_ROWS = 2
# largest difference between the experts' weighted sum and the block's routed output, relative to the largest output
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2

Handles = list[Any]


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
        residual: the residual stream before the block's norm, (tokens, d), where it is asked for and found.
        without: choices and weights (E, n, k) if one expert were deleted, for each expert, where they are asked for.
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
    residual: torch.Tensor | None = None
    without: tuple[torch.Tensor, torch.Tensor] | None = None
    gate: torch.Tensor | None = None


Only = Callable[[Intervention], torch.Tensor | None]


@dataclass(frozen=True)
class SiteCall:
    """What reaches a site's experts: a `routing.Call`.

    Attributes:
        site: the layer's modules.
        tokens: the tokens, those of padding too; empty where nobody says which.
        rows, logits, index, weights: as for `routing.Call`.
        ranked: what top-k was taken of, (n, E), where it was seen.
        again: decides once more as requested.
        requests: what has been asked of the router.
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


class Decided(Exception):
    """Ends a second run of a block where its experts would begin."""

    def __init__(self, index: torch.Tensor, weights: torch.Tensor):
        self.index, self.weights = index, weights


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
        affinity: found at the first call that is told of.
        checked: whether a call has been checked.
    """

    site: Site
    config: object
    on_event: Callable[[Event], None] | None
    interventions: Callable[[], Sequence[Intervention]]
    tokens: Callable[[], Tokens]
    only: Only
    needs: frozenset[Need] = frozenset()
    affinity: Affinity | None = None
    checked: bool = False
    deciding: Deciding | None = None
    again: bool = False
    parts: dict[str, Any] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    passed: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def on_beside(self, args: tuple, output: Any) -> None:
        """A module beside the block has run; it may be the norm before it."""
        if args and all(isinstance(each, torch.Tensor) for each in (args[0], output)) and args[0].shape == output.shape:
            self.passed.append((args[0], output))

    def before_block(self, args: tuple, kwargs: dict) -> None:
        """A call of the block begins."""
        if not self.again:
            self.parts = {"block": (args, kwargs)}
            hidden = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
            self.parts["residual"] = next((before for before, after in self.passed if after is hidden), None)
            self.passed = []
            if self.on_event is not None:
                self.deciding = Deciding(self.site.layer.num_experts, self.site.layer.top_k)
                self.deciding.__enter__()

    def on_router(self, args: tuple, kwargs: dict, output: Any) -> None:
        """The router has decided."""
        if not self.again:
            self.parts["router"] = (args, kwargs, output)

    def before_experts(self, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The experts are called: the interventions' choices take the place of the router's."""
        rows, index, weights = expert_call(args, kwargs)
        if self.again:
            raise Decided(index.long(), weights)
        self.end_deciding()
        if "router" not in self.parts:
            raise self.unwatchable("ran without calling its router")
        logits = raw_logits(self.parts["router"][2], self.site.layer.num_experts, len(rows))
        ranked = None if self.deciding is None else self.deciding.ranked
        size = len(rows), self.site.layer.num_experts
        asked = Requests(self.site.layer, size, rows.device)
        call: Any = SiteCall(
            site=self.site,
            tokens=self.tokens(),
            rows=rows,
            logits=logits,
            index=index.long(),
            weights=weights,
            ranked=ranked,
            again=self.decide_again,
            requests=asked,
            only=self.only,
            memory=self.memory,
        )
        self.parts["unchanged"] = call
        self.parts["acting"] = acting = sorted(self.interventions(), key=lambda each: each.stage)
        for intervention in acting:
            intervention.decide(call, asked)
        if asked:
            call = call.granted(asked)
        for intervention in acting:
            call = intervention.route(call)
        self.parts["call"] = call
        if Need.WITHOUT in self.needs and self.on_event is not None:
            self.parts["without"] = self.without_each(call)
        self.parts["changes"] = changes = OutputChanges(self.site.layer, call, rows.shape[-1])
        for intervention in acting:
            intervention.change(call, changes)
        if call is self.parts["unchanged"] and changes.replaced is None:
            return None
        self.carry(call.logits)
        shape = index.shape[:-1] + call.index.shape[-1:]
        return with_choice(args, kwargs, call.index.to(index).reshape(shape), changes.weights())

    def without_each(self, call: SiteCall) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Choices and weights (E, n, k) if one expert were deleted, for each expert; None where none can be spared."""
        experts, decisions = self.site.layer.num_experts, []
        if call.index.shape[1] >= experts:
            return None
        for expert in range(experts):
            mask = torch.zeros(experts, device=call.index.device)
            mask[expert] = -torch.inf
            decided: Any = replace(call, memory=dict(call.memory)).reselect(mask)
            for intervention in self.parts["acting"]:
                decided = intervention.route(decided)
            decisions.append((decided.index, decided.weights))
        index, weights = zip(*decisions, strict=True)
        return torch.stack(index), torch.stack(weights)

    def carry(self, logits: torch.Tensor) -> None:
        """Let what carries the router's logits to the next layer (MoE++) carry the changed ones."""
        args, kwargs = self.parts["block"]
        output = self.parts["router"][2]
        carried = output[0] if isinstance(output, tuple) else output
        for carrier in carriers(args, kwargs):
            if carrier.logits is carried:
                carrier.logits = logits.reshape(carried.shape)

    def on_experts(self, output: torch.Tensor) -> torch.Tensor | None:
        """The experts have run."""
        call, changes = self.parts["call"], self.parts["changes"]
        routed = output.reshape(call.rows.shape)
        if not self.checked:
            check_sum(call.chosen(call.index, changes.weights()), routed)
            self.checked = True
        changed = routed if changes.extra is None else (routed + changes.extra).to(routed.dtype)
        for intervention in self.parts["acting"]:
            changed = intervention.output(call, changed)
        self.parts["routed"] = changed
        return None if changed is routed else changed.reshape(output.shape)

    def on_shared(self, output: torch.Tensor) -> torch.Tensor | None:
        """The shared block has run."""
        if self.again:
            return None
        rows = changed = output.reshape(-1, output.shape[-1])
        for intervention in sorted(self.interventions(), key=lambda each: each.stage):
            places = acting_places(intervention, self.tokens(), self.only, len(rows), rows)
            changed = intervention.shared(self.site.layer, changed, places)
        self.parts["shared"] = changed
        return None if changed is rows else changed.reshape(output.shape)

    def on_block(self, output: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """The call of the block ends."""
        if self.again:
            return
        if "routed" not in self.parts:
            raise self.unwatchable("ran without calling its experts")
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

    def decide_again(self, call: SiteCall, requests: Requests) -> SiteCall:
        """The router's own decision as requested, by its own code; once for each number of experts per row."""
        default = self.site.layer.top_k
        asked = requests.get("top_k")
        if asked is None:
            return self._decide(call, requests, default)
        wanted = asked.where(asked >= 0, default)
        decided = {count: self._decide(call, requests, count) for count in wanted.unique().tolist()}
        if len(decided) == 1:
            return next(iter(decided.values()))
        most = decided[max(decided)]
        index, weights = most.index.clone(), most.weights.clone()
        for count, fewer in decided.items():
            rows = wanted == count
            index[rows, :count], weights[rows, :count] = fewer.index[rows], fewer.weights[rows]
            index[rows, count:], weights[rows, count:] = fewer.index[rows, :1], 0
        return replace(most, index=index, weights=weights)

    def _decide(self, call: SiteCall, requests: Requests, count: int) -> SiteCall:
        """The router's own decision, with so many experts per row."""
        router, layer, shift = self.site.router, self.site.layer, requests.shift(call.logits)
        corrections = correction_biases(self.site.block, layer.num_experts)
        mode = Redeciding(layer.num_experts, layer.top_k, shift, corrections, count, requests.get("scores"))
        if hasattr(router, "select"):  # of our own: logits and selection are methods
            deciding: Any = router
            logits = call.logits + shift.to(call.logits)
            with mode:
                weights, index = deciding.select(logits)
        else:
            decided = self._decided_by_router(mode) or self._decided_by_block(mode)
            if decided is None or mode.met != 1 or mode.logits is None:
                raise self.unwatchable(
                    f"has {mode.met} linear maps to its experts where one is expected, so its choice"
                )
            index, weights = decided
            logits = mode.logits.reshape(call.logits.shape).to(call.logits)
        index, weights = (value.reshape(len(call.rows), -1) for value in (index, weights))
        self._require_asked(index.shape[1], count, mode, requests)
        ranked = None if mode.ranked is None else mode.ranked.reshape(logits.shape)
        return replace(
            call,
            logits=logits,
            index=index.long(),
            weights=weights.to(call.weights),
            ranked=ranked,
            requests=requests,
        )

    def _require_asked(self, seen: int, wanted: int, mode: Redeciding, requests: Requests) -> None:
        """Raises: CannotWatch: the router chose otherwise than by one top-k of all its experts."""
        chose_otherwise = mode.counted == 0 and (requests.get("scores") is not None or wanted != mode.top_k)
        if seen != wanted or chose_otherwise:
            raise CannotWatch(
                f"Layer {self.site.layer.index}, {type(self.site.router).__name__}: the router does not choose by one "
                f"top-k of all {mode.experts} experts, so no other choice can be put in its place."
            )

    def _decided_by_router(self, mode: Redeciding) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Choices and weights where the router itself returns what its experts were called with."""
        args, kwargs, output = self.parts["router"]
        unchanged: SiteCall = self.parts["unchanged"]
        places = choice_places(output, unchanged)
        if places is None:
            return None
        with mode:
            again = self.site.router.forward(*args, **kwargs)
        return again[places[0]], again[places[1]]

    def _decided_by_block(self, mode: Redeciding) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Choices and weights where the block decides: it runs once more, up to its experts."""
        args, kwargs = self.parts["block"]
        self.again = True
        try:
            with mode:
                self.site.block.forward(*args, **kwargs)
        except Decided as decided:
            return decided.index, decided.weights
        finally:
            self.again = False
        return None

    def end_deciding(self) -> None:
        """The mode that looks on while the router decides is left."""
        if self.deciding is not None and "decided" not in self.parts:
            self.parts["decided"] = True
            self.deciding.__exit__(None, None, None)

    def abandon(self) -> None:
        """A call was left by an error."""
        if self.parts and not self.again:
            self.end_deciding()
            self.parts = {}

    def unwatchable(self, what: str) -> CannotWatch:
        """The error that says what a layer does."""
        block = type(self.site.block).__name__
        return CannotWatch(f"Layer {self.site.layer.index}, {block}: the block {what}; it cannot be watched.")


@contextmanager
def capture(
    sites: Iterable[Site],
    on_event: Callable[[Event], None] | None,
    owner: object | None = None,
    config: object = None,
    interventions: Sequence[Intervention] | Callable[[], Sequence[Intervention]] = (),
    tokens: Callable[[], Tokens] = Tokens.none,
    only: Only = lambda _: None,
    needs: frozenset[Need] = frozenset(),
) -> Iterator[Mapping[int, WatchedSite]]:
    """Within, `on_event` is called after every call of each site's block.

    The first call of each site is checked: the experts' outputs, weighted and added, are the block's routed output.

    Args:
        sites: where to look.
        on_event: what to do with what was seen; must not change it. None to have nothing told, which is quicker.
        owner: whose forward passes are watched; by default those that are nobody's, such as a call of the model.
        config: of the model.
        interventions: what changes in these sites' layers, or a function that says what does so now.
        tokens: says which tokens run, for interventions.
        only: tokens (tokens,) bool to which an intervention is confined; None for all.
        needs: `Need.RESIDUAL` and `Need.WITHOUT` are told only where they are asked for.

    Raises:
        CannotWatch: a block does something else than weighting its experts' outputs, or was called without its experts.
    """
    watched = {}
    for site in sites:
        acting = partial(acting_in, site.layer.index, interventions)
        watched[site.layer.index] = WatchedSite(site, config, on_event, acting, tokens, only, needs)
    handles = [handle for each in watched.values() for handle in _hook(each, owner)]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def acting_in(
    layer: int, interventions: Sequence[Intervention] | Callable[[], Sequence[Intervention]]
) -> list[Intervention]:
    """Those of the interventions that act in a layer."""
    all_of_them = interventions() if callable(interventions) else interventions
    return [each for each in all_of_them if each.acts_in([layer])]


def _hook(watch: WatchedSite, owner: object | None) -> Handles:
    site = watch.site

    def before_block(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if OWNER.get() is owner:
            watch.before_block(args, kwargs)

    def on_router(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if OWNER.get() is owner:
            watch.on_router(args, kwargs, output)

    def before_experts(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        return watch.before_experts(args, kwargs) if OWNER.get() is owner else None

    def on_experts(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        return watch.on_experts(output) if OWNER.get() is owner else None

    def on_shared(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        return watch.on_shared(output) if OWNER.get() is owner else None

    def on_beside(module: nn.Module, args: tuple, output: Any) -> None:
        if OWNER.get() is owner:
            watch.on_beside(args, output)

    def on_block(module: nn.Module, args: tuple, output: Any) -> None:
        if OWNER.get() is not owner:
            return
        if output is None:  # the block was left by an error
            watch.abandon()
        else:
            watch.on_block(output)

    handles = [
        site.block.register_forward_pre_hook(before_block, with_kwargs=True),
        site.router.register_forward_hook(on_router, with_kwargs=True),
        site.experts.register_forward_pre_hook(before_experts, with_kwargs=True),
        site.experts.register_forward_hook(on_experts),
        site.block.register_forward_hook(on_block, always_call=True),
    ]
    if Need.RESIDUAL in watch.needs:
        handles += [module.register_forward_hook(on_beside) for module in site.beside]
    if site.shared is not None:
        handles.append(site.shared.register_forward_hook(on_shared))
    return handles


def choice_of(call: SiteCall) -> Choice:
    """A call's choice in float32."""
    ranked = None if call.ranked is None else call.ranked.float().reshape(call.logits.shape)
    return Choice(call.logits.float(), ranked, call.index, call.weights.float())


def choice_places(output: Any, call: SiteCall) -> tuple[int, int] | None:
    """Where a router's output holds the experts and the weights that its experts were called with."""
    if not isinstance(output, tuple | list):
        return None

    def place(of: torch.Tensor) -> int | None:
        equal = (
            at
            for at, value in enumerate(output)
            if isinstance(value, torch.Tensor)
            and value.numel() == of.numel()
            and torch.equal(value.reshape(of.shape).to(of), of)
        )
        return next(equal, None)

    index, weights = place(call.index), place(call.weights)
    return None if index is None or weights is None else (index, weights)


def with_choice(args: tuple, kwargs: dict, index: torch.Tensor, weights: torch.Tensor) -> tuple[tuple, dict]:
    """Arguments of an experts module, its second and third tensor replaced."""
    names = [*range(len(args)), *kwargs]
    values = dict(zip(names, (*args, *kwargs.values()), strict=True))
    _, second, third = (name for name, value in values.items() if isinstance(value, torch.Tensor))
    values |= {second: index, third: weights.reshape(index.shape).to(values[third])}
    return tuple(values[at] for at in range(len(args))), {name: values[name] for name in kwargs}


def num_groups(router: nn.Module, config: object) -> int:
    """Groups of experts of which a router excludes some; 1 where there are none."""
    values = (getattr(holder, name, None) for holder in (router, config) for name in ("num_group", "n_group"))
    return next((groups for groups in values if isinstance(groups, int)), 1)


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
