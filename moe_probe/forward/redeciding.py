"""Lets a router decide again by its own code, with a bias, a mask or another number of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moe_probe.errors import CannotWatch
from moe_probe.forward.deciding import Redeciding, correction_biases
from moe_probe.forward.requests import Requests
from moe_probe.forward.site_call import SiteCall
from moe_probe.forward.sites import Site


class Decided(Exception):
    """Ends a second run of a block where its experts would begin."""

    def __init__(self, index: torch.Tensor, weights: torch.Tensor):
        self.index, self.weights = index, weights


@dataclass
class Redecider:
    """Lets one site decide again.

    Attributes:
        site: the layer.
        parts: arguments of the block's and the router's call that runs, and the call of the experts as it was.
        running: whether the block runs once more, up to its experts.
    """

    site: Site
    parts: Mapping[str, Any] = field(default_factory=dict)
    running: bool = False

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
        """The router's own decision, with `count` experts per row."""
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
                raise self._undecidable(f"has {mode.met} linear maps to its experts alone where one is expected")
            index, weights = decided
            logits = mode.logits.reshape(call.logits.shape).to(call.logits)
        index, weights = (value.reshape(len(call.rows), -1) for value in (index, weights))
        index = self.site.chosen_experts(index, weights)
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
        """Raises `CannotWatch` if the router did not choose by one top-k of all its experts."""
        chose_otherwise = mode.counted == 0 and (requests.get("scores") is not None or wanted != mode.top_k)
        if seen != wanted or chose_otherwise:
            raise self._undecidable(f"does not choose by one top-k of all {mode.experts} experts")

    def _undecidable(self, what: str) -> CannotWatch:
        """The error that says what a router does."""
        router = type(self.site.router).__name__
        return CannotWatch(
            f"Layer {self.site.layer.index}, {router}: the router {what}, so no other choice can be put in its place."
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
        self.running = True
        try:
            with mode:
                self.site.block.forward(*args, **kwargs)
        except Decided as decided:
            return decided.index, decided.weights
        finally:
            self.running = False
        return None


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


def unwatchable(site: Site, what: str) -> CannotWatch:
    """The error that says what a layer does."""
    block = type(site.block).__name__
    return CannotWatch(f"Layer {site.layer.index}, {block}: the block {what}; it cannot be watched.")
