"""Replacement of experts by others."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Literal, Self

import torch
from torch import nn

from moe_probe.errors import NotFitting
from moe_probe.families import DENSE
from moe_probe.forward.dense import dense_ffn
from moe_probe.intervene.choosing import Experts, OnExperts, among, check_experts
from moe_probe.model import MoEModel, Openable, load
from moe_probe.routing import Call, Changes


@dataclass(frozen=True, repr=False)
class Baseline:
    """A dense model whose FFN replaces experts; its fingerprint is part of the edited model's."""

    model: MoEModel

    def __repr__(self) -> str:
        return f"{self.model.name} ({self.model.fingerprint})"

    def check(self, model: MoEModel, layer: int) -> None:
        """Raises an error if the model has no dense FFN in the layer, or one of another width."""
        if layer >= self.model.num_layers or self.model.layer(layer).is_moe:
            raise NotFitting(f"{self.model.name} has no dense FFN in layer {layer}; pass the dense model as baseline=.")
        wanted, width = model.layer(layer).expert_hidden_size, self.model.layer(layer).hidden_size
        if width != wanted:
            raise NotFitting(
                f"The FFN of {self.model.name} takes inputs of {width}, the experts of {model.name} of {wanted}; "
                "pass a dense model of the same width."
            )


@dataclass(frozen=True, repr=False)
class Replace(OnExperts):
    """Runs another expert instead of the named ones, with the weights that they had.

    If the router chose both, the other expert counts twice.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the replaced experts, one or several.
        by: the expert that runs instead: its number, or `"F"` for the dense model's FFN of the same layer.
        baseline: the dense model, for `by="F"`: a checkpoint folder, a hub id or a model. Only that layer's FFN is
            read.
        where: only in these tokens (`Where`); in all by default.
        expert: another name for `experts`, for a single one.

    Examples:
        >>> Replace(layer=0, expert=7, by=4)
        Replace(layer=0, experts=(7,), by=4)
    """

    experts: Experts = ()
    by: int | Literal["F"] | None = None
    expert: InitVar[int | None] = None
    baseline: Openable | Baseline | None = None

    of_chosen = True
    stage = 2

    def __post_init__(self, expert: int | None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if expert is not None:
            object.__setattr__(self, "experts", (expert,))
        if self.baseline is not None and not isinstance(self.baseline, Baseline):
            object.__setattr__(self, "baseline", Baseline(load(self.baseline)))
        super().__post_init__()

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, experts=[1], by=0)

    def claims(self, layer: int) -> frozenset[str]:
        what = "the output of" if self.by == DENSE else "who runs in the place of"
        return frozenset(f"{what} expert {each}" for each in self.named)

    def check(self, model: MoEModel) -> None:
        if self.by is None:
            raise NotFitting("Replace needs by, the expert that runs instead; pass by=.")
        if (self.by == DENSE) != isinstance(self.baseline, Baseline):
            raise NotFitting(
                f"Replace has by={self.by!r} and baseline={self.baseline!r}; pass by='F' and baseline= together, or "
                "the number of an expert as by=."
            )
        super().check(model)
        if isinstance(self.baseline, Baseline):
            self.baseline.check(model, self.layer)
        else:
            check_experts(model, self.layer, (self.by,), kind="Replace")
        for other in model.interventions:
            if isinstance(other, Replace) and other.layer == self.layer:
                self._check_chain(other)

    def _check_chain(self, other: Replace) -> None:
        if other.by in self.named or self.by in other.named:
            raise NotFitting(f"{other!r} and {self!r} form a chain; pass the expert that finally runs as by=.")

    def route(self, call: Call) -> Call:
        if self.by == DENSE:
            return call
        named = among(call.index, self.routed(call.layer)) & call.rows_of(self)[:, None]
        assert isinstance(self.by, int)
        return call.chosen(torch.where(named, self.by, call.index), call.weights)

    def change(self, call: Call, changes: Changes) -> None:
        if not isinstance(self.baseline, Baseline):
            return
        choices = changes.of_experts(self.routed(call.layer), call.rows_of(self))
        rows = call.rows[choices.nonzero()[:, 0]]
        if len(rows):
            changes.replace(choices, self._ffn(call, self.baseline.model)(rows[None])[0])

    def _ffn(self, call: Call, model: MoEModel) -> nn.Module:
        if self not in call.memory:
            call.memory[self] = dense_ffn(model, self.layer).to(call.rows)
        return call.memory[self]
