"""Routing replay: choices from another run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from moe_probe.errors import NotFitting
from moe_probe.forward.reference import MAKING, Reference
from moe_probe.intervene.choosing import OnTokens, check_together
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Need
from moe_probe.signatures import check_number


@dataclass(frozen=True, repr=False)
class Replay(OnTokens):
    """Takes choices and weights from another run, in all MoE layers or in those after one (routing replay).

    Tokens are aligned by document number and position; the router chooses for those that the other run lacks. Replaying
    the unedited run leaves only the direct effect of an edit.

    Args:
        of: the other run (`intervene.reference`); by default the run of the unedited model on the same texts.
        after: only in the layers after this one.
        layer: only in this layer.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Replay(after=5)
        Replay(after=5)
    """

    of: Reference | None = None
    after: int | None = None
    layer: int | None = field(default=None, kw_only=True)  # pyright: ignore[reportIncompatibleVariableOverride]

    fixes = True
    stage = 0

    @classmethod
    def example(cls) -> Self:
        return cls()

    def acts_in(self, moe_layers: Collection[int]) -> frozenset[int]:
        after = -1 if self.after is None else self.after
        return frozenset(each for each in moe_layers if each > after and self.layer in (None, each))

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset({"the choice", "the number of experts"})

    def check(self, model: MoEModel) -> None:
        if self.layer is not None:
            check_number("layer", self.layer, 0)
            model.select_layers(self.layer)
        if self.after is not None:
            check_number("after", self.after, 0, model.num_layers - 1)
        layers = self.acts_in(model.moe_layers)
        if not layers:
            raise NotFitting(f"{model.name} has no MoE layer after {self.after}; pass a smaller after=.")
        missing = set() if self.of is None else layers - set(self.of.layers)
        if missing:
            raise NotFitting(f"The recorded run lacks layer {min(missing)}; {MAKING}.")
        check_together(model, self)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.WEIGHTS}) if self.of is None else frozenset()

    def told(self, reference: Reference) -> Self:
        return replace(self, of=reference) if self.of is None else self

    def route(self, call: Call) -> Call:
        if self.of is None:
            raise NotFitting(f"{self!r} needs another run, which this call does not have; {MAKING}.")
        seen = self.of.layers[call.layer.index]
        if seen.index.shape[1] != call.index.shape[1]:
            raise NotFitting(
                f"The recorded run chose {seen.index.shape[1]} experts per token in layer {call.layer.index}, this one "
                f"chooses {call.index.shape[1]}; {MAKING}."
            )
        at = self.of.rows(call.tokens, call.layer.subtokens).to(call.index.device)
        there = (call.rows_of(self) & (at >= 0))[:, None]
        index, weights = (value.to(call.index.device)[at] for value in (seen.index, seen.weights))
        return call.chosen(
            torch.where(there, index, call.index), torch.where(there, weights.to(call.weights), call.weights)
        )
