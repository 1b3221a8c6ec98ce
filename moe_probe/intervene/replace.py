"""Experts that run in the place of others."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Self

import torch

from moe_probe.errors import NotFitting
from moe_probe.intervene.choosing import Experts, OnExperts, among, check_experts
from moe_probe.model import MoEModel
from moe_probe.routing import Call


@dataclass(frozen=True, repr=False)
class Replace(OnExperts):
    """Runs another expert where the named one was chosen, with the weight that the named one had.

    Where both were chosen, the other one counts twice.

    Args:
        layer: index of the MoE layer.
        experts: who is replaced, one or several.
        by: who runs instead.
        where: only in these tokens (`Where`); in all by default.
        expert: another name of `experts`, for one.

    Examples:
        >>> Replace(layer=0, expert=7, by=4)
        Replace(layer=0, experts=(7,), by=4)
    """

    experts: Experts = ()
    by: int | None = None
    expert: InitVar[int | None] = None

    of_chosen = True
    stage = 2

    def __post_init__(self, expert: int | None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if expert is not None:
            object.__setattr__(self, "experts", (expert,))
        super().__post_init__()

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, experts=[1], by=0)

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset(f"who runs in the place of expert {each}" for each in self.named)

    def check(self, model: MoEModel) -> None:
        if self.by is None:
            raise NotFitting("Replace needs by, the expert that runs instead; pass by=.")
        super().check(model)
        check_experts(model, self.layer, (self.by,), kind="Replace")
        for other in model.interventions:
            if isinstance(other, Replace) and other.layer == self.layer:
                self._check_chain(other)

    def _check_chain(self, other: Replace) -> None:
        if other.by in self.named or self.by in other.named:
            raise NotFitting(f"{other!r} and {self!r} follow on each other; name the expert that finally runs as by=.")

    def route(self, call: Call) -> Call:
        named = among(call.index, self.routed(call.layer)) & call.rows_of(self)[:, None]
        assert self.by is not None
        return call.chosen(torch.where(named, self.by, call.index), call.weights)
